"""Weights in the layout of the authors' published checkpoints become ours.

A published file is a dict with `config` (text, with lines such as
`NUM_ENCODER_HEADS = 12`) and `state_dict`. Two things in it differ from PyTorch's
habits: the feed-forward that all layers share is repeated under every layer, and
in the attention weights the head index runs fastest.
"""

import re
from dataclasses import dataclass

import torch

from .errors import UserError
from .lobes.codec import network_from_weights
from .lobes.features import CodecLatents, LogMel
from .lobes.model import AudioEncoder, MaskedCodecModel
from .lobes.transformer import ResiDualTransformer

_DEFAULT_HEADS = 12
# The published mel models shift their windows by 318 samples (13.28 ms).
_PUBLISHED_HOP = 318


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
    codec: torch.nn.Module


def load_published(path):
    """Reads and converts a published checkpoint file.

    Arguments
    ---------
    path : str or Path
        Read with `weights_only=True`: a file that tries to run code is refused.

    Returns
    -------
    PublishedModel

    Raises
    ------
    ValueError
        If the file is no such checkpoint.
    """
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
    return convert_published(checkpoint["state_dict"], checkpoint.get("config", ""))


def convert_published(state_dict, config=""):
    """Converts a published state dict.

    Arguments
    ---------
    state_dict : dict of str to torch.Tensor
        Published names.
    config : str
        The configuration text beside it; says how many heads there are.

    Returns
    -------
    PublishedModel
        In eval mode.

    Raises
    ------
    ValueError
        If names or shapes are not those of a published model.
    """
    for name in ("wav_encoder.post_net.weight", "head.layer.weight"):
        if name not in state_dict:
            raise UserError(f"not a published EnCodecMAE state dict: no {name}")
    encoder_heads = _number(config, "NUM_ENCODER_HEADS")
    encoder, encoder_weights = _transformer(
        state_dict, "visible_encoder.", encoder_heads
    )
    decoder, decoder_weights = _transformer(
        state_dict, "decoder.", _number(config, "NUM_DECODER_HEADS")
    )
    codec, latents = None, None
    codec_weights = _take(state_dict, "target_encoder.model.", "quantizer.")
    latents = _take(state_dict, "wav_encoder.encoder.model.", "encoder.")
    if codec_weights:
        published = _take(state_dict, "target_encoder.encodec_encoder.", "encoder.")
        codec = network_from_weights({**codec_weights, **(published or latents)})
    front_end = LogMel(hop_length=_PUBLISHED_HOP, centered=False)
    if latents:
        front_end = CodecLatents()

    codebook_size = codec.quantizer.bins if codec else 1024
    model = MaskedCodecModel(
        AudioEncoder(front_end, encoder),
        decoder,
        n_codebooks=state_dict["head.layer.weight"].shape[0] // codebook_size,
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
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"not a published EnCodecMAE state dict: {error}") from error
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
    num_layers = 1 + max(int(name.split(".")[0]) for name in published)
    dim = published["0.norm1.weight"].shape[0]
    inner = published["0.att_layer.wq.weight"].shape[0]
    if inner % num_heads:
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
