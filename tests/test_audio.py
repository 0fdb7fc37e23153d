"""Audio files: which are usable, and reading them or a part of them."""

import numpy as np
import pytest
import soundfile
import torch
from recordings import RATES, cut, make_bad, needs_mp3, noise, write

from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    resample,
    resampling_ratio,
)

# Usable and unusable files


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_usable_wav(tmp_path, rate, channels):
    path = write(tmp_path / "a.wav", noise(0.5, rate, channels), rate)
    info = inspect_audio(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.num_samples == round(0.5 * rate)
    assert info.duration == pytest.approx(0.5, abs=1 / rate)


@pytest.mark.parametrize(
    "name", ["a.flac", "a.ogg", "A.WAV", pytest.param("a.mp3", marks=needs_mp3)]
)
def test_usable_formats(tmp_path, name):
    path = write(tmp_path / name, noise(1, 44100, 2), 44100)
    info = inspect_audio(path)
    assert (info.sample_rate, info.channels) == (44100, 2)
    assert info.duration == pytest.approx(1, abs=0.06)


def test_silence_is_usable(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(24000))
    assert inspect_audio(path).num_samples == 24000


@needs_mp3
def test_truncated_mp3(tmp_path):
    with pytest.raises(UnusableAudio, match="truncated|unreadable"):
        inspect_audio(cut(write(tmp_path / "a.mp3", noise(1, 24000))))


def test_a_frame_is_long_enough(tmp_path):
    assert inspect_audio(write(tmp_path / "a.wav", np.zeros(320))).num_samples == 320


# Reading


@pytest.mark.parametrize("rate", RATES)
def test_part_equals_the_same_part_of_the_whole(tmp_path, rate):
    samples = noise(3, rate, seed=rate)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = resample(torch.from_numpy(samples[:, 0]), rate, 24000)
    assert torch.allclose(read_audio(path, 24000), whole, atol=1e-4)
    orig, new = resampling_ratio(rate, 24000)
    rng = np.random.default_rng(rate)
    for start in [0, 1e-4, 2.5, *rng.uniform(0, 2.4, 12)]:
        first = int(start * rate / orig) * new  # rounded down to a block
        assert 0 <= start * 24000 - first < 24000 * 0.042 + 1
        part = read_audio(path, 24000, start, 0.5)
        assert part.dtype == torch.float32
        assert len(part) == 12000
        assert (part - whole[first : first + 12000]).abs().max() < 1e-4
    rest = read_audio(path, 24000, 2.0)
    assert torch.allclose(rest, whole[-len(rest) :], atol=1e-4)
    assert abs(len(rest) - 24000) <= new


@pytest.mark.parametrize(
    "name", ["a.flac", "a.ogg", pytest.param("a.mp3", marks=needs_mp3)]
)
def test_part_of_a_compressed_file(tmp_path, name):
    path = write(tmp_path / name, noise(3, 16000), 16000)
    whole = read_audio(path, 24000)
    for start in np.random.default_rng(0).uniform(0, 2.4, 5):
        first = int(start * 8000) * 3
        part = read_audio(path, 24000, start, 0.5)
        assert (part - whole[first : first + 12000]).abs().max() < 1e-4


def test_low_frequencies_survive_resampling(tmp_path):
    time = np.arange(3 * 44099) / 44099
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 44099)
    heard = read_audio(path, 24000, seconds=2).numpy()
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    assert np.abs(heard - want)[100:].max() < 0.01


def test_stereo_is_averaged(tmp_path):
    samples = noise(1, 24000, channels=2)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert np.allclose(read_audio(path, 24000), samples.mean(1), atol=1e-6)


def test_a_long_file_is_never_read_whole(tmp_path, monkeypatch):
    rate = 8000
    path = write(tmp_path / "long.wav", np.zeros(600 * rate), rate)
    read = []
    original = soundfile.SoundFile.read

    def spy(self, *args, **kwargs):
        samples = original(self, *args, **kwargs)
        read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    inspect_audio(path)
    assert len(read_audio(path, 24000, 300, 4)) == 96000
    assert read
    assert sum(read) < 5 * rate


@pytest.mark.parametrize("rate", [8000, 24000])
@pytest.mark.parametrize("start", [1.0, 1.1])
def test_a_start_at_or_after_the_end_is_unusable(tmp_path, rate, start):
    path = write(tmp_path / "a.wav", noise(1, rate), rate)
    with pytest.raises(UnusableAudio, match="no samples after"):
        read_audio(path, 24000, start, 0.5)


@pytest.mark.parametrize("name", ["text.wav", "cut.flac", "nan.wav", "inf.wav"])
def test_bad_files_are_noticed_when_they_are_read(tmp_path, name):
    make_bad(tmp_path)
    with pytest.raises(UnusableAudio):
        read_audio(tmp_path / name, 24000)


def test_a_rate_of_a_few_hertz_is_unusable(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(800), 6)
    with pytest.raises(UnusableAudio):
        inspect_audio(path) and read_audio(path, 24000)
