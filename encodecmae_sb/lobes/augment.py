"""The input augmentation, with its background audio by folder."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.manifest import check_folders, find_audio, part_named
from encodecmae_sb.nnet import augment
from encodecmae_sb.nnet.level import FLOOR, measure_levels
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE

_LONGEST = 10  # seconds that are taken of a file


class InputAugment(augment.InputAugment):
    """As `encodecmae_sb.nnet.augment.InputAugment`, with a background by folder.

    Arguments
    ---------
    background : str, Path or list of them, optional
        Folders of voices and sounds, such as the data folder of the pretraining. Parts
        for validation and test are left out. Default: the small corpus in this package.
    background_seconds : float
        So much of it is kept in memory (300 s: 29 MB), from files drawn from
        the folders, of each at most 10 s.
    **options
        The others.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no audio in it.
    UserError
        If none of the audio can be used, or an argument has no meaning.

    Example
    -------
    >>> augment = InputAugment(background_seconds=3)
    >>> wavs, lengths = 0.1 * torch.randn(2, 24000), torch.tensor([24000, 9000])
    >>> heard = augment(wavs, lengths, torch.tensor([1, 2]))
    >>> bool((heard[1, 9000:] == 0).all())
    True
    """

    def __init__(self, background=None, background_seconds=300, **options):
        audio = None
        if options.get("background_probability", 1):
            folders = corpus_folders() if background is None else background
            audio = _read_background(folders, background_seconds)
        super().__init__(background=audio, **options)

    def fingerprint(self):
        """A digest of the background audio."""
        return hashlib.sha256(self.background.cpu().numpy().tobytes()).hexdigest()[:12]


def _read_background(folders, seconds):
    """Audio with a level of 1, [samples]: the same for the same files."""
    if not seconds >= 1:
        raise UserError(f"background_seconds={seconds}: give 1 or more.")
    paths = []
    for folder in check_folders(folders):
        inside = [Path(path) for path, *_ in find_audio(folder)]
        paths += [folder / path for path in inside if not _is_held_back(path)]
    pieces, missing = [], int(seconds * SAMPLE_RATE)
    for number in np.random.Generator(np.random.Philox(0)).permutation(len(paths)):
        try:
            wav = read_audio(paths[number], SAMPLE_RATE, seconds=_LONGEST)[:missing]
        except UnusableAudio:
            continue
        (level,) = measure_levels(wav[None])
        if level > FLOOR:
            pieces.append(wav / level)
            missing -= len(wav)
        if missing == 0:
            break
    if not pieces:
        raise UserError(
            f"background={folders} has no audio that can be used: it cannot be read, "
            "is silent, or is for validation and test. Give other folders, or "
            "background_probability: 0"
        )
    return torch.cat(pieces)


def _is_held_back(path):
    """Whether a file is in a part for validation or test."""
    return bool({part_named(name) for name in path.parts[:-1]} & {"valid", "test"})
