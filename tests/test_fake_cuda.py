"""The path of a GPU, on a machine without one: no wrong device, and no waiting.

Where the design waits for the device on purpose, a test says so.
"""

from types import SimpleNamespace

import pytest
import torch
from fake_cuda import CUDA, FakeCuda, HostSync, pretend_backward
from speechbrain import Stage
from test_brains import make_brain

from encodecmae_sb.data.crops import CropCollator
from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    CTCHead,
    EnCodecMAE,
    InputAugment,
    LayerSum,
    LogMel,
    MelRVQ,
    RandomProjection,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.loss import _CrossEntropy
from encodecmae_sb.nnet.pooling import POOLINGS, ClipHead
from encodecmae_sb.nnet.quantise import draw_projections
from encodecmae_sb.pretrained.target_files import save_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


@pytest.fixture
def gpu(monkeypatch):
    # Both would ask the driver: cuDNN's LSTM, and torch's engine for gradients.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    monkeypatch.setattr(torch.Tensor, "backward", pretend_backward)
    with FakeCuda() as gpu:
        yield gpu


def make_encoder(front_end=None):
    front_end = LogMel() if front_end is None else front_end
    return AudioEncoder(front_end, ResiDualTransformer(16, 2, 2, 24))


FRONT_ENDS = {
    "log-mel": LogMel,
    "published log-mel": lambda: LogMel(hop_length=318, centered=False),
    "codec latents": lambda: CodecLatents(Codec("bundled")),
    "level": lambda: LogMel(normalise="level"),
    "latents, level": lambda: CodecLatents(Codec("bundled"), normalise="level"),
}


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_encoder(gpu, front_end):
    encoder = gpu.move(make_encoder(front_end()))
    wavs = torch.zeros(2, 6400, device=CUDA)
    output = encoder(wavs, torch.tensor([18, 10], device=CUDA))
    assert output.last.device == CUDA


def test_codec(gpu):
    codec = gpu.move(Codec("bundled"))
    wavs = torch.zeros(2, 3201, device=CUDA)
    codes, latents = codec.encode(wavs), codec.latents(wavs)
    assert codes.shape == (2, 11, 8)
    assert latents.shape == (2, 11, 128)
    wavs = codec.decode(codes)
    assert wavs.shape == (2, 11 * 320)
    assert {x.device for x in (codes, latents, wavs)} == {CUDA}


@pytest.mark.parametrize("kind", [MelRVQ, RandomProjection])
def test_mel_targets(gpu, tmp_path, kind):
    projections, codebooks = draw_projections(48, 3, 16, 8, seed=0)
    tables = {"mean": torch.zeros(48), "std": torch.ones(48), "codebooks": codebooks}
    if kind is MelRVQ:
        tables["codebooks"] = torch.randn(3, 16, 48)
    else:
        tables["projections"] = projections
    settings = {"n_mels": 24, "stack": 2, "n_codebooks": 3}
    save_targets(tmp_path / "file", kind.file_kind, settings, tables)
    targets = gpu.move(kind(tmp_path / "file"))
    codes = targets.encode(torch.zeros(2, 3201, device=CUDA))
    assert (codes.shape, codes.device) == ((2, 11, 3), CUDA)


