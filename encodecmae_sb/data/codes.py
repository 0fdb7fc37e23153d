"""Codes of whole files, encoded once and kept in a folder.

`pipelines.extract` writes the folder, training reads it::

    codes.json             what the codes are
    part-00000.codes       uint16, shape [frames, Q]: frames of many files in a row
    part-00000.codes.counts   int64: frames of each file
    part-00000.files       a line of JSON per file: path, size, time of change, reason

Every process of every run writes a part of its own. So no process writes to a file
that another one reads, or that a kill has left incomplete. If several parts have codes
of the same file, those of the last part count.
"""

import json
import os
import shlex
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encodecmae_sb.utils.digests import without_normalisation
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_text

from .columns import read_columns
from .stored import RowFile, StoredTargets

_FORMAT = 2  # raise it when the files' layout or the rules of encoding change
_SHOWN = 5  # files that an error names


@dataclass(frozen=True)
class CodesInfo:
    """What all codes of a folder have in common.

    Arguments
    ---------
    kind : str
        "codec" or "targets"; see `nnet.targets.Label`.
    name : str
        What the user calls the targets; the source of a codec.
    fingerprint : str
        What tells targets apart.
    n_codebooks : int
        Codes per frame, Q.
    codebook_size : int
        Codes are below it; at most 65536.
    format : int
        Of the folder.
    """

    kind: str
    name: str
    fingerprint: str
    n_codebooks: int
    codebook_size: int
    format: int = _FORMAT

    def __str__(self):
        return f"{self.kind} {self.name} ({self.fingerprint})"


