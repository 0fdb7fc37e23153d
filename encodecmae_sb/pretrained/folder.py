"""A trained model as a folder that `foreign_class` loads anywhere.

The folder holds `hyperparams.yaml` (what to build), weights, `custom_interface.py`
(only imports from this package, because SpeechBrain keys such files by their name) and
`README.md` (what it is, its figures, how to use it).

An encoder's folder may also hold `pretraining.yaml` and `pretraining.ckpt`: decoder and
head, for a pretraining that goes on from the folder. Nothing else reads them.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file
from torch import nn

from encodecmae_sb import __version__
from encodecmae_sb.nnet.encodecmae import MaskedCodecModel
from encodecmae_sb.nnet.targets import Label
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file

from .card import make_card
from .describe import build_like, to_yaml
from .licence import KEY as LICENCE

FORMAT = 2  # of the folder; raise it when older code could not read a new one
YAML = "hyperparams.yaml"
_PRETRAINING = ("pretraining.yaml", "pretraining.ckpt")


@dataclass(frozen=True)
class Made:
    """What is particular to a kind of folder."""

    key: str  # that only its yaml has
    title: str
    interface: str
    use: str
    example: str


MADE = {
    "encoder": Made(
        "encoder",
        "An EnCodecMAE encoder",
        "EnCodecMAEEncoder",
        'features = encoder.encode_file("speech.wav")  # [frames, width]',
        "OUTPUT_FOLDER/encoder of recipes/pretrain.py",
    ),
    "recogniser": Made(
        "beam_search",
        "A CTC speech recogniser on an EnCodecMAE encoder",
        "EnCodecMAEASR",
        'print(recogniser.transcribe_file("speech.wav"))',
        "OUTPUT_FOLDER/asr of recipes/asr_ctc.py",
    ),
    "classifier": Made(
        "classifier",
        "An EnCodecMAE classifier",
        "EnCodecMAEClassifier",
        'probabilities, score, index, label = classifier.classify_file("sound.wav")',
        "OUTPUT_FOLDER/classifier of recipes/classify.py",
    ),
}

_TEXT = """\
# {title}, made by encodecmae_sb {version}.
{content}
modules:
{modules}
pretrainer: !new:{pretrainer}
{files}    loadables:
{loadables}
    custom_hooks:
{hooks}"""

# The same in every folder: SpeechBrain imports such a file once and keeps it by its
# name, whatever folder it came from.
INTERFACE = """\
from encodecmae_sb.inference import (  # noqa: F401
    EnCodecMAEASR,
    EnCodecMAEClassifier,
    EnCodecMAEEncoder,
)
"""


def export_folder(
    folder,
    kind,
    parts,
    settings=None,
    about="",
    figures=None,
    notes="",
    files=None,
    obsolete=(),
    licence=None,
):
    """Writes a folder that `foreign_class` loads, whole or not at all.

    An older folder in its place stays until everything is written. Then its
    `hyperparams.yaml` goes first and the new one comes last: a folder that has one is
    complete.

    Arguments
    ---------
    folder : str or Path
        Made if needed; files of the same names in it are replaced.
    kind : str
        "encoder", "recogniser" or "classifier".
    parts : dict of str to object
        What is built and loaded, by its name in the yaml: modules, and objects that
        are made without arguments and have `save(path)` and `load(path)`.
    settings : dict of str to plain value, optional
        More keys of the yaml.
    about : str
        For the README: what it is, trained how, on what.
    figures : dict of str to float, optional
        Metrics for the README.
    notes : str
        End of the README.
    files : dict of str to callable, optional
        More files: name, and what writes the file of a path.
    obsolete : iterable of str
        Files that an older folder in its place may have, and this one must not.
    licence : Licence, optional
        That it has from what it was made with.

    Raises
    ------
    UserError
        If a module cannot be described, see `describe`.
    """
    folder = Path(folder)
    made = MADE[kind]
    settings = dict(settings or {})
    if licence is not None:
        settings[LICENCE] = licence._asdict()
    texts = {
        YAML: hyperparams(made.title, parts, settings),
        "custom_interface.py": INTERFACE,
        "README.md": make_card(made, kind, folder.name, about, figures, notes, licence),
    }
    with contextlib.ExitStack() as stack:
        # Files take their names in the opposite order, so the yaml is the last one.
        for name, text in texts.items():
            scratch = stack.enter_context(whole_file(folder / name))
            scratch.write_text(text, encoding="utf-8")
        for name, part in parts.items():
            scratch = stack.enter_context(whole_file(folder / f"{name}.ckpt"))
            _save(part, scratch)
        for name, write in (files or {}).items():
            write(stack.enter_context(whole_file(folder / name)))
        for name in obsolete:
            stack.callback((folder / name).unlink, missing_ok=True)
        stack.callback((folder / YAML).unlink, missing_ok=True)


def hyperparams(title, parts, settings, files=None):
    """The text of `hyperparams.yaml`.

    Arguments
    ---------
    title : str
    parts, settings : dict
        As for `export_folder`.
    files : dict of str to str, optional
        The file of each part; default: NAME.ckpt, as SpeechBrain has it.

    Returns
    -------
    str
    """
    pretrainer, listed = "speechbrain.utils.parameter_transfer.Pretrainer", ""
    if files:
        pretrainer = "encodecmae_sb.pretrained.hub_folder.FilesPretrainer"
        rows = (f"        {name}: {file}\n" for name, file in files.items())
        listed = f"    files:\n{''.join(rows)}"
    content = {"format": FORMAT, **settings}
    modules, loadables, hooks = [], [], []
    built = ""
    for name, part in parts.items():
        loadables.append(f"        {name}: !ref <{name}>")
        hook = "load_part"
        if isinstance(part, nn.Module):
            content[name] = part
            modules.append(f"    {name}: !ref <{name}>")
            hook = "load_weights"
        else:
            path = f"{type(part).__module__}.{type(part).__qualname__}"
            built += f"{name}: !new:{path}\n"
        hooks.append(f"        {name}: !name:{__name__}.{hook}")
    return _TEXT.format(
        title=title,
        version=__version__,
        content=to_yaml(content) + built,
        pretrainer=pretrainer,
        files=listed,
        modules="\n".join(modules) + "\n",
        loadables="\n".join(loadables),
        hooks="\n".join(hooks) + "\n",
    )


def _save(part, path):
    """Writes the weights of a module, or what another object saves."""
    if not isinstance(part, nn.Module):
        part.save(path)
        return
    _save_tensors(part.state_dict(), path)


def _save_tensors(tensors, path):
    weights = {name: tensor.cpu() for name, tensor in tensors.items()}
    # As an open file: torch would write the name of a path into the file.
    with open(path, "wb") as file:
        torch.save(weights, file)


def export_encoder(
    encoder,
    folder,
    origin="",
    figures=None,
    files=None,
    model=None,
    label=None,
    licence=None,
):
    """Writes an encoder folder, whole or not at all.

    Arguments
    ---------
    encoder : AudioEncoder
        What to write.
    folder : str or Path
        Made if needed; files of the same names in it are replaced.
    origin : str
        A sentence or two for the folder's README: trained how, on what.
    figures : dict of str to float, optional
        Metrics of the validation, for the folder's README.
    files : dict of str to callable, optional
        More files: name, and what writes the file of a path.
    model : MaskedCodecModel, optional
        Whose encoder this is. Its decoder and head are written, too.
    label : Label, optional
        Of the targets that the head predicts; needed with `model`.
    licence : Licence, optional
        That it has from its targets, or from what it went on from.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> export_encoder(encoder, folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'custom_interface.py', 'encoder.ckpt', 'hyperparams.yaml']
    """
    frame_ms = 1000 * encoder.front_end.hop_length / encoder.front_end.sample_rate
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    about = (
        f"{encoder.num_layers} layers, {encoder.dim} wide, {millions:.1f} M "
        f"parameters; one frame in {frame_ms:.2f} ms of audio. {origin}"
        f"{' The figures are of the validation.' if figures else ''}"
    )
    if model is not None:
        files = {**(files or {}), **_decoder_and_head(model, label)}
    export_folder(
        folder,
        "encoder",
        {"encoder": encoder},
        None,
        about,
        figures,
        files=files,
        obsolete=() if model is not None else _PRETRAINING,
        licence=licence,
    )


def _decoder_and_head(model, label):
    """What writes them, by the name of the file."""
    content = {
        "decoder": model.decoder,
        "n_codebooks": model.n_codebooks,
        "codebook_size": model.codebook_size,
        "targets": label._asdict(),
    }
    text = to_yaml(content)
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("encoder.")
    }
    yaml_file, weights = _PRETRAINING
    return {
        yaml_file: lambda path: path.write_text(text, encoding="utf-8"),
        weights: lambda path: _save_tensors(tensors, path),
    }


def load_part(part, path):
    """Calls an object's own `load`; a hook for SpeechBrain's Pretrainer."""
    part.load(path)


def load_weights(module, path, prefix=""):
    """Loads weights, all of them or none; a hook for SpeechBrain's Pretrainer.

    SpeechBrain's own hook only warns about missing weights and keeps random ones.

    Arguments
    ---------
    module : torch.nn.Module
        Changed in place.
    path : str or Path
        A file of safetensors, or a state dict, read with `weights_only=True`.
    prefix : str
        Only weights whose names begin with it are loaded, without it.

    Raises
    ------
    UserError
        If the weights are missing or not those of this module.
    """
    if not Path(path).is_file():
        raise UserError(f"No weights: {path} is missing. Export the folder again.")
    safe = Path(path).suffix == ".safetensors"
    try:
        if safe:
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, IndexError, ... for junk
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read (only files of plain tensors are): {why}"
        ) from error
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    try:
        if safe:
            weights |= _shared(module, weights)
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit what hyperparams.yaml beside it describes: {error}. "
            "Export the folder again."
        ) from error


def _shared(module, weights):
    """Weights that a module has under several names; safetensors keeps one of them."""
    places = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        places.setdefault(id(tensor), []).append(name)
    return {
        name: weights[known[0]]
        for names in places.values()
        if (known := [name for name in names if name in weights])
        for name in names
    }


def weights_file(folder, name):
    """The weights of a part: NAME.safetensors, as on the hub, else NAME.ckpt."""
    safe = Path(folder) / f"{name}.safetensors"
    return safe if safe.is_file() else safe.with_suffix(".ckpt")


def check_folder(folder, kind="encoder"):
    """Makes sure that a folder is one that this package exported and can read.

    Arguments
    ---------
    folder : str or Path
        The folder.
    kind : str
        What it is to hold: "encoder", "recogniser" or "classifier".

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it is not such a folder, or of a format this version does not know.
    """
    folder = Path(folder).expanduser()
    advice = f"Give the folder of an exported {kind}, such as {MADE[kind].example}."
    if not folder.is_dir():
        raise FileNotFoundError(f"No such {kind} folder: {folder}. {advice}")
    there = folder_kind(folder, advice)
    if kind != there:
        raise UserError(f"{folder} holds another kind of model: {there}. {advice}")
    return folder


def folder_kind(folder, advice=""):
    """What a folder holds; see `check_folder`.

    Arguments
    ---------
    folder : str or Path
    advice : str
        For the message, if it holds nothing.

    Returns
    -------
    str
        "encoder", "recogniser" or "classifier".

    Raises
    ------
    UserError
        If it is not an exported folder, or of a format this version does not know.
    """
    folder = Path(folder)
    try:
        # Tags name what to build; here only the keys matter.
        node = yaml.compose((folder / YAML).read_text("utf-8"), yaml.SafeLoader)
        keys = {name.value: value.value for name, value in node.value}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        keys = {}
    there = [name for name, made in MADE.items() if made.key in keys]
    if "format" not in keys or not there:
        needed = " or ".join(made.key for made in MADE.values())
        raise UserError(
            f"{folder} is not an exported folder of this package: it has no {YAML}, "
            f"or one without format or without {needed}. {advice}"
        )
    if keys["format"] != str(FORMAT):
        raise UserError(
            f"{folder} has format {keys['format']}; this version of encodecmae_sb "
            f"({__version__}) reads format {FORMAT}. Export it again with this "
            "version, or install the one that made it (named in hyperparams.yaml)."
        )
    return there[0]


def load_encoder_folder(folder, pretrained=True):
    """Loads the encoder of an exported folder.

    Arguments
    ---------
    folder : str or Path
        The folder.
    pretrained : bool
        False draws new weights for all that pretraining trains. A codec inside, which
        is frozen, is loaded in any case.

    Returns
    -------
    AudioEncoder

    Raises
    ------
    FileNotFoundError, UserError
        As `check_folder` and `load_weights`, and if a class that the folder names
        cannot be imported.
    """
    folder = check_folder(folder)
    encoder = _build(folder, folder / YAML)["encoder"]
    if pretrained:
        load_weights(encoder, weights_file(folder, "encoder"))
    else:
        path = weights_file(folder, "encoder")
        load_weights(encoder.front_end, path, "front_end.")
    return encoder


def _build(folder, path):
    """What a yaml in a folder describes."""
    try:
        return load_hyperpyyaml(path.read_text(encoding="utf-8"))
    except ImportError as error:
        raise UserError(
            f"{folder} needs a class that cannot be imported: {error}. Put its module "
            "on Python's path, with PYTHONPATH for example."
        ) from error


def load_decoder_and_head(folder, encoder):
    """The whole model of a folder that was exported with decoder and head.

    Arguments
    ---------
    folder : str or Path
        The folder.
    encoder : AudioEncoder
        As `load_encoder_folder` gives it; it becomes a part of the model.

    Returns
    -------
    model : MaskedCodecModel or None
        None if the folder has no decoder and head.
    label : Label or None
        Of the targets that the head predicts.

    Raises
    ------
    UserError
        As `load_encoder_folder`.
    """
    yaml_file, weights = (Path(folder) / name for name in _PRETRAINING)
    if not yaml_file.is_file():
        return None, None
    content = _build(folder, yaml_file)
    sizes = content["n_codebooks"], content["codebook_size"]
    model = MaskedCodecModel(encoder, content["decoder"], *sizes)
    rest = nn.ModuleDict({n: m for n, m in model.named_children() if n != "encoder"})
    load_weights(rest, weights)
    return model, Label(**content["targets"])


def with_new_weights(encoder):
    """A new encoder with the architecture of another one, and new weights.

    A codec inside, which is frozen, keeps its weights.

    Arguments
    ---------
    encoder : AudioEncoder
        Left as it is.

    Returns
    -------
    AudioEncoder
        On the same device.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> new = with_new_weights(encoder)
    >>> bool((new.projection.weight == encoder.projection.weight).any())
    False
    """
    new = build_like(encoder)
    new.front_end.load_state_dict(encoder.front_end.state_dict())
    return new.to(next(encoder.parameters()).device)
