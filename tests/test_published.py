"""Parity with the published implementation."""

import json

import numpy as np
import pytest
import torch
from commands import import_command
from commands import run as pretrain
from parity import published_checkpoint, reference_arrays, self_trained, wave
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.lobes import Codec, EnCodecMAE, MaskedCodecLoss
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.encodec import FrozenCodec, network_from_weights
from encodecmae_sb.nnet.masking import FrameMask, frame_mask
from encodecmae_sb.pretrained.published import (
    convert_published,
    import_published,
    load_published,
)


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
    with pytest.raises(ValueError, match="without its decoder.*encode, but not decode"):
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
