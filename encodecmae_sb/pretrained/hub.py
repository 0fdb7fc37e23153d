"""Exported folders on the Hugging Face hub: `push_folder` and `fetch_folder`.

A name on the hub is `user/name` or `user/name@revision`, where a revision is a branch,
a tag or a commit. A branch moves; so it is resolved once, to a commit, and all files
come from that commit.
"""

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import is_out_of_space

from .codec_files import check_reachable
from .folder import MADE, YAML
from .hub_folder import load_plain_folder, make_hub_folder
from .plain import read_plain

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_SECONDS = 10
# The commit of each name that was asked for: a process stays with it.
_commits = {}


@dataclass(frozen=True)
class HubFolder:
    """A folder in the cache of huggingface_hub, at one commit, checked.

    Arguments
    ---------
    path : Path
    repository : str
        user/name.
    commit : str
        40 hexadecimal digits.
    kind : str
        "encoder", "recogniser" or "classifier".
    """

    path: Path
    repository: str
    commit: str
    kind: str

    @property
    def name(self):
        """user/name@commit, which always stands for these weights."""
        return f"{self.repository}@{self.commit}"

    def load(self):
        """Builds and loads what the folder holds, see `load_plain_folder`."""
        return load_plain_folder(self.path)


@dataclass(frozen=True)
class Pushed:
    """What `push_folder` made.

    Arguments
    ---------
    kind : str
        "encoder", "recogniser" or "classifier".
    commit : str
    url : str
    files : list of str
    licence : str
        What the card says.
    """

    kind: str
    commit: str
    url: str
    files: list
    licence: str


def is_hub_name(source):
    """Whether a text looks like a name on the hub.

    Example
    -------
    >>> [is_hub_name(x) for x in ("user/name", "user/name@v1", "./name", "a/b/c", "a")]
    [True, True, False, False, False]
    """
    return _NAME.fullmatch(str(source)) is not None


def push_folder(
    folder, repository, private=False, licence=None, message=None, branch=None
):
    """Puts an exported folder on the hub.

    The token is that of huggingface_hub: `HF_TOKEN`, or what `hf auth login` stored.

    Arguments
    ---------
    folder : str or Path
        Of an encoder, a recogniser or a classifier.
    repository : str
        user/name. Made if it is not there; else it gets a new commit.
    private : bool
        Whether a new repository is private. One that is there stays what it is.
    licence : str, optional
        See `make_hub_folder`.
    message : str, optional
        Of the commit.
    branch : str, optional
        Made if it is not there; default: main.

    Returns
    -------
    Pushed

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it cannot be shared, or the hub cannot be reached or refuses it.
    """
    if "@" in repository or not is_hub_name(repository):
        raise UserError(f"{repository}: give a name on the hub, such as user/name.")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        examples = ", ".join(made.example for made in MADE.values())
        raise FileNotFoundError(
            f"No such folder: {folder}. Give what a recipe exported: {examples}."
        )
    # Imported here, because it is slow and only names need it.
    from huggingface_hub import HfApi, constants

    with tempfile.TemporaryDirectory() as target:
        kind, licence = make_hub_folder(folder, target, repository, licence)
        files = sorted(path.name for path in Path(target).iterdir())
        with _speaks_plainly(repository, branch):
            _check_answers(constants.ENDPOINT)
            api = HfApi()
            api.create_repo(repository, private=private or None, exist_ok=True)
            if branch:
                api.create_branch(repository, branch=branch, exist_ok=True)
            made = api.upload_folder(
                repo_id=repository,
                folder_path=target,
                revision=branch,
                commit_message=message or f"Push of {kind} {folder.name}",
            )
    for key in [key for key in _commits if key[1].partition("@")[0] == repository]:
        del _commits[key]
    url = f"{constants.ENDPOINT}/{repository}"
    return Pushed(kind, made.oid, url, files, licence)


