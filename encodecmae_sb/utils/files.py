"""Writes files whole or not at all, recognises full disks, and checks paths."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import re
import time
import uuid
from pathlib import Path

from .errors import UserError

_SCRATCH = re.compile(r"\.[0-9a-f]{32}\.unfinished")
_LEFT = 24 * 3600  # seconds; an older scratch file belongs to a dead process
_looked_at = set()  # folders from which this process has removed such files


@contextlib.contextmanager
def whole_file(path, sync=True):
    """A scratch file that gets its final name when the block ends without an error.

    Each call has its own scratch file. If several processes write one file at the same
    time, each writes a whole file, and the last one stays.

    Arguments
    ---------
    path : str or Path
        What to write; its folder is made if needed.
    sync : bool
        Wait until the data is on the disk, so that the file is whole even after a
        power cut. For many small files the wait takes longer than the writing.

    Yields
    ------
    Path
        Of the scratch file, empty, in the same folder.

    Example
    -------
    >>> path = getfixture("tmp_path") / "figures.txt"
    >>> with whole_file(path) as scratch:
    ...     _ = scratch.write_text("0.5")
    ...     path.exists()
    False
    >>> path.read_text()
    '0.5'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent)
    # Do not build on the path's name: it may have the greatest allowed length.
    scratch = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(scratch, "xb") as held:
            # The lock tells other processes that this one is alive.
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield scratch
        if sync:
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _remove_left(folder):
    """Removes scratch files that killed processes left in a folder, once per process.

    Young files stay: not every file system shows the locks of other machines.
    """
    folder = os.path.abspath(folder)
    if folder in _looked_at:
        return
    _looked_at.add(folder)
    left = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if _SCRATCH.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _LEFT:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def write_text(path, text):
    """Writes a text file at once, in UTF-8.

    Arguments
    ---------
    path : str or Path
    text : str
    """
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def computed_once(path, compute):
    """What a JSON file holds; if it is not there, it is computed and written first.

    Arguments
    ---------
    path : Path
        Its name must be another one whenever the result would be.
    compute : callable
        Takes nothing; returns what can be written as JSON.

    Example
    -------
    >>> path = getfixture("tmp_path") / "sum.json"
    >>> computed_once(path, lambda: [1 + 1]), computed_once(path, lambda: [3])
    ([2], [2])
    """
    if not path.exists():
        write_text(path, json.dumps(compute()))
    return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path, rows, columns=None):
    """Writes a CSV file at once.

    Arguments
    ---------
    path : str or Path
    rows : iterable of dict
    columns : list of str, optional
        Default: those of the first row; then there must be a row.

    Example
    -------
    >>> path = getfixture("tmp_path") / "unusable.csv"
    >>> write_csv(path, [], ["path", "reason"])
    >>> path.read_text().splitlines()
    ['path,reason']
    """
    write_csvs([path], ((0, row) for row in rows), columns)


def write_csvs(paths, rows, columns=None):
    """Writes CSV files row by row; each is there whole or not at all.

    Arguments
    ---------
    paths : list of str or Path
    rows : iterable of (int, dict)
        The number of the file and the row. The files take their names after the last
        row.
    columns : list of str, optional
        Of every file. Default: those of its first row; then there must be a row.
    """
    with contextlib.ExitStack() as whole:
        scratch = [whole.enter_context(whole_file(path)) for path in paths]
        with contextlib.ExitStack() as opened:
            files = [
                opened.enter_context(open(path, "w", newline="", encoding="utf-8"))
                for path in scratch
            ]
            writers = [columns and _csv_writer(file, columns) for file in files]
            for number, row in rows:
                if writers[number] is None:
                    writers[number] = _csv_writer(files[number], list(row))
                writers[number].writerow(row)


def _csv_writer(file, columns):
    """Writes the header; returns a writer of dicts."""
    writer = csv.DictWriter(file, fieldnames=columns)
    writer.writeheader()
    return writer


def check_writable(folder):
    """Makes a folder and tries to write to it, before anything is computed.

    Arguments
    ---------
    folder : str or Path

    Raises
    ------
    UserError
        If it cannot be made or written to.
    """
    folder = Path(folder)
    probe = folder / f".probe-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(
            f"Cannot write to output_folder={folder}: {reason}. Free some space, or "
            "choose another place: --output_folder FOLDER"
        ) from error


def is_out_of_space(error):
    """Whether something could not be written because a disk was full.

    Arguments
    ---------
    error : Exception

    Returns
    -------
    bool

    Example
    -------
    >>> is_out_of_space(OSError(28, "No space left on device"))
    True
    >>> is_out_of_space(PermissionError(13, "Permission denied"))
    False
    """
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        # The messages of other processes, other writers, NumPy and torch.
        said = str(error)
        if re.search(r"No space left on device|quota exceeded", said):
            return True
        if isinstance(error, OSError) and re.search(r"\d requested and \d", said):
            return True
        if isinstance(error, RuntimeError) and re.search(
            r"inline_container.*unexpected pos|iostream error|PytorchStreamWriter", said
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_path(key, value, several=False):
    """Makes sure that a value is a path, and not a number, for example.

    Arguments
    ---------
    key : str
        Name of the option, for the message.
    value : object
    several : bool
        Whether it may be a list of paths.

    Raises
    ------
    UserError
        If it is no path.

    Example
    -------
    >>> check_path("data_folder", ["/data/a", "/data/b"], several=True)
    >>> check_path("data_folder", 2024)
    Traceback (most recent call last):
    encodecmae_sb.utils.errors.UserError: data_folder=2024: a path is allowed, not a \
number. If a file or folder is called so, write ./ before its name.
    """
    listed = several and isinstance(value, (list, tuple))
    bad = [
        item
        for item in (value if listed else [value])
        if not isinstance(item, (str, os.PathLike))
    ]
    if not bad and value:
        return
    allowed = "a path or a list of paths" if several else "a path"
    if bad and isinstance(bad[0], (int, float)) and not isinstance(bad[0], bool):
        # Do not repeat the number as a name: YAML turns the name 010 into 8.
        where = "in the list " if listed else ""
        raise UserError(
            f"{key}={value}: {allowed} is allowed, not a number. If a file or folder "
            f"is called so, {where}write ./ before its name."
        )
    name = "in the list write ./NAME" if listed and value else f"--{key} ./NAME"
    raise UserError(
        f"{key}={value}: {allowed} is allowed, such as --{key} FOLDER"
        + (f' or --{key} "[FOLDER, FOLDER]"' if several else "")
        + f". For a file or folder that has such a name: {name}"
    )
