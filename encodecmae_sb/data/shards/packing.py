"""Packs corpora in tar shards.

A shard is a plain tar file. Each item is two or three files of one name in a row, as
`webdataset` expects them: `.json` with what is known of it; `.codes.npy`, uint16,
shape [T, Q], if it is packed with its codes; and the audio as it was found.
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file, write_csv

from .indexing import read_shard

# Limits of what is held in memory at once: files, and bytes (or one larger file).
_AT_ONCE, _BYTES_AT_ONCE = 64, 1 << 28
# WAV formats that FLAC keeps bit by bit, and the type to read them as.
_LOSSLESS = {"PCM_16": "int16", "PCM_24": "int32"}
_FLAC_CHANNELS = 8


@dataclass(frozen=True)
class PackItem:
    """A file to be packed.

    Arguments
    ---------
    corpus : str
    row : dict
        Of the corpus' manifest.
    size : int
        Of the file, in bytes.
    codes : callable or None
        Gives its codes, shape [T, Q].
    """

    corpus: str
    row: dict
    size: int
    codes: object = None


class PackItems(Sequence):
    """The files of a manifest as `PackItem`s, made when they are asked for.

    Takes about 250 bytes a file; a `PackItem` takes ten times as much.

    Arguments
    ---------
    corpus : str
    manifest : str or Path
        See `data.manifest`.
    codes : StoredTargets, optional
        The codes of the same files.

    Attributes
    ----------
    sizes, seconds : numpy.ndarray
        Bytes and duration of each file, shape [files].
    """

    def __init__(self, corpus, manifest, codes=None):
        self.corpus, self.codes = corpus, codes
        with open(manifest, newline="", encoding="utf-8") as file:
            names = next(csv.reader(file))
        columns = read_columns(manifest, **dict.fromkeys(names, str))
        self.columns = dict(zip(names, columns, strict=True))
        paths, seconds = self.columns["wav"], self.columns["duration"]
        self.sizes = np.fromiter((os.stat(path).st_size for path in paths), np.int64)
        self.seconds = np.fromiter(map(float, seconds), np.float64)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, number):
        def read_codes():
            return self.codes.read(number, 0, self.codes.frames[number])

        return PackItem(
            self.corpus,
            {name: column[number] for name, column in self.columns.items()},
            int(self.sizes[number]),
            None if self.codes is None else read_codes,
        )


def deal(sizes, shard_bytes, seed):
    """Deals files in random order to shards.

    Arguments
    ---------
    sizes : numpy.ndarray
        Of the files, in bytes, shape [files].
    shard_bytes : int
        Size of the audio files of a shard. There are as many shards as it takes for
        none to be larger by more than a file; all are about equally large.
    seed : int

    Returns
    -------
    list of numpy.ndarray
        The numbers of the files of each shard.

    Example
    -------
    >>> [len(numbers) for numbers in deal(np.full(10, 100), 250, seed=0)]
    [2, 3, 2, 3]
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    sizes = sizes[order]
    count = max(1, -(-int(sizes.sum()) // shard_bytes))
    middles = np.cumsum(sizes) - sizes / 2
    shard = np.minimum((middles / sizes.sum() * count).astype(int), count - 1)
    # `shard` never falls from one file to the next.
    dealt = np.split(order, np.searchsorted(shard, np.arange(1, count)))
    return [numbers for numbers in dealt if len(numbers)]


def write_shard(path, items, first_key, flac=False, progress=lambda seconds: None):
    """Writes a shard and its index, each whole or not at all.

    Arguments
    ---------
    path : Path
        `NAME.tar`.
    items : list of PackItem
    first_key : int
        Items are named by consecutive numbers, from this one.
    flac : bool
        Packs WAV files of 16 or 24 bits as FLAC, without loss.
    progress : callable
        Is called with the seconds of audio of each packed file.

    Returns
    -------
    list of (str, str)
        Path and reason of files that can no longer be read.

    Raises
    ------
    UserError
        If the shard cannot be written, or none of its files be read.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.data.manifest import prepare_split
    >>> from encodecmae_sb.data.tars import Member
    >>> tmp = getfixture("tmp_path")
    >>> manifest, _ = prepare_split(speech_folder() / "dev", tmp)
    >>> items = list(PackItems("dev", manifest))
    >>> write_shard(tmp / "valid-000000.tar", items[:3], first_key=0)
    []
    >>> rows, _ = read_shard(tmp / "valid-000000.tar")
    >>> [Member.at(row["wav"]).name for row in rows]
    ['000000000.flac', '000000001.flac', '000000002.flac']
    """
    unusable = []

    def load(item):
        try:
            return _members(item, flac)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            return error

    try:
        with whole_file(path) as scratch:
            with (
                tarfile.open(scratch, "w", format=tarfile.GNU_FORMAT) as tar,
                ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
            ):
                number = first_key - 1
                for some in _portions(items):
                    for item, loaded in zip(some, pool.map(load, some), strict=True):
                        number += 1
                        if isinstance(loaded, Exception):
                            unusable.append((item.row["wav"], f"unreadable: {loaded}"))
                            continue
                        for extension, content in loaded:
                            entry = tarfile.TarInfo(f"{number:09d}.{extension}")
                            entry.size = len(content)
                            tar.addfile(entry, io.BytesIO(content))
                        progress(float(item.row["duration"]))
            if len(unusable) == len(items):
                raise UserError(
                    f"None of the {len(items)} files of {path} can be read; the last "
                    f"one is {unusable[-1][0]}: {unusable[-1][1]}"
                )
        rows, odd = read_shard(path)
        split = path.name.split("-")[0]
        write_csv(f"{path}.csv", [{**row, "split": split} for row in rows])
    except OSError as error:
        raise UserError(
            f"The shard {path} could not be written: {error}. Make room, and give the "
            "same command again: finished shards are kept."
        ) from error
    return unusable + odd


def _portions(items):
    """Cuts items into lists that fit into memory."""
    portion, size = [], 0
    for item in items:
        size += item.size
        if portion and (len(portion) == _AT_ONCE or size > _BYTES_AT_ONCE):
            yield portion
            portion, size = [], item.size
        portion.append(item)
    yield portion


def _members(item, flac):
    """Extension and content of the files of an item."""
    path = Path(item.row["wav"])
    extension, content = path.suffix[1:].lower(), path.read_bytes()
    if flac and extension == "wav":
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.subtype in _LOSSLESS and file.channels <= _FLAC_CHANNELS:
                samples = file.read(dtype=_LOSSLESS[file.subtype])
                packed = io.BytesIO()
                soundfile.write(
                    packed, samples, file.samplerate, file.subtype, format="FLAC"
                )
                extension, content = "flac", packed.getvalue()
    known = {key: value for key, value in item.row.items() if key != "wav"}
    known.update(
        corpus=item.corpus,
        path=str(path),
        duration=float(known["duration"]),
        num_samples=int(known["num_samples"]),
        sample_rate=int(known["sample_rate"]),
    )
    # Write metadata and codes before the audio, so a streaming reader has them in
    # time.
    members = [("json", json.dumps(known).encode())]
    if item.codes is not None:
        rows = io.BytesIO()
        np.save(rows, np.ascontiguousarray(item.codes(), np.uint16))
        members.append(("codes.npy", rows.getvalue()))
    return [*members, (extension, content)]
