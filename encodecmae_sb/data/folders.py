"""Lists folders, and raises an error for folders that cannot be read.

`os.walk` and `Path.glob` treat an unreadable folder as an empty one: a part of a corpus
would be missing without any message.
"""

import errno
import fnmatch
import os
from pathlib import Path

from encodecmae_sb.utils.errors import UserError

from .audio import AUDIO_EXTENSIONS

# A folder of file systems such as ext4 for recovered files; only root may read it.
_LOST = "lost+found"


def list_folder(folder):
    """Lists the entries of a folder.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    list of os.DirEntry
        In the order of the file system, without `lost+found`.

    Raises
    ------
    UserError
        If it cannot be read.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "a.wav").touch()
    >>> [entry.name for entry in list_folder(folder)]
    ['a.wav']
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name != _LOST]
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_folder(entry):
    """Whether an entry of a folder is a folder, or a link to one.

    Arguments
    ---------
    entry : os.DirEntry

    Returns
    -------
    bool
        False for a link that leads nowhere, or back to itself.

    Raises
    ------
    UserError
        If this cannot be found out, unless the name is that of an audio file.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        if entry.name.lower().endswith(AUDIO_EXTENSIONS):
            return False  # a file: reported when it is inspected
        raise _unreadable(entry.path, error) from error


def find_paths(folder, pattern):
    """As `sorted(folder.glob(pattern))`, but for unreadable folders.

    Arguments
    ---------
    folder : str or Path
    pattern : str
        Names with `*`, `?` and `[...]`, separated by `/`.

    Returns
    -------
    list of Path

    Raises
    ------
    UserError
        If a folder that was to be searched cannot be read.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> len(find_paths(speech_folder(), "dev/*/*/*.flac"))
    84
    """
    name, _, rest = pattern.partition("/")
    found = []
    for entry in list_folder(folder):
        if fnmatch.fnmatchcase(entry.name, name):
            if not rest:
                found.append(Path(entry.path))
            elif is_folder(entry):
                found += find_paths(entry.path, rest)
    return sorted(found)


def _unreadable(path, error):
    return UserError(
        f"{path} cannot be read: {error.strerror or error}. What lies in it would be "
        "missing without a word. Make it readable, or move it out of the folder."
    )
