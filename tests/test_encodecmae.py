"""The drop-in lobe keeps the contract that SpeechBrain's recipes rely on."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from commands import execute
from ctc_with_lobe import train
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.parameter_transfer import Pretrainer

from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    EnCodecMAE,
    LayerSum,
    LogMel,
    ResiDualTransformer,
    encodecmae,
)
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.pretrained.folder import export_encoder

SCRIPT = Path(__file__).with_name("ctc_with_lobe.py")


def make_encoder(kind="mel"):
    """A small random encoder whose layers all matter."""
    front_end = LogMel() if kind == "mel" else CodecLatents(n_filters=2)
    transformer = ResiDualTransformer(32, 3, 2, 48)
    return AudioEncoder(front_end, transformer).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported encoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "encoder"
    export_encoder(make_encoder(), path)
    return str(path)


@pytest.mark.parametrize("kind", ["mel", "latents"])
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("chunk_seconds", [0.5, None])
def test_features_do_not_depend_on_the_batch(kind, rate, chunk_seconds):
    lobe = EnCodecMAE(
        make_encoder(kind), input_sample_rate=rate, chunk_seconds=chunk_seconds
    )
    seconds = (0.31, 0.5, 0.9, 1.3)
    items = [0.3 * torch.randn(int(rate * s)) for s in seconds]
    longest = max(len(item) for item in items)
    # What stands after the end of an item is anything but silence.
    batch = torch.randn(len(items), longest)
    for row, item in zip(batch, items, strict=True):
        row[: len(item)] = item
    lens = torch.tensor([len(item) / longest for item in items])
    together = lobe(batch, lens)
    for i, item in enumerate(items):
        for alone in (lobe(item[None])[0], lobe(item[None], torch.ones(1))[0]):
            difference = (together[i, : len(alone)] - alone).abs().max()
            assert difference < 1e-4


@pytest.mark.parametrize("kind", ["mel", "latents"])
def test_same_features_as_the_interface(kind):
    encoder = make_encoder(kind)
    wavs = 0.3 * torch.randn(1, 2 * 96000 + 32000)
    for layer in ("last", "last_no_norm", 1):
        lobe = EnCodecMAE(encoder, input_sample_rate=24000, layer=layer)
        (expected,) = encode_in_chunks(encoder, wavs, layer=layer)
        assert torch.allclose(lobe(wavs)[0], expected, atol=1e-5)


def test_about_75_frames_a_second(folder):
    lobe = EnCodecMAE(folder, input_sample_rate=16000)
    assert lobe(torch.zeros(1, 16000)).shape == (1, 75, 32)
    assert lobe(torch.zeros(1, 10 * 16000)).shape == (1, 750, 32)


def test_layers(folder):
    wavs = 0.1 * torch.randn(2, 8000)
    every = EnCodecMAE(folder, output_all_hiddens=True)(wavs)
    assert every.shape[:2] == (3, 2)
    assert torch.equal(EnCodecMAE(folder)(wavs), every[-1])
    assert torch.equal(EnCodecMAE(folder, layer=0)(wavs), every[0])
    lobe = EnCodecMAE(folder, layer="weighted")
    with torch.no_grad():
        lobe.layer_weights.copy_(torch.tensor([0.0, 50.0, 0.0]))
    assert torch.allclose(lobe(wavs), every[1], atol=1e-6)
    normed = EnCodecMAE(folder, output_norm=True)(wavs)
    assert normed.mean(-1).abs().max() < 1e-5
    assert (normed.var(-1, unbiased=False) - 1).abs().max() < 1e-2


def test_frozen_stays_frozen_and_layer_weights_learn(folder):
    lobe = EnCodecMAE(folder, freeze=True, layer="weighted").train()
    assert lobe.training
    assert not any(m.training for m in lobe.encoder.modules())
    before = {name: value.clone() for name, value in lobe.state_dict().items()}
    optimizer = torch.optim.Adam(lobe.parameters(), lr=0.1)
    lobe(0.1 * torch.randn(2, 8000)).square().mean().backward()
    optimizer.step()
    after = lobe.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"layer_weights"}


def test_gradients_flow_where_they_should(folder):
    wavs = 0.1 * torch.randn(2, 8000)
    lobe = EnCodecMAE(folder, freeze=False)
    lobe(wavs).square().sum().backward()
    without = [n for n, p in lobe.named_parameters() if p.grad is None]
    assert without == []
    lobe = EnCodecMAE(folder, freeze=False, freeze_feature_extractor=True)
    lobe(wavs).square().sum().backward()
    without = {n for n, p in lobe.named_parameters() if p.grad is None}
    assert without == {
        "encoder.projection.weight",
        "encoder.projection.bias",
        "encoder.positions.scale",
    }


@pytest.fixture
def process_group():
    """A group of one process, enough to see what DDP asks of a module."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shared_ffn", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2, "last_no_norm", "last", "weighted"])
