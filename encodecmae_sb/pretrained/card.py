"""The README.md of an exported folder, which is its model card on the hub."""

import re

import yaml

from encodecmae_sb.utils.errors import UserError

NOT_STATED = "not-stated"

_TASKS = {
    "encoder": "feature-extraction",
    "recogniser": "automatic-speech-recognition",
    "classifier": "audio-classification",
}

# How a card says that its folder is loaded; older ones had no heading for it.
_LOCAL_USE = re.compile(
    r"^## Use\n.*?(?=^## |\Z)"
    r"|^    from speechbrain\.inference\.interfaces import foreign_class\n"
    r"(?:(?:    [^\n]*)?\n)*",
    flags=re.DOTALL | re.MULTILINE,
)

_USE = """\
## Use

    from speechbrain.inference.interfaces import foreign_class

    {kind} = foreign_class(
        source="{source}",
        pymodule_file="custom_interface.py",
        classname="{made.interface}",
    )
    {made.use}
"""

_USE_FROM_HUB = """\
## Use

    from encodecmae_sb.inference import load

    {kind} = load("{source}@COMMIT")
    {made.use}

COMMIT is that of the version that you have looked at; `load("{source}")` takes the
newest one. `load` takes plain values and safetensors from here and runs no code of this
repository.

SpeechBrain's own way runs code of this repository: its `custom_interface.py`, and what
its `hyperparams.yaml` names. So look at both first, and stay with that commit:

    from speechbrain.inference.interfaces import foreign_class
    from speechbrain.utils.fetching import FetchConfig

    {kind} = foreign_class(
        source="{source}",
        pymodule_file="custom_interface.py",
        classname="{made.interface}",
        fetch_config=FetchConfig(revision="COMMIT"),
    )
"""


def make_card(made, kind, source, about, figures=None, notes="", licence=None):
    """The README of an exported folder.

    Arguments
    ---------
    made : object
        With `title`, `interface` (name of the class that loads it) and `use` (a line
        of code).
    kind : str
        "encoder", "recogniser" or "classifier".
    source : str
        What the example loads.
    about : str
        What it is, trained how, on what.
    figures : dict of str to float, optional
        Metrics.
    notes : str
        End of the text.
    licence : Licence, optional

    Returns
    -------
    str
    """
    use = _USE.format(made=made, kind=kind, source=source)
    text = f"# {made.title}\n\n{about.strip()}\n\n{use}"
    if figures:
        rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in figures.items())
        text += f"\n## Figures\n\n| measured | |\n| --- | --- |\n{rows}"
    if notes:
        text += f"\n## Notes\n\n{notes}\n"
    return _with_reason(text.rstrip() + "\n", licence)


def _with_reason(text, licence):
    """A card that says why it has a licence."""
    if licence is None or not licence.reason or licence.reason in text:
        return text
    return f"{text.rstrip()}\n\n## Licence\n\n{licence.reason}\n"


def card_for_hub(card, made, kind, repository, licence=None, recorded=None):
    """A card for the hub: what its owner wrote stays; the code loads from there.

    Arguments
    ---------
    card : str
        README.md of the folder.
    made, kind
        As for `make_card`.
    repository : str
        user/name.
    licence : str, optional
        Default: what the card's header says; else what is recorded; else "other",
        `NOT_STATED`.
    recorded : Licence, optional
        That the folder has from what it was made with.

    Returns
    -------
    card : str
    licence : str
        What it says now.

    Raises
    ------
    UserError
        If the card's header is not YAML.
    """
    header, text = split_card(card)
    header = {**_header(kind), **header}
    if licence:
        header = {**header, "license": licence}
        header.pop("license_name", None)
    elif "license" not in header and recorded is not None:
        header["license"] = recorded.name
    elif "license" not in header:
        # The hub wants a name beside "other".
        header |= {"license": "other", "license_name": NOT_STATED}
    text = _with_reason(text, recorded)
    use = _USE_FROM_HUB.format(made=made, kind=kind, source=repository)
    text, found = _LOCAL_USE.subn(lambda _: f"{use}\n", text, count=1)
    text = text if found else f"{text.rstrip()}\n\n{use}"
    return _with_header(header, text), header.get("license_name", header["license"])


def split_card(card):
    r"""The header of a card as a dict, and the text below it.

    Example
    -------
    >>> split_card("---\nlicense: mit\n---\n# A model\n")
    ({'license': 'mit'}, '# A model\n')
    """
    found = re.match(r"---\n(.*?)^---\n+", card, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        return {}, card
    try:
        header = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise UserError(f"README.md: its header is not YAML: {error}") from error
    if not isinstance(header, dict):
        raise UserError("README.md: its header is not a list of keys and values.")
    return header, card[found.end() :]


def _header(kind):
    return {
        "library_name": "speechbrain",
        "pipeline_tag": _TASKS[kind],
        "tags": ["audio", "speechbrain", "encodecmae"],
    }


def _with_header(header, text):
    written = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{written}---\n{text.rstrip()}\n"
