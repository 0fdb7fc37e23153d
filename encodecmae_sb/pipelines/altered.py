"""Altered copies of the audio that a pretraining learns from.

`input_augment` alters what the model hears, and its targets stay those of the clean
audio. An altered copy is one more recording: the model hears it, and its targets are
its own. So stored targets work with it, and the model must tell what was said or what
sounded from how it was recorded.
"""

import contextlib
import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    write_audio,
)
from encodecmae_sb.data.codes import file_stamp
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.data.manifest import read_manifest
from encodecmae_sb.lobes import InputAugment
from encodecmae_sb.nnet.draws import hash_seeds, uniform
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.identity import named
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.signal import resample
from encodecmae_sb.utils.threads import map_on_threads

AUTO = "auto"  # one copy, where there can be copies
MOST_COPIES = 100
MOST_HOURS = 4.0  # of audio, copies included: each is a file
_FORMAT = 1  # raise it when copies change
_PART_SECONDS = 60  # longer files are altered in parts
_SPEEDS = [80, 85, 90, 110, 115, 120]  # percent
# Rates of recordings in Hz, and how many of the copies are limited to them.
_RATES = {8000: 0.35, 16000: 0.25}


class AlteredAudio:
    """Another speaker's rate and pitch, microphone, room and noise for a recording.

    In this order:

    * speed: 0.8 to 0.9, or 1.1 to 1.2 times; pitch and formants change with it.
    * bandwidth: that of 8 kHz (a telephone), of 16 kHz, or all of it.
    * equaliser: a gain of -8 to 8 dB for each octave.
    * room: echoes, for two copies in five.
    * noise: 5 to 30 dB below the recording, for every second copy.

    The last three are those of `encodecmae_sb.lobes.InputAugment`.

    Example
    -------
    >>> wav = torch.sin(torch.arange(24000) / 10)
    >>> alter = AlteredAudio()
    >>> bool((alter(wav, 1) == alter(wav, 1)).all())
    True
    """

    def __init__(self):
        self.effects = InputAugment(
            level_probability=0,
            equaliser_probability=1,
            equaliser_db=8,
            room_probability=0.4,
            room_seconds=(0.05, 0.3),
            noise_probability=0.5,
            noise_snr=(5, 30),
            background_probability=0,
        )

    @torch.no_grad()
    def __call__(self, wav, seed):
        """Alters a recording; each minute of a longer one by itself.

        Arguments
        ---------
        wav : torch.Tensor
            Samples at 24 kHz, shape [N].
        seed : int
            What is drawn follows from it alone.

        Returns
        -------
        torch.Tensor
            Samples in [-1, 1], at least one frame if there was one, shape [M].
        """
        parts = wav.split(_PART_SECONDS * SAMPLE_RATE)
        numbers = torch.arange(len(parts))
        seeds = hash_seeds(torch.tensor(seed), numbers)
        altered = [self._alter(*part) for part in zip(parts, seeds, strict=True)]
        heard = torch.cat(altered)
        return heard / heard.abs().max().clamp(min=1)

    def _alter(self, wav, seed):
        speed, band = uniform(seed[None], 1000, 2)[0].tolist()
        percent = _SPEEDS[int(speed * len(_SPEEDS))]
        if len(wav) * 100 >= percent * (HOP + 1):
            wav = resample(wav, percent, 100)
        for rate, share in _RATES.items():
            if 0 <= band < share:
                limited = resample(wav, SAMPLE_RATE, rate)
                wav = resample(limited, rate, SAMPLE_RATE)[: len(wav)]
            band -= share
        return self.effects(wav[None], torch.tensor([len(wav)]), seed[None])[0]


def no_copies(copies, reason, advice):
    """Says why there are no copies, or refuses a number of them.

    Arguments
    ---------
    copies : int or "auto"
        As asked for.
    reason, advice : str

    Returns
    -------
    int
        0

    Raises
    ------
    UserError
        If a number was asked for.
    """
    if copies != AUTO:
        raise UserError(f"altered_copies={copies}, but {reason}. {advice}.")
    if if_main_process():
        print(f"Altered copies: none, because {reason}", flush=True)
    return 0


