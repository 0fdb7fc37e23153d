"""What licence a model has from what it was made with."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from encodecmae_sb.nnet.encodec import FrozenCodec
from encodecmae_sb.utils.digests import without_normalisation

from .codec_files import OFFICIAL, checksum

KEY = "licence"  # in the yaml of an exported folder
_YAML, _CARD = "hyperparams.yaml", "README.md"
# What the README says in folders without the key.
_ENCODEC = re.compile(r"encodec_24khz|CC BY-NC 4\.0")


class Licence(NamedTuple):
    """A licence, and why it is this one.

    Arguments
    ---------
    name : str
        As the hub writes it, such as `cc-by-nc-4.0`.
    reason : str
        A sentence for the model card; may be empty.
    """

    name: str
    reason: str = ""


# https://github.com/facebookresearch/encodec says it of its weights.
ENCODEC = Licence(
    "cc-by-nc-4.0",
    "EnCodec's official weights took part in the training; their licence is "
    "CC BY-NC 4.0.",
)


def recorded_licence(folder):
    """The licence that an exported folder states.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    Licence or None
        None if it states none.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text("licence: {name: mit}")
    >>> recorded_licence(folder)
    Licence(name='mit', reason='')
    """
    folder = Path(folder).expanduser()
    if not (folder / _YAML).is_file():
        return None
    try:
        # Tags name what to build; nothing is built here.
        tree = yaml.compose((folder / _YAML).read_text("utf-8"), yaml.SafeLoader)
        node = next(value for key, value in tree.value if key.value == KEY)
        stated = {key.value: value.value for key, value in node.value}
        return Licence(str(stated["name"]), str(stated.get("reason", "")))
    except (OSError, yaml.YAMLError, StopIteration):
        pass
    except (AttributeError, KeyError, TypeError, ValueError):  # it is something else
        pass
    card = folder / _CARD
    said = card.is_file() and _ENCODEC.search(card.read_text("utf-8"))
    return ENCODEC if said else None


def targets_licence(label):
    """The licence that a model has from its targets.

    Arguments
    ---------
    label : Label

    Returns
    -------
    Licence or None

    Example
    -------
    >>> from encodecmae_sb.lobes import Codec
    >>> targets_licence(Codec.label_of("encodec_24khz")).name
    'cc-by-nc-4.0'
    >>> targets_licence(Codec.label_of("bundled"))
    """
    if label.kind != FrozenCodec.kind:
        return None
    own, _ = without_normalisation(label.fingerprint)
    if label.name == OFFICIAL or own == checksum(OFFICIAL):
        return ENCODEC
    # The codec inside published weights lies beside their encoder.
    return recorded_licence(Path(label.name).parent) if "/" in label.name else None
