"""Parity with the published implementation, and the way published weights come in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from parity import published_checkpoint, reference_arrays
from speechbrain.inference.interfaces import foreign_class
from test_pretrain import run as pretrain

from encodecmae_sb.lobes import Codec, EnCodecMAE, MaskedCodecLoss
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.encodec import FrozenCodec, network_from_weights
from encodecmae_sb.nnet.masking import FrameMask, frame_mask
from encodecmae_sb.pretrained.published import (
    PUBLISHED,
    REPOSITORY,
    convert_published,
    fetch_published,
    import_published,
    load_published,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["tiny_mel", "tiny_ec"])
def file(request, tmp_path_factory):
    """A reference model as a file in the published layout."""
    path = tmp_path_factory.mktemp(request.param) / f"{request.param}.pt"
    torch.save(published_checkpoint(request.param), path)
    return path


@pytest.fixture(scope="module")
def case(file):
    """A converted reference model and what it should compute."""
    return load_published(file), reference_arrays(file.stem)


@pytest.fixture(scope="module")
def folder(file):
    """The folder that the import command makes of it."""
    path = file.parent / "encoder"
    import_command(file, path)
    return path


def import_command(*arguments, expect=0, **environment):
    """Runs the recipe; returns what it printed, errors last."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/import_published.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def wave(pcm16):
    """Samples in [-1, 1] from 16-bit integers."""
    return torch.from_numpy(pcm16.astype(np.float32) / 32768)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "array"),
    [
        ("last", "extract_last"),
        ("last_no_norm", "extract_last_nopostnorm"),
        ("all", "extract_all"),
    ],
)
def test_features_of_long_audio(case, layer, array):
    published, expected = case
    if array not in expected:
        pytest.skip("stored for the mel model only")
    wavs = wave(expected["long_pcm16"])[None]
    (frames,) = encode_in_chunks(published.model.encoder, wavs, layer=layer)
    want = torch.from_numpy(expected[array])
    if layer != "all":
        want = want[0]
    assert frames.shape == want.shape
    assert (frames - want).abs().max() < 1e-4


@torch.no_grad()
def test_features_of_a_padded_batch(case):
    published, expected = case
    wavs = wave(expected["batch_pcm16"])
    samples = torch.from_numpy(expected["padded_lens"])
    wavs = wavs * frame_mask(samples, wavs.shape[1])
    num_frames = samples // 320
    assert num_frames.tolist() == expected["padded_frames"].tolist()
    out = published.model.encoder(wavs, num_frames).last
    difference = (out - torch.from_numpy(expected["padded_last"])).abs().amax(-1)
    assert difference[frame_mask(num_frames, out.shape[1])].max() < 1e-4


@torch.no_grad()
def test_codes_logits_and_losses(case):
    published, expected = case
    wavs = wave(expected["batch_pcm16"])
    codec = FrozenCodec(published.codec, n_codebooks=8)
    codes = codec.encode(wavs)
    want = torch.from_numpy(expected["codes"]).long().permute(1, 2, 0)
    assert (codes == want).float().mean() >= 0.999

    masked = torch.from_numpy(expected["mask"])
    mask = FrameMask.of(masked)
    logits = published.model(wavs, mask)
    want_logits = torch.from_numpy(expected["logits_every_100"])
    assert (logits[:, ::100] - want_logits).abs().max() < 1e-4

    loss_fn = MaskedCodecLoss()
    loss = loss_fn(logits, want, mask)
    for ours, name in [
        (loss.loss, "loss"),
        (loss.masked_loss, "masked_loss"),
        (loss.visible_loss, "unmasked_loss"),
        (loss.masked_ce * loss_fn.weights, "masked_loss_q"),
        (loss.visible_ce * loss_fn.weights, "unmasked_loss_q"),
    ]:
        assert np.abs(ours.double().numpy() - expected[name]).max() < 1e-5, name


def test_new_weights_keep_the_codec_inside(file, case):
    fresh = load_published(file, pretrained=False).model.encoder
    trained = case[0].model.encoder
    wavs = torch.rand(1, 3200) - 0.5
    assert torch.equal(fresh.front_end(wavs), trained.front_end(wavs))
    assert not torch.equal(fresh.projection.weight, trained.projection.weight)


def test_number_of_heads_that_does_not_fit():
    checkpoint = published_checkpoint("tiny_ec")
    with pytest.raises(ValueError, match="63 wide"):
        convert_published(checkpoint["state_dict"], "NUM_ENCODER_HEADS = 4")


