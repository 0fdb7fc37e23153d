"""Corpora of labelled clips, each a module here, chosen by its name in the yaml.

A module has `LAYOUT`, what the corpus looks like on disk, and
`find_clips(folder)`, which gives its clips (`encodecmae_sb.data.clips.Clip`).
To add a corpus, add such a file.
"""

import importlib
import pkgutil
from pathlib import Path

from encodecmae_sb.data.folders import list_folder
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import check_path


def corpus_names():
    """The corpora there are.

    Example
    -------
    >>> "esc50" in corpus_names()
    True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_clips(corpus, folder):
    """Finds the clips of a corpus.

    Arguments
    ---------
    corpus : str
        One of `corpus_names()`.
    folder : str or Path
        Where it was unpacked.

    Returns
    -------
    list of Clip

    Raises
    ------
    ValueError
        If there is no such corpus, or files of it are missing.
    FileNotFoundError
        If there is no such folder.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> clip = find_clips("esc50", sound_folder())[0]
    >>> clip.labels, clip.part
    (('dog',), '1')
    """
    if corpus not in corpus_names():
        raise UserError(
            f"corpus={corpus}: there are {', '.join(corpus_names())}. For any other, "
            "write a manifest and give it as --csv."
        )
    module = importlib.import_module(f"{__name__}.{corpus}")
    if not folder:
        raise UserError(
            f"The corpus {corpus} is to be found where? Give --data_folder FOLDER; it "
            f"should hold\n{module.LAYOUT}"
        )
    check_path("data_folder", folder)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No such folder: data_folder={folder}. It should hold\n{module.LAYOUT}"
        )
    clips = module.find_clips(folder)
    if not clips:
        raise missing(folder, "audio files named as in the corpus", module.LAYOUT)
    return clips


def need(folder, name, layout):
    """A file of a corpus, or a folder, once it is sure that it can be listed.

    Arguments
    ---------
    folder : Path
        Where to look.
    name : str
        What for, relative to the folder.
    layout : str
        What the folder should hold, for the message.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If it is missing, or a folder that cannot be read.
    """
    path = folder / name
    if not path.exists():
        raise missing(folder, name, layout)
    if path.is_dir():
        list_folder(path)
    return path


def missing(folder, what, layout):
    """The error for something that a corpus lacks."""
    return UserError(f"{folder} holds no {what}. It should hold\n{layout}")
