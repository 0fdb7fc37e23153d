"""Reads the `hyperparams.yaml` of a stranger: our classes and plain values, no more.

HyperPyYAML calls whatever a tag names: `!new:os.system` runs a command. So a file that
comes from the hub is never given to it. PyYAML parses the file into a tree, in which a
tag is only text. The tree is refused as a whole if any tag in it is not in the lists
below. Only then is anything built.
"""

import inspect
import pydoc
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from encodecmae_sb import __version__
from encodecmae_sb.utils.errors import UserError

from .folder import FORMAT
from .licence import KEY as LICENCE

_LOBES, _POOLING = "encodecmae_sb.lobes", "encodecmae_sb.nnet.pooling"
_ENCODER, _LOBE = f"{_LOBES}.AudioEncoder", f"{_LOBES}.EnCodecMAE"
_LOG_MEL, _HEAD = f"{_LOBES}.LogMel", f"{_POOLING}.ClipHead"
_BASELINE = f"{_POOLING}.LogMelFrames"
_TRANSFORMER = f"{_LOBES}.ResiDualTransformer"

# The classes that may be built. For each the arguments that are modules, and their
# classes. All other arguments are plain values. No class of this list opens a file, or
# imports what an argument names: look at its constructor before you add one.
CLASSES = {
    _LOG_MEL: {},
    f"{_LOBES}.CodecLatents": {},
    _TRANSFORMER: {},
    _ENCODER: {
        "front_end": (_LOG_MEL, f"{_LOBES}.CodecLatents"),
        "transformer": (_TRANSFORMER,),
    },
    # As text, `source` would name a file or another repository.
    _LOBE: {"source": (_ENCODER,)},
    f"{_LOBES}.CTCHead": {},
    _BASELINE: {"front_end": (_LOG_MEL,)},
    _HEAD: {},
    f"{_POOLING}.ClipClassifier": {"lobe": (_LOBE, _BASELINE), "head": (_HEAD,)},
    "encodecmae_sb.data.tokenizer.Tokens": {},
    "encodecmae_sb.inference.recogniser.LanguageModel": {},
}

# What SpeechBrain's `foreign_class` needs in the file. It is checked, and not built.
_PRETRAINERS = {
    "speechbrain.utils.parameter_transfer.Pretrainer",
    "encodecmae_sb.pretrained.hub_folder.FilesPretrainer",
}
_HOOKS = {
    f"encodecmae_sb.pretrained.folder.{hook}" for hook in ("load_weights", "load_part")
}
_NOT_BUILT = {"modules", "pretrainer"}
_EVERYWHERE = {"format", LICENCE}  # in any kind of folder

_PLAIN = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
}
_MAX_BYTES = 200_000  # of which PyYAML needs seconds
_MAX_DEPTH = 50  # levels of lists and dicts; exported folders have about five
# Endings of files of parts without weights: text, or a SentencePiece model.
OTHER_FILES = ("json", "model", "arpa")


@dataclass(frozen=True)
class Kind:
    """What the file of one kind of folder has.

    Arguments
    ---------
    parts : dict of str to str
        Its parts, and the class of each.
    settings : set of str
        Keys with plain values.
    optional : set of str
        Parts that may be missing.
    """

    parts: dict
    settings: frozenset = frozenset()
    optional: frozenset = frozenset()

    def fits(self, keys):
        """Whether a file with these keys is of this kind."""
        needed = {*self.parts, *self.settings} - self.optional
        return (
            needed
            <= keys
            <= {
                *_EVERYWHERE,
                *self.parts,
                *self.settings,
                *_NOT_BUILT,
            }
        )


@dataclass(frozen=True)
class Plain:
    """What a file says, checked; nothing of it is built.

    Arguments
    ---------
    kind : str
        "encoder", "recogniser" or "classifier".
    parts : dict of str to yaml.Node
        To be built with `build`.
    settings : dict
        Plain values.
    files : dict of str to str
        The file of each part; empty in a folder that was not made for the hub.
    """

    kind: str
    parts: dict
    settings: dict
    files: dict


KINDS = {
    "encoder": Kind({"encoder": _ENCODER}),
    "recogniser": Kind(
        {
            "lobe": _LOBE,
            "head": f"{_LOBES}.CTCHead",
            "tokens": "encodecmae_sb.data.tokenizer.Tokens",
            "language_model": "encodecmae_sb.inference.recogniser.LanguageModel",
        },
        frozenset({"beam_search"}),
        frozenset({"language_model"}),
    ),
    "classifier": Kind(
        {"classifier": f"{_POOLING}.ClipClassifier"},
        frozenset({"sample_rate", "multi_label", "labels"}),
    ),
}


def read_plain(path):
    r"""Reads and checks a file; builds nothing.

    Arguments
    ---------
    path : str or Path
        Of a `hyperparams.yaml`.

    Returns
    -------
    Plain

    Raises
    ------
    UserError
        If the file has anything but classes of `CLASSES` and plain values, or not the
        keys of an exported folder.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hyperparams.yaml"
    >>> _ = path.write_text("format: 2\nencoder: !new:os.system ['rm -r /']")
    >>> read_plain(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    encodecmae_sb.utils.errors.UserError: hyperparams.yaml, line 2: !new:os.system is...
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path.name} has more than {_MAX_BYTES} bytes: refused.")
        text = path.read_text(encoding="utf-8")
        _check_events(text, path.name)
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            raise UserError(f"{path.name} is empty.")
        _check_tags(root)
        return _sort(_items(root, "the file"))
    except UserError:
        raise
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read: {error}") from error


def _check_events(text, name):
    """Refuses small files that would keep the parser or the builder busy for long."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        # An alias of an alias can stand for billions of nodes.
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{name} has aliases (*name), which are refused.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        # PyYAML's time grows with the square of the depth of lists.
        if depth > _MAX_DEPTH:
            raise UserError(
                f"{name}, line {event.start_mark.line + 1}: more than {_MAX_DEPTH} "
                "levels in each other are refused."
            )


