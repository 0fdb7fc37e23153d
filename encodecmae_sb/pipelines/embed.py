"""Features of many audio files, each written to a NumPy file."""

import contextlib
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from encodecmae_sb.data.manifest import find_audio
from encodecmae_sb.inference import load
from encodecmae_sb.nnet.chunks import FRAMES_VERSION, check_layer, seconds_per_frame
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device
from encodecmae_sb.utils.files import whole_file, write_text
from encodecmae_sb.utils.progress import open_bar

SETTINGS_FILE = "features.json"


@dataclass(frozen=True)
class Job:
    """A file to embed.

    Arguments
    ---------
    audio : Path
        What to read.
    target : Path
        Where its features go.
    """

    audio: Path
    target: Path


def load_encoder(source, device, precision):
    """The interface of an encoder.

    Arguments
    ---------
    source : str or Path
        See `encodecmae_sb.inference.load`.
    device : str or None
        See `choose_device`.
    precision : str
        fp32, bf16 or fp16.

    Returns
    -------
    EnCodecMAEEncoder

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it is no encoder folder, or the device cannot be used.
    """
    run_opts = {"precision": precision}
    if device is not None:
        run_opts["device"] = str(choose_device(device))
    return load(source, "encoder", run_opts)


def plan_jobs(audio, output_folder=None):
    """Lists what to read, and where its features go.

    Arguments
    ---------
    audio : list of str or Path
        Files, and folders of them.
    output_folder : Path, optional
        Default: beside the audio.

    Returns
    -------
    list of Job

    Raises
    ------
    FileNotFoundError
        If a folder holds no audio.
    UserError
        If two files would go to the same place.

    Example
    -------
    >>> (job,) = plan_jobs(["music/song.flac"], Path("features"))
    >>> job.target.as_posix()
    'features/song.npy'
    """
    found = {}  # each file once, and its place below what was given
    for given in map(Path, audio):
        inside = [Path(given.name)]
        root = given.parent
        if given.is_dir():
            inside = [Path(path) for path, _, _ in find_audio(given)]
            root = given
        for place in inside:
            found.setdefault((root / place).absolute(), (root / place, place))

    def target(path, place, suffix):
        folder = path.parent if output_folder is None else output_folder / place.parent
        return folder / f"{place.stem}{suffix}.npy"

    stems = Counter(target(path, place, "") for path, place in found.values())
    jobs = {}
    for path, place in found.values():
        suffix = place.suffix if stems[target(path, place, "")] > 1 else ""
        job = Job(path, target(path, place, suffix))
        other = jobs.setdefault(job.target, job)
        if other is not job:
            raise UserError(
                f"{other.audio} and {path} would both become {job.target}. Give the "
                "folder that they have in common, or leave out --output_folder."
            )
    return list(jobs.values())


