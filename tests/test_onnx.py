"""An encoder as an ONNX file, or as one of torch.export."""

import importlib.util
import shutil
from unittest import mock

import pytest
import torch
from commands import run_recipe

from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.pipelines import deploy as pipeline
from encodecmae_sb.pipelines.deploy import deploy, measure_agreement, speech
from encodecmae_sb.pretrained import graphs
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.utils.errors import UserError

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in graphs._EXTRA),
    reason="the extra [onnx] is not installed",
)


@pytest.fixture
def quickly(monkeypatch):
    """Speed is not of interest: one call is enough."""
    monkeypatch.setattr(pipeline, "median_time", lambda *_: 1.0)


@pytest.fixture(scope="module")
def exported(mel_folder, tmp_path_factory):
    """Both files of one run of the command, and what it printed."""
    folder = tmp_path_factory.mktemp("onnx")
    said = []

    def quantise(path, target):
        shutil.copy(path, folder / "float32.onnx")
        graphs.quantise(path, target)

    with (
        mock.patch.object(pipeline, "quantise", quantise),
        mock.patch.object(pipeline, "median_time", return_value=1.0),
        mock.patch("builtins.print", said.append),
    ):
        run_recipe("export_onnx", mel_folder, folder / "int8.onnx", "--int8")
    return folder, "\n".join(map(str, said))


@needs_onnx
def test_onnx_equals_pytorch(exported, mel_folder):
    """At lengths that the command does not check itself, and without this package."""
    import onnxruntime

    encoder = load_encoder_folder(mel_folder).eval()
    session = onnxruntime.InferenceSession(exported[0] / "float32.onnx")
    assert [(x.name, x.type) for x in session.get_inputs()] == [
        ("wavs", "tensor(float)"),
        ("lengths", "tensor(int64)"),
    ]
    for samples in (1, 17, 5000, 24000, 96001, 20 * 24000):
        wavs = 0.1 * torch.randn(2, samples)
        lengths = torch.tensor([samples, samples // 2 + 1])
        given = {"wavs": wavs.numpy(), "lengths": lengths.numpy()}
        frames, num_frames = session.run(["frames", "num_frames"], given)
        assert frames.shape == (2, -(-samples // 320), encoder.dim)
        assert num_frames.tolist() == [-(-n // 320) for n in lengths.tolist()]
        for wav, length, row, count in zip(
            wavs, lengths, frames, num_frames, strict=True
        ):
            with torch.no_grad():
                alone = encoder(wav[None, :length]).last[0]
            row = torch.from_numpy(row[:count])
            torch.testing.assert_close(row, alone, rtol=0, atol=1e-4)


@needs_onnx
def test_pieces_of_4_seconds_are_the_interfaces_frames(exported, mel_folder):
    """The graph encodes items whole; given pieces, it agrees with long audio, too."""
    encoder = load_encoder_folder(mel_folder).eval()
    wav = speech()[: 10 * 24000]
    pieces = wav.split(4 * 24000)
    lengths = torch.tensor([len(piece) for piece in pieces])
    batch = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    frames, num_frames = graphs.open_onnx(exported[0] / "float32.onnx")(batch, lengths)
    joined = torch.cat([f[:n] for f, n in zip(frames, num_frames, strict=True)])
    with torch.no_grad():
        (expected,) = encode_in_chunks(encoder, wav[None])
    torch.testing.assert_close(joined, expected, rtol=0, atol=1e-4)


@needs_onnx
def test_int8(exported, mel_folder):
    """Its error is that of 8 bits: neither 0 nor large."""
    folder, said = exported
    encoder = load_encoder_folder(mel_folder)
    compute = graphs.open_onnx(folder / "int8.onnx")
    batches = [(40000, 3), (70001,)]
    assert 1e-3 < measure_agreement(compute, encoder, batches=batches).relative < 0.1
    assert (folder / "int8.onnx").read_bytes() != (folder / "float32.onnx").read_bytes()
    for name in ("PyTorch float32", "PyTorch bf16", "Runtime float32", "Runtime int8"):
        assert name in said
    assert {path.name for path in folder.iterdir()} == {"int8.onnx", "float32.onnx"}


@pytest.mark.usefixtures("quickly")
def test_pt2(tmp_path):
    """Of a published kind of log-mel, all layers, read back without this package.

    The level of each item is a part of the graph.
    """
    front_end = LogMel(hop_length=318, centered=False, normalise="level")
    encoder = AudioEncoder(front_end, ResiDualTransformer(16, 2, 2, 24))
    export_encoder(encoder, tmp_path / "encoder")
    agreements, rows = deploy(tmp_path / "encoder", tmp_path / "all.pt2", layer="all")
    assert agreements["float32"].largest < 1e-4
    assert [row.name for row in rows][-1] == "torch.export float32"
    graph = torch.export.load(tmp_path / "all.pt2").module()
    frames, num_frames = graph(torch.zeros(1, 24000), torch.tensor([24000]))
    assert frames.shape == (2, 1, 74, 16)
    assert num_frames.tolist() == [74]


def add(amount):
    """What opens a graph that is wrong by an amount."""

    def open_graph(path):
        frames_of = graphs.WholeEncoder(load_encoder_folder(path.parent / "encoder"))

        def compute(*inputs):
            frames, num_frames = frames_of(*inputs)
            return frames + amount, num_frames

        return compute

    return open_graph


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("amount", [2e-4, float("nan")])
def test_a_graph_that_disagrees_is_not_written(
    tmp_path, mel_folder, monkeypatch, amount
):
    shutil.copytree(mel_folder, tmp_path / "encoder")
    monkeypatch.setattr(pipeline, "trace", lambda whole: None)
    monkeypatch.setattr(pipeline, "write_pt2", lambda _, path: path.write_text("new"))
    monkeypatch.setattr(pipeline, "open_pt2", add(amount))
    (tmp_path / "a.pt2").write_text("old")
    with pytest.raises(UserError, match="disagrees with PyTorch"):
        deploy(mel_folder, tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt2", "encoder"}
    monkeypatch.setattr(pipeline, "open_pt2", add(1e-5))
    deploy(mel_folder, tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "new"


def test_codec_latents_are_refused(tmp_path):
    encoder = AudioEncoder(
        CodecLatents(Codec("bundled")), ResiDualTransformer(16, 1, 2, 24)
    )
    export_encoder(encoder, tmp_path / "encoder")
    with pytest.raises(UserError, match="CodecLatents cannot be exported.*LSTM"):
        deploy(tmp_path / "encoder", tmp_path / "a.pt2")
    assert not (tmp_path / "a.pt2").exists()


def test_what_cannot_be_is_refused_first(tmp_path, mel_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "trace", lambda whole: pytest.fail("too late"))
    with pytest.raises(UserError, match="leave out --int8"):
        deploy(mel_folder, tmp_path / "a.pt2", int8=True)
    with pytest.raises(FileNotFoundError, match="No such encoder folder"):
        deploy(tmp_path / "nothing", tmp_path / "a.pt2")
    (tmp_path / "hyperparams.yaml").write_text("format: 2\nclassifier: 1\n")
    with pytest.raises(UserError, match="another kind of model: classifier"):
        deploy(tmp_path, tmp_path / "a.pt2")
    with pytest.raises(UserError, match="layer=7"):
        deploy(mel_folder, tmp_path / "a.pt2", layer=7)
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "file/a.pt2", "")):
        with pytest.raises(UserError, match=f"Cannot write {path}: {reason}"):
            deploy(mel_folder, path, format="pt2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxruntime, onnxscript.*\[onnx\]"):
        deploy(mel_folder, tmp_path / "a.onnx")