def test_separate_feed_forwards_are_recognised():
    checkpoint = published_checkpoint("tiny_mel")
    name = "visible_encoder.encoder_layers.1.ff_layer.0.weight"
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name] + 1
    model = convert_published(checkpoint["state_dict"], checkpoint["config"]).model
    assert len(model.encoder.transformer.feed_forwards) == 3
    assert len(model.decoder.feed_forwards) == 1


class Runs:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("code was run",))


def test_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        load_published(tmp_path / "bad.pt")
    assert "code was run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="plain tensors"):
        Codec(tmp_path / "bad.pt")


LAYERS = [
    ("last", "extract_last"),
    ("last_no_norm", "extract_last_nopostnorm"),
    ("all", "extract_all"),
]


@pytest.mark.parametrize(("layer", "array"), LAYERS)
def test_foreign_class_on_the_imported_folder(folder, case, layer, array):
    _, expected = case
    if array not in expected:
        pytest.skip("stored for the mel model only")
    encoder = foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    wavs = wave(expected["long_pcm16"])[None]
    frames, lengths = encoder.encode_batch(wavs, layer=layer)
    want = torch.from_numpy(expected[array])
    want = want[:, None] if layer == "all" else want
    assert frames.shape == want.shape
    assert lengths.tolist() == [want.shape[-2]]
    assert (frames - want).abs().max() < 1e-4


@pytest.mark.parametrize(("layer", "array"), LAYERS)
def test_lobe_on_the_imported_folder(folder, case, layer, array):
    _, expected = case
    if array not in expected:
        pytest.skip("stored for the mel model only")
    every = {"output_all_hiddens": True} if layer == "all" else {"layer": layer}
    lobe = EnCodecMAE(folder, input_sample_rate=24000, **every)
    wavs = wave(expected["long_pcm16"])[None]
    want = torch.from_numpy(expected[array])
    want = want[:, None] if layer == "all" else want
    frames = lobe(wavs)
    assert frames.shape == want.shape
    assert (frames - want).abs().max() < 1e-4


@torch.no_grad()
def test_lobe_counts_frames_of_a_padded_batch_as_published(folder, case):
    _, expected = case
    lobe = EnCodecMAE(folder, input_sample_rate=24000, whole_codec_frames=True)
    wavs = wave(expected["batch_pcm16"])
    samples = torch.from_numpy(expected["padded_lens"])
    num_frames = lobe.num_frames(samples)
    assert num_frames.tolist() == expected["padded_frames"].tolist()
    frames = lobe(wavs, samples / wavs.shape[1])
    difference = (frames - torch.from_numpy(expected["padded_last"])).abs().amax(-1)
    assert difference[frame_mask(num_frames, frames.shape[1])].max() < 1e-4
    # An item's frames are the same alone, too.
    (alone,) = lobe(wavs[2:, : samples[2]])
    assert (frames[2, : len(alone)] - alone).abs().max() < 1e-4


def test_codec_in_the_imported_folder(folder, case):
    _, expected = case
    codec = Codec(folder / "codec.safetensors")
    codes = codec.encode(wave(expected["batch_pcm16"]))
    want = torch.from_numpy(expected["codes"]).long().permute(1, 2, 0)
    assert (codes == want).float().mean() >= 0.999
    with pytest.raises(ValueError, match="without its decoder.*encode, not decode"):
        codec.decode(codes)


def test_pretraining_with_the_codec_in_the_imported_folder(tmp_path):
    # In place of the full-size codec the bundled one, which computes faster.
    net = Codec("bundled").net
    checkpoint = self_trained()
    checkpoint["state_dict"] |= {
        f"target_encoder.{ours}{name}": tensor
        for ours, part in [("encodec_encoder.", net.encoder), ("model.", net.quantizer)]
        for name, tensor in part.state_dict().items()
    }
    torch.save(checkpoint, tmp_path / "model.pt")
    import_published(tmp_path / "model.pt", tmp_path / "encoder")
    codec = tmp_path / "encoder/codec.safetensors"
    wavs = torch.rand(2, 24000) - 0.5
    assert torch.equal(Codec(codec).encode(wavs), Codec("bundled").encode(wavs))
    text = pretrain(tmp_path / "run", codec=codec, training_steps=4)
    assert f"Codec: {codec}" in text
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["codec"] == str(codec)


def test_part_of_a_decoder_is_refused(case):
    published, _ = case
    weights = published.codec.state_dict()
    decoder = Codec("bundled").net.decoder.state_dict()
    name = next(iter(decoder))
    weights[f"decoder.{name}"] = decoder[name]
    with pytest.raises(ValueError, match="missing"):
        network_from_weights(weights)


