"""What a pretraining can go on from: folders, checkpoints, published weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from encodecmae_sb.nnet.encodec import FrozenCodec
from encodecmae_sb.nnet.encodecmae import AudioEncoder, MaskedCodecModel
from encodecmae_sb.nnet.front_ends import CodecLatents
from encodecmae_sb.nnet.targets import Label
from encodecmae_sb.utils.checkpointer import find_checkpoint, read_identity
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import load_key
from encodecmae_sb.utils.files import write_text

from .codec_files import checksum, load_network
from .folder import (
    check_folder,
    load_decoder_and_head,
    load_encoder_folder,
    load_weights,
)
from .hub import is_hub_name
from .licence import ENCODEC, Licence, recorded_licence, targets_licence
from .published import (
    PUBLISHED,
    encoder_licence,
    fetch_published,
    load_encoder_source,
    load_published,
)

_LICENCE = "initial_licence.json"
# Of the first convolution of EnCodec's encoder; its shape gives the width.
_LATENTS = "encoder.front_end.encoder.model.0.conv.conv.weight_v"


@dataclass
class Pretraining:
    """A model that was pretrained, as far as it was saved.

    Arguments
    ---------
    encoder : AudioEncoder
    model : MaskedCodecModel or None
        The encoder with its decoder and head; None if these were not saved.
    label : Label or None
        Of the targets that the head predicts; None if they are not known by name.
    codec : encodec.EncodecModel or None
        The codec of the targets, if it was saved in place of a name.
    licence : Licence or None
        That what goes on from it has, too.
    """

    encoder: AudioEncoder
    model: MaskedCodecModel | None = None
    label: Label | None = None
    codec: torch.nn.Module | None = None
    licence: Licence | None = None

    def predicts(self, label, n_codebooks):
        """Whether the head was trained on given targets.

        Arguments
        ---------
        label : Label
        n_codebooks : int
            How many codebooks of them are to be predicted.

        Returns
        -------
        bool
        """
        if self.label is not None:
            return (self.label.kind, self.label.fingerprint) == (
                label.kind,
                label.fingerprint,
            )
        if self.codec is None or label.kind != FrozenCodec.kind:
            return False
        # A class of its own may give other codes of the same codec.
        if label.fingerprint != checksum(label.name):
            return False
        return _same_codes(self.codec, load_network(label.name), n_codebooks)


def _same_codes(one, other, n_codebooks):
    """Whether two EnCodec networks give the same codes."""
    weights = []
    for net in (one, other):
        books = [layer._codebook.embed for layer in net.quantizer.vq.layers]
        weights.append([*net.encoder.state_dict().values(), *books[:n_codebooks]])
    same = (torch.equal(a, b) for a, b in zip(*weights, strict=False))
    return len(weights[0]) == len(weights[1]) and all(same)


def load_pretraining(source):
    """Loads all that there is of a pretrained model.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported; a checkpoint of recipes/pretrain.py, or the
        folder that holds them (the newest is taken), or the run's output folder; a
        name in `PUBLISHED`, or a file in that layout; or user/name or
        user/name@revision on the hub, which has the encoder alone.

    Returns
    -------
    Pretraining

    Raises
    ------
    FileNotFoundError
        If there is nothing of that name.
    UserError
        If it cannot be read, or is something else.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        checkpoint = find_checkpoint(path) or find_checkpoint(path / "save")
        return _of_checkpoint(checkpoint) if checkpoint else _of_folder(path)
    if not path.is_file():
        if is_hub_name(source):
            encoder = load_encoder_source(source)
            return Pretraining(encoder, licence=encoder_licence(source))
        if str(source) not in PUBLISHED:
            raise FileNotFoundError(
                f"init={source}: no such folder or file. Give a folder that a recipe "
                "exported, e.g. results/mini/1234/encoder; a checkpoint of "
                "recipes/pretrain.py, e.g. results/mini/1234/save; or published "
                f"weights: {', '.join(PUBLISHED)}; or user/name on the hub."
            )
        path = fetch_published(str(source))
    published = load_published(path)
    model = published.model
    return Pretraining(model.encoder, model, codec=published.codec, licence=ENCODEC)


def _of_folder(folder):
    try:
        check_folder(folder)
    except UserError as error:
        raise UserError(
            f"init={folder}: {error} Or give a checkpoint of recipes/pretrain.py, or "
            "the folder that holds them, e.g. results/mini/1234/save."
        ) from error
    encoder = load_encoder_folder(folder)
    rest = load_decoder_and_head(folder, encoder)
    return Pretraining(encoder, *rest, licence=recorded_licence(folder))


def _of_checkpoint(folder):
    """The model of a checkpoint; the run's folder says how it is built."""
    folder = folder.resolve()
    hparams_file = folder.parents[1] / "hyperparams.yaml"
    weights = folder / "model.ckpt"
    if not hparams_file.is_file() or not weights.is_file():
        raise UserError(
            f"init={folder} needs {weights.name} in it, and {hparams_file}, which says "
            "how the model is built. Give a checkpoint of recipes/pretrain.py where "
            "the run left it, in OUTPUT_FOLDER/save, or a folder that it exported."
        )
    model = load_key(hparams_file, "model", {})
    if not isinstance(model, MaskedCodecModel):
        raise UserError(
            f"init={folder} is of a {type(model).__name__}. Give a checkpoint of "
            "recipes/pretrain.py."
        )
    if isinstance(model.encoder.front_end, CodecLatents):
        # The yaml builds it without a codec.
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
        model.encoder.front_end = CodecLatents(
            n_filters=tensors[_LATENTS].shape[0],
            normalise=model.encoder.front_end.normalise,
        )
    load_weights(model, weights)
    label = _recorded_label(folder.parent)
    licence = label and targets_licence(label)
    licence = licence or read_licence(folder.parent)
    return Pretraining(model.encoder, model, label, licence=licence)


def note_licence(folder, licence):
    """Writes down the licence of a run's model, whose sources may be gone later.

    Arguments
    ---------
    folder : str or Path
        Of the run's checkpoints.
    licence : Licence or None
    """
    text = json.dumps(None if licence is None else licence._asdict())
    write_text(Path(folder) / _LICENCE, text)


def read_licence(folder):
    """What `note_licence` wrote; None if there is nothing."""
    path = Path(folder) / _LICENCE
    found = json.loads(path.read_text("utf-8")) if path.is_file() else None
    return found and Licence(**found)


def _recorded_label(folder):
    """The targets of a run, as the identity beside its checkpoints has them."""
    identity = read_identity(folder)
    for key, kind in (("codec", FrozenCodec.kind), ("targets_content", "targets")):
        found = identity.get(key)
        if isinstance(found, dict) and found.keys() == {"value", "digest"}:
            return Label(kind, found["value"], found["digest"])
    return None
