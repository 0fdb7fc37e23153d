"""Codes of whole files, encoded once and kept in a folder.

`recipes/extract_codes.py` writes the folder, pretraining reads it (`codes_folder`)::

    codes.json             which codec, how many codebooks
    part-00000.codes       uint16, shape [frames, Q]: frames of many files in a row
    part-00000.codes.counts   int64: frames of each file
    part-00000.files       a line of JSON per file: path, size, time of change, reason

Every process of every run writes a part of its own, so that nothing is ever written
to that another process may read or that a kill has left half done. Of a file that
stands there more than once, the last part's codes count.
"""

import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from encodecmae_sb.errors import UserError
from encodecmae_sb.files import write_text

from .manifest import read_manifest
from .targets import RowFile, StoredTargets

_FORMAT = 1  # raise it when the files' layout or the rules of encoding change
_SHOWN = 5  # files that an error names


@dataclass(frozen=True)
class CodesInfo:
    """What all codes of a folder have in common.

    Arguments
    ---------
    codec : str
        Source of the codec, as the user named it.
    checksum : str
        Of its weights.
    n_codebooks : int
        Codes per frame.
    codebook_size : int
        Codes are below it.
    format : int
        Of the folder.
    """

    codec: str
    checksum: str
    n_codebooks: int
    codebook_size: int
    format: int = _FORMAT


def prepare_codes(folder, info):
    """Makes a folder of codes, or makes sure that it holds codes of this kind.

    Arguments
    ---------
    folder : str or Path
    info : CodesInfo

    Raises
    ------
    UserError
        If it holds other codes, or cannot be written to.
    """
    folder = Path(folder)
    file = folder / "codes.json"
    if file.exists():
        there = read_info(folder)
        if (there.checksum, there.n_codebooks) != (info.checksum, info.n_codebooks):
            raise UserError(
                f"{folder} holds codes of {_describe(there)}, not of "
                f"{_describe(info)}. Give another folder, or the same codec and "
                "n_codebooks."
            )
        return
    try:
        write_text(file, json.dumps(asdict(info), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error}") from error


def read_info(folder):
    """What the codes of a folder are.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    CodesInfo

    Raises
    ------
    UserError
        If it is no folder of codes, or one of another version of this package.
    """
    file = Path(folder) / "codes.json"
    try:
        given = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"codes_folder={folder} is no folder of codes: it holds no codes.json. "
            f"Make it: python recipes/extract_codes.py {folder} --data_folder FOLDER"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}. Extract again.") from error
    names = {field.name for field in fields(CodesInfo)}
    if given.get("format") != _FORMAT or given.keys() != names:
        raise UserError(
            f"{file} is of another version of this package: extract into a new folder."
        )
    return CodesInfo(**given)


def _describe(info):
    return f"codec {info.codec} ({info.checksum}), {info.n_codebooks} codebooks"


