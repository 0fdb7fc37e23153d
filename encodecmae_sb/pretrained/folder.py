"""A trained encoder as a folder that `foreign_class` loads anywhere.

The folder holds `hyperparams.yaml` (what to build), `encoder.ckpt` (weights),
`custom_interface.py` (only imports from this package, because SpeechBrain keys
such files by their name) and `README.md` (what it is, its figures, how to use it).
"""

from pathlib import Path

import torch
import yaml
from hyperpyyaml import load_hyperpyyaml

from encodecmae_sb import __version__
from encodecmae_sb.nnet.front_ends import CodecLatents
from encodecmae_sb.utils.errors import UserError

FORMAT = 1  # of the folder; raise it when older code could not read a new one

_YAML = """\
# An EnCodecMAE encoder, made by encodecmae_sb {version}.
format: {format}
{encoder}

modules:
    encoder: !ref <encoder>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <encoder>
    custom_hooks:
        encoder: !name:encodecmae_sb.pretrained.folder.load_weights
"""

# The same in every folder: SpeechBrain imports such a file once and keeps it by its
# name, whatever folder it came from.
INTERFACE = """\
from encodecmae_sb.inference import (  # noqa: F401
    EnCodecMAEASR,
    EnCodecMAEClassifier,
    EnCodecMAEEncoder,
)
"""

_README = """\
# An EnCodecMAE encoder

{num_layers} layers, {dim} wide, {parameters:.1f} M parameters; one frame in
{frame_ms:.2f} ms of audio. {origin}

    from speechbrain.inference.interfaces import foreign_class

    encoder = foreign_class(
        source="{folder}",
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    features = encoder.encode_file("speech.wav")  # [frames, {dim}]

{figures}"""


def export_encoder(encoder, folder, origin="", figures=None):
    """Writes an encoder folder.

    Arguments
    ---------
    encoder : AudioEncoder
        What to write.
    folder : str or Path
        Made if needed; files in it are replaced.
    origin : str
        A sentence or two for the folder's README: trained how, on what.
    figures : dict of str to float, optional
        Metrics for the folder's README.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> export_encoder(encoder, folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'custom_interface.py', 'encoder.ckpt', 'hyperparams.yaml']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {name: tensor.cpu() for name, tensor in encoder.state_dict().items()},
        folder / "encoder.ckpt",
    )
    yaml = _YAML.format(
        version=__version__, format=FORMAT, encoder=encoder_yaml(encoder)
    )
    (folder / "hyperparams.yaml").write_text(yaml, encoding="utf-8")
    (folder / "custom_interface.py").write_text(INTERFACE, encoding="utf-8")
    table = "".join(
        f"| {name} | {value:.4g} |\n" for name, value in (figures or {}).items()
    )
    readme = _README.format(
        num_layers=encoder.num_layers,
        dim=encoder.dim,
        parameters=sum(p.numel() for p in encoder.parameters()) / 1e6,
        frame_ms=1000 * encoder.front_end.hop_length / encoder.front_end.sample_rate,
        origin=origin,
        folder=folder.name,
        figures="| measured on validation | |\n| --- | --- |\n" + table
        if table
        else "",
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def encoder_yaml(encoder):
    """The HyperPyYAML lines that build an `AudioEncoder` like a given one.

    Arguments
    ---------
    encoder : AudioEncoder

    Returns
    -------
    str
        Under the key `encoder`.
    """
    transformer = encoder.transformer
    return f"""\
