"""Procedural audio among the data folders: its name, its manifests, its crops.

It has no files. Its manifest for training lists one endless recording, in which every
position is a clip of its own; that for validation lists clips that training never
renders.
"""

from pathlib import Path

from encodecmae_sb.utils.files import write_csvs
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .scene import VERSION, render

# Stands in the place of a data folder.
PROCEDURAL = Path("procedural")

_TRAIN, _VALID = 1, 2  # seeds of the generator, so that the clips are never the same
_NUM_VALID = 512
_PREFIX = "procedural:"


def is_procedural(folder):
    """Whether a data folder is the word that stands for procedural audio.

    Arguments
    ---------
    folder : object

    Returns
    -------
    bool

    Example
    -------
    >>> is_procedural("procedural"), is_procedural("./procedural")
    (True, False)
    """
    return str(folder) == str(PROCEDURAL)


def write_procedural(train_csv, valid_csv):
    """Writes the two manifests, in the columns of those of folders.

    The IDs hold the version of the generator, so the identity of a training does, too.

    Arguments
    ---------
    train_csv, valid_csv : Path
    """
    names = [(0, "train")] + [(1, f"valid:{number}") for number in range(_NUM_VALID)]
    rows = (
        {
            "ID": f"{name}, generator {VERSION}",
            "duration": "inf",
            "wav": f"{_PREFIX}{name}",
            "num_samples": 0,
            "sample_rate": SAMPLE_RATE,
        }
        for _, name in names
    )
    write_csvs(
        [train_csv, valid_csv], zip((part for part, _ in names), rows, strict=True)
    )


def cut_procedural(path, position, seconds, sample_rate):
    """Renders the crop that a row of a manifest and a position stand for.

    Arguments
    ---------
    path : str
        The column `wav` of any manifest.
    position : float
        In [0, 1). In training it says which clip it is; in validation the row does.
    seconds : float
        Length of the crop.
    sample_rate : int
        In Hz.

    Returns
    -------
    numpy.ndarray or None
        Samples, float32, shape [N]; None if the row is that of a file.

    Example
    -------
    >>> cut_procedural("procedural:train", 0.25, 0.5, 24000).shape
    (12000,)
    >>> cut_procedural("/data/a.wav", 0.25, 0.5, 24000)
    """
    if not path.startswith(_PREFIX):
        return None
    part, _, number = path.removeprefix(_PREFIX).partition(":")
    num_samples = round(seconds * sample_rate)
    if part == "train":  # a position is a multiple of 2 ** -53
        return render(_TRAIN, int(position * 2**53), num_samples, sample_rate)
    return render(_VALID, int(number), num_samples, sample_rate)
