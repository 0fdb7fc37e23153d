"""Self-training: an encoder's own clusters become the targets of the next one."""

import sys
import time

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import DataLoader
from tqdm import tqdm

from encodecmae_sb.clusters import nearest
from encodecmae_sb.data.targets import HOP, FilePieces, FileTargets
from encodecmae_sb.errors import UserError
from encodecmae_sb.export import encoder_yaml
from encodecmae_sb.lobes import AudioEncoder, CodecLatents
from encodecmae_sb.lobes.model import frame_mask
from encodecmae_sb.lobes.pieces import (
    PIECE,
    SHORTEST_TAIL,
    check_layer,
    encode_in_pieces,
)
from encodecmae_sb.published import load_encoder_source

from .pretrain import PretrainBrain

STUDENTS = ("auto", "teacher", "fresh")


def load_teacher(source, layer):
    """The encoder whose activations are clustered.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported, or the name of published weights.
    layer : int or str
        `"last_no_norm"` in the paper; see `encode_in_pieces`.

    Returns
    -------
    AudioEncoder
        In eval mode.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such encoder or no such layer.
    """
    try:
        teacher = load_encoder_source(source)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # whatever building from a broken yaml raises
        raise UserError(
            f"teacher={source} cannot be built from its hyperparams.yaml: {error}. "
            "Give an encoder folder that a recipe exported."
        ) from error
    if not isinstance(teacher, AudioEncoder):
        raise UserError(
            f"teacher={source} holds a {type(teacher).__name__}, not an encoder. Give "
            "an encoder folder such as OUTPUT_FOLDER/encoder of recipes/pretrain.py."
        )
    check_layer(teacher, layer)
    if layer == "all":
        raise UserError("layer=all: clusters are of one layer. last_no_norm is usual.")
    return teacher.eval()


def start_student(encoder, teacher, student):
    """Gives the student the teacher's weights, if so asked.

    Arguments
    ---------
    encoder : AudioEncoder
        The student's, changed in place.
    teacher : AudioEncoder
    student : str
        "teacher": goes on from the teacher's weights; "fresh": keeps its own new
        ones; "auto": the first where both have the same architecture.

    Returns
    -------
    bool
        Whether the student goes on from the teacher.

    Raises
    ------
    ValueError
        If the weights are asked for and do not fit.
    """
    if student not in STUDENTS:
        raise UserError(f"student={student!r}: allowed are {', '.join(STUDENTS)}.")
    same = encoder_yaml(encoder) == encoder_yaml(teacher)
    if student == "teacher" and not same:
        raise UserError(
            "student=teacher, but the student is built otherwise than its teacher:\n"
            f"{encoder_yaml(encoder)}\ninstead of\n{encoder_yaml(teacher)}\n"
            "Give the teacher's sizes, or --student fresh."
        )
    if same and student != "fresh":
        encoder.load_state_dict(teacher.state_dict())
        return True
    if isinstance(encoder.front_end, CodecLatents):
        if not isinstance(teacher.front_end, CodecLatents):
            raise UserError(
                "The student's input are a codec's latents, and its teacher has no "
                "codec to take over. Give the student log-mel input."
            )
        encoder.front_end = teacher.front_end
    return False


@torch.no_grad()
def embed_clips(teacher, layer, crops, num_clips, stored, **options):
    """Stores a teacher's activations of random clips; goes on where it was stopped.

    Arguments
    ---------
    teacher : AudioEncoder
        On the device.
    layer : int or str
    crops : RandomCrops
        The first of its draws are used.
    num_clips : int
        How many.
    stored : RowFile
        Filled: an item per clip, a row per frame.
    **options
        `batch_size`, `num_workers`, `quiet`.
    """

    def embed(items):
        return _encode(teacher, [item["wav"] for item in items], layer)

    _fill(stored, crops, num_clips, embed, "Embedding", "clips", **options)


