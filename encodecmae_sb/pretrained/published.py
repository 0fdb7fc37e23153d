"""Converts the authors' published checkpoints.

A published file is a dict with `config` (text, with lines such as
`NUM_ENCODER_HEADS = 12`) and `state_dict`. Two things in it differ from PyTorch's
habits: the feed-forward that all layers share is repeated under every layer, and
in the attention weights the head index runs fastest.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from encodecmae_sb.nnet.encodec import network_from_weights
from encodecmae_sb.nnet.encodecmae import AudioEncoder, MaskedCodecModel
from encodecmae_sb.nnet.front_ends import CodecLatents, LogMel
from encodecmae_sb.nnet.transformer import ResiDualTransformer
from encodecmae_sb.pretrained.codec_files import check_reachable, save_codec
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import is_out_of_space
from encodecmae_sb.utils.identity import named

from .describe import describe, module_key
from .folder import (
    MADE,
    check_folder,
    export_encoder,
    load_encoder_folder,
    with_new_weights,
)
from .hub import HubFolder, fetch_folder, is_hub_name
from .licence import ENCODEC, recorded_licence

REPOSITORY = "lpepino/encodecmae-v2"  # on the Hugging Face hub
PUBLISHED = {
    "mel256-ec-base": "10 layers, 768 wide, log-mel input; with EnCodec's encoder",
    "mel256-ec-base_st": "the same after self-training",
    "mel256-ec-base-as": "as mel256-ec-base, trained on AudioSet alone",
    "mel256-ec-base-fma": "as mel256-ec-base, trained on the Free Music Archive alone",
    "mel256-ec-base-ll": "as mel256-ec-base, trained on Libri-Light alone",
    "mel256-ec-large_st": "20 layers, 1024 wide, log-mel input, after self-training",
    "ec-ec-base": "10 layers, 768 wide, input from EnCodec; with EnCodec's encoder",
}
CODEC_FILE = "codec.safetensors"  # beside an imported encoder

_DEFAULT_HEADS = 12
# Samples from frame to frame in the published log-mel models (13.25 ms).
PUBLISHED_HOP = 318


@dataclass
class PublishedModel:
    """A published checkpoint, converted.

    Arguments
    ---------
    model : MaskedCodecModel
        The whole pretraining model; `model.encoder` is what is used afterwards.
    codec : encodec.EncodecModel or None
        The codec inside, without its decoder; self-trained models have none.
    """

    model: MaskedCodecModel
    codec: torch.nn.Module | None


def import_published(source, folder):
    """Makes an encoder folder, as a recipe exports it, of published weights.

    If the checkpoint holds the codec of its targets, the folder gets it as
    `codec.safetensors`, which `Codec` reads.

    Arguments
    ---------
    source : str or Path
        A file in the published layout, or a name in `PUBLISHED`, to be downloaded.
    folder : str or Path
        Made if needed. An encoder folder there is replaced; any other is an error.

    Returns
    -------
    PublishedModel
        What was converted.

    Raises
    ------
    UserError
        If the file is no such checkpoint, the name is unknown or cannot be
        fetched, or the folder holds something else.
    """
    folder = Path(folder).expanduser()
    _check_replaceable(folder)
    path = Path(source).expanduser()
    if not path.is_file():
        path = fetch_published(str(source))
    published = load_published(path)
    origin = f"Converted from {path.name}, weights in the layout of {REPOSITORY}."
    files = {}
    if published.codec is not None:
        origin += (
            f" {CODEC_FILE} is the EnCodec inside them (CC BY-NC 4.0), without its "
            "decoder: what their targets were computed with."
        )
        # Rounded weights would give a few other codes.
        files[CODEC_FILE] = partial(save_codec, published.codec, dtype=torch.float32)
    try:
        encoder = published.model.encoder
        export_encoder(encoder, folder, origin, files=files, licence=ENCODEC)
        if not files:
            (folder / CODEC_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    return published


def _check_replaceable(folder):
    """Refuses a folder that is neither new, nor empty, nor an encoder folder."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        check_folder(folder)
    except (UserError, FileNotFoundError) as error:
        raise UserError(
            f"{folder} is there already and is no encoder folder: it is left as it "
            "is. Give a new folder, or an encoder folder to replace."
        ) from error


