"""Audio files: what is usable, and how to read a part of one.

libsndfile (the ``soundfile`` package) reads WAV, FLAC, OGG and MP3 from any position:
the cost of a crop does not depend on the length of its file.
"""

import contextlib
import io
import itertools
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from encodecmae_sb.utils.files import whole_file
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.signal import LOWPASS_WIDTH, resample, resampling_ratio

from .tars import Member, open_source

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")

_MIN_RATE = 1000  # Hz
# Files given to a thread at once: handing over a single file takes half as long as
# inspecting it.
_PORTION = 8
_WAITING = 128  # portions that wait for a thread


class UnusableAudio(Exception):
    """An audio file that cannot be trained on; the message is the reason."""


@dataclass(frozen=True)
class AudioInfo:
    """What a manifest keeps of an audio file.

    Arguments
    ---------
    num_samples : int
        Length in samples per channel, at the file's own rate.
    sample_rate : int
        The file's own rate, in Hz.
    channels : int
        Number of channels.
    """

    num_samples: int
    sample_rate: int
    channels: int

    @property
    def duration(self):
        """Length in seconds."""
        return self.num_samples / self.sample_rate

    def samples_at(self, target_rate):
        """Length in samples once resampled to a rate in Hz."""
        orig, new = resampling_ratio(self.sample_rate, target_rate)
        return -(-self.num_samples * new // orig)


def inspect_audio(path, min_seconds=HOP / SAMPLE_RATE, check_values=True):
    """Reads the header and the end of a file; raises an error if it cannot be used.

    Of integer files only the header and the last block are read, so the cost does not
    depend on the length. Floating-point files are read whole, in blocks: only they can
    hold non-finite values.

    Arguments
    ---------
    path : str or Path
        The audio file.
    min_seconds : float
        Shorter files are unusable. Default: one frame of the codec.
    check_values : bool
        False does not read floating-point files whole: for callers that read and
        check them later.

    Returns
    -------
    AudioInfo

    Raises
    ------
    UnusableAudio
        If the file is empty, corrupt, truncated, too short, or holds
        non-finite samples.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> path = sorted(speech_folder().rglob("*.flac"))[0]
    >>> inspect_audio(path).sample_rate
    16000
    """
    path = os.fspath(path)  # not a Path: pathlib keeps every name in memory
    try:
        path.encode()
        if os.path.getsize(path) == 0:
            raise UnusableAudio("empty file (0 bytes)")
        _check_wav_is_whole(path)
        with soundfile.SoundFile(path) as file:
            info = AudioInfo(file.frames, file.samplerate, file.channels)
            if info.sample_rate < _MIN_RATE:
                raise UnusableAudio(f"sample rate of {info.sample_rate} Hz")
            if info.num_samples == 0:
                raise UnusableAudio("no samples")
            if info.duration < min_seconds:
                raise UnusableAudio(
                    f"too short: {1000 * info.duration:.1f} ms, at least "
                    f"{1000 * min_seconds:.1f} ms are needed"
                )
            if check_values and file.subtype in ("FLOAT", "DOUBLE"):
                for block in file.blocks(blocksize=1 << 20, dtype="float32"):
                    if not np.isfinite(block).all():
                        raise UnusableAudio("non-finite samples (NaN or Inf)")
            else:
                tail = min(1024, info.num_samples)
                file.seek(info.num_samples - tail)
                if len(file.read(tail)) < tail:
                    raise UnusableAudio("truncated: ends before its header says")
    except UnicodeError as error:
        raise UnusableAudio("its name is not valid UTF-8: rename it") from error
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UnusableAudio(f"unreadable: {error}") from error
    return info


def write_audio(path, samples, sample_rate):
    """Writes an audio file at once, in the format that its name ends in.

    Arguments
    ---------
    path : str or Path
    samples : numpy.ndarray
        Shape [N], in [-1, 1].
    sample_rate : int
        In Hz.

    Example
    -------
    >>> path = getfixture("tmp_path") / "silence.wav"
    >>> write_audio(path, np.zeros(24000), 24000)
    >>> inspect_audio(path).duration
    1.0
    """
    # Let libsndfile write to memory only: it reports no error when a disk is full.
    content = io.BytesIO()
    kind = Path(path).suffix.lstrip(".").upper()
    soundfile.write(content, samples, sample_rate, format=kind)
    with whole_file(path) as scratch:
        scratch.write_bytes(content.getvalue())


def can_be_read(path):
    """Whether all of an audio file can be read; takes as long as reading it.

    Arguments
    ---------
    path : str or Path
        The audio file, possibly in a tar file (see `data.tars`).

    Returns
    -------
    bool

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> can_be_read(sorted(speech_folder().rglob("*.flac"))[0])
    True
    """
    try:
        if Member.at(path) is None:
            inspect_audio(path)  # finds most errors at once
        with open_source(path) as source, soundfile.SoundFile(source) as file:
            count = 0
            for block in file.blocks(blocksize=1 << 20, dtype="float32"):
                count += len(block)
                if not np.isfinite(block).all():
                    return False
            return count == file.frames
    except (UnusableAudio, soundfile.LibsndfileError, OSError, RuntimeError):
        return False


def inspect_files(paths, total, desc):
    """Inspects many files at once.

    Arguments
    ---------
    paths : iterable of str or Path
    total : int
        How many there are.
    desc : str
        For the progress bar.

    Yields
    ------
    AudioInfo or UnusableAudio
        Of each file, in the order of the paths.
    """

    def inspect(path):
        try:
            return inspect_audio(path)
        except UnusableAudio as error:
            return error

    paths = iter(paths)
    portions = iter(lambda: list(itertools.islice(paths, _PORTION)), [])
    bar = open_bar(total, desc, "files", quiet=total < 200)
    # Use threads, not processes: most of the time is spent waiting for the disk, and
    # libsndfile releases the interpreter's lock. Limit the queue: a waiting portion
    # takes 2 kB.
    with bar, ThreadPoolExecutor(max_workers=16) as pool:
        while some := list(itertools.islice(portions, _WAITING)):
            for results in pool.map(lambda paths: [*map(inspect, paths)], some):
                bar.update(len(results))
                yield from results


def _check_wav_is_whole(path):
    """Raises an error for a cut WAV file, which libsndfile would silently shorten."""
    with open(path, "rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:12] != b"WAVE":
            return
        size = os.path.getsize(path)
        while header := file.read(8):
            if len(header) < 8:
                return
            name, length = struct.unpack("<4sI", header)
            # Streamed files have a length near the largest possible one, which means
            # "unknown" (sox: 0x7FFFF000).
            if name == b"data":
                missing = file.tell() + length - size
                if length < 0x7FFFF000 and missing > 0:
                    raise UnusableAudio(f"truncated: {missing} bytes are missing")
                return
            file.seek(length + length % 2, 1)


def read_audio(path, target_rate, start=0.0, seconds=None):
    """Reads mono audio, or a part of it, at the requested rate.

    A part equals the same part of the whole file resampled, up to rounding errors: it
    starts on a block of the resampler, and is read with a margin for the filter, which
    is cut off afterwards.

    Arguments
    ---------
    path : str or Path
        The audio file, possibly in a tar file (see `data.tars`).
    target_rate : int
        Rate of the result, in Hz.
    start : float
        Where to start, in seconds; rounded down to a block of the resampler
        (at most 42 ms, for usual rates below 4 ms).
    seconds : float, optional
        How much to read at most; default: to the end.

    Returns
    -------
    torch.Tensor
        float32 samples, shape [N].

    Raises
    ------
    UnusableAudio
        If the part cannot be read, is shorter than the file's header says, or
        holds non-finite samples.
    """
    try:
        with open_source(path) as source, soundfile.SoundFile(source) as file:
            rate = file.samplerate
            orig, new = resampling_ratio(rate, target_rate)
            first_block = int(start * rate / orig)
            margin_blocks = _margin_blocks(orig, new)
            read_block = max(0, first_block - margin_blocks)
            read_from = read_block * orig
            if first_block * orig >= file.frames:
                raise UnusableAudio(f"no samples after {start:.2f} s")
            read_to = file.frames
            wanted = None
            if seconds is not None:
                wanted = math.ceil(seconds * target_rate)
                last_block = first_block + math.ceil(wanted / new)
                read_to = min(read_to, (last_block + margin_blocks) * orig)
            file.seek(read_from)
            samples = file.read(read_to - read_from, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UnusableAudio(f"unreadable: {error}") from error
    if len(samples) < read_to - read_from:
        raise UnusableAudio("truncated: ends before its header says")
    if not np.isfinite(samples).all():
        raise UnusableAudio("non-finite samples (NaN or Inf)")
    waveform = torch.from_numpy(samples.mean(axis=1))
    waveform = resample(waveform, rate, target_rate)
    skip = (first_block - read_block) * new
    return waveform[skip:] if wanted is None else waveform[skip : skip + wanted]


def stream_audio(path, target_rate, samples):
    """Reads mono audio from its beginning to its end, a stretch at a time.

    The joined stretches equal the whole file resampled, up to rounding errors. Memory
    does not depend on the file's length.

    Arguments
    ---------
    path : str or Path
        The audio file.
    target_rate : int
        Rate of the result, in Hz.
    samples : int
        Length of a stretch at that rate; the last one may be shorter.

    Yields
    ------
    torch.Tensor
        float32 samples, shape [N].

    Raises
    ------
    UnusableAudio
        When it reaches a part that cannot be read, is missing, or holds non-finite
        samples.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> path = sorted(speech_folder().rglob("*.flac"))[0]
    >>> parts = [len(part) for part in stream_audio(path, 24000, 20000)]
    >>> parts[0], sum(parts) == len(read_audio(path, 24000))
    (20000, True)
    """
    with _unusable_if_unreadable():
        file = _Sequential(str(path))
    with file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        orig, new = resampling_ratio(info.sample_rate, target_rate)
        margin = _margin_blocks(orig, new)
        total = info.samples_at(target_rate)
        held, held_from = np.zeros(0, np.float32), 0
        for first in range(0, total, samples):
            count = min(samples, total - first)
            read_block = max(0, first // new - margin)
            last_block = -(-(first + count) // new)
            read_to = min(info.num_samples, (last_block + margin) * orig)
            # Keep the samples that the filter still needs, and append the next ones.
            held = held[read_block * orig - held_from :]
            held_from = read_block * orig
            more = _read_mono(file, read_to - held_from - len(held))
            held = np.concatenate([held, more])
            # Pad to whole blocks: then the number of output samples is exact.
            padded = np.pad(held, (0, -len(held) % orig))
            wave = resample(torch.from_numpy(padded), info.sample_rate, target_rate)
            skip = first - read_block * new
            yield wave[skip : skip + count]


class _Sequential(soundfile.SoundFile):
    """A file that is read from its beginning to its end.

    After each read, soundfile seeks to the current position. That damages MP3: a frame
    may borrow bits from earlier frames, which are lost after a seek, and some
    milliseconds would be wrong.
    """

    def seekable(self):
        """No: leave the position alone."""
        return False


def _margin_blocks(orig, new):
    """Blocks on either side that the resampler's filter reaches into."""
    if orig == new:
        return 0
    taps = math.ceil(LOWPASS_WIDTH * max(orig / new, 1)) + 1
    return math.ceil(taps / orig)


def _read_mono(file, count):
    """The next samples of an open file, channels averaged, float32, [count]."""
    mono = np.empty(count, np.float32)
    at_once = max(1, (1 << 20) // file.channels)
    for start in range(0, count, at_once):
        wanted = min(at_once, count - start)
        with _unusable_if_unreadable():
            block = file.read(wanted, dtype="float32", always_2d=True)
        if len(block) < wanted:
            raise UnusableAudio("truncated: ends before its header says")
        block.mean(axis=1, out=mono[start : start + wanted])
    if not np.isfinite(mono).all():
        raise UnusableAudio("non-finite samples (NaN or Inf)")
    return mono


@contextlib.contextmanager
def _unusable_if_unreadable():
    """Turns errors of libsndfile and of the system into `UnusableAudio`."""
    try:
        yield
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UnusableAudio(f"unreadable: {error}") from error
