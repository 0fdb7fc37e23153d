"""Corruptions of recordings, each as it was asked for."""

import math

import pytest
import soundfile
import torch

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.manifest import training_files
from encodecmae_sb.evaluation import corruptions
from encodecmae_sb.evaluation.corruptions import CORRUPTIONS, Sounds, corrupt
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.pretrained import codec_files
from encodecmae_sb.utils.errors import UserError

OFFICIAL = "encodec"  # needs weights that are not in the repository
HERE = [name for name in CORRUPTIONS if name != OFFICIAL]
NOISES = [name for name, each in CORRUPTIONS.items() if each.group == "noise"]


@pytest.fixture(scope="module")
def sounds():
    return Sounds()


@pytest.fixture(scope="module")
def speech():
    """Two seconds of a voice."""
    path = sorted((speech_folder() / "test").rglob("*.flac"))[0]
    return read_audio(path, 24000, seconds=2)


def db(ratio):
    return 20 * math.log10(ratio)


def tone(hertz, samples=24000):
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / 24000)


def loudest(wav):
    """The frequency with most energy, in Hz."""
    spectrum = torch.fft.rfft(wav * torch.hann_window(len(wav))).abs()
    return spectrum.argmax().item() * 24000 / len(wav)


def lag(heard, wav):
    """Samples by which a recording comes later."""
    size = 2 * len(wav)
    spectrum = torch.fft.rfft(heard, size) * torch.fft.rfft(wav, size).conj()
    peak = torch.fft.irfft(spectrum, size).argmax().item()
    return peak if peak < len(wav) else peak - size


def test_there_are_three_strengths_of_each_and_three_groups():
    assert len(CORRUPTIONS) == 17
    assert all(len(each.values) == 3 for each in CORRUPTIONS.values())
    groups = [each.group for each in CORRUPTIONS.values()]
    assert [groups.count(name) for name in corruptions.GROUPS] == [5, 7, 5]


@pytest.mark.parametrize("name", NOISES)
def test_noise_has_the_power_that_was_asked_for(name, sounds, speech):
    half = torch.cat([speech, torch.zeros(48000)])
    for wav in (speech, 0.01 * speech, half, speech[24000:24500]):
        for strength, snr in enumerate((20, 10, 0), 1):
            added = corrupt(name, strength, wav, 5, sounds) - wav
            assert db(wav.norm() / added.norm()) == pytest.approx(snr, abs=0.1)


def test_noises_are_what_they_are_called(sounds):
    """White is even, pink falls by 3 dB an octave, hum is at 50 Hz and multiples."""
    wav = tone(7000, 240000)
    octaves = {}
    for name in ("white", "pink"):
        power = torch.fft.rfft(corrupt(name, 3, wav, 1, sounds) - wav).abs().square()
        low, high = power[5000:10000].mean(), power[20000:40000].mean()
        octaves[name] = 10 * math.log10(low / high) / 2
    assert octaves["white"] == pytest.approx(0, abs=0.2)
    assert octaves["pink"] == pytest.approx(3, abs=0.2)
    hum = torch.fft.rfft(corrupt("hum", 3, wav, 1, sounds) - wav).abs()
    share = hum[500:4001:500].square().sum() / hum.square().sum()
    assert share > 0.99
    assert hum.argmax() == 500


def test_gain_and_clipping_are_exact(sounds, speech):
    for strength, factor in enumerate((-10, -20, -30), 1):
        heard = corrupt("gain", strength, speech, 0, sounds)
        torch.testing.assert_close(heard, speech * 10 ** (factor / 20))
    padded = torch.cat([speech, torch.zeros(48000)])  # silence does not count
    for strength, percent in enumerate((1, 10, 30), 1):
        heard = corrupt("clipping", strength, padded, 0, sounds)
        cut = heard.abs() == heard.abs().max()
        share = 100 * cut.sum() / (padded != 0).sum()
        assert share == pytest.approx(percent, abs=0.1)
        assert torch.equal(heard[~cut], padded[~cut])


def test_the_low_pass_removes_what_is_above_and_keeps_what_is_below(sounds):
    for strength, cut in enumerate((4000, 2000, 1000), 1):
        for hertz in (0.5 * cut, 0.7 * cut, 1.3 * cut, 2 * cut):
            wav = tone(hertz)
            heard = corrupt("lowpass", strength, wav, 0, sounds)
            inner = slice(2400, -2400)
            change = db(heard[inner].norm() / wav[inner].norm())
            assert abs(change) < 0.5 if hertz < cut else change < -40