def load_encoder_source(source, pretrained=True):
    """The encoder of an exported folder or of published weights.

    Arguments
    ---------
    source : str, Path or AudioEncoder
        See `find_model`; or an encoder.
    pretrained : bool
        False draws new weights for all that pretraining trains. A codec inside, which
        is frozen, keeps its weights.

    Returns
    -------
    AudioEncoder

    Raises
    ------
    FileNotFoundError
        If there is neither such a folder nor such a name.
    UserError
        If the folder is no encoder folder, or the weights cannot be fetched.
    """
    if isinstance(source, AudioEncoder):
        return source if pretrained else with_new_weights(source)
    found = find_model(source)
    if isinstance(found, Path):
        return load_encoder_folder(found, pretrained)
    if isinstance(found, HubFolder):
        encoder = found.load().parts["encoder"]
        encoder = encoder if pretrained else with_new_weights(encoder)
        encoder.hub_name = found.name
        return encoder
    return load_published(fetch_published(found), pretrained).model.encoder


def find_model(source, kind="encoder"):
    """What a name stands for. A folder here comes before any name.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported; for an encoder a name in `PUBLISHED`; or
        user/name or user/name@revision on the hub, which is fetched.
    kind : str
        "encoder", "recogniser" or "classifier".

    Returns
    -------
    Path, str or HubFolder
        The folder, the name in `PUBLISHED`, or what was fetched.

    Raises
    ------
    FileNotFoundError
        If there is nothing of that name.
    UserError
        If it is something else, or cannot be fetched.
    """
    if Path(source).expanduser().is_dir():
        return check_folder(source, kind)
    if kind == "encoder" and str(source) in PUBLISHED:
        return str(source)
    if is_hub_name(source):
        try:
            return fetch_folder(source, kind)
        except (FileNotFoundError, UserError) as error:
            # It may have been meant as a folder.
            here = f"(There is no folder {source} in {Path.cwd()} either.)"
            raise type(error)(f"{error} {here}") from error
    weights = ""
    if kind == "encoder":
        weights = f"the name of published weights: {', '.join(PUBLISHED)}; "
    raise FileNotFoundError(
        f"No such {kind} folder: {source}. Give a folder that a recipe exported, such "
        f"as {MADE[kind].example}; {weights}or a name on the hub: user/name or "
        "user/name@revision."
    )


def encoder_licence(source):
    """The licence of an encoder, which is also that of what is made with it.

    Arguments
    ---------
    source : str or Path
        See `find_model`.

    Returns
    -------
    Licence or None
        None if it states none.

    Raises
    ------
    FileNotFoundError, UserError
        As `find_model`.

    Example
    -------
    >>> encoder_licence("mel256-ec-base-as").name
    'cc-by-nc-4.0'
    """
    found = find_model(source)
    if isinstance(found, str):  # their targets came from EnCodec, directly or not
        return ENCODEC
    return recorded_licence(found.path if isinstance(found, HubFolder) else found)


def source_name(source, encoder):
    """What a user calls an encoder; from the hub with its commit.

    Arguments
    ---------
    source : str or Path
    encoder : AudioEncoder
        What `load_encoder_source` gave for it.

    Returns
    -------
    str
    """
    return getattr(encoder, "hub_name", str(source))


def encoder_identity(encoder, source, pretrained=True):
    """Which weights a training starts from, see `utils.identity`.

    Arguments
    ---------
    encoder : AudioEncoder
        As loaded.
    source : str or Path
        What the user calls it.
    pretrained : bool
        False: only its architecture counts, its weights were drawn anew.

    Returns
    -------
    dict
    """
    if not pretrained:
        return named("random weights", digest(describe(encoder)))
    return named(source_name(source, encoder), module_key(encoder)[:12])


