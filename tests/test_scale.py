"""What must hold from a laptop to many processes: the same result, no waiting for the
device, clear errors."""

import sys

import numpy as np
import pytest
import torch
from commands import command, execute
from speechbrain import Stage
from test_brains import make_brain
from torch._dynamo.testing import CompileCounter
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    GapMasker,
    LogMel,
    MaskedCodecLoss,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.codebooks import DrawnCodebooks
from encodecmae_sb.nnet.masking import FrameMask, frame_mask
from encodecmae_sb.pipelines.benchmark.audio import spoken
from encodecmae_sb.pipelines.benchmark.brain import random_batch
from encodecmae_sb.utils.experiment import quit_on_user_errors


def torchrun(processes):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*launcher, f"--nproc_per_node={processes}")


HALF, REST = slice(0, 2), slice(2, 4)


def test_shares_of_unequal_size_add_up():
    loss_fn = MaskedCodecLoss(2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, 2, 16, generator=generator)
    codes = torch.randint(16, (4, 50, 2), generator=generator)
    lengths = torch.tensor([50, 40, 3, 9])
    mask = GapMasker()(lengths, lengths, 50)
    whole = loss_fn(logits, codes, mask).loss
    masks = [FrameMask.of(mask.hidden[x], lengths[x]) for x in (HALF, REST)]
    shares = [(logits[x], codes[x]) for x in (HALF, REST)]
    shares = [(*share, part) for share, part in zip(shares, masks, strict=True)]
    counts = sum(part.counts for part in masks) / 2
    together = sum(loss_fn(*share, counts).loss for share in shares) / 2
    assert float(together) == pytest.approx(float(whole), rel=1e-6)
    # Each by its own count would be something else.
    apart = sum(loss_fn(*share).loss for share in shares) / 2
    assert abs(apart - whole) > 1e-3