class CodesPart:
    """The part of a folder that one process writes.

    Arguments
    ---------
    folder : str or Path
    n_codebooks : int

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> prepare_codes(folder, CodesInfo("bundled", "0" * 8, 2, 1024))
    >>> audio = folder / "a.wav"
    >>> _ = audio.write_bytes(b"")
    >>> part = CodesPart(folder, 2)
    >>> part.append([(str(audio), file_stamp(audio), "")], [np.ones((75, 2))])
    >>> stored = StoredCodes(folder)
    >>> stored.frames(audio), stored.frames(folder / "b.wav")
    (75, None)
    """

    def __init__(self, folder, n_codebooks):
        self.folder = Path(folder)
        self.n_codebooks = n_codebooks
        self.rows = None  # no part without codes

    def _open(self):
        numbers = [int(file.stem[5:]) for file in self.folder.glob("part-*.files")]
        number = max(numbers, default=-1) + 1
        while True:
            self.files = self.folder / f"part-{number:05d}.files"
            try:
                self.files.touch(exist_ok=False)
                break
            except FileExistsError:  # another process was faster
                number += 1
        self.rows = _rows(self.files, self.n_codebooks)

    def append(self, files, codes):
        """Adds files: after a kill all of them are there, or the first few.

        Arguments
        ---------
        files : list of (str, (int, int), str)
            Path, `file_stamp` from before it was read, and why not all of it could
            be.
        codes : list of numpy.ndarray
            Of each file, shape [T, Q].
        """
        if self.rows is None:
            self._open()
        with open(self.files, "a", encoding="utf-8") as lines:
            for path, stamp, reason in files:
                lines.write(json.dumps([path, *stamp, reason]) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        # Last, since what has no number of rows is not there.
        self.rows.append(codes)


def data_folder_option(folders):
    """Data folders as words of a command line, none for none.

    Example
    -------
    >>> data_folder_option(["/data/a", "/data/b"])
    ['--data_folder', '[/data/a, /data/b]']
    """
    if not folders:
        return []
    several = isinstance(folders, (list, tuple))
    text = f"[{', '.join(map(str, folders))}]" if several else str(folders)
    return ["--data_folder", text]


def _rows(files, n_codebooks):
    return RowFile(files.with_suffix(".codes"), "uint16", n_codebooks)


def file_stamp(path):
    """Size in bytes and time of change in nanoseconds: by these a file is the same."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class _Entry:
    """Where the codes of a file are."""

    stamp: tuple
    part: int
    offset: int
    frames: int
    reason: str


class StoredCodes:
    """A folder of codes, to read.

    Arguments
    ---------
    folder : str or Path

    Raises
    ------
    UserError
        As `read_info`.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = read_info(folder)
        self.parts, self.entries = [], {}
        for files in sorted(self.folder.glob("part-*.files")):
            rows = _rows(files, self.info.n_codebooks)
            counts = rows.counts.tolist()
            offset = 0
            with open(files, encoding="utf-8") as lines:
                # Lines without a count are what a kill has left.
                for line, count in zip(lines, counts, strict=False):
                    path, size, time, reason = json.loads(line)
                    self.entries[path] = _Entry(
                        (size, time), len(self.parts), offset, count, reason
                    )
                    offset += count
            self.parts.append(rows.rows)

    def frames(self, path):
        """Frames of a file, or None if it has no codes, or has changed since."""
        entry = self.entries.get(str(path))
        try:
            same = entry is not None and entry.stamp == file_stamp(path)
        except OSError:
            same = False
        return entry.frames if same else None

    def check(self, codec, checksum, n_codebooks, codebook_size):
        """Makes sure that the codes are the targets that are asked for.

        Arguments
        ---------
        codec : str
            Source of the codec.
        checksum : str
            Of its weights.
        n_codebooks, codebook_size : int
            Of the model.

        Raises
        ------
        UserError
            If they are of another codec, or of too few codebooks.
        """
        info = self.info
        if info.checksum != checksum:
            raise UserError(
                f"codes_folder={self.folder} holds codes of the codec {info.codec} "
                f"({info.checksum}), and codec={codec} is another ({checksum}). Give "
                f"--codec {info.codec}, or extract the codes of {codec} into another "
                "folder: python recipes/extract_codes.py ANOTHER_FOLDER --codec "
                f"{codec} --data_folder ..."
            )
        if info.n_codebooks < n_codebooks:
            raise UserError(
                f"n_codebooks={n_codebooks}, but codes_folder={self.folder} holds "
                f"{info.n_codebooks}. Give --n_codebooks {info.n_codebooks} or less, "
                "or extract more into another folder: python recipes/extract_codes.py "
                f"ANOTHER_FOLDER --n_codebooks {n_codebooks} --codec {codec} "
                "--data_folder ..."
            )
        if info.codebook_size != codebook_size:
            raise UserError(
                f"codebook_size={codebook_size}, but the codec {info.codec} has "
                f"{info.codebook_size}: give --codebook_size {info.codebook_size}."
            )

    def extract_command(self, data_folder, codec):
        """The command that extracts what is missing.

        Arguments
        ---------
        data_folder : str, Path, list of them or None
            None: the demonstration.
        codec : str
            Source of the codec.

        Returns
        -------
        str
        """
        options = [*data_folder_option(data_folder), "--codec", codec]
        options += ["--n_codebooks", str(self.info.n_codebooks)]
        script = ["python", "recipes/extract_codes.py", str(self.folder)]
        return shlex.join([*script, *options])

    def of_manifests(self, manifests, n_codebooks, command):
        """Codes of the files of several manifests.

        Arguments
        ---------
        manifests : list of str or Path
        n_codebooks : int
            How many of those that are stored.
        command : str
            The one that would extract what is missing, for the error.

        Returns
        -------
        list of FileCodes
            One per manifest.

        Raises
        ------
        UserError
            If files have no codes, or have changed since they were encoded.
        """
        tables = [read_manifest(manifest) for manifest in manifests]
        problems = []
        for path in (row["wav"] for rows in tables for row in rows):
            if self.frames(path) is None:
                known = path in self.entries
                problems.append((path, "changed since" if known else "no codes"))
        if problems:
            total = sum(map(len, tables))
            listed = "\n".join(f"  {path}: {why}" for path, why in problems[:_SHOWN])
            if len(problems) > _SHOWN:
                listed += f"\n  and {len(problems) - _SHOWN} more"
            raise UserError(
                f"codes_folder={self.folder} does not cover {len(problems)} of "
                f"{total} audio files:\n{listed}\n"
                f"Extract them; what is there and unchanged is kept:\n  {command}"
            )
        return [FileCodes(self, rows, n_codebooks) for rows in tables]


class FileCodes(StoredTargets):
    """Stored codes of the files of a manifest, for `RandomCrops` and `FixedCrops`.

    Arguments
    ---------
    stored : StoredCodes
    rows : list of dict
        Of the manifest; each file has codes.
    n_codebooks : int
        How many of those that are stored.
    """

    def __init__(self, stored, rows, n_codebooks):
        entries = [stored.entries[row["wav"]] for row in rows]
        # Arrays, not objects: forked workers then share them without copies.
        self.part = np.array([entry.part for entry in entries])
        self.offsets = np.array([entry.offset for entry in entries])
        self.parts = stored.parts
        # Path and reason of those that could not be read to the end.
        self.unreadable = [
            (row["wav"], entry.reason)
            for row, entry in zip(rows, entries, strict=True)
            if entry.reason
        ]
        self.n_codebooks = n_codebooks
        super().__init__(
            np.array([row["wav"] for row in rows]),
            np.array([int(row["sample_rate"]) for row in rows]),
            np.array([entry.frames for entry in entries]),
        )

    def read(self, file, first, count):
        """Codes of a file's frames, shape [count, Q]."""
        start = int(self.offsets[file]) + first
        return self.parts[self.part[file]][start : start + count, : self.n_codebooks]