def fetch_published(name):
    """Fetches a published checkpoint, once: huggingface_hub keeps it in its cache.

    Arguments
    ---------
    name : str
        A name in `PUBLISHED`.

    Returns
    -------
    Path
        The file in the cache.

    Raises
    ------
    UserError
        If the name is unknown or the file cannot be had.
    """
    if name not in PUBLISHED:
        raise UserError(
            f"{name}: neither a file nor the name of published weights. Names: "
            f"{', '.join(PUBLISHED)}. Any other file of "
            f"https://huggingface.co/{REPOSITORY} can be given as a file, once "
            "downloaded."
        )
    # Imported here, because it is slow and only names need it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import get_session

    # Find the file by its name, in whatever folder of the repository.
    wanted = {"allow_patterns": [f"{name}.pt", f"*/{name}.pt"]}
    try:
        cached = snapshot_download(REPOSITORY, local_files_only=True, **wanted)
        for path in Path(cached).rglob(f"{name}.pt"):
            return path
    except OSError:
        pass  # not in the cache yet
    try:
        # Check first that the hub answers: its client would retry for minutes.
        check_reachable(constants.ENDPOINT)
        get_session().head(constants.ENDPOINT, timeout=10)
        snapshot = snapshot_download(REPOSITORY, **wanted)
    except Exception as error:  # errors of several HTTP libraries
        if is_out_of_space(error):
            raise
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: the published weights could not be fetched from "
            f"{constants.ENDPOINT}/{REPOSITORY}: {why}. Try again with a network, or "
            f"download {name}.pt on another machine and give the file: python "
            f"recipes/import_published.py {name}.pt FOLDER; then use FOLDER."
        ) from error
    for path in Path(snapshot).rglob(f"{name}.pt"):
        return path
    raise UserError(
        f"{name}: {constants.ENDPOINT}/{REPOSITORY} no longer has a file {name}.pt. "
        "See there what it has, and give the file, once downloaded."
    )


def load_published(path, pretrained=True):
    """Reads and converts a published checkpoint file.

    Arguments
    ---------
    path : str or Path
        Read with `weights_only=True`: a file that tries to run code is refused.
    pretrained : bool
        As for `convert_published`.

    Returns
    -------
    PublishedModel

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UserError
        If the file is no such checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such checkpoint file: {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, IndexError, ... for junk
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is not a published EnCodecMAE checkpoint: only files of plain "
            f"tensors are read. {why}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a published EnCodecMAE checkpoint: it has no state_dict."
        )
    try:
        return convert_published(
            checkpoint["state_dict"], checkpoint.get("config", ""), pretrained
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def convert_published(state_dict, config="", pretrained=True):
    """Converts a published state dict.

    Arguments
    ---------
    state_dict : dict of str to torch.Tensor
        Published names.
    config : str
        The configuration text beside it; says how many heads there are.
    pretrained : bool
        False draws new weights for all that pretraining trains. A codec inside, which
        is frozen, is loaded in any case.

    Returns
    -------
    PublishedModel
        In eval mode.

    Raises
    ------
    UserError
        If names or shapes are not those of a published model.
    """
    try:
        return _convert(state_dict, str(config), pretrained)
    except KeyError as error:
        raise UserError(
            f"not a published EnCodecMAE state dict: no {error.args[0]}"
        ) from error
    except (AttributeError, RuntimeError, TypeError) as error:
        raise UserError(f"not a published EnCodecMAE state dict: {error}") from error


def _convert(state_dict, config, pretrained):
    head = state_dict["head.layer.weight"]
    encoder_heads = _number(config, "NUM_ENCODER_HEADS")
    encoder, encoder_weights = _transformer(
        state_dict, "visible_encoder.", encoder_heads
    )
    decoder, decoder_weights = _transformer(
        state_dict, "decoder.", _number(config, "NUM_DECODER_HEADS")
    )
    codec = None
    codec_weights = _take(state_dict, "target_encoder.model.", "quantizer.")
    latents = _take(state_dict, "wav_encoder.encoder.model.", "encoder.")
    if codec_weights:
        published = _take(state_dict, "target_encoder.encodec_encoder.", "encoder.")
        codec = network_from_weights({**codec_weights, **(published or latents)})
    front_end = LogMel(hop_length=PUBLISHED_HOP, centered=False)
    if latents:
        front_end = CodecLatents(n_filters=32)

    codebook_size = codec.quantizer.bins if codec else 1024
    model = MaskedCodecModel(
        AudioEncoder(front_end, encoder),
        decoder,
        n_codebooks=head.shape[0] // codebook_size,
        codebook_size=codebook_size,
    )
    weights = {
        **{f"encoder.front_end.{k}": v for k, v in latents.items()},
        **_take(state_dict, "wav_encoder.post_net.", "encoder.projection."),
        "encoder.positions.scale": state_dict["masker.positional_encoder.scale"],
        **{f"encoder.transformer.{k}": v for k, v in encoder_weights.items()},
        **_take(state_dict, "visible_encoder.post_net.", "bridge."),
        "positions.scale": state_dict["decoder.positional_encoder.scale"],
        **{f"decoder.{k}": v for k, v in decoder_weights.items()},
        **_take(state_dict, "head.layer.", "head."),
    }
    if pretrained:
        model.load_state_dict(weights)
    else:
        front_end.load_state_dict(latents)
    return PublishedModel(model.eval(), codec)


def _number(config, name):
    """An integer from gin text, else the published models' number of heads."""
    found = re.search(rf"^\s*{name}\s*=\s*(\d+)", config, flags=re.MULTILINE)
    return int(found.group(1)) if found else _DEFAULT_HEADS