def check_same_settings(folder, settings):
    """Makes sure that the features in a folder have the same settings.

    Arguments
    ---------
    folder : Path
    settings : dict
        Plain values; `encoder` is shown, not compared.

    Raises
    ------
    UserError
        If they were made with other settings.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return
    try:
        noted = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        noted = {}
    other = [
        f"{key} {noted.get(key)} there, {value} now"
        for key, value in settings.items()
        if key != "encoder" and noted.get(key) != value
    ]
    if other:
        raise UserError(
            f"{folder} holds features made otherwise, with the encoder "
            f"{noted.get('encoder')} ({'; '.join(other)}). Give another "
            "--output_folder, or --overwrite to replace them."
        )


def note_settings(folder, settings):
    """Writes down in a folder how its features are made; see `check_settings`."""
    try:
        write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--output_folder {folder} cannot be written to: {error}"
        ) from error


@contextlib.contextmanager
def new_array(path, shape):
    """A NumPy file to fill; it takes its name when the block ends well.

    Arguments
    ---------
    path : Path
    shape : list of int
        [..., T, D], float32.

    Yields
    ------
    callable
        Takes the next rows, an array of shape [..., t, D].
    """
    done = 0

    def append(rows):
        nonlocal done
        # Map the file anew each time: what was written need not stay in memory.
        array = np.lib.format.open_memmap(scratch, "r+")
        array[..., done : done + rows.shape[-2], :] = rows
        done += rows.shape[-2]

    with whole_file(path, sync=False) as scratch:
        np.lib.format.open_memmap(scratch, "w+", np.float32, tuple(shape))
        if hasattr(os, "posix_fallocate"):
            # Raise an error now if the disk is full. Without this, writing to the map
            # would crash the process.
            with open(scratch, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, scratch.stat().st_size)
        yield append


class Embedding:
    """Embeds files one after another and keeps count.

    Arguments
    ---------
    encoder : EnCodecMAEEncoder
    layer : int or str
        See `EnCodecMAEEncoder.encode_file`.
    batch_size : int
        Chunks of 4 s encoded at once.
    quiet : bool
        No progress bar.

    Attributes
    ----------
    num_done, num_kept : int
        Files embedded, and files whose features were there before.
    unusable : list of Job
        Files left out.
    seconds, elapsed : float
        Seconds of audio embedded, and the time that took.
    """

    def __init__(self, encoder, layer, batch_size=8, quiet=False):
        self.encoder = encoder
        self.layer = layer
        self.batch_size = batch_size
        self.quiet = quiet
        self.frame_seconds = seconds_per_frame(encoder.mods.encoder.front_end)
        self.num_done = self.num_kept = 0
        self.unusable = []
        self.seconds = 0.0
        self.elapsed = 0.0

    def run(self, jobs, overwrite=False):
        """Embeds the files that can be read, and reports the others.

        Arguments
        ---------
        jobs : list of Job
        overwrite : bool
            Also those whose features are there.

        Raises
        ------
        UserError
            If features cannot be written.
        """
        self.jobs = jobs
        todo = [job for job in jobs if overwrite or not job.target.exists()]
        self.num_kept = len(jobs) - len(todo)
        shapes = self._read_shapes(todo)
        started = time.monotonic()
        with open_bar(
            self.frame_seconds * sum(shape[-2] for shape in shapes.values()),
            "Embedding",
            "s of audio",
            quiet=self.quiet or not shapes,
        ) as bar:
            for number, (job, shape) in enumerate(shapes.items(), start=1):
                where = f"file {number} of {len(shapes)}"
                end = bar.n + self.frame_seconds * shape[-2]
                try:
                    for seconds in self._embed(job):
                        speed = self.seconds / (time.monotonic() - started)
                        bar.set_postfix_str(f"{speed:.0f} x real time, {where}", False)
                        bar.update(seconds)
                except (UserError, FileNotFoundError) as error:
                    self._leave_out(job, error)
                except OSError as error:
                    raise UserError(
                        f"{job.target} cannot be written: {error}. Mend that, or give "
                        "another --output_folder; files that are whole are kept."
                    ) from error
                bar.update(end - bar.n)
        self.elapsed = time.monotonic() - started

    def _read_shapes(self, jobs):
        """The shape of the features of each usable file, from its header alone."""

        def read_shape(job):
            try:
                return self.encoder.output_shape(job.audio, self.layer)
            except (UserError, FileNotFoundError) as error:
                return error

        shapes = {}
        quiet = self.quiet or len(jobs) < 200
        with (
            # Threads suffice: most of the time is spent waiting for the disk.
            ThreadPoolExecutor(max_workers=16) as pool,
            open_bar(len(jobs), "Reading headers", "files", quiet=quiet) as bar,
        ):
            for job, shape in zip(jobs, pool.map(read_shape, jobs), strict=True):
                bar.update()
                if isinstance(shape, Exception):
                    self._leave_out(job, shape)
                else:
                    shapes[job] = shape
        return shapes

    def _embed(self, job):
        """Embeds a file; yields the seconds of each stretch of it."""
        before = self.seconds
        # Read the shape again: hours may have passed since the first look.
        shape = self.encoder.output_shape(job.audio, self.layer)
        stream = self.encoder.encode_stream(job.audio, self.layer, self.batch_size)
        try:
            with new_array(job.target, shape) as append:
                for features in stream:
                    append(features.cpu().numpy())
                    seconds = features.shape[-2] * self.frame_seconds
                    self.seconds += seconds
                    yield seconds
        except (UserError, OSError):
            self.seconds = before
            raise
        self.num_done += 1

    def _leave_out(self, job, error):
        self.unusable.append(job)
        shown = str(error).encode("utf-8", "backslashreplace").decode()
        if str(job.audio) not in str(error):
            shown = f"{job.audio}: {shown}"
        tqdm.write(f"Left out: {shown}", file=sys.stderr)

    def summary(self, output_folder=None):
        """What was done, as text, with the place of the features."""
        speed = self.seconds / max(self.elapsed, 1e-9)
        lines = [
            f"Embedded: {self.num_done} of {len(self.jobs)} files, "
            f"{self.seconds:.0f} s of audio in {self.elapsed:.0f} s, "
            f"{speed:.0f} times real time."
        ]
        if self.num_kept:
            lines.append(
                f"There already: {self.num_kept}, left alone (--overwrite computes "
                "them again)."
            )
        if self.unusable:
            lines.append(f"Left out: {len(self.unusable)}, for the reasons above.")
        if self.num_done + self.num_kept and len(self.jobs) == 1:
            shape = np.load(self.jobs[0].target, mmap_mode="r").shape
            shape = " x ".join(map(str, shape))
            lines.append(f"Features: {self.jobs[0].target}, {shape}")
        elif self.num_done + self.num_kept:
            lines.append(f"Features: {output_folder or 'beside the audio'}")
        return "\n".join(lines)


def _named(source):
    """A folder by its whole path, published weights by their name."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(source)


