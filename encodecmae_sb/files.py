"""Files that are there whole or not at all, full disks, and paths that are none."""

import contextlib
import csv
import errno
import fcntl
import os
import re
import uuid
from pathlib import Path

from .errors import UserError

_SCRATCH = re.compile(r"\.[0-9a-f]{32}\.unfinished")
_looked_at = set()  # folders that this process has rid of what others left


@contextlib.contextmanager
def whole_file(path):
    """A scratch file to write, which takes its name when that has ended well.

    No two have the same scratch file: of processes that write the same file at the
    same time each writes a whole one, and the last remains.

    Arguments
    ---------
    path : str or Path
        What to write; its folder is made if needed.

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
    # Not made from the path's name, which may be as long as names can be.
    scratch = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(scratch, "xb") as held:
            # Tells other processes that this one is alive.
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _remove_left(folder):
    """Removes what killed processes left in a folder, once in a process."""
    folder = os.path.abspath(folder)
    if folder in _looked_at:
        return
    _looked_at.add(folder)
    left = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if _SCRATCH.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(OSError), open(path, "r+b") as file:
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


def write_csv(path, rows):
    """Writes a CSV file at once.

    Arguments
    ---------
    path : str or Path
    rows : iterable of dict
        With the columns of the first, at least one.
    """
    write_csvs([path], ((0, row) for row in rows))


def write_csvs(paths, rows):
    """Writes CSV files row by row; each is there whole or not at all.

    Arguments
    ---------
    paths : list of str or Path
    rows : iterable of (int, dict)
        The number of the file and the row, at least one for each file. The files take
        their names when the last row was given.
    """
    with contextlib.ExitStack() as whole:
        scratch = [whole.enter_context(whole_file(path)) for path in paths]
        with contextlib.ExitStack() as opened:
            files = [
                opened.enter_context(open(path, "w", newline="", encoding="utf-8"))
                for path in scratch
            ]
            writers = {}
            for number, row in rows:
                if number not in writers:
                    writer = csv.DictWriter(files[number], fieldnames=list(row))
                    writers[number] = writer
                    writer.writeheader()
                writers[number].writerow(row)


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
        # What was said in another process, by other writers, by NumPy, and by torch.
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
    """Makes sure that what is given as a path is one, and not a number, say.

    Arguments
    ---------
    key : str
        What it is given as, for the message.
    value : object
    several : bool
        Whether it may be a list of paths.

    Raises
    ------
    UserError
        If it is none.

    Example
    -------
    >>> check_path("data_folder", ["/data/a", "/data/b"], several=True)
    >>> check_path("data_folder", 2024)
    Traceback (most recent call last):
    encodecmae_sb.errors.UserError: data_folder=2024: a path is allowed, not the \
number 2024. For a file or folder of this name: --data_folder ./2024
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
        raise UserError(
            f"{key}={value}: {allowed} is allowed, not the number {bad[0]}. For a file "
            f"or folder of this name: --{key} ./{bad[0]}"
        )
    raise UserError(
        f"{key}={value}: {allowed} is allowed, such as --{key} FOLDER"
        + (f' or --{key} "[FOLDER, FOLDER]"' if several else "")
        + f". For a file or folder that has such a name: --{key} ./NAME"
    )
