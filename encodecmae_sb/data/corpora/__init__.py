"""Corpora of labelled clips, each a module here, chosen by its name in the yaml.

To add a corpus, add one such file, or keep it elsewhere and give its path. It has

- `find_clips(folder)`, which returns the clips (`encodecmae_sb.data.clips.Clip`), with
  a `group`, such as the speaker, where clips belong together;
- `LAYOUT`, what the corpus looks like on disk, shown when something is missing;
- `RATE`, the sample rate in Hz that every file must have; without it: any rate;
- `MULTI_LABEL = True` if clips have several labels;
- `VALID_SHARE`, if a share of the training clips is the validation set, see
  `clips.make_folds`; without it: the next fold;
- `MAX_UNUSABLE`, the share of files that may be unreadable; without it: none.
"""

import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

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


def load_corpus(corpus):
    """The module that knows a corpus.

    Arguments
    ---------
    corpus : str
        One of `corpus_names()`, or the path of a Python file.

    Returns
    -------
    module
        With the names listed at the top of this file.

    Raises
    ------
    UserError
        If there is no such corpus.
    FileNotFoundError
        If there is no such file.

    Example
    -------
    >>> load_corpus("fsdd").RATE
    8000
    """
    if corpus in corpus_names():
        return importlib.import_module(f"{__name__}.{corpus}")
    if not str(corpus).endswith(".py"):
        raise UserError(
            f"corpus={corpus}: there are {', '.join(corpus_names())}. For another one "
            "give a Python file with find_clips (--corpus FILE.py), or a manifest "
            "(--csv FILE)."
        )
    path = Path(corpus).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No such Python file: corpus={corpus}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "find_clips", None)):
        raise UserError(f"corpus={corpus}: the file defines no find_clips(folder).")
    return module


def find_clips(corpus, folder):
    """Finds the clips of a corpus.

    Arguments
    ---------
    corpus : str or module
        As for `load_corpus`, or what it gave.
    folder : str or Path
        Where it was unpacked.

    Returns
    -------
    list of Clip

    Raises
    ------
    UserError
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
    if not isinstance(corpus, ModuleType):
        corpus = load_corpus(corpus)
    layout = getattr(corpus, "LAYOUT", "  (see the corpus module)")
    if not folder:
        name = corpus.__name__.rpartition(".")[2]
        raise UserError(
            f"Where is the corpus {name}? Give --data_folder FOLDER. The folder "
            f"should hold\n{layout}"
        )
    check_path("data_folder", folder)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No such folder: data_folder={folder}. It should hold\n{layout}"
        )
    clips = corpus.find_clips(folder)
    if not clips:
        raise missing(folder, "audio files named as in the corpus", layout)
    return clips


def need(folder, name, layout):
    """A file or folder of a corpus, which must be there.

    Arguments
    ---------
    folder : Path
        Where to look.
    name : str
        What to look for, relative to the folder.
    layout : str
        What the folder should hold, for the message.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If it is missing, or is a folder that cannot be read.
    """
    path = folder / name
    if not path.exists():
        raise missing(folder, name, layout)
    if path.is_dir():
        list_folder(path)  # raises if it cannot be read
    return path


def missing(folder, what, layout):
    """The error for something that a corpus lacks."""
    return UserError(f"{folder} holds no {what}. It should hold\n{layout}")