def _take(state_dict, prefix, renamed):
    """The part of a state dict below a prefix, under another prefix."""
    return {
        renamed + name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }


def _transformer(state_dict, prefix, num_heads):
    """A transformer of the right size, and its weights under our names."""
    published = _take(state_dict, prefix + "encoder_layers.", "")
    num_layers = len({name.partition(".")[0] for name in published})
    dim = published["0.norm1.weight"].shape[0]
    inner = published["0.att_layer.wq.weight"].shape[0]
    if not num_heads or inner % num_heads:
        raise UserError(
            f"{prefix}: attention is {inner} wide inside, not a multiple of "
            f"{num_heads} heads; the configuration beside the weights is wrong."
        )
    head_dim = inner // num_heads
    feed_forwards = [
        [published[f"{i}.ff_layer.{j}.weight"] for j in (0, 2)]
        for i in range(num_layers)
    ]
    shared = all(
        torch.equal(a, b)
        for other in feed_forwards[1:]
        for a, b in zip(feed_forwards[0], other, strict=True)
    )
    transformer = ResiDualTransformer(
        dim, num_layers, num_heads, feed_forwards[0][0].shape[0], head_dim, shared
    )
    weights = _take(state_dict, prefix + "final_norm.", "final_norm.")
    for i in range(num_layers):
        attention = {
            name: published[f"{i}.att_layer.{name}.weight"]
            for name in ("wq", "wk", "wv", "wo")
        }
        rows = [
            attention[name].view(head_dim, num_heads, dim).transpose(0, 1).flatten(0, 1)
            for name in ("wq", "wk", "wv")
        ]
        columns = attention["wo"].view(dim, head_dim, num_heads)
        weights[f"layers.{i}.attention.qkv.weight"] = torch.cat(rows)
        weights[f"layers.{i}.attention.out.weight"] = columns.transpose(1, 2).flatten(1)
        for norm in ("norm1.", "norm2."):
            weights.update(_take(published, f"{i}.{norm}", f"layers.{i}.{norm}"))
        if i == 0 or not shared:
            for j in (0, 2):
                ours = f"feed_forwards.{i}.{j}."
                weights.update(_take(published, f"{i}.ff_layer.{j}.", ours))
    return transformer, weights