def embed(
    encoder_folder,
    audio,
    output_folder=None,
    layer="last",
    overwrite=False,
    device=None,
    precision="fp32",
    batch_size=8,
    quiet=False,
):
    """Embeds audio files with an exported encoder; see recipes/embed.py.

    Arguments
    ---------
    encoder_folder : str or Path
        See `load_encoder`.
    audio : list of str or Path
        Files, and folders of them.
    output_folder : Path, optional
        Default: beside the audio.
    layer : int or str
        See `EnCodecMAEEncoder.encode_file`.
    overwrite : bool
        Whether to compute features anew that are there.
    device, precision : str
        See `load_encoder`.
    batch_size : int
        Chunks of 4 s encoded at once.
    quiet : bool
        No progress bars.

    Returns
    -------
    Embedding

    Raises
    ------
    FileNotFoundError
        If a folder holds no audio.
    UserError
        If an argument has no allowed value, the output folder holds features made
        with other settings, or features cannot be written.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}: at least 1 is needed.")
    encoder = load_encoder(encoder_folder, device, precision)
    check_layer(encoder.mods.encoder, layer)
    jobs = plan_jobs(audio, output_folder)
    settings = {
        "encoder": encoder.hub_name or _named(encoder_folder),
        "weights": module_key(encoder.mods.encoder)[:12],
        "layer": layer,
        "precision": precision,
        "frames_version": FRAMES_VERSION,
    }
    if output_folder is not None and not overwrite:
        check_same_settings(output_folder, settings)
        note_settings(output_folder, settings)
    embedding = Embedding(encoder, layer, batch_size, quiet)
    embedding.run(jobs, overwrite)
    if output_folder is not None and overwrite:
        # Not earlier: after a kill, old features must not count as new ones.
        note_settings(output_folder, settings)
    return embedding