@torch.no_grad()
def store_targets(
    teacher, layer, centroids, manifest, stored, unusable=None, **options
):
    """Stores the cluster of every frame of the files of a manifest.

    Goes on where it was stopped. With several processes the main one computes; the
    others wait for as long as it takes.

    Arguments
    ---------
    teacher : AudioEncoder
        On the device.
    layer : int or str
    centroids : torch.Tensor
        Shape [K, D].
    manifest : str or Path
    stored : RowFile
        Filled: an item per piece of a file, a row per frame.
    unusable : UnusableFiles, optional
        Notes files that cannot be read.
    **options
        `batch_size`, `num_workers`, `quiet`.

    Returns
    -------
    FileTargets
    """
    pieces = FilePieces(manifest, PIECE, SHORTEST_TAIL)
    if not if_main_process():
        wait_until(lambda: len(stored.counts) == len(pieces))
        return FileTargets(pieces, stored)
    device = next(teacher.parameters()).device
    centroids = centroids.to(device)

    def assign(items):
        if unusable is not None:
            unusable.add((item.path, item.reason) for item in items if item.reason)
        encoded = _encode(teacher, [item.wav for item in items], layer)
        return [
            nearest(torch.from_numpy(frames).to(device), centroids)[0].cpu().numpy()
            for frames in encoded
        ]

    name = f"Computing targets, {stored.path.stem}"
    _fill(stored, pieces, len(pieces), assign, name, "pieces", **options)
    return FileTargets(pieces, stored)


def wait_until(done):
    """Waits in a process for what the main one computes, however long it takes."""
    while not done():
        time.sleep(0.5)


def _fill(stored, data, num_items, compute, what, unit, batch_size, num_workers, quiet):
    """Appends what `compute` makes of each batch of items, from where it was left."""
    done = stored.resume(num_items, batch_size)
    if done == num_items:
        return
    batches = [
        list(range(start, min(start + batch_size, num_items)))
        for start in range(done, num_items, batch_size)
    ]
    loader = DataLoader(
        data, batch_sampler=batches, collate_fn=list, num_workers=num_workers
    )
    with tqdm(
        total=num_items,
        initial=done,
        desc=what,
        unit=f" {unit}",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        disable=quiet,
    ) as bar:
        for items in loader:
            stored.append(compute(items))
            bar.update(len(items))


def _encode(teacher, wavs, layer):
    """Frames [T, D] of each waveform, none where it is missing or too short."""
    lengths = [0 if wav is None else len(wav) for wav in wavs]
    usable = [i for i, n in enumerate(lengths) if teacher.front_end.num_frames(n) > 0]
    encoded = [np.zeros((0, teacher.dim), np.float32)] * len(wavs)
    if not usable:
        return encoded
    padded = torch.nn.utils.rnn.pad_sequence([wavs[i] for i in usable], True)
    frames = encode_in_pieces(
        teacher, padded, [lengths[i] for i in usable], layer, len(usable)
    )
    for i, item in zip(usable, frames, strict=True):
        if not torch.isfinite(item).all():
            raise UserError(
                "The teacher gives features that are not finite (NaN or Inf): has its "
                "training gone wrong? Give another teacher."
            )
        encoded[i] = item.float().cpu().numpy()
    return encoded


class SelfTrainBrain(PretrainBrain):
    """Pretrains a `MaskedCodecModel` on stored targets, one per frame.

    The crops bring their targets (see `data.targets`); otherwise it is
    `PretrainBrain` with one codebook. Validation measures in addition, over the
    whole validation set: `majority_accuracy`, what the best constant answer gets on
    hidden frames; `clusters_used`, the share of the clusters that occur;
    `cluster_perplexity`, e to the entropy of their distribution.
    """

    reported = (*PretrainBrain.reported, "majority_accuracy", "clusters_used")

    def on_stage_start(self, stage, epoch=None):
        """Empties the counts of the validation."""
        super().on_stage_start(stage, epoch)
        if stage == Stage.VALID:
            size = self.hparams.codebook_size
            self.counts = torch.zeros(2, size, dtype=torch.int64)

    def compute_objectives(self, predictions, batch, stage):
        """The loss; in validation also the counts of the clusters."""
        if stage != Stage.TRAIN:
            _, codes, masked, _ = predictions
            codes, masked = codes[..., 0].cpu(), masked.cpu()
            valid = frame_mask(batch.lengths.cpu() // HOP, codes.shape[1])
            for row, where in zip(self.counts, (masked, valid), strict=True):
                row += torch.bincount(codes[where], minlength=len(row))
        return super().compute_objectives(predictions, batch, stage)

    def validation_row(self, stage_loss):
        """The metrics of the class docstring."""
        hidden, valid = self.counts.double()
        shares = valid / valid.sum()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        return {
            **super().validation_row(stage_loss),
            "majority_accuracy": (hidden.max() / hidden.sum()).item(),
            "clusters_used": (valid > 0).double().mean().item(),
            "cluster_perplexity": entropy.exp().item(),
        }