def make_batches(samples=(12800, 12800), stored=False):
    """What a step gets from the loader: two batches, on the CPU."""
    crops = []
    for count in samples:
        crop = {"wav": torch.zeros(count), "corpus": 0, "seed": count, "unusable": []}
        if stored:
            crop["targets"] = torch.zeros(count // 320, 8, dtype=torch.int64)
        crops.append(crop)
    return [CropCollator()(crops)] * 2


@pytest.fixture
def brain(tmp_path, gpu):
    """The Brain of mini.yaml, made small, as it is where there is a GPU."""
    brain = make_brain(tmp_path)
    brain.device, brain.device_type = CUDA, "cuda"
    gpu.move(brain.modules)
    brain.init_optimizers()
    brain.on_stage_start(Stage.TRAIN, 1)
    return brain


STEPS = {
    "full": {},
    "padded": {"samples": (12800, 6400)},
    "stored": {"stored": True},
}


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_training_step(brain, options):
    """All of it: targets, mask, model, loss, clipping, the fused optimizer."""
    brain.skip_nonfinite_grads = True
    parameters = list(brain.modules.model.parameters())
    assert brain.optimizer.param_groups[0]["fused"]
    loss = brain.fit_batch(make_batches(**options))
    states = brain.optimizer.state_dict()["state"].values()
    found = [state["exp_avg"] for state in states]
    assert len(found) == len(parameters)
    assert {x.device for x in [*parameters, *found, loss]} == {CUDA}
    assert brain.optimizer.found_inf.device == CUDA
    assert brain.optimizer_step == 1


def test_losses_are_read_every_20_steps(brain):
    """This the host waits for, on purpose."""
    for _ in range(19):
        brain.update_average(torch.zeros((), device=CUDA), 0.0)
    with pytest.raises(HostSync):
        brain.update_average(torch.zeros((), device=CUDA), 0.0)


def test_validation_reads_its_sums(brain):
    """Its forward pass waits for nothing; its sums are on the CPU, on purpose."""
    brain.transcripts = ["", ""]  # then the monitors collect frames and codes
    brain.on_stage_start(Stage.VALID)
    assert brain.monitors is not None
    brain.unigram = torch.zeros(2, 8, 1024, device=CUDA)
    batch = make_batches()[0]
    with torch.no_grad():
        logits, codes, mask = brain.compute_forward(batch, Stage.VALID)
        assert {x.device for x in (logits, codes, mask.hidden)} == {CUDA}
        assert {x.device for x in brain.monitors.kept} == {CUDA}
        with pytest.raises(HostSync):
            brain.compute_objectives((logits, codes, mask), batch, Stage.VALID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_loss(gpu, dtype):
    """The one gradient that is our own code."""
    logits = torch.zeros(30, 1024, device=CUDA, dtype=dtype)
    codes = torch.zeros(30, dtype=torch.int64, device=CUDA)
    ctx = SimpleNamespace(saved_tensors=(logits, codes), rows=7)
    backward = _CrossEntropy.backward.__wrapped__  # without `once_differentiable`
    gradient, _ = backward(ctx, torch.zeros(30, device=CUDA))
    assert (gradient.device, gradient.dtype) == (CUDA, dtype)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_clip_head(gpu, pooling):
    head = gpu.move(ClipHead(16, 5, num_layers=3, pooling=pooling, hidden_size=8))
    frames = torch.zeros(3, 2, 75, 16, device=CUDA)
    num_frames = torch.tensor([75, 40], device=CUDA)
    logits = head(head.summarise(frames, num_frames), num_frames)
    assert (logits.device, logits.shape) == (CUDA, (2, 5))


def test_layer_sum_and_ctc_head(gpu):
    layers = torch.zeros(3, 2, 75, 16, device=CUDA)
    frames = gpu.move(LayerSum(3))(layers)
    num_frames = torch.tensor([75, 40], device=CUDA)
    head = gpu.move(CTCHead(16, 29, hidden_size=8, recurrent=False, stack=2))
    log_probs, num_steps = head(frames, num_frames)
    assert (log_probs.device, log_probs.shape) == (CUDA, (2, 38, 29))
    assert num_steps.device == CUDA
    # The LSTM waits, on purpose: torch packs sequences by lengths on the CPU.
    head = gpu.move(CTCHead(16, 29, hidden_size=8))
    with pytest.raises(HostSync):
        head(frames, num_frames)


def test_input_augment(gpu):
    """All of it, from seeds on the device."""
    augment = gpu.move(InputAugment(background_seconds=1))
    wavs = torch.zeros(2, 9600, device=CUDA)
    lengths, seeds = torch.tensor([[9600, 5000], [1, 2]], device=CUDA)
    heard = augment(wavs, lengths, seeds)
    assert (heard.device, heard.shape) == (CUDA, (2, 9600))


LOBES = {
    "last": {},
    "finetuned": {"freeze": False},
    "weighted": {"layer": "weighted", "output_norm": True},
    "all": {"output_all_hiddens": True, "chunk_seconds": None},
    "24 kHz": {"input_sample_rate": 24000},
}


@pytest.mark.parametrize("options", LOBES.values(), ids=LOBES)
def test_lobe(gpu, options):
    """With no lengths, and with lengths on the CPU, it waits for nothing."""
    check_lobe(gpu, LogMel(), **options)


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_lobe_with_front_end(gpu, front_end):
    check_lobe(gpu, front_end())


def check_lobe(gpu, front_end, chunk_seconds=0.2, **options):
    encoder = make_encoder(front_end)
    lobe = gpu.move(EnCodecMAE(encoder, chunk_seconds=chunk_seconds, **options))
    wavs = torch.zeros(2, 8000, device=CUDA)
    assert lobe(wavs).device == CUDA
    frames, num_frames = lobe.encode(wavs, torch.tensor([8000, 5001]))
    assert frames.device == num_frames.device == CUDA


def test_lobe_reads_lengths(gpu):
    """It waits, on purpose: SpeechBrain has lengths on the device; chunks need them."""
    lobe = gpu.move(EnCodecMAE(make_encoder()))
    wavs, lengths = torch.zeros(2, 8000, device=CUDA), torch.ones(2, device=CUDA)
    with pytest.raises(HostSync):
        lobe(wavs, lengths)


PLANTED = {
    "item": lambda x: x + x.mean().item(),
    "tolist": lambda x: x + x[0, 0, 0].tolist(),
    "cpu": lambda x: x + x.cpu().to(x.device),
    "to": lambda x: x + x.to("cpu", non_blocking=True).to(x.device),
    "bool": lambda x: x + 1 if x.isfinite().all() else x,
    "nonzero": lambda x: x + x.nonzero().shape[0],
    "where": lambda x: x + x[x > 0].sum(),
    "sum": lambda x: x + torch.ones(x.shape[-1]),
    "product": lambda x: x @ torch.ones(x.shape[-1], x.shape[-1]),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_seen(brain, monkeypatch, planted):
    """In the middle of a training step."""
    forward = AudioEncoder.encode

    def wrong(self, frames, *args):
        return forward(self, PLANTED[planted](frames), *args)

    monkeypatch.setattr(AudioEncoder, "encode", wrong)
    kind, message = HostSync, "needs a value|copies to the CPU"
    if planted in ("sum", "product"):
        kind, message = RuntimeError, "two different devices cuda:0, cpu"
    with pytest.raises(kind, match=message):
        brain.fit_batch(make_batches(stored=True))


def test_the_cpu_stays_real(gpu):
    """Lengths on the CPU keep their values, for what counts on the host."""
    assert torch.tensor([3, 4]).cumsum(0).tolist() == [3, 7]
    with pytest.raises(HostSync):
        torch.zeros(2, 2).copy_(torch.zeros(2, 2, device=CUDA))
