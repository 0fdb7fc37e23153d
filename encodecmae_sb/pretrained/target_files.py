"""Files of fitted targets: tensors, and how they are used, in one safetensors file."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from encodecmae_sb.utils.digests import digest, tensors_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file

from .licence import Licence

FORMAT = "1"  # raise it when the rules of encoding change
_FIT = "python recipes/fit_targets.py"


def save_targets(path, kind, settings, tensors, notes=None, licence=None):
    """Writes a file of fitted targets.

    Arguments
    ---------
    path : str or Path
    kind : str
        What `recipes/fit_targets.py` calls them.
    settings : dict
        What codes depend on besides the tensors; plain values.
    tensors : dict of str to torch.Tensor
    notes : dict, optional
        How they were fitted; nothing depends on it.
    licence : Licence, optional
        That a model has from them.

    Returns
    -------
    str
        Their fingerprint: other settings or tensors, another fingerprint.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> key = save_targets(path, "mel_rvq", {"stack": 1}, {"mean": torch.zeros(2)})
    >>> read_settings(path, "mel_rvq") == ({"stack": 1}, key)
    True
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    fingerprint = _fingerprint(kind, settings, tensors)
    header = {
        "format": FORMAT,
        "kind": kind,
        "fingerprint": fingerprint,
        "settings": json.dumps(settings),
        "notes": json.dumps(notes or {}),
        "licence": json.dumps(licence),
    }
    with whole_file(path) as scratch:
        save_file(tensors, str(scratch), metadata=header)
    return fingerprint


def read_settings(path, kind):
    """What the header of a file says, without its tensors.

    Arguments
    ---------
    path : str or Path
    kind : str
        Which targets it must be of.

    Returns
    -------
    settings : dict
    fingerprint : str

    Raises
    ------
    UserError
        If there is no such file, or it is something else.
    """
    header = _read_header(path, kind)
    return json.loads(header["settings"]), header["fingerprint"]


def read_licence(path, kind):
    """The licence that a model has from the targets of a file.

    Arguments
    ---------
    path, kind
        As for `read_settings`.

    Returns
    -------
    Licence or None

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> _ = save_targets(path, "clusters", {}, {}, licence=Licence("mit"))
    >>> read_licence(path, "clusters")
    Licence(name='mit', reason='')
    """
    found = json.loads(_read_header(path, kind).get("licence", "null"))
    return found and Licence(*found)


def _read_header(path, kind):
    path = Path(path).expanduser()
    command = f"{_FIT} {kind} {path}"
    if not path.is_file():
        raise UserError(f"targets: there is no file {path}. Make it: {command}")
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"targets: {path} cannot be read: {error}. Make it again: {command}"
        ) from error
    found = header.get("kind"), header.get("format")
    if found != (kind, FORMAT):
        raise UserError(
            f"targets: {path} has the kind and format {found[0]}, {found[1]}; "
            f"{kind}, {FORMAT} are needed. Make another file: {_FIT} {kind} FILE"
        )
    return header


def load_targets(path, kind):
    """All that is in a file of fitted targets.

    Arguments
    ---------
    path : str or Path
    kind : str
        Which targets it must be of.

    Returns
    -------
    settings : dict
    tensors : dict of str to torch.Tensor
    fingerprint : str

    Raises
    ------
    UserError
        As `read_settings`, or if the tensors are not those that were written.
    """
    settings, fingerprint = read_settings(path, kind)
    path = Path(path).expanduser()
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if _fingerprint(kind, settings, tensors) != fingerprint:
        raise UserError(
            f"targets: {path} was changed after it was written: its fingerprint "
            f"{fingerprint} is not that of its content. Make it again: {_FIT} {kind} "
            f"{path}"
        )
    return settings, tensors, fingerprint


def _fingerprint(kind, settings, tensors):
    tensors = dict(sorted(tensors.items()))
    shapes = [list(tensor.shape) for tensor in tensors.values()]
    return digest([FORMAT, kind, settings, shapes, tensors_key(tensors)])
