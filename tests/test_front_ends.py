"""Front ends: log-mel frames, codec latents, and the grid they share with the codes."""

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from random_values import noise

from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    GapMasker,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.utils.errors import UserError


def kaldi(wav):
    """The log-mel frames of Kaldi, [T, 256]."""
    return torchaudio.compliance.kaldi.fbank(
        wav[None],
        frame_length=26.56,
        frame_shift=13.28,
        num_mel_bins=256,
        htk_compat=False,
        use_energy=False,
        window_type="hanning",
        dither=0.0,
        sample_frequency=24000,
    )


def test_mel_equals_kaldi():
    wavs = noise(3, 24000) * torch.tensor([1.0, 0.1, 0.01])[:, None]
    front_end = LogMel(hop_length=318, centered=False)
    out = front_end(wavs)
    assert out.dtype == torch.float32
    for ours, wav in zip(out, wavs, strict=True):
        want = kaldi(wav)
        assert ours.shape == want.shape
        assert len(want) == front_end.num_frames(24000)
        assert (ours * 4.82 - 6.12 - want).abs().max() < 1e-3


def test_centred_mel_is_kaldi_with_zeros_around():
    wav = noise(16000)
    out = LogMel()(wav[None])[0]
    # Hop 320 and window 637: window t starts at sample 320 t + 160 - 318.
    padded = F.pad(wav, (158, 637))
    for t, frame in enumerate(out):
        (want,) = kaldi(padded[320 * t : 320 * t + 637])
        assert (frame * 4.82 - 6.12 - want).abs().max() < 1e-3


@pytest.mark.parametrize("normalise", [None, "level"])
def test_visible_frames_alone_are_the_same(normalise):
    front_end, wavs = LogMel(normalise=normalise), noise(3, 24000)
    num_frames = torch.tensor([75, 75, 40])
    mask = GapMasker(0.5, 5)(num_frames, torch.arange(3), 75, padded=True)
    visible = mask.visible_frames()
    whole = front_end(wavs)
    assert torch.equal(front_end(wavs, visible=visible), visible.keep(whole))
    # Their places, too, are those in the whole.
    encoder = AudioEncoder(front_end, ResiDualTransformer(16, 1, 2, 24))
    placed = encoder.positions(encoder.projection(whole))
    want = encoder.transformer(visible.keep(placed), visible.real).last
    torch.testing.assert_close(encoder(wavs, visible=visible).last, want)


@pytest.fixture(scope="module")
def codec():
    return Codec("bundled")


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 5000, 24000, 31999, 32001])
def test_as_many_frames_as_codes(codec, samples):
    wav = noise(1, samples)
    frames = codec.encode(wav).shape[1]
    assert frames == -(-samples // 320)
    for front_end in (LogMel(), CodecLatents(n_filters=2)):
        assert front_end(wav).shape == (1, frames, front_end.dim)
        assert front_end.num_frames(samples) == frames
        assert front_end.num_frames(torch.tensor([samples])).tolist() == [frames]


@pytest.mark.parametrize("frame", [0, 7, 49])
def test_mel_frames_lie_where_the_codes_lie(frame):
    click = torch.zeros(1, 16000)
    click[0, 320 * frame + 160] = 1
    energy = LogMel()(click).exp().sum(-1)[0]
    assert energy.argmax() == frame
    assert (energy > energy[frame] / 2).sum() == 1


@pytest.mark.parametrize(
    "front_end", [LogMel(), LogMel(hop_length=318, centered=False)]
)
def test_mel_does_not_depend_on_padding(front_end):
    for samples in (640, 9000, 15999):
        wav = noise(1, samples)
        padded = front_end(F.pad(wav, (0, 16000 - samples)))
        alone = front_end(wav)
        assert torch.allclose(padded[:, : alone.shape[1]], alone, atol=1e-5)
        other = torch.cat([F.pad(wav, (0, 16000 - samples)), noise(1, 16000)])
        assert torch.allclose(front_end(other)[:1], padded, atol=1e-5)


def test_mel_is_the_same_under_autocast():
    front_end, wav = LogMel(), noise(1, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        out = front_end(wav)
    assert torch.equal(out, front_end(wav))


@pytest.mark.parametrize(
    ("front_end", "audio_rate", "message"),
    [
        (LogMel(hop_length=240), 24000, "every 240 samples at 24000 Hz, 100 for"),
        (LogMel(sample_rate=16000), 24000, "every 320 samples at 16000 Hz"),
        (LogMel(sample_rate=16000), 16000, "every 320 samples at 16000 Hz"),
        (LogMel(centered=False), 24000, "every 320 samples at 24000 Hz, 74 for"),
        (LogMel(hop_length=318, centered=False), 24000, "every 318 samples"),
        (LogMel(), 16000, "sample_rate=16000"),
        (CodecLatents(n_filters=2), 16000, "sample_rate=16000"),
    ],
)
def test_front_end_and_targets_on_different_grids(front_end, audio_rate, message):
    with pytest.raises(UserError, match=message) as caught:
        check_grid(front_end, audio_rate, target_rate=24000, target_hop=320)
    assert "every 320 samples at 24000 Hz, 75 for 24000" in str(caught.value)


def test_front_end_and_targets_on_the_same_grid():
    for front_end in (LogMel(), CodecLatents(n_filters=2)):
        check_grid(front_end, 24000, target_rate=24000, target_hop=320)
