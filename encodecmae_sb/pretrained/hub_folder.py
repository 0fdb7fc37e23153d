"""A folder as it is on the hub: weights as safetensors, and nothing that is a pickle.

Nothing here needs a network; `hub` sends such folders and fetches them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_model
from speechbrain.utils.fetching import FetchConfig, LocalStrategy, fetch
from speechbrain.utils.parameter_transfer import Pretrainer

from encodecmae_sb.utils.errors import UserError

from .card import NOT_STATED, card_for_hub
from .folder import (
    INTERFACE,
    MADE,
    YAML,
    hyperparams,
    load_weights,
    weights_file,
)
from .licence import KEY, Licence, recorded_licence
from .plain import build, is_module, read_plain

METRICS = "metrics.json"


class FilesPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer for files that are not called NAME.ckpt.

    SpeechBrain's own takes other names only with a fixed place, so that a copy of the
    repository would load the weights of the original.

    Arguments
    ---------
    files : dict of str to str
        The file of each loadable.
    loadables, custom_hooks : dict
        As for SpeechBrain's.
    """

    def __init__(self, files, loadables, custom_hooks):
        super().__init__(loadables=loadables, custom_hooks=custom_hooks)
        self.files = files

    def collect_files(
        self,
        default_source=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=None,
    ):
        """Fetches each file under its own name; see SpeechBrain's."""
        for name, file in self.files.items():
            path = fetch(
                file,
                default_source,
                self.collect_in,
                local_strategy=local_strategy,
                fetch_config=fetch_config or FetchConfig(),
            )
            self.paths[name] = str(path)
            self.is_local.append(name)
        return dict(self.paths)


@dataclass(frozen=True)
class Loaded:
    """What a folder held.

    Arguments
    ---------
    kind : str
        "encoder", "recogniser" or "classifier".
    parts : dict of str to object
        Modules and other parts, by their names in the yaml.
    settings : dict
        Plain values.
    """

    kind: str
    parts: dict
    settings: dict


def load_plain_folder(folder):
    """Loads a folder of the hub without running anything that it holds.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    Loaded

    Raises
    ------
    UserError
        If a file is missing, is not what it is to be, or does not fit the others.
    """
    folder = Path(folder)
    plain = read_plain(folder / YAML)
    parts = {}
    for name, node in plain.parts.items():
        if name not in plain.files:
            raise UserError(
                f"{folder / YAML} names no file for {name}: the folder was not made "
                "for the hub. Its weights may be pickles, which are not opened."
            )
        parts[name] = build(node)
        _load(parts[name], is_module(node), folder / plain.files[name])
    return Loaded(plain.kind, parts, plain.settings)


def _load(part, has_weights, path):
    """Loads a part; a file that is none of its kind is an error with its name."""
    if has_weights:
        load_weights(part, path)
        return
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
        if path.suffix == ".arpa" and not start.startswith(b"\\data\\"):
            raise UserError("a language model is text that begins with \\data\\.")
        part.load(path)
    except Exception as error:  # whatever a parser makes of junk
        raise UserError(f"{path} cannot be read: {error}") from error


def make_hub_folder(folder, target, repository, licence=None):
    """Writes an exported folder as it goes to the hub, and loads it as a check.

    Arguments
    ---------
    folder : str or Path
        What a recipe exported.
    target : str or Path
        An empty folder.
    repository : str
        user/name, for the model card.
    licence : str, optional
        As the hub writes it, such as `apache-2.0`; default: see `card_for_hub`.

    Returns
    -------
    kind : str
        "encoder", "recogniser" or "classifier".
    licence : str
        What the card says.

    Raises
    ------
    UserError
        If the folder could not be loaded from the hub: with a class of one's own, for
        example.
    """
    folder, target = Path(folder), Path(target)
    try:
        plain = read_plain(folder / YAML)
    except UserError as error:
        raise UserError(
            f"{folder} cannot be shared: {error} A folder with other classes, such as "
            "a front end of your own or adapters, cannot be loaded without running "
            "code from the hub."
        ) from error
    parts, files = {}, {}
    for name, node in plain.parts.items():
        parts[name] = build(node)
        path = weights_file(folder, name)
        if is_module(node):
            load_weights(parts[name], path)
            files[name] = f"{name}.safetensors"
            save_model(parts[name], str(target / files[name]))
        else:
            path = folder / plain.files.get(name, f"{name}.ckpt")
            files[name] = f"{name}.{_ending(path)}"
            shutil.copyfile(path, target / files[name])
    made = MADE[plain.kind]
    (target / "custom_interface.py").write_text(INTERFACE, encoding="utf-8")
    for place in (folder / METRICS, folder.parent / METRICS):
        if place.is_file():
            shutil.copyfile(place, target / METRICS)
            break
    card = folder / "README.md"
    card = card.read_text(encoding="utf-8") if card.is_file() else f"# {made.title}\n"
    recorded = recorded_licence(folder)
    card, licence = card_for_hub(card, made, plain.kind, repository, licence, recorded)
    (target / "README.md").write_text(card, encoding="utf-8")
    settings = plain.settings
    if licence != NOT_STATED:  # for what others will make of it
        reason = "" if recorded is None else recorded.reason
        settings = {**settings, KEY: Licence(licence, reason)._asdict()}
    text = hyperparams(made.title, parts, settings, files)
    (target / YAML).write_text(text, encoding="utf-8")
    load_plain_folder(target)
    return plain.kind, licence


def _ending(path):
    """The ending of a part without weights on the hub; see `plain.OTHER_FILES`."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if start.startswith(b"{"):
        return "json"
    if start.startswith(b"\\data\\"):
        return "arpa"
    if path.stem == "tokens":
        return "model"  # SentencePiece's own format; loading it is the check
    raise UserError(
        f"{path} is a binary language model, which is not shared. Export the "
        "recogniser with one in ARPA format."
    )