def test_speed_and_pitch_move_a_tone(sounds):
    wav = tone(440, 48000)
    for strength, factor in enumerate((1.1, 1.25, 1.5), 1):
        heard = corrupt("speed", strength, wav, 0, sounds)
        assert len(heard) == math.ceil(48000 / factor)
        assert loudest(heard) == pytest.approx(440 * factor, abs=1)
    for strength, semitones in enumerate((1, 2, 4), 1):
        heard = corrupt("pitch", strength, wav, 0, sounds)
        assert loudest(heard) == pytest.approx(440 * 2 ** (semitones / 12), abs=1)
    # And nothing moves in time, as exactly as a window of 43 ms allows.
    burst = torch.zeros(48000)
    burst[20000:28000] = tone(440, 8000)
    heard = corrupt("pitch", 3, burst, 0, sounds).square()
    place = (heard * torch.arange(48000)).sum() / heard.sum()
    assert place == pytest.approx(24000, abs=240)


def test_lost_pieces(sounds):
    """Of 20 ms, as many as were asked for; more strength loses the same and more."""
    wav = torch.ones(24000)
    lost = [corrupt("loss", i, wav, 3, sounds).view(-1, 480) == 0 for i in (1, 2, 3)]
    for found, percent in zip(lost, (10, 30, 50), strict=True):
        assert torch.equal(found.all(1), found.any(1))
        assert 100 * found[:, 0].sum() / len(found) == percent
    assert (lost[0] <= lost[1]).all()
    assert (lost[1] <= lost[2]).all()


def test_reverberation(sounds):
    """Echoes fall by 60 dB in the time that was asked for; the power stays."""
    wav = torch.zeros(48000)
    wav[0] = 1
    for strength, seconds in enumerate((0.3, 0.6, 1.2), 1):
        heard = corrupt("reverberation", strength, wav, 0, sounds)
        assert heard.norm() == pytest.approx(1, abs=1e-3)
        assert heard.abs().argmax() == 0
        early, late = (
            heard[int(at * seconds * 24000) :][:1200].norm() for at in (0.1, 0.6)
        )
        assert db(early / late) == pytest.approx(30, abs=2)
        echoes = heard[1:].square().sum() / heard[0].square()
        assert echoes == pytest.approx(seconds / 0.3, rel=0.05)


@pytest.mark.parametrize("name", HERE)
def test_a_corruption_follows_from_clip_seed_and_strength(name, sounds, speech):
    before, heard = speech.clone(), corrupt(name, 2, speech, 7, sounds)
    state = torch.get_rng_state()
    assert torch.equal(heard, corrupt(name, 2, speech, 7, sounds))
    assert torch.equal(before, speech)
    assert torch.equal(state, torch.get_rng_state())
    assert heard.dtype == torch.float32
    draws = [*NOISES, "reverberation", "loss"]
    other = corrupt(name, 2, speech, 8, sounds)
    assert torch.equal(heard, other) == (name not in draws)


@pytest.mark.parametrize("name", [name for name in HERE if name != "speed"])
def test_length_stays_and_nothing_moves(name, sounds, speech):
    distances = []
    for strength in (1, 2, 3):
        heard = corrupt(name, strength, speech, 1, sounds)
        assert len(heard) == len(speech)
        distances.append((heard - speech).norm().item())
        if name != "pitch":  # whose waves are others
            assert abs(lag(heard, speech)) <= 2
    if name != "pitch":
        assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", HERE)
def test_short_clips_and_silence(name, sounds):
    for wav in (tone(500, 320), tone(500, 1100), torch.zeros(5000)):
        for strength in (1, 3):
            heard = corrupt(name, strength, wav, 1, sounds)
            assert torch.isfinite(heard).all()
            assert len(heard) == len(wav) or name == "speed"
            if not wav.any() and name != "bundled_codec":
                assert heard.abs().max() < 0.02  # mu-law of 4 bits has no 0


def test_what_is_tested_is_no_noise(tmp_path):
    for number in (1, 2, 3):
        wav = tone(500 * number).numpy()
        soundfile.write(tmp_path / f"{500 * number}.wav", wav, 24000)
    left, tested = training_files(tmp_path)  # one is for validation
    found = Sounds(tmp_path, [tested])
    heard = loudest(found.environment.flatten())
    assert heard == pytest.approx(int(left.stem), abs=2)
    assert found.key("environment") != Sounds(tmp_path).key("environment")
    with pytest.raises(UserError, match="--noise_folder"):
        Sounds(tmp_path, [left, tested]).key("environment")


def test_the_official_codec_is_used_only_where_its_weights_are(
    tmp_path, monkeypatch, speech
):
    path = tmp_path / "codec.th"
    for module in (corruptions, codec_files):
        monkeypatch.setattr(module, "official_file", lambda: path)
    assert "not on this machine" in CORRUPTIONS[OFFICIAL].missing()
    weights = build_encodec(n_filters=2, n_codebooks=8).state_dict()
    for name in (name for name in weights if name.endswith("embed")):
        weights[name] = torch.randn_like(weights[name])
    torch.save(weights, path)
    assert CORRUPTIONS[OFFICIAL].missing() is None
    wav = speech[:9000]
    one, two = (corrupt(OFFICIAL, i, wav, 0, Sounds()) for i in (1, 3))
    assert len(one) == len(two) == 9000
    assert not torch.equal(one, two)
