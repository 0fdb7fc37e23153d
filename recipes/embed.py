"""Features of audio files from an exported encoder.

    python recipes/embed.py ENCODER_FOLDER AUDIO [AUDIO ...]
    python recipes/embed.py ENCODER_FOLDER /data/LibriSpeech --output_folder features

AUDIO is a file (WAV, FLAC, OGG or MP3, of any rate and length) or a folder, searched
with all below it. Every file gives a NumPy file `NAME.npy`, float32, of shape
[frames, width], with `--layer all` [layers, frames, width], about 75 frames a second:
beside the audio or, laid out as the audio is, in --output_folder. Where names differ
only in their extensions, these stay in them: `NAME.wav.npy`.

An hour takes as little memory as a minute: it is read, encoded and written a stretch
at a time. What holds for a large corpus:

- A file has its name only when it is whole. When the same command is given again
  after a run was killed, files that are there are left alone, whatever has become of
  their audio, and counted; `--overwrite` computes them again. (After a power cut, the
  files of the last minute may be damaged: delete those first.)
- `features.json` in --output_folder says what its features were made with. A run with
  another encoder, layer or precision is refused. Beside the audio nothing is noted:
  there, a file of the right name counts as done.
- Audio that cannot be used is reported, with the reason, skipped and counted. What
  concerns all files (a full disk, say) ends the run.
- The exit status is 0 if there are features of any file at the end, else 1.
"""

import argparse
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
from speechbrain.inference.interfaces import foreign_class
from tqdm import tqdm

from encodecmae_sb.data.manifest import find_audio
from encodecmae_sb.nnet.chunks import check_layer, seconds_per_frame
from encodecmae_sb.pretrained.folder import check_folder
from encodecmae_sb.utils.digests import weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device, quit_on_user_errors
from encodecmae_sb.utils.files import whole_file, write_text

SETTINGS_FILE = "features.json"
_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
    "[{elapsed}, {remaining} left{postfix}]"
)


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


def parse_arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="folder that a recipe exported")
    parser.add_argument("audio", nargs="+", help="audio files, or folders of them")
    parser.add_argument(
        "--layer",
        default="last",
        help="last, last_no_norm, all, or the number of a layer counted from 0",
    )
    parser.add_argument("--output_folder", type=Path, help="default: beside the audio")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace features that are there"
    )
    parser.add_argument("--device", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="pieces of 4 s encoded at once; give a GPU more, such as 64",
    )
    parser.add_argument("--noprogressbar", action="store_true")
    args = parser.parse_args(argv)
    args.layer = int(args.layer) if args.layer.isdigit() else args.layer
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: at least 1 is needed.")
    return args


def load_encoder(folder, device, precision):
    """The interface of an encoder folder, ready to use."""
    if not (Path(folder).expanduser() / "hyperparams.yaml").is_file():
        raise UserError(
            f"{folder} is no encoder folder: it holds no hyperparams.yaml. Give "
            "the folder that a recipe exported, e.g. results/mini/1234/encoder"
        )
    folder = check_folder(folder)
    run_opts = {"precision": precision}
    if device is not None:
        run_opts["device"] = str(choose_device(device))
    return foreign_class(
        source=str(folder.resolve()),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts=run_opts,
    )


def plan(audio, output_folder=None):
    """What to read, and where its features go.

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
    ValueError
        If two files would go to the same place.
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


def check_settings(folder, settings):
    """Makes sure that features in a folder were not made with other settings.

    Arguments
    ---------
    folder : Path
    settings : dict

    Raises
    ------
    ValueError
        If they were.
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
    """Notes in a folder what its features are made with."""
    try:
        write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--output_folder {folder} cannot be written to: {error}"
        ) from error


