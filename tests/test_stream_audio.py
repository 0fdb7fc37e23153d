"""Reading a file a stretch at a time."""

import numpy as np
import pytest
import soundfile
import torch
from recordings import RATE, write
from recordings import uniform as noise

from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    resample,
    stream_audio,
)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44099, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretches_are_the_whole_file_resampled(tmp_path, rate, channels):
    samples = noise(2 * rate + 1, channels, seed=rate)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = resample(torch.from_numpy(samples.mean(1)), rate, RATE)
    for length in (7001, 30000, 10**6):
        parts = list(stream_audio(path, RATE, length))
        assert {len(part) for part in parts[:-1]} <= {length}
        assert 0 < len(parts[-1]) <= length
        joined = torch.cat(parts)
        assert joined.dtype == torch.float32
        assert len(joined) == inspect_audio(path).samples_at(RATE)
        # torchaudio works lengths out in single precision.
        assert 0 <= len(joined) - len(whole) <= 1
        assert (joined[: len(whole)] - whole).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_stretches_of_a_compressed_file(tmp_path, name):
    if name.endswith("mp3") and "MP3" not in soundfile.available_formats():
        pytest.skip("libsndfile without MP3")
    path = write(tmp_path / name, noise(3 * 16000), 16000)
    joined = torch.cat(list(stream_audio(path, RATE, 10000)))
    assert (joined - read_audio(path, RATE)).abs().max() < 1e-5


def test_what_stands_before_a_bad_place_is_read(tmp_path):
    samples = noise(3 * RATE)
    samples[2 * RATE + 5] = np.nan
    path = write(tmp_path / "nan.wav", samples, subtype="FLOAT")
    stretches = stream_audio(path, RATE, RATE)
    assert len(next(stretches)) == len(next(stretches)) == RATE
    with pytest.raises(UnusableAudio, match="non-finite"):
        next(stretches)
    path = write(tmp_path / "cut.flac", noise(3 * RATE))
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(UnusableAudio, match="truncated|unreadable"):
        list(stream_audio(path, RATE, RATE))