encoder: !new:encodecmae_sb.lobes.AudioEncoder
    front_end: {_front_end_yaml(encoder.front_end)}
    transformer: !new:encodecmae_sb.lobes.ResiDualTransformer
        dim: {transformer.dim}
        num_layers: {encoder.num_layers}
        num_heads: {transformer.num_heads}
        ffn_dim: {transformer.ffn_dim}
        head_dim: {transformer.head_dim}
        shared_ffn: {transformer.shared_ffn}"""


def yaml_value(value):
    """A plain value as it stands in a yaml.

    Example
    -------
    >>> yaml_value(None), yaml_value(0.5), yaml_value("last")
    ('null', '0.5', "'last'")
    """
    return "null" if value is None else repr(value)


def _front_end_yaml(front_end):
    if isinstance(front_end, CodecLatents):
        return (
            "!new:encodecmae_sb.lobes.CodecLatents\n"
            f"        n_filters: {front_end.n_filters}"
        )
    return (
        "!new:encodecmae_sb.lobes.LogMel\n"
        f"        n_mels: {front_end.dim}\n"
        f"        hop_length: {front_end.hop_length}\n"
        f"        win_length: {front_end.win_length}\n"
        f"        sample_rate: {front_end.sample_rate}\n"
        f"        centered: {front_end.centered}\n"
        f"        mean: {front_end.mean}\n"
        f"        std: {front_end.std}"
    )


def load_weights(module, path, prefix=""):
    """Loads weights, all of them or none; a hook for SpeechBrain's Pretrainer.

    SpeechBrain's own way only warns of weights that are missing, and leaves
    random ones in their place.

    Arguments
    ---------
    module : torch.nn.Module
        Changed in place.
    path : str or Path
        A state dict, read with `weights_only=True`.
    prefix : str
        Only weights whose names begin with it are taken, as those of this module.

    Raises
    ------
    ValueError
        If the weights are missing or not those of this module.
    """
    if not Path(path).is_file():
        raise UserError(f"No weights: {path} is missing. Export the folder again.")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit what hyperparams.yaml beside it describes: {error}. "
            "Export the folder again."
        ) from error


def check_folder(folder, key="encoder"):
    """Makes sure that a folder is one that this package exported and can read.

    Arguments
    ---------
    folder : str or Path
        The folder.
    key : str
        What it is to hold: a key of its `hyperparams.yaml`.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is not such a folder, or of a format this version does not know.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No such encoder folder: {folder}. Give a folder that a recipe exported, "
            "e.g. results/mini/1234/encoder after recipes/pretrain.py."
        )
    path = folder / "hyperparams.yaml"
    keys = {}
    if path.is_file():
        try:
            # Tags name what to build; here only the keys matter.
            node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
            keys = {name.value: value.value for name, value in node.value}
        except (yaml.YAMLError, AttributeError, TypeError, ValueError):
            keys = {}
    missing = {"format", key} - set(keys)
    if missing:
        raise UserError(
            f"{folder} is not an exported folder of this package with an {key}: "
            f"hyperparams.yaml in it lacks {', '.join(sorted(missing))}. Give a folder "
            "that a recipe exported, such as OUTPUT_FOLDER/encoder of "
            "recipes/pretrain.py."
        )
    if keys["format"] != str(FORMAT):
        raise UserError(
            f"{folder} has format {keys['format']}; this version of encodecmae_sb "
            f"({__version__}) reads format {FORMAT}. Export it again with this "
            "version, or install the one that made it (named in hyperparams.yaml)."
        )
    if key == "encoder" and "head" in keys:
        raise UserError(
            f"{folder} holds a recogniser or a classifier. Give the folder of an "
            "encoder, such as OUTPUT_FOLDER/encoder of recipes/pretrain.py."
        )
    return folder


def load_encoder_folder(folder, pretrained=True):
    """Loads the encoder of an exported folder.

    Arguments
    ---------
    folder : str or Path
        The folder.
    pretrained : bool
        False draws new weights for all that pretraining trains; what is frozen, a
        codec inside, is loaded in any case.

    Returns
    -------
    AudioEncoder

    Raises
    ------
    FileNotFoundError, ValueError
        As `check_folder` and `load_weights`.
    """
    folder = check_folder(folder)
    text = (folder / "hyperparams.yaml").read_text(encoding="utf-8")
    encoder = load_hyperpyyaml(text)["encoder"]
    if pretrained:
        load_weights(encoder, folder / "encoder.ckpt")
    else:
        load_weights(encoder.front_end, folder / "encoder.ckpt", "front_end.")
    return encoder


def with_new_weights(encoder):
    """A new encoder, built like another one, with new weights.

    What is frozen, a codec inside, is that of the other one.

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
    new = load_hyperpyyaml(encoder_yaml(encoder))["encoder"]
    new.front_end.load_state_dict(encoder.front_end.state_dict())
    return new.to(next(encoder.parameters()).device)