@contextlib.contextmanager
def new_array(path, shape):
    """A NumPy file to fill, which gets its name when that has ended well.

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
        # Mapped anew each time: what was written need not stay in memory.
        array = np.lib.format.open_memmap(scratch, "r+")
        array[..., done : done + rows.shape[-2], :] = rows
        done += rows.shape[-2]

    with whole_file(path, sync=False) as scratch:
        np.lib.format.open_memmap(scratch, "w+", np.float32, tuple(shape))
        if hasattr(os, "posix_fallocate"):
            # On a full disk an error now, not a crash when the map is written to.
            with open(scratch, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, scratch.stat().st_size)
        yield append


class Embedding:
    """Embeds files one after another and keeps account.

    Arguments
    ---------
    encoder : EnCodecMAEEncoder
    layer : int or str
        See `EnCodecMAEEncoder.encode_file`.
    batch_size : int
        Pieces of 4 s encoded at once.
    quiet : bool
        No progress bar.
    """

    def __init__(self, encoder, layer, batch_size=8, quiet=False):
        self.encoder = encoder
        self.layer = layer
        self.batch_size = batch_size
        self.quiet = quiet
        self.frame_seconds = seconds_per_frame(encoder.mods.encoder.front_end)
        self.num_done = 0
        self.unusable = []
        self.seconds = 0.0  # of audio, embedded
        self.elapsed = 0.0

    def run(self, jobs):
        """Embeds.

        Arguments
        ---------
        jobs : list of Job

        Raises
        ------
        ValueError
            If features cannot be written.
        """
        shapes = self._look_at(jobs)
        started = time.monotonic()
        with tqdm(
            total=sum(shape[-2] for shape in shapes.values()),
            unit_scale=self.frame_seconds,
            desc="Embedding",
            bar_format=_BAR,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
            disable=self.quiet or not shapes,
        ) as bar:
            for number, (job, shape) in enumerate(shapes.items(), start=1):
                self.where = f"file {number} of {len(shapes)}"
                planned = bar.n + shape[-2]
                try:
                    self._embed(job, bar, started)
                except (UserError, FileNotFoundError) as error:
                    self._leave_out(job, error)
                except OSError as error:
                    raise UserError(
                        f"{job.target} cannot be written: {error}. Mend that, or give "
                        "another --output_folder; files that are whole are kept."
                    ) from error
                bar.update(planned - bar.n)
        self.elapsed = time.monotonic() - started

    def _look_at(self, jobs):
        """Shape of the features of each usable file, from headers alone."""

        def look(job):
            try:
                return self.encoder.output_shape(job.audio, self.layer)
            except (UserError, FileNotFoundError) as error:
                return error

        shapes = {}
        # Threads: the work is waiting for the disk.
        with ThreadPoolExecutor(max_workers=16) as pool:
            results = tqdm(
                pool.map(look, jobs),
                total=len(jobs),
                desc="Reading headers",
                unit=" files",
                dynamic_ncols=True,
                disable=self.quiet or len(jobs) < 200,
            )
            for job, shape in zip(jobs, results, strict=True):
                if isinstance(shape, Exception):
                    self._leave_out(job, shape)
                else:
                    shapes[job] = shape
        return shapes

    def _embed(self, job, bar, started):
        before = self.seconds
        # Once more: since it was looked at, hours may have passed.
        shape = self.encoder.output_shape(job.audio, self.layer)
        stream = self.encoder.encode_stream(job.audio, self.layer, self.batch_size)
        try:
            with new_array(job.target, shape) as append:
                for chunk in stream:
                    append(chunk.cpu().numpy())
                    self.seconds += chunk.shape[-2] * self.frame_seconds
                    speed = self.seconds / (time.monotonic() - started)
                    bar.set_postfix_str(
                        f"{speed:.0f} x real time, {self.where}", refresh=False
                    )
                    bar.update(chunk.shape[-2])
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


def main(argv=None):
    """Embeds what the command line names; the exit status."""
    args = parse_arguments(argv)
    encoder = load_encoder(args.encoder, args.device, args.precision)
    check_layer(encoder.mods.encoder, args.layer)
    jobs = plan(args.audio, args.output_folder)
    settings = {
        "encoder": str(Path(args.encoder).resolve()),
        "weights": weights_key(encoder.mods.encoder)[:12],
        "layer": args.layer,
        "precision": args.precision,
    }
    folder = args.output_folder
    if folder is not None and not args.overwrite:
        check_settings(folder, settings)
        note_settings(folder, settings)
    todo = [job for job in jobs if args.overwrite or not job.target.exists()]
    embedding = Embedding(encoder, args.layer, args.batch_size, args.noprogressbar)
    embedding.run(todo)
    if folder is not None and args.overwrite:
        # Not before, so that what a killed run has not replaced is not taken for new.
        note_settings(folder, settings)

    there = len(jobs) - len(todo)
    speed = embedding.seconds / max(embedding.elapsed, 1e-9)
    print(
        f"Embedded: {embedding.num_done} of {len(jobs)} files, "
        f"{embedding.seconds:.0f} s of audio in {embedding.elapsed:.0f} s, "
        f"{speed:.0f} times real time."
    )
    if there:
        print(f"There already: {there}, left alone (--overwrite computes them again).")
    if embedding.unusable:
        print(f"Left out: {len(embedding.unusable)}, for the reasons given above.")
    if embedding.num_done + there == 0:
        return 1
    if len(jobs) == 1:
        shape = np.load(jobs[0].target, mmap_mode="r").shape
        print(f"Features: {jobs[0].target}, {' x '.join(map(str, shape))}")
    else:
        print(f"Features: {folder or 'beside the audio'}")
    return 0


if __name__ == "__main__":
    with quit_on_user_errors():
        sys.exit(main())
