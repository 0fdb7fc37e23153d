"""Speech of the bundled corpus, as long as a benchmark needs it."""

import numpy as np
import soundfile
import torch

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.audio import read_audio, write_audio
from encodecmae_sb.utils.grid import SAMPLE_RATE


def spoken(samples):
    """Utterances at 24 kHz, one after the other.

    Returns
    -------
    torch.Tensor
        Shape [samples].
    """
    parts, there = [], 0
    paths = sorted(speech_folder().rglob("*.flac"))
    for path in paths * (1 + samples // SAMPLE_RATE):
        parts.append(read_audio(path, SAMPLE_RATE))
        there += len(parts[-1])
        if there >= samples:
            break
    return torch.cat(parts)[:samples]


def write_long_files(folder, count=24, seconds=14):
    """Writes FLAC files at 16 kHz as long as LibriSpeech's.

    Arguments
    ---------
    folder : Path
        Is made.
    count : int
        Number of files.
    seconds : int
        Length of each file.
    """
    folder.mkdir(parents=True)
    paths = sorted(speech_folder().rglob("*.flac"))
    speech = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in paths])
    for i, audio in enumerate(np.resize(speech, (count, 16000 * seconds))):
        write_audio(folder / f"{i}.flac", audio, 16000)