def test_all_that_is_trained_is_used(process_group, layer, shared_ffn):
    transformer = ResiDualTransformer(32, 3, 2, 48, shared_ffn=shared_ffn)
    encoder = AudioEncoder(LogMel(), transformer)
    lobe = EnCodecMAE(encoder, freeze=False, layer=layer)
    parallel = torch.nn.parallel.DistributedDataParallel(lobe)
    for _ in range(2):  # what the first step left unused, the second complains of
        parallel(0.1 * torch.randn(2, 8000)).square().sum().backward()
    trained = {n for n, p in lobe.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in lobe.named_parameters() if p.grad is not None}
    named = "encoder.transformer.layers.{}.norm2.weight".format
    last = layer if isinstance(layer, int) else 2
    assert {i for i in range(3) if named(i) in trained} == set(range(last + 1))
    normed = last == 2 and layer != "last_no_norm"
    assert ("encoder.transformer.final_norm.weight" in trained) == normed


def test_gradients_reach_the_waveform():
    wavs = (0.1 * torch.randn(2, 9000)).requires_grad_()
    lobe = EnCodecMAE(make_encoder(), freeze=False, chunk_seconds=0.5)
    lobe(wavs, torch.tensor([1.0, 0.5])).square().sum().backward()
    assert (wavs.grad[0] != 0).any()
    assert (wavs.grad[1, :4500] != 0).any()
    assert not wavs.grad[1, 4500:].any()


def test_state_goes_through_checkpointer_and_pretrainer(folder, tmp_path):
    saved = EnCodecMAE(folder, layer="weighted")
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1)
    wavs = 0.1 * torch.randn(1, 8000)
    checkpoint = Checkpointer(tmp_path, {"lobe": saved}).save_checkpoint()

    fresh = EnCodecMAE(folder, layer="weighted")
    assert not torch.allclose(fresh(wavs), saved(wavs))
    Checkpointer(tmp_path, {"lobe": fresh}).recover_if_possible()
    assert torch.equal(fresh(wavs), saved(wavs))

    fresh = EnCodecMAE(folder, layer="weighted", pretrained=False)
    pretrainer = Pretrainer(tmp_path / "collected", {"lobe": fresh})
    pretrainer.set_collect_in(tmp_path / "collected")
    pretrainer.collect_files(default_source=str(checkpoint.path))
    pretrainer.load_collected()
    assert torch.equal(fresh(wavs), saved(wavs))


def test_not_pretrained_is_another_encoder_of_the_same_shape(folder):
    lobe, random = EnCodecMAE(folder), EnCodecMAE(folder, pretrained=False)
    shapes = [{n: p.shape for n, p in x.named_parameters()} for x in (lobe, random)]
    assert shapes[0] == shapes[1]
    weights = [x.encoder.projection.weight for x in (lobe, random)]
    assert not torch.equal(*weights)


def parts_that_differ(ours, theirs):
    """Names of the parameters and buffers that are not equal."""
    theirs = theirs.state_dict()
    return {name for name, x in ours.state_dict().items() if not x.equal(theirs[name])}