def prepare_codes(folder, info):
    """Makes a folder of codes, or makes sure that it holds codes of this kind.

    Arguments
    ---------
    folder : str or Path
    info : CodesInfo

    Raises
    ------
    UserError
        If it holds other codes, or cannot be written to, or if codes are too large.
    """
    if info.codebook_size > 65536:
        raise UserError(
            f"codebook_size={info.codebook_size} of {info}: codes are stored as 2-byte "
            "integers, so at most 65536 is allowed."
        )
    folder = Path(folder)
    file = folder / "codes.json"
    if file.exists():
        there = read_info(folder)
        old, new = (
            (x.fingerprint, x.n_codebooks, x.codebook_size) for x in (there, info)
        )
        if old != new:
            raise UserError(
                f"{folder} holds codes of {there}, {there.n_codebooks} codebooks, not "
                f"of {info}, {info.n_codebooks} codebooks. Give another folder, or the "
                f"same {there.kind} and n_codebooks."
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


class CodesPart:
    """The part of a folder that one process writes.

    Arguments
    ---------
    folder : str or Path
    n_codebooks : int

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> prepare_codes(folder, CodesInfo("codec", "bundled", "0" * 8, 2, 1024))
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
        self.rows = None  # opened by the first `append`

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
        # Write the counts last: a file without a count is ignored on reading.
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


NAMED_BY = ("--hparams", "YAML_FILE")


def targets_option(argv):
    """What names the targets of a recipe, as an option of extract_codes.py.

    Example
    -------
    >>> targets_option(["hparams/mini.yaml", "--targets", "!name:a.B", "--seed", "1"])
    ['--targets', '!name:a.B']
    >>> targets_option(["hparams/mini.yaml", "--seed", "1"])
    ['--hparams', 'hparams/mini.yaml']
    """
    if "--targets" in argv:
        return list(argv[argv.index("--targets") :][:2])
    return ["--hparams", argv[0]]


def _extract_command(folder, data_folder, info, named_by=NAMED_BY):
    """The command that extracts codes of this kind."""
    options = named_by
    if info.kind == "codec":
        options = ["--codec", info.name, "--n_codebooks", str(info.n_codebooks)]
        normalise = without_normalisation(info.fingerprint)[1]
        options += ["--normalise", normalise] if normalise else []
    script = ["python", "recipes/extract_codes.py", str(folder)]
    return shlex.join([*script, *data_folder_option(data_folder), *options])


def _rows(files, n_codebooks):
    return RowFile(files.with_suffix(".codes"), "uint16", n_codebooks)


def file_stamp(path):
    """Size in bytes and time of change in nanoseconds: by these a file is the same."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


class Entry(NamedTuple):
    """Where the codes of a file are.

    Arguments
    ---------
    stamp : tuple of int
        `file_stamp` of the file when it was encoded.
    part : int
        Number of the part.
    offset : int
        Of the first frame in it.
    frames : int
        How many there are.
    reason : str
        Why not all of the file could be read, or empty.
    """

    stamp: tuple
    part: int
    offset: int
    frames: int
    reason: str


class Entries(Mapping):
    """What a folder of codes holds: path -> `Entry`.

    Numbers are kept in arrays: of millions of files, objects would take gigabytes.

    Arguments
    ---------
    folder : Path
    n_codebooks : int

    Attributes
    ----------
    parts : list of numpy.ndarray
        Codes of each part, a memory map, uint16, shape [frames, Q].
    table : numpy.ndarray
        int64, a row per file: size, time of change, part, offset, frames.
    reasons : dict
        By the number of the row, where a file could not be read to its end.
    """

    def __init__(self, folder, n_codebooks):
        self.parts, self.reasons, self._numbers = [], {}, {}
        table = array("q")
        for files in sorted(folder.glob("part-*.files")):
            rows = _rows(files, n_codebooks)
            counts = rows.counts.tolist()
            offset = 0
            with open(files, encoding="utf-8") as lines:
                # Lines without a count are what a kill has left.
                for line, count in zip(lines, counts, strict=False):
                    path, size, time, reason = json.loads(line)
                    number = self._numbers.setdefault(path, len(self._numbers))
                    row = array("q", [size, time, len(self.parts), offset, count])
                    # In the place of an older one, or at the end.
                    table[5 * number : 5 * number + 5] = row
                    self.reasons.pop(number, None)
                    if reason:
                        self.reasons[number] = reason
                    offset += count
            self.parts.append(rows.rows)
        self.table = np.array(table).reshape(-1, 5)

    def number(self, path):
        """Number of a file's row, or None if it has no codes, or has changed since."""
        number = self._numbers.get(str(path))
        try:
            if number is not None and (*self.table[number, :2],) == file_stamp(path):
                return number
        except OSError:
            pass
        return None

    def __getitem__(self, path):
        number = self._numbers[path]
        size, time, *place = self.table[number].tolist()
        return Entry((size, time), *place, self.reasons.get(number, ""))

    def __iter__(self):
        return iter(self._numbers)

    def __len__(self):
        return len(self._numbers)


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

    @cached_property
    def entries(self):
        """What is there, read when it is first asked for."""
        return Entries(self.folder, self.info.n_codebooks)

    @property
    def parts(self):
        """Codes of each part, memory maps, uint16, shape [frames, Q]."""
        return self.entries.parts

    def frames(self, path):
        """Frames of a file, or None if it has no codes, or has changed since."""
        number = self.entries.number(path)
        return None if number is None else self.entries[str(path)].frames

    def check(
        self,
        label,
        n_codebooks,
        codebook_size,
        data_folder=None,
        named_by=NAMED_BY,
    ):
        """Makes sure that the codes are the targets that are asked for.

        Arguments
        ---------
        label : Label
            Kind, name and fingerprint of the targets.
        n_codebooks, codebook_size : int
            Of the model.
        data_folder, named_by
            For the command that an error names; see `extract_command`.

        Raises
        ------
        UserError
            If they are of other targets, or of too few codebooks.
        """
        there, wanted = self.info, CodesInfo(*label, n_codebooks, codebook_size)
        option = f"--{there.kind} {there.name}"
        command = _extract_command("ANOTHER_FOLDER", data_folder, wanted, named_by)
        if there.fingerprint != wanted.fingerprint:
            advice = "Name these targets in the yaml"
            if there.kind == "codec":
                own, normalise = without_normalisation(there.fingerprint)
                if own == without_normalisation(wanted.fingerprint)[0]:
                    option = f"--normalise {normalise or 'null'}"
                advice = f"Give {option}"
            raise UserError(
                f"codes_folder={self.folder} holds codes of {there}, and {wanted} is "
                f"another. {advice}, or extract into another folder: "
                f"{command}"
            )
        if there.n_codebooks < n_codebooks:
            raise UserError(
                f"n_codebooks={n_codebooks}, but codes_folder={self.folder} holds "
                f"{there.n_codebooks}. Give --n_codebooks {there.n_codebooks} or less, "
                "or extract more into another folder: "
                f"{command}"
            )
        if there.codebook_size != codebook_size:
            raise UserError(
                f"codebook_size={codebook_size}, but {there} has "
                f"{there.codebook_size}: give --codebook_size {there.codebook_size}."
            )

    def extract_command(self, data_folder, label=None, named_by=NAMED_BY):
        """The command that extracts what is missing.

        Arguments
        ---------
        data_folder : str, Path, list of them or None
            None: the demonstration.
        label : Label, optional
            What the targets are called now; default: what they were called.
        named_by : list of str
            What names targets that are not a codec, see `targets_option`.

        Returns
        -------
        str
        """
        info = self.info if label is None else replace(self.info, name=label.name)
        return _extract_command(self.folder, data_folder, info, named_by)

    def of_manifests(self, manifests, n_codebooks, command):
        """Codes of the files of several manifests.

        Afterwards what is known of all files is dropped from memory.

        Arguments
        ---------
        manifests : list of str or Path
        n_codebooks : int
            How many of those that are stored.
        command : str
            The command that extracts what is missing, for the error.

        Returns
        -------
        list of FileCodes
            One per manifest.

        Raises
        ------
        UserError
            If files have no codes, or have changed since they were encoded.
        """
        entries, shown, missing, total, found = self.entries, [], 0, 0, []
        for manifest in manifests:
            paths, rates = read_columns(manifest, wav=str, sample_rate=int)
            numbers = np.full(len(paths), -1)
            for i, path in enumerate(paths):
                number = entries.number(path)
                if number is not None:
                    numbers[i] = number
                    continue
                missing += 1
                if missing <= _SHOWN:
                    known = "changed since" if path in entries else "no codes"
                    shown.append(f"  {path}: {known}")
            total += len(paths)
            found.append((paths, rates, numbers))
        if missing:
            if missing > _SHOWN:
                shown.append(f"  and {missing - _SHOWN} more")
            listed = "\n".join(shown)
            raise UserError(
                f"codes_folder={self.folder} does not cover {missing} of "
                f"{total} audio files:\n{listed}\n"
                f"Extract them; unchanged files are not encoded again:\n  {command}"
            )
        # Every process of a training would hold this as long as it runs.
        del self.entries
        return [FileCodes(entries, *files, n_codebooks) for files in found]


class FileCodes(StoredTargets):
    """Stored codes of the files of a manifest, for `RandomCrops` and `FixedCrops`.

    Arguments
    ---------
    entries : Entries
        Only what is needed of it is kept.
    paths : Texts
        Of the manifest.
    rates : numpy.ndarray of int
        In Hz, shape [files].
    numbers : numpy.ndarray of int
        The files' rows among the entries, shape [files].
    n_codebooks : int
        How many of those that are stored.
    """

    def __init__(self, entries, paths, rates, numbers, n_codebooks):
        # Arrays, not objects: forked workers then share them without copies.
        self.part, self.offsets, frames = entries.table[numbers, 2:].T.copy()
        self.parts = entries.parts
        # Path and reason of those that could not be read to the end.
        self.unreadable = [
            (paths[i], entries.reasons[numbers[i]])
            for i in np.flatnonzero(np.isin(numbers, list(entries.reasons)))
        ]
        self.n_codebooks = n_codebooks
        super().__init__(paths, rates, frames)

    def read(self, file, first, count):
        """Codes of a file's frames, shape [count, Q]."""
        start = int(self.offsets[file]) + first
        return self.parts[self.part[file]][start : start + count, : self.n_codebooks]
