"""Listing folders without passing over what cannot be read.

`os.walk` and `Path.glob` take an unreadable folder for an empty one: a part of a corpus
would be missing without a word, and how many files no one could tell.
"""

import fnmatch
import os
from pathlib import Path

from encodecmae_sb.errors import UserError

from .audio import AUDIO_EXTENSIONS


def list_folder(folder):
    """What lies in a folder.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    list of os.DirEntry
        In the order of the file system.

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
            return list(entries)
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

    Raises
    ------
    UserError
        If that cannot be found out, unless it is named like an audio file.
    """
    try:
        return entry.is_dir()
    except OSError as error:
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
        "missing without a word. Make it readable, or, if it is not needed, give the "
        "folders beside it instead of the one that holds it."
    )
