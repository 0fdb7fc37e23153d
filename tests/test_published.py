"""Parity with the published implementation, through the conversion."""

import numpy as np
import pytest
import torch
from parity import published_checkpoint, reference_arrays

from encodecmae_sb.lobes import Codec, MaskedCodecLoss
from encodecmae_sb.lobes.model import frame_mask
from encodecmae_sb.lobes.pieces import encode_in_pieces
from encodecmae_sb.published import convert_published, load_published


@pytest.fixture(scope="module", params=["tiny_mel", "tiny_ec"])
def case(request, tmp_path_factory):
    """A converted reference model and what it should compute."""
    path = tmp_path_factory.mktemp("published") / f"{request.param}.pt"
    torch.save(published_checkpoint(request.param), path)
    return load_published(path), reference_arrays(request.param)


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
    (frames,) = encode_in_pieces(published.model.encoder, wavs, layer=layer)
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
    codec = Codec.from_network(published.codec, n_codebooks=8)
    codes = codec.encode(wavs)
    want = torch.from_numpy(expected["codes"]).long().permute(1, 2, 0)
    assert (codes == want).float().mean() >= 0.999

    masked = torch.from_numpy(expected["mask"])
    logits = published.model(wavs, masked)
    want_logits = torch.from_numpy(expected["logits_every_100"])
    assert (logits[:, ::100] - want_logits).abs().max() < 1e-4

    loss_fn = MaskedCodecLoss()
    loss = loss_fn(logits, want, masked)
    for ours, name in [
        (loss.loss, "loss"),
        (loss.masked_loss, "masked_loss"),
        (loss.visible_loss, "unmasked_loss"),
        (loss.masked_ce * loss_fn.weights, "masked_loss_q"),
        (loss.visible_ce * loss_fn.weights, "unmasked_loss_q"),
    ]:
        assert np.abs(ours.double().numpy() - expected[name]).max() < 1e-5, name


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