def limit_copies(corpora, copies):
    """How many copies of each file are made, now that the length of the audio is known.

    Arguments
    ---------
    corpora : list of Corpus
    copies : int or "auto"
        As asked for. `auto`: one.

    Returns
    -------
    int
        0, with a message, where one is too many for `auto`.

    Raises
    ------
    UserError
        If a number of copies makes more than 4 h of audio.
    """
    count = 1 if copies == AUTO else copies
    if not count:
        return 0
    (train,) = read_columns([corpus.train_csv for corpus in corpora], duration=float)
    (valid,) = read_columns([corpus.valid_csv for corpus in corpora], duration=float)
    hours = float(train.sum() * (1 + count) + valid.sum()) / 3600
    if hours > MOST_HOURS:
        reason = (
            f"with copies there are {hours:.2f} h of audio, and at most "
            f"{MOST_HOURS:g} h are allowed"
        )
        advice = "Give --altered_copies 0; input_augment alters audio in each step"
        return no_copies(copies, reason, advice)
    return count


def add_copies(corpora, copies, seed, save_folder, begun=False):
    """Makes altered copies of what corpora train on, unless they are there.

    Arguments
    ---------
    corpora : list of Corpus
    copies : int
        Of each file, at least 1.
    seed : int
        Another seed, other copies.
    save_folder : str or Path
        The copies go to `altered/` in it.
    begun : bool
        Whether a training on them has begun. Then a file that had no copy, because it
        could not be read, stays without.

    Returns
    -------
    list of Corpus
        To train on the files and their copies, and to validate on the files alone.
    """
    alter, made = AlteredAudio(), []
    (seconds,) = read_columns([corpus.train_csv for corpus in corpora], duration=float)
    total, quiet = math.ceil(seconds.sum()) * copies, not if_main_process()
    folder = Path(save_folder).resolve() / "altered"
    with open_bar(total, "Altering", "s of audio", quiet=quiet) as bar:
        for corpus in corpora:
            # After the main process, the others take its files.
            known = _known(corpus) if begun or quiet else None
            made.append(_copy(corpus, copies, seed, folder, alter, bar, known))
    return made


def copies_identity(copies):
    """What a training's identity says of its copies; see `utils.identity.named`."""
    return named(copies, digest([_FORMAT, copies])) if copies else 0


def _manifest(corpus):
    return corpus.train_csv.with_name(f"{corpus.train_csv.stem}_altered.csv")


def _known(corpus):
    """IDs in the manifest with copies; None if it was not written yet."""
    path = _manifest(corpus)
    return {row["ID"] for row in read_manifest(path)} if path.exists() else None


def _copy(corpus, copies, seed, folder, alter, bar, known):
    """A corpus with the copies in its manifest, but only those that are known."""
    rows = read_manifest(corpus.train_csv)
    version = digest([_FORMAT, seed, [file_stamp(row["wav"]) for row in rows]])
    folder = folder / f"{corpus.name}-{version}"
    jobs = [
        (row, number, folder / f"{number}/{digest(row['ID'])}.flac")
        for row in rows
        for number in range(1, copies + 1)
    ]
    added, unusable = [], list(corpus.unusable)
    run = functools.partial(_make, alter, seed)
    with contextlib.closing(map_on_threads(run, jobs)) as results:
        for (row, number, path), result in results:
            bar.update(float(row["duration"]))
            if isinstance(result, UnusableAudio):
                unusable.append((row["wav"], f"no altered copy: {result}"))
                continue
            copy = {
                "ID": f"altered_{number}/{row['ID']}",
                "duration": f"{result.duration:.6f}",
                "wav": str(path),
                "num_samples": result.num_samples,
                "sample_rate": result.sample_rate,
            }
            if known is None or copy["ID"] in known:
                added.append({**row, **copy})
    manifest = _manifest(corpus)
    write_csv(manifest, [*rows, *added])
    return replace(corpus, train_csv=manifest, unusable=unusable, num_copies=len(added))


def _make(alter, seed, job):
    """What the copy of a file is, once it is there; or why it cannot be made."""
    row, number, path = job
    if path.exists():
        with contextlib.suppress(UnusableAudio):  # damaged since: it is made again
            return inspect_audio(path)
    try:
        # IDs are relative to the data folder: copies do not depend on its place.
        own = int(digest([seed, row["ID"], number]), 16)
        wav = alter(read_audio(row["wav"], SAMPLE_RATE), own)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, np.asarray(wav), SAMPLE_RATE)
        return inspect_audio(path)
    except UnusableAudio as error:
        return error