@pytest.mark.parametrize("given", ["folder", "encoder"])
@pytest.mark.parametrize("kind", ["mel", "latents"])
def test_new_weights_keep_what_is_frozen(tmp_path, kind, given):
    front_end = LogMel() if kind == "mel" else CodecLatents(Codec("bundled"))
    encoder = AudioEncoder(front_end, ResiDualTransformer(32, 1, 2, 48))
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    source = encoder
    if given == "folder":
        source = tmp_path / "encoder"
        export_encoder(encoder, source)
    fresh = EnCodecMAE(source, pretrained=False).encoder
    # All that is drawn at random is new, the codec inside is not.
    drawn = {name for name, x in encoder.named_parameters() if x.dim() == 2}
    assert parts_that_differ(fresh, encoder) == drawn
    wavs = 0.1 * torch.randn(1, 3200)
    assert torch.equal(fresh.front_end(wavs), front_end(wavs))
    # The encoder that was given stays as it was.
    assert all(torch.equal(x, before[n]) for n, x in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_sample_rate": None}, "input_sample_rate=None"),
        ({"input_sample_rate": 16}, "input_sample_rate=16"),
        ({"layer": 3}, "layer=3.*0 to 2"),
        ({"layer": "first"}, "layer='first'"),
        ({"chunk_seconds": 0.01}, "chunk_seconds=0.01"),
    ],
)
def test_options_without_meaning(folder, options, message):
    with pytest.raises(ValueError, match=message):
        EnCodecMAE(folder, **options)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such encoder folder"):
        EnCodecMAE(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not an exported folder"):
        EnCodecMAE(tmp_path)
    yaml = (Path(folder) / "hyperparams.yaml").read_text()
    (tmp_path / "hyperparams.yaml").write_text(yaml)
    with pytest.raises(ValueError, match="encoder.ckpt is missing"):
        EnCodecMAE(tmp_path)
    older = yaml.replace("format: 2", "format: 1")
    (tmp_path / "hyperparams.yaml").write_text(older)
    with pytest.raises(ValueError, match="has format 1.*reads format 2"):
        EnCodecMAE(tmp_path)


def test_a_sum_of_layers_learns_in_a_recipe_like_speechbrains(folder):
    def weights(steps, kind):
        brain = train(folder, steps, kind, {"device": "cpu"})
        tensors = {**brain.modules.state_dict()}
        (name,) = [name for name in tensors if name.endswith("layer_weights")]
        return name, tensors[name]

    name, learnt = weights(3, "summed")
    assert name == "enc.0.layer_weights"
    assert learnt.unique().numel() == 3
    # What is inside a frozen lobe gets no optimizer there.
    name, not_learnt = weights(3, "weighted")
    assert name == "wav2vec2.layer_weights"
    assert not not_learnt.any()


def test_a_sum_of_layers_that_never_learns_is_reported(folder, caplog, monkeypatch):
    monkeypatch.setattr(encodecmae, "_PASSES", 2)
    lobe = EnCodecMAE(folder, layer="weighted").train()
    wavs = torch.zeros(1, 3200)
    with caplog.at_level(logging.WARNING):
        lobe(wavs)
        with torch.no_grad():
            lobe(wavs)
        lobe.eval()(wavs)
        assert not caplog.records
        lobe.train()(wavs)
        lobe.eval()(wavs)
        lobe.train()(wavs)
    (record,) = caplog.records
    assert "LayerSum" in record.getMessage()
    caplog.clear()
    learnt = EnCodecMAE(folder, layer="weighted").train()
    torch.nn.init.normal_(learnt.layer_weights)
    learnt(wavs), learnt(wavs)
    assert not caplog.records


def test_both_sums_of_layers_are_the_same(folder):
    lobe = EnCodecMAE(folder, layer="weighted", output_norm=True)
    every = EnCodecMAE(folder, output_all_hiddens=True, output_norm=True)
    layer_sum = LayerSum(3)
    state = {"layer_weights": torch.tensor([0.5, -1.0, 2.0])}
    layer_sum.load_state_dict(state)
    lobe.load_state_dict({**lobe.state_dict(), **state})
    wavs = 0.1 * torch.randn(2, 8000)
    assert torch.equal(layer_sum(every(wavs)), lobe(wavs))
    for wrong in (every(wavs)[:2], lobe(wavs)):
        with pytest.raises(ValueError, match="num_layers=3.*output_all_hiddens"):
            layer_sum(wrong)


def drive(folder, output, steps, kind, *options, launcher=(sys.executable,)):
    """Losses of the steps that a run of `ctc_with_lobe.py` made."""
    command = [*launcher, SCRIPT, folder, output, steps, kind, "--device", "cpu"]
    text = execute([*command, *options], output.parent)
    # (torch 2.8 prints lines that begin with [Gloo].)
    lines = [x for x in text.splitlines() if x.startswith("[") and x[1:5] != "Gloo"]
    return json.loads(lines[0])


GLOO = (sys.executable, "-m", "torch.distributed.run", "--standalone")


@pytest.mark.parametrize(
    ("kind", "options", "processes"),
    [
        ("frozen", (), 1),
        ("trained", ("--precision", "bf16"), 1),
        ("summed", ("--distributed_backend", "gloo"), 2),
        ("trained", ("--distributed_backend", "gloo"), 2),
    ],
)
def test_in_a_recipe_like_speechbrains(folder, tmp_path, kind, options, processes):
    launcher = (sys.executable,)
    if processes > 1:
        launcher = (*GLOO, f"--nproc_per_node={processes}")
    whole = drive(folder, tmp_path / "a", 4, kind, *options, launcher=launcher)
    first = drive(folder, tmp_path / "b", 2, kind, *options, launcher=launcher)
    then = drive(folder, tmp_path / "b", 4, kind, *options, launcher=launcher)
    assert len(whole) == 4
    assert len(first) == len(then) == 2
    assert first + then == whole
