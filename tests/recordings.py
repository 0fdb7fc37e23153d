"""Recordings for the tests: noise, usable and unusable files, folders."""

import errno
import os

import numpy as np
import pytest
import soundfile

from encodecmae_sb.data.manifest import read_manifest

RATE = 24000
RATES = [8000, 16000, 22050, 24000, 44099, 44100, 48000]

needs_mp3 = pytest.mark.skipif(
    "MP3" not in soundfile.available_formats(), reason="libsndfile without MP3"
)


def uniform(samples, channels=1, seed=0):
    """Noise of a number of samples."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def noise(seconds, rate, channels=1, seed=0):
    """Noise of a number of seconds."""
    return uniform(round(seconds * rate), channels, seed)


def write(path, samples, rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)
    return path


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def make_bad(folder):
    """One file of each unusable kind: path -> a word of its reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio\n" * 100)
    cut(write(folder / "cut.wav", noise(1, 24000)))
    cut(write(folder / "cut.flac", noise(1, 24000)))
    write(folder / "nothing.wav", np.zeros(0))
    for name, value in [("nan", np.nan), ("inf", np.inf)]:
        samples = noise(1, 24000)
        samples[12345] = value
        write(folder / f"{name}.wav", samples, subtype="FLOAT")
    write(folder / "short.wav", np.zeros(319))
    return {
        "empty.wav": "empty file",
        "text.wav": "unreadable",
        "cut.wav": "truncated",
        "cut.flac": "unreadable|truncated",
        "nothing.wav": "no samples",
        "nan.wav": "non-finite",
        "inf.wav": "non-finite",
        "short.wav": "too short: 13.3 ms",
    }


def both(corpus):
    """The rows of both manifests of a corpus."""
    return read_manifest(corpus.train_csv) + read_manifest(corpus.valid_csv)


def refuse(monkeypatch, folder, *error):
    """Makes a folder unreadable, even for root."""
    scandir = os.scandir

    def scan(path="."):
        if os.fspath(path) == str(folder):
            raise OSError(*(error or (errno.EACCES, "Permission denied")))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
