"""What targets are stored in and cut from: rows in files, files in chunks, crops.

Frame t of a file stands for its samples [320 t, 320 (t + 1)) at 24 kHz. A crop that
begins on a frame therefore has targets of its own frames.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.signal import resampling_ratio

from .audio import UnusableAudio, read_audio
from .columns import read_columns


class RowFile:
    """Arrays of rows, appended item by item to a file, and read as a memory map.

    A second file holds the number of rows of each item. It is written after the rows,
    so that a run that goes on after a kill finds whole items only.

    Arguments
    ---------
    path : str or Path
        Of the rows; the numbers of rows go to `PATH.counts`.
    dtype : str or numpy.dtype
        Of the rows.
    width : int, optional
        Columns; default: none, each row is a number.

    Example
    -------
    >>> file = RowFile(getfixture("tmp_path") / "rows", "float32", width=2)
    >>> file.append([np.ones((3, 2)), np.zeros((1, 2))])
    >>> file.counts, file.rows.shape
    (array([3, 1]), (4, 2))
    """

    def __init__(self, path, dtype, width=None):
        self.path = Path(path)
        self.counts_path = Path(f"{path}.counts")
        self.dtype = np.dtype(dtype)
        self.width = width
        self.row_bytes = self.dtype.itemsize * (width or 1)

    @property
    def counts(self):
        """Rows of each complete item, int64, shape [items]."""
        if not self.counts_path.exists() or not self.path.exists():
            return np.zeros(0, np.int64)
        data = self.counts_path.read_bytes()
        counts = np.frombuffer(data[: len(data) // 8 * 8], np.int64)
        # After a power cut the counts may be there without the rows.
        ends = np.cumsum(counts) * self.row_bytes
        return counts[ends <= self.path.stat().st_size]

    @property
    def rows(self):
        """All rows, a read-only memory map, shape [N] or [N, width]."""
        shape = (int(self.counts.sum()),)
        shape = shape if self.width is None else (*shape, self.width)
        if not shape[0]:  # an empty file cannot be mapped
            return np.zeros(shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=shape)

    def resume(self, num_items, group=1):
        """Removes incomplete items.

        Arguments
        ---------
        num_items : int
            Items of the file when it is finished.
        group : int
            Items appended at once; an incomplete group is removed as a whole.

        Returns
        -------
        int
            Items that are left.
        """
        counts = self.counts
        done = min(len(counts), num_items)
        if done < num_items:
            done -= done % group
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, size in (
            (self.path, int(counts[:done].sum()) * self.row_bytes),
            (self.counts_path, 8 * done),
        ):
            path.touch()
            os.truncate(path, size)
        return done

    def append(self, items):
        """Adds items.

        Arguments
        ---------
        items : list of numpy.ndarray
            Each of shape [rows] or [rows, width].
        """
        rows = b"".join(item.astype(self.dtype).tobytes() for item in items)
        _append(self.path, rows)
        counts = np.array([len(item) for item in items], np.int64)
        _append(self.counts_path, counts.tobytes())


def _append(path, data):
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_samples(path, file_rate, first, count):
    """Reads samples of a file at 24 kHz, exact to the sample.

    Arguments
    ---------
    path : str or Path
        The audio file.
    file_rate : int
        Its own rate, in Hz.
    first, count : int
        First sample and number of samples, of the file at 24 kHz.

    Returns
    -------
    torch.Tensor
        float32, shape [count].

    Raises
    ------
    UnusableAudio
        If they cannot be read.
    """
    orig, new = resampling_ratio(file_rate, SAMPLE_RATE)
    block, skip = divmod(first, new)
    # `read_audio` starts on the block before this. Half a block is safe from rounding.
    start = (block + 0.5) * orig / file_rate
    wav = read_audio(path, SAMPLE_RATE, start, (skip + count) / SAMPLE_RATE)
    wav = wav[skip : skip + count]
    if len(wav) < count:
        raise UnusableAudio("it is shorter than when it was listed")
    return wav


def samples_at_24k(num_samples, rates):
    """Lengths of files at 24 kHz.

    Arguments
    ---------
    num_samples : numpy.ndarray of int
        Their lengths at their own rates, shape [files].
    rates : numpy.ndarray of int
        These rates in Hz, shape [files].

    Returns
    -------
    numpy.ndarray
        Samples, int64, shape [files].

    Example
    -------
    >>> samples_at_24k(np.array([100, 100]), np.array([24000, 16000]))
    array([100, 150])
    """
    lengths = np.zeros(len(rates), np.int64)
    for rate in np.unique(rates):
        orig, new = resampling_ratio(int(rate), SAMPLE_RATE)
        here = rates == rate
        lengths[here] = -(-num_samples[here] * new // orig)
    return lengths


@dataclass
class FileChunk:
    """A chunk of a file, or why it cannot be read.

    Arguments
    ---------
    wav : torch.Tensor or None
        Samples at 24 kHz, shape [N].
    reason : str
        Empty, or why there is no `wav`.
    context : int
        How many of the samples are before the chunk.
    """

    wav: torch.Tensor | None
    reason: str = ""
    context: int = 0


class FileChunks(Dataset):
    """The files of manifests, cut in chunks, one after another.

    Shorter files come first, and files of the same length by path.

    Arguments
    ---------
    manifests : str, Path or list of them
        As `data.manifest` writes them.
    chunk_samples : int
        Samples per chunk at 24 kHz, whole frames.
    context_samples : int
        Samples before a chunk that come with it, as far as the file has them.
    shortest_tail : int
        A last chunk of at most this many samples after others is dropped.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.data.manifest import prepare_corpora
    >>> corpus, = prepare_corpora(speech_folder(), getfixture("tmp_path"))
    >>> chunks = FileChunks(corpus.valid_csv, 24000)
    >>> chunks[0].wav.shape
    torch.Size([24000])
    """

    def __init__(
        self, manifests, chunk_samples, context_samples=0, shortest_tail=HOP - 1
    ):
        self.paths, self.rates, num_samples = read_columns(
            manifests, wav=str, sample_rate=int, num_samples=int
        )
        self.lengths = samples_at_24k(num_samples, self.rates)
        by_path = sorted(range(len(self.paths)), key=list(self.paths).__getitem__)
        order = np.array(by_path, np.int64)
        order = order[np.argsort(self.lengths[order], kind="stable")]
        self.paths = self.paths.take(order)
        self.rates, self.lengths = self.rates[order], self.lengths[order]
        self.chunk_samples = chunk_samples
        self.context_samples = context_samples
        whole, tail = np.divmod(self.lengths, chunk_samples)
        chunks = whole + ((tail > shortest_tail) | (whole == 0))
        # The first chunk of each file, and the end.
        self.first = np.concatenate([[0], np.cumsum(chunks)])

    def __len__(self):
        return int(self.first[-1])

    def __getitem__(self, index):
        file = int(np.searchsorted(self.first, index, side="right")) - 1
        start = int(index - self.first[file]) * self.chunk_samples
        context = min(self.context_samples, start)
        samples = min(int(self.lengths[file]) - start, self.chunk_samples)
        path, rate = self.paths[file], int(self.rates[file])
        try:
            wav = read_samples(path, rate, start - context, context + samples)
            return FileChunk(wav, context=context)
        except UnusableAudio as error:
            return FileChunk(None, str(error))


class StoredTargets:
    """Stored targets of the files of a manifest, for `RandomCrops` and `FixedCrops`.

    Subclasses define `read`, which gives the targets of some frames of a file.

    Arguments
    ---------
    paths : Texts
        The files.
    rates : numpy.ndarray of int
        Their own rates in Hz, shape [files].
    frames : numpy.ndarray of int
        How many frames of each have targets, shape [files].
    """

    def __init__(self, paths, rates, frames):
        self.paths = paths
        self.rates = rates
        self.frames = frames
        self.kept = None

    def keep_audio(self):
        """From now on keeps the audio of each file in memory once it was read."""
        self.kept = {}

    def __getstate__(self):
        # A worker reads for itself, where it does not share memory from the start.
        return {**vars(self), "kept": None if self.kept is None else {}}

    @property
    def seconds(self):
        """Length of each file as far as it has targets."""
        return self.frames * (HOP / SAMPLE_RATE)

    def samples(self, file, first, count):
        """Samples of a file's frames `first` to `first + count - 1`, [320 count]."""
        path, rate = self.paths[file], int(self.rates[file])
        if self.kept is None:
            return read_samples(path, rate, HOP * first, HOP * count)
        if file not in self.kept:
            # Of short files the whole: opening and resampling takes most of the time.
            self.kept[file] = read_samples(path, rate, 0, HOP * int(self.frames[file]))
        return self.kept[file][HOP * first : HOP * (first + count)]

    def read(self, file, first, count):
        """Targets of a file's frames `first` to `first + count - 1`, [count, Q]."""
        raise NotImplementedError

    def cut(self, file, position, crop_seconds):
        """A crop that begins on a frame.

        Arguments
        ---------
        file : int
            Number of the file in the manifest.
        position : float
            Start of the crop as a fraction of the latest possible start, in [0, 1).
        crop_seconds : float
            Length; shorter files are taken whole.

        Returns
        -------
        dict
            `wav`, float32, shape [320 T], and `targets`, int64, shape [T, Q].

        Raises
        ------
        UnusableAudio
            If it cannot be read, or the file has no targets.
        """
        available = int(self.frames[file])
        frames = min(max(1, round(crop_seconds * SAMPLE_RATE / HOP)), available)
        if frames < 1:
            raise UnusableAudio("it has no targets: too short, or unreadable")
        first = int(position * (available - frames + 1))
        wav = self.samples(file, first, frames)
        targets = self.read(file, first, frames).astype(np.int64)
        return {"wav": wav, "targets": torch.from_numpy(targets)}
