"""Self-training: an encoder's own clusters become the targets of the next one."""

import sys
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch.utils.data import DataLoader
from tqdm import tqdm

from encodecmae_sb.data.stored import HOP, FilePieces, FileTargets
from encodecmae_sb.lobes import AudioEncoder, CodecLatents, LogMel
from encodecmae_sb.nnet.chunks import (
    PIECE,
    SHORTEST_TAIL,
    check_layer,
    encode_in_pieces,
)
from encodecmae_sb.nnet.clusters import nearest
from encodecmae_sb.nnet.encodecmae import frame_mask
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.errors import UserError

from .pretrain import PretrainBrain

STUDENTS = ("auto", "teacher", "fresh")
_LOOKS = 100  # missing pieces that are looked at again: the other processes wait
# Samples from frame to frame in published log-mel encoders.
_PUBLISHED_HOP = 318


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
        "teacher": goes on from the teacher's weights, with its log-mel front end;
        "fresh": keeps its own new ones; "auto": the first where both are built alike,
        the front end included.

    Returns
    -------
    bool
        Whether the student goes on from the teacher.

    Raises
    ------
    ValueError
        If the weights are asked for and do not fit, or the student's frames are not
        as long as the targets.
    """
    if student not in STUDENTS:
        raise UserError(f"student={student!r}: allowed are {', '.join(STUDENTS)}.")
    if student == "teacher" and _both_log_mel(encoder, teacher):
        encoder.front_end = teacher.front_end  # which has no weights
    _check_frames(encoder.front_end)
    same = describe(encoder) == describe(teacher)
    if student == "teacher" and not same:
        raise UserError(
            "student=teacher, but the student is built otherwise than its teacher:\n"
            f"{describe(encoder)}\ninstead of\n{describe(teacher)}\n"
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


def _both_log_mel(encoder, teacher):
    front_ends = encoder.front_end, teacher.front_end
    return (
        all(isinstance(front_end, LogMel) for front_end in front_ends)
        and front_ends[0].dim == front_ends[1].dim
    )


def _check_frames(front_end):
    """Makes sure that a student's frames are as long as targets, or nearly so."""
    if not isinstance(front_end, LogMel):
        return
    grid = front_end.hop_length, front_end.centered
    if grid not in ((HOP, True), (_PUBLISHED_HOP, False)):
        raise UserError(
            f"hop_length={grid[0]}, centered={grid[1]}: the student's targets are "
            f"{HOP} samples long, so its log-mel must have hop_length={HOP} and "
            f"centered=True, or {_PUBLISHED_HOP} and False as in published weights."
        )


def frame_middles(front_end, num_frames):
    """Where the frames of a front end are, as the middle of what each describes.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    num_frames : int

    Returns
    -------
    torch.Tensor
        In samples from the start of the waveform, float64, shape [num_frames].

    Example
    -------
    >>> frame_middles(LogMel(hop_length=318, centered=False), 2)
    tensor([318., 636.], dtype=torch.float64)
    """
    hop = front_end.hop_length
    first = (hop - 1) / 2
    if isinstance(front_end, LogMel):
        before = (front_end.win_length - hop) // 2 if front_end.centered else 0
        first = (front_end.win_length - 1) / 2 - before
    return first + hop * torch.arange(num_frames, dtype=torch.float64)


def _target_middles(num_targets):
    """The same of targets."""
    return (HOP - 1) / 2 + HOP * torch.arange(num_targets, dtype=torch.float64)


def _nearest_places(wanted, there):
    """For each place the number of the nearest one that is there."""
    return (wanted[:, None] - there).abs().argmin(1)