def fetch_folder(source, kind=None):
    """Fetches a folder from the hub: only the files that its checked yaml names.

    Which commit it is, is printed once. A file that is in the cache of huggingface_hub
    is not fetched again.

    Arguments
    ---------
    source : str
        user/name or user/name@revision.
    kind : str, optional
        What it is to hold; default: anything.

    Returns
    -------
    HubFolder

    Raises
    ------
    FileNotFoundError
        If there is no such repository, revision or file.
    UserError
        If it is not of this package or of another kind, or the hub cannot be reached.
    """
    repository, revision = _NAME.fullmatch(str(source)).groups()
    from huggingface_hub import constants

    key = constants.ENDPOINT, str(source)
    known = _commits.get(key)
    path = _fetch(repository, known or revision or constants.DEFAULT_REVISION, YAML)
    commit = path.parent.name
    plain = _checked(source, read_plain, path)
    if kind is not None and plain.kind != kind:
        raise UserError(
            f"{source} on the hub holds another kind of model: {plain.kind}."
        )
    missing = plain.parts.keys() - plain.files.keys()
    if missing:
        raise UserError(
            f"{source}: on the hub {YAML} names no file of safetensors for "
            f"{', '.join(sorted(missing))}. Pickles (.ckpt, .pt, .bin) are never "
            "opened. Its owner can push it anew: python recipes/push.py FOLDER "
            f"{repository}"
        )
    for file in plain.files.values():
        _fetch(repository, commit, file)
    if known is None:
        _commits[key] = commit
        if if_main_process():
            print(f"{source}: commit {commit} of {constants.ENDPOINT}", flush=True)
    return HubFolder(path.parent, repository, commit, plain.kind)


def _checked(source, check, path):
    try:
        return check(path)
    except UserError as error:
        raise UserError(
            f"{source} on the hub is not a folder of this package that can be read "
            f"safely: {error}"
        ) from error


def _fetch(repository, revision, file):
    """The path of a file in the cache; its folder is called as the commit."""
    from huggingface_hub import (
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    if _COMMIT.fullmatch(revision):
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            return Path(path)
    with _speaks_plainly(repository, revision, file):
        if not constants.HF_HUB_OFFLINE:
            # The download would try for minutes, and then go on with what the cache
            # has, of whatever age. This asks once.
            check_reachable(constants.ENDPOINT)
            url = hf_hub_url(repository, file, revision=revision)
            get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
        return Path(hf_hub_download(repository, file, revision=revision))


def _check_answers(endpoint):
    """Raises within seconds; the hub's client would try for minutes."""
    from huggingface_hub.utils import get_session

    check_reachable(endpoint)
    get_session().head(endpoint, timeout=_ANSWER_SECONDS)


@contextlib.contextmanager
def _speaks_plainly(repository, revision=None, file=None):
    """Turns the errors of the hub's client into messages that say what to do."""
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except UserError:
        raise
    except errors.LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set, and " if constants.HF_HUB_OFFLINE else ""
        raise UserError(
            f"{repository}@{revision}: {offline}{file} is not in the cache "
            f"({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} gave no answer. Try "
            "again with a network."
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{where} asks for your consent before it gives files. Open it in a "
            "browser, then set HF_TOKEN or log in with: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{where} does not exist, or is private: for that set HF_TOKEN or log in "
            "with: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{where} has no revision {revision}.") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{where} has no {file} at {revision}: it is not a folder that "
            "recipes/push.py made. Pickles (.ckpt, .pt, .bin) are never opened."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = ""
        if status in (401, 403):
            hint = (
                " The token is missing or may not write there: set HF_TOKEN to one of "
                "https://huggingface.co/settings/tokens that may, or log in with: hf "
                "auth login"
            )
        raise UserError(f"{where}: {_first_line(error)}{hint}") from error
    except ValueError as error:  # "--" or ".." in it, for example
        raise UserError(
            f"{repository} is not a name on the hub: {_first_line(error)}"
        ) from error
    except Exception as error:  # errors of HTTP libraries
        if is_out_of_space(error):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(
                f"The hub's cache {constants.HF_HUB_CACHE} cannot be used: {error}. "
                "Set HF_HUB_CACHE to a folder that can be written."
            ) from error
        raise UserError(
            f"{where} could not be reached: {_first_line(error)}. Try again with a "
            "network. What is in the cache is used, without a network, with "
            "HF_HUB_OFFLINE=1 or with a whole commit: user/name@COMMIT."
        ) from error


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__