def _sort(keys):
    """What the keys of a file stand for."""
    written = keys["format"].value if "format" in keys else "missing"
    if written != str(FORMAT):
        raise UserError(
            f"hyperparams.yaml: format is {written}; this version of encodecmae_sb "
            f"({__version__}) reads format {FORMAT}."
        )
    kind = next((kind for kind in KINDS if KINDS[kind].fits(keys.keys())), None)
    if kind is None:
        raise UserError(
            f"hyperparams.yaml: the keys {', '.join(keys)} are not those of an "
            f"exported {', '.join(KINDS)}."
        )
    wanted = KINDS[kind]
    parts = {name: keys[name] for name in wanted.parts if name in keys}
    for name, node in parts.items():
        _check_module(node, (wanted.parts[name],), name)
    plain = wanted.settings | {LICENCE} & keys.keys()
    settings = {name: _value(keys[name], name) for name in plain}
    return Plain(kind, parts, settings, _files(keys, parts))


def _files(keys, parts):
    """The file of each part; only names of files that are no pickles."""
    if "pretrainer" not in keys:
        return {}
    node = _items(keys["pretrainer"], "pretrainer").get("files")
    files = {} if node is None else _value(node, "files")
    if not isinstance(files, dict):
        raise UserError("hyperparams.yaml: files of the pretrainer is to be a dict.")
    for name, file in files.items():
        endings = ("safetensors",) if is_module(parts.get(name)) else OTHER_FILES
        if name not in parts or file not in [f"{name}.{end}" for end in endings]:
            raise UserError(
                f"hyperparams.yaml: {file!r} as the file of {name} is refused. Allowed "
                f"are {', '.join(f'{name}.{end}' for end in endings)}."
            )
    return files


def is_module(node):
    """Whether a part has weights."""
    return node is not None and issubclass(pydoc.locate(_class_of(node)), nn.Module)


def build(node):
    """Builds a part that `read_plain` has checked.

    Arguments
    ---------
    node : yaml.Node

    Returns
    -------
    object
        With new random weights, or empty.

    Raises
    ------
    UserError
        If its arguments have values that have no meaning.
    """
    path = _class_of(node)
    arguments = {}
    for name, value in _items(node, path).items():
        nested = name in CLASSES[path] and _class_of(value)
        arguments[name] = build(value) if nested else _value(value, name)
    try:
        return pydoc.locate(path)(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of odd numbers
        raise UserError(f"{path} cannot be built from {arguments}: {error}") from error


def _check_tags(root):
    """Refuses a tree with a tag that is not ours, wherever it stands."""
    todo = [root]
    while todo:
        node = todo.pop()
        if not _is_known(node):
            raise UserError(
                f"hyperparams.yaml, line {node.start_mark.line + 1}: {node.tag} is "
                "refused. From the hub only classes of this package and plain values "
                "are read: a tag can name any program. Nothing was built."
            )
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [part for pair in node.value for part in pair]


def _is_known(node):
    tag = node.tag
    if tag == "!ref":
        return bool(re.fullmatch(r"<\w+>", str(node.value)))
    if tag.startswith("!name:"):
        return tag.removeprefix("!name:") in _HOOKS and node.value == ""
    path = tag.removeprefix("!new:") if tag.startswith("!new:") else None
    return tag in _PLAIN or path in CLASSES or path in _PRETRAINERS


def _check_module(node, allowed, name):
    """Makes sure that a node is one of some classes, with arguments that fit."""
    path = _class_of(node)
    if path not in allowed:
        raise UserError(
            f"hyperparams.yaml, line {node.start_mark.line + 1}: {name} is {node.tag}; "
            f"allowed are {', '.join(allowed)}."
        )
    kind, known = pydoc.locate(path), ()
    if issubclass(kind, nn.Module):
        # Those that `describe` writes.
        unwritten = getattr(kind, "not_described", ())
        known = [key for key in inspect.signature(kind).parameters]
        known = [key for key in known if key not in unwritten]
    for key, value in _items(node, path).items():
        if key not in known:
            raise UserError(f"hyperparams.yaml: {path} takes no {key} from the hub.")
        if key in CLASSES[path]:
            _check_module(value, CLASSES[path][key], f"{name}.{key}")
        else:
            _value(value, key)


def _class_of(node):
    return node.tag.removeprefix("!new:") if node.tag.startswith("!new:") else None


def _items(node, where):
    """The keys and values of a mapping; none for a class without arguments."""
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"hyperparams.yaml: {where} has no keys.")
    items = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in items:
            raise UserError(f"hyperparams.yaml: {where} has an odd or repeated key.")
        items[key.value] = value
    return items


def _value(node, name):
    """The plain value of a node: numbers, text, lists and dicts of them."""
    todo = [node]
    while todo:
        part = todo.pop()
        if part.tag not in _PLAIN:
            raise UserError(f"hyperparams.yaml: {name} is to be a plain value.")
        if isinstance(part, yaml.SequenceNode):
            todo += part.value
        elif isinstance(part, yaml.MappingNode):
            todo += [inner for pair in part.value for inner in pair]
    return yaml.SafeLoader("").construct_object(node, deep=True)