DYING = """
import os, runpy, sys
from encodecmae_sb.brains.pretrain import PretrainBrain

before = PretrainBrain.on_fit_batch_start
def dies(brain, batches, should_step):
    if brain.optimizer_step == 3 and os.environ["RANK"] == "1":
        raise OSError("the disk is gone")
    before(brain, batches, should_step)
PretrainBrain.on_fit_batch_start = dies
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_process_that_dies_ends_the_others(tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    arguments = command(
        tmp_path / "run",
        launcher=(*torchrun(2), str(script)),
        distributed_backend="gloo",
        training_steps=10**6,
        batch_size=2,
    )
    text = execute(arguments, tmp_path, expect=1)  # ends within its time limit
    assert "the disk is gone" in text


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: (_ for _ in ()).throw(
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        ),
    ],
    ids=["cpu", "numpy", "gpu"],
)
def test_out_of_memory_says_what_to_lower(fail):
    def run():
        with quit_on_user_errors():
            for _ in fail():
                pass

    with pytest.raises(SystemExit) as caught:
        run()
    message = str(caught.value)
    for key in (
        "out of memory",
        "batch_size",
        "grad_accumulation_factor",
        "crop_seconds",
        "precision",
        "activation_checkpointing",
    ):
        assert key in message


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="something else"), quit_on_user_errors():
        raise RuntimeError("something else")


def test_crops_that_cannot_be_shared(tmp_path):
    brain = make_brain(tmp_path / "a", crops_per_step=12)
    assert brain.grad_accumulation_factor == 3
    with pytest.raises(ValueError, match="crops_per_step=10.*batch_size=4") as caught:
        make_brain(tmp_path / "b", crops_per_step=10)
    assert "1, 2, 5, 10" in str(caught.value)


class Questions(TorchDispatchMode):
    """Counts what asks the device for a number, which waits for all it has to do."""

    asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
        ):
            self.asked += 1
        return func(*args, **(kwargs or {}))


def ready(tmp_path, **options):
    brain = make_brain(tmp_path, **options)
    brain.init_optimizers()
    brain.on_stage_start(Stage.TRAIN)
    return brain


def step(brain, batch):
    brain.step += 1
    loss = brain.fit_batch([batch])
    brain.avg_train_loss = brain.update_average(loss, brain.avg_train_loss)
    return loss


@pytest.mark.parametrize("full", [True, False])
def test_a_step_never_waits_for_the_device(tmp_path, full):
    brain = ready(tmp_path, skip_nonfinite_grads=True, max_grad_norm=1.0)
    batch = random_batch(2, 12160, 8, 1024)
    batch.full = full
    with Questions() as questions:
        for _ in range(3):
            step(brain, batch)
        assert questions.asked == 0
        float(step(brain, batch))
        assert questions.asked == 1  # it does count


def test_losses_read_late_are_the_same_mean(tmp_path):
    brain = ready(tmp_path)
    seen = [float(step(brain, random_batch(2, 3200, 8, 1024))) for _ in range(25)]
    mean = brain.read_losses(brain.avg_train_loss)
    assert mean == pytest.approx(sum(seen) / len(seen), rel=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, fused):
    brain = ready(tmp_path, skip_nonfinite_grads=True)
    brain.nonfinite_patience, brain.nonfinite_count = 1, 0
    if not fused:
        parameters = list(brain.modules.parameters())
        brain.optimizer = torch.optim.AdamW(parameters, lr=0.1)
        brain.optimizers_dict = {"opt_class": brain.optimizer}
    good = random_batch(2, 3200, 8, 1024)
    bad = random_batch(2, 3200, 8, 1024)
    bad.wavs[0] = float("nan")
    step(brain, good)
    before = [p.clone() for p in brain.modules.parameters()]
    step(brain, bad)
    after = list(brain.modules.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    step(brain, good)
    after = list(brain.modules.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    step(brain, bad)
    with pytest.raises(ValueError, match="not finite 2 times.*lr"):
        brain.read_losses(0.0)


def test_a_fused_optimizer_clips_as_speechbrain_does(tmp_path):
    batches = [random_batch(2, 3200, 8, 1024, seed) for seed in range(4)]

    def trained(folder, fused, max_grad_norm):
        torch.manual_seed(0)
        brain = ready(tmp_path / folder, max_grad_norm=max_grad_norm)
        for group in brain.optimizer.param_groups:
            group["fused"] = fused
        for batch in batches:
            step(brain, batch)
        assert brain.optimizer_step == 4
        return torch.cat([p.detach().flatten() for p in brain.modules.parameters()])

    clipped, theirs = trained("a", True, 0.01), trained("b", False, 0.01)
    free, also_free = trained("c", True, 1e9), trained("d", False, 1e9)
    apart = (clipped - free).norm()
    assert (clipped - theirs).norm() < 0.01 * apart
    assert (free - also_free).norm() < 0.01 * apart


@pytest.mark.parametrize("norm", [0, -1, None])
def test_a_gradient_norm_that_is_not_positive(tmp_path, norm):
    with pytest.raises(ValueError, match=f"max_grad_norm={norm}.*positive"):
        make_brain(tmp_path, max_grad_norm=norm)


def small_model(**options):
    torch.manual_seed(0)
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 6, 4, 256, **options))
    decoder = ResiDualTransformer(64, 2, 4, 256, **options)
    return MaskedCodecModel(encoder, decoder, 2, 16)


class Memory(TorchDispatchMode):
    """The most bytes that tensors made in it had at once."""

    def __init__(self):
        super().__init__()
        self.storages = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = (reference, storage.nbytes())
        self.storages = {
            key: value for key, value in self.storages.items() if not value[0].expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


@pytest.mark.parametrize("shared", [True, False])
def test_activation_checkpointing(shared):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 16, generator=generator)
    valid = frame_mask(torch.tensor([50, 40, 1, 50]), 50)
    gradients, peaks = [], []
    for again in (False, True):
        torch.manual_seed(0)
        net = ResiDualTransformer(
            16, 8, 2, 256, shared_ffn=shared, activation_checkpointing=again
        )
        with Memory() as memory:
            net(x, valid).last.square().mean().backward()
        peaks.append(memory.peak)
        gradients.append([p.grad for p in net.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-9)
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("some", [False, True], ids=["all", "one of two codebooks"])
def test_compiles_whole_and_once(some):
    """One graph for model and loss, and the same one for every batch."""
    model, loss_fn, masker = small_model(), MaskedCodecLoss(2), GapMasker()
    counter = CompileCounter()

    def forward(wavs, mask, codes, drawn):
        logits = model(wavs, mask, drawn and drawn.numbers)
        return loss_fn(logits, codes, mask, None, drawn).loss

    compiled = torch.compile(forward, backend=counter, fullgraph=True)
    lengths = torch.tensor([75, 75])
    for seed in range(3):
        mask = masker(lengths, lengths + seed, 75, padded=False)
        generator = torch.Generator().manual_seed(seed)
        wavs = torch.randn(2, 24000, generator=generator)
        codes = torch.randint(16, (2, 75, 2), generator=generator)
        drawn = None
        if some:  # another one each time
            factors = torch.tensor([1.5 + seed])
            drawn = DrawnCodebooks(torch.tensor([seed % 2]), factors)
        with torch.autocast("cpu", torch.bfloat16):
            expected = forward(wavs, mask, codes, drawn)
            got = compiled(wavs, mask, codes, drawn)
        assert torch.allclose(got, expected, rtol=1e-3)
        got.backward()
    assert counter.frame_count == 1


def test_a_frozen_codec_stays_out_of_the_graph(tmp_path, monkeypatch):
    """Inside the graph, it would break the graph into parts, in every step."""
    brain = make_brain(tmp_path)
    model, counter, compiles = brain.hparams.model, CompileCounter(), torch.compile
    model.encoder = AudioEncoder(
        CodecLatents(Codec("bundled")), model.encoder.transformer
    )
    batches = [random_batch(2, 12160, 8, 1024, seed) for seed in range(3)]

    def logits():
        return [brain.compute_forward(batch, Stage.TRAIN)[0] for batch in batches]

    expected = logits()
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "compile", lambda module, **_: compiles(module, backend=counter)
        )
        brain.compile = True
        brain._compile()
    for ours, theirs in zip(logits(), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    # What is before it, what the encoder does with its output, and the rest.
    assert counter.frame_count <= 3


def test_bf16_stays_close_to_float32():
    encoder = small_model().encoder.eval()
    wavs = spoken(96000)[None]
    with torch.no_grad():
        exact = encoder(wavs).last
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(wavs).last
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.01 * exact.norm()