def self_trained():
    """A self-trained checkpoint: one target, no codec."""
    checkpoint = published_checkpoint("tiny_mel")
    checkpoint["state_dict"] = {
        name: tensor[:1024] if name.startswith("head.layer") else tensor
        for name, tensor in checkpoint["state_dict"].items()
        if not name.startswith("target_encoder")
    }
    return checkpoint


def test_self_trained_weights_have_no_codec(tmp_path):
    for name, checkpoint in [
        ("first", published_checkpoint("tiny_mel")),
        ("second", self_trained()),
    ]:
        torch.save(checkpoint, tmp_path / f"{name}.pt")
        # The second time over the folder of the first.
        published = import_published(tmp_path / f"{name}.pt", tmp_path / "encoder")
        has_codec = name == "first"
        assert published.model.n_codebooks == (8 if has_codec else 1)
        assert (published.codec is not None) == has_codec
        assert (tmp_path / "encoder/codec.safetensors").exists() == has_codec


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub's that holds one published file, in a folder."""
    path = tmp_path / "hub"
    repository = path / f"models--{REPOSITORY.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit / "models"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    torch.save(self_trained(), snapshot / "mel256-ec-base_st.pt")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    # Nothing listens here.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return path


def test_a_name_as_the_source_of_the_lobe(cache):
    expected = reference_arrays("tiny_mel")
    wavs = wave(expected["long_pcm16"])[None]
    lobe = EnCodecMAE("mel256-ec-base_st", input_sample_rate=24000)
    want = torch.from_numpy(expected["extract_last"])
    assert (lobe(wavs) - want).abs().max() < 1e-4
    torch.manual_seed(0)
    fresh = EnCodecMAE("mel256-ec-base_st", input_sample_rate=24000, pretrained=False)
    assert fresh(wavs).shape == want.shape
    assert (fresh(wavs) - want).abs().max() > 0.1


def test_a_folder_comes_before_a_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mel256-ec-base_st").mkdir()
    with pytest.raises(ValueError, match="not an exported folder"):
        EnCodecMAE("mel256-ec-base_st")


def test_a_name_without_a_network(cache):
    started = time.monotonic()
    with pytest.raises(ValueError, match="127.0.0.1.*give the file"):
        fetch_published("mel256-ec-base")
    assert time.monotonic() - started < 5  # the hub's own client tries for 23 s


def test_a_wrong_name_answers_with_the_list(tmp_path):
    for source, error in [
        (lambda name: import_published(name, tmp_path / "encoder"), ValueError),
        (EnCodecMAE, FileNotFoundError),
    ]:
        with pytest.raises(error) as caught:
            source("mel256-ec-bass")
        assert all(name in str(caught.value) for name in PUBLISHED)
    assert not (tmp_path / "encoder").exists()


def test_the_command_itself(tmp_path):
    listed = import_command("--list")
    assert all(name in listed for name in PUBLISHED)
    text = import_command("mel256-ec-bass", tmp_path / "encoder", expect=1)
    assert "Error: mel256-ec-bass" in text
    assert "Traceback" not in text


def test_other_folders_are_left_alone(tmp_path):
    checkpoint = tmp_path / "model.pt"
    torch.save(self_trained(), checkpoint)
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="left as it is"):
        import_published(checkpoint, other)
    assert [path.name for path in other.iterdir()] == ["README.md"]
    assert (other / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="left as it is"):
        import_published(checkpoint, checkpoint)
    with pytest.raises(ValueError, match="cannot be written"):
        import_published(checkpoint, checkpoint / "encoder")


def test_files_that_are_no_published_checkpoints(tmp_path):
    path = tmp_path / "bad.pt"
    cut, odd, heads = self_trained(), self_trained(), self_trained()
    del cut["state_dict"]["visible_encoder.encoder_layers.1.norm1.weight"]
    odd["state_dict"]["visible_encoder.encoder_layers.0.att_layer.wk.weight"] = 3
    heads["config"] = "NUM_ENCODER_HEADS = 5"
    for content, message in [
        ([1, 2], "no state_dict"),
        ({"state_dict": {"weight": torch.zeros(2)}}, "no head.layer.weight"),
        ({"state_dict": [torch.zeros(2)]}, "not a published"),
        (cut, "norm1.weight"),
        (odd, "not a published"),
        (heads, "5 heads"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            import_published(path, tmp_path / "encoder")
    path.write_bytes(b"\x00\x01 not a checkpoint")
    with pytest.raises(ValueError, match="bad.pt.*plain tensors"):
        import_published(path, tmp_path / "encoder")
    torch.save({"state_dict": Runs()}, path)
    text = import_command(path, tmp_path / "encoder", expect=1)
    assert "plain tensors" in text
    assert "code was run" not in text
    assert not (tmp_path / "encoder").exists()