def on_frames_of(front_end, wavs, targets):
    """Makes a front end give a frame for each target, and gives each frame its target.

    A front end as in published weights has 318 samples from frame to frame, targets
    have 320. Each frame gets the target whose middle is nearest to its own; the
    waveform is cut, or continued with zeros, to as many frames as there are targets.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    wavs : torch.Tensor
        Shape [B, 320 T].
    targets : torch.Tensor
        Shape [B, T, Q].

    Returns
    -------
    wavs : torch.Tensor
        Shape [B, N].
    targets : torch.Tensor
        Shape [B, T, Q].

    Example
    -------
    >>> front_end = LogMel(hop_length=318, centered=False)
    >>> targets = torch.arange(75)[None, :, None]
    >>> wavs, targets = on_frames_of(front_end, torch.zeros(1, 24000), targets)
    >>> front_end(wavs).shape[1], targets.shape[1]
    (75, 75)
    """
    if front_end.hop_length == HOP:
        return wavs, targets
    frames = targets.shape[1]
    samples = (frames - 1) * front_end.hop_length + front_end.win_length
    wavs = F.pad(wavs, (0, samples - wavs.shape[1]))
    index = _nearest_places(frame_middles(front_end, frames), _target_middles(frames))
    return wavs, targets[:, index.to(targets.device, non_blocking=True)]


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
    teacher, layer, centroids, manifest, stored, unusable=None, retry=True, **options
):
    """Stores a cluster for each 320 samples of the files of a manifest.

    It is that of the nearest frame of the teacher, whose frames may be nearer to each
    other (318 samples in published weights). Goes on where it was stopped. With several
    processes the main one computes; the others wait for as long as it takes.

    Arguments
    ---------
    teacher : AudioEncoder
        On the device.
    layer : int or str
    centroids : torch.Tensor
        Shape [K, D].
    manifest : str or Path
    stored : RowFile
        Filled: an item per piece of a file, a row per target.
    unusable : UnusableFiles, optional
        Notes files that cannot be read.
    retry : bool
        Go back to the first piece that could not be read and now can. Not once a
        training has begun: its targets must stay what they are.
    **options
        `batch_size`, `num_workers`, `quiet`.

    Returns
    -------
    FileTargets
    """
    pieces = FilePieces(manifest, PIECE, SHORTEST_TAIL)
    if retry and if_main_process():
        _cut_at_readable(stored, pieces, teacher.front_end)
    ddp_barrier()  # before others look at what is there
    if not if_main_process():
        wait_until(lambda: len(stored.counts) == len(pieces))
        return FileTargets(pieces, stored)
    device = next(teacher.parameters()).device
    centroids = centroids.to(device)

    def assign(items):
        if unusable is not None:
            unusable.add((item.path, item.reason) for item in items if item.reason)
        wavs = [item.wav for item in items]
        clusters = []
        for wav, frames in zip(wavs, _encode(teacher, wavs, layer), strict=True):
            frames = torch.from_numpy(frames).to(device)
            index, _ = nearest(frames, centroids)
            if len(index):
                there = frame_middles(teacher.front_end, len(index))
                wanted = _target_middles(len(wav) // HOP)
                index = index.cpu()[_nearest_places(wanted, there)]
            clusters.append(index.cpu().numpy())
        return clusters

    name = f"Computing targets, {stored.path.stem}"
    _fill(stored, pieces, len(pieces), assign, name, "pieces", **options)
    return FileTargets(pieces, stored)


def _cut_at_readable(stored, pieces, front_end):
    """Cuts off what is stored at the first piece without targets that can be read.

    A file that was away for a while, on a network for instance, is not left out for
    ever. Of pieces that still cannot be read the first hundred cost a look.
    """
    counts = stored.counts[: len(pieces)]
    samples = pieces.samples(np.arange(len(counts)))
    ought = (samples >= HOP) & (front_end.num_frames(samples) > 0)
    for piece in np.flatnonzero((counts == 0) & ought)[:_LOOKS]:
        if pieces[int(piece)].wav is not None:
            stored.resume(int(piece))
            return


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

    The crops bring their targets (see `data.targets`), and the frames of the student
    take the nearest ones (see `on_frames_of`); otherwise it is `PretrainBrain` with one
    codebook. Validation measures in addition, over the whole validation set:
    `majority_accuracy`, what the best constant answer gets on hidden frames;
    `clusters_used`, the share of the clusters that occur; `cluster_perplexity`, e to
    the entropy of their distribution.
    """

    reported = (*PretrainBrain.reported, "majority_accuracy", "clusters_used")

    def on_stage_start(self, stage, epoch=None):
        """Empties the counts of the validation."""
        super().on_stage_start(stage, epoch)
        if stage == Stage.VALID:
            size = self.hparams.codebook_size
            self.counts = torch.zeros(2, size, dtype=torch.int64)

    def compute_forward(self, batch, stage):
        """As `PretrainBrain`, with the targets of the student's own frames."""
        front_end = self.hparams.model.encoder.front_end
        wavs, targets = on_frames_of(front_end, batch.wavs, batch.targets)
        return super().compute_forward(
            replace(batch, wavs=wavs, targets=targets), stage
        )

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
