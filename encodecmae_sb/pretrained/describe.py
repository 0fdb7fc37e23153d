"""A module as HyperPyYAML text: its class and the arguments that build one like it."""

import inspect
import pydoc
from functools import partial

import yaml
from hyperpyyaml import load_hyperpyyaml
from torch import nn

from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError


def describe(module):
    """The HyperPyYAML text that builds a module like a given one.

    The rule is simple: each argument of the constructor has the value of the module's
    attribute of that name. Arguments that are not to be written, because they say how
    the module is trained or started, are named in the class attribute
    `not_described`.

    Arguments
    ---------
    module : torch.nn.Module
        Of any class that can be imported. Arguments may be numbers, strings, bools,
        None, lists, dicts, other modules, and classes with or without arguments.

    Returns
    -------
    str

    Raises
    ------
    UserError
        If an argument of a constructor has no attribute of its name, or one that
        cannot be written, or if a class cannot be imported.

    Example
    -------
    >>> from encodecmae_sb.lobes import CTCHead
    >>> print(describe(CTCHead(64, num_tokens=29)))
    !new:encodecmae_sb.lobes.CTCHead
    input_size: 64
    num_tokens: 29
    hidden_size: 1024
    num_layers: 2
    recurrent: true
    stack: 1
    dropout: 0.0
    """
    return to_yaml(module).rstrip()


def build_like(module):
    """A new module with the same arguments, see `describe`; weights are drawn anew."""
    return load_hyperpyyaml(to_yaml({"module": module}))["module"]


def module_key(module):
    """A name for a module's architecture and weights: both change what it computes.

    Numbers of heads, or settings of log-mel, do not show in the weights.
    """
    return digest([describe(module), weights_key(module)])


def to_yaml(content):
    """HyperPyYAML text of plain values and modules.

    Example
    -------
    >>> print(to_yaml({"labels": ["yes", "1e3"]}), end="")
    labels:
    - 'yes'
    - "1e3"
    """
    return yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        indent=4,
        width=float("inf"),
    )


class _Dumper(yaml.SafeDumper):
    """Writes modules as `!new:` with their arguments."""

    def ignore_aliases(self, data):
        """Write everything in full; HyperPyYAML copies what an alias refers to."""
        return True


def _represent_string(dumper, text):
    # HyperPyYAML reads more as numbers than PyYAML does, "1e3" for example.
    style = None if text.isidentifier() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _represent_module(dumper, module):
    tag = f"!new:{_public_path(type(module))}"
    return dumper.represent_mapping(tag, constructor_arguments(module))


def _represent_callable(dumper, made):
    """A class, or one with some of its arguments: what `!name:` gives."""
    kind, arguments = made, {}
    if isinstance(made, partial):
        kind, arguments = made.func, made.keywords
    return dumper.represent_mapping(f"!name:{_public_path(kind)}", arguments)


_Dumper.add_representer(str, _represent_string)
_Dumper.add_multi_representer(nn.Module, _represent_module)
_Dumper.add_multi_representer(type, _represent_callable)
_Dumper.add_multi_representer(partial, _represent_callable)


def constructor_arguments(module):
    """Arguments that build a module like a given one, from its attributes.

    Raises
    ------
    UserError
        As `describe`.
    """
    kind, arguments = type(module), {}
    if kind.__init__ is nn.Module.__init__:
        return arguments
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in getattr(kind, "not_described", ()):
            continue
        where = f"{kind.__qualname__} cannot be exported: its constructor's"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"{where} {parameter} hides arguments. Name each of them.")
        if not hasattr(module, name):
            raise UserError(
                f"{where} argument {name!r} has no attribute of that name. Store it "
                f"in __init__: self.{name} = {name}"
            )
        value = getattr(module, name)
        if not _is_plain(value):
            raise UserError(
                f"{where} argument {name!r} is a {type(value).__name__}. Allowed are "
                "numbers, strings, bools, None, lists, dicts, modules and classes. "
                f"Store such a value as self.{name}, or name the argument in the class "
                "attribute not_described if a copy can be built without it."
            )
        arguments[name] = value
    return arguments


def _is_plain(value):
    """Whether a value can be written."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return _is_plain([*value, *value.values()])
    if isinstance(value, partial):
        whole = isinstance(value.func, type) and not value.args
        return whole and _is_plain(value.keywords)
    plain = type(value) in (bool, int, float, str)
    return plain or value is None or isinstance(value, nn.Module | type)


def _public_path(kind):
    """Where a yaml finds a class: among the lobes if it is there, else its module."""
    own = f"{kind.__module__}.{kind.__qualname__}"
    for path in (f"encodecmae_sb.lobes.{kind.__name__}", own):
        if pydoc.locate(path) is kind and kind.__module__ != "__main__":
            return path
    raise UserError(
        f"{own} cannot be exported: nothing could import it. Put the class at the top "
        "level of a module that Python finds."
    )
