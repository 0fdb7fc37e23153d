"""Fits targets other than the codec to the frames of random clips."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from encodecmae_sb.data.crops import RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.stored import RowFile
from encodecmae_sb.evaluation.monitors import perplexity
from encodecmae_sb.nnet.chunks import CHUNK
from encodecmae_sb.nnet.clusters import embed, find_clusters
from encodecmae_sb.nnet.quantise import (
    LevelFreeMel,
    draw_projections,
    find_residual_codebooks,
    projected_codes,
    residual_codes,
    standardise,
)
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.pretrained.published import encoder_licence, source_name
from encodecmae_sb.pretrained.target_files import save_targets
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

from .clusters import store_frames
from .students import load_teacher

_BATCH = 16  # clips whose frames are computed at once
_AT_ONCE = 8192  # frames that are coded at once
_SMALLEST = 1e-3  # nats; a feature that never changes must not be divided by 0


@dataclass
class Clips:
    """Random clips of 4 s, or of the length of shorter files, and their frames.

    Arguments
    ---------
    folders : str, Path or list of them
        Of audio. Only what is for training is used.
    num_clips : int
    seed : int
        Another seed, other clips.
    num_workers : int
        Processes that read them.
    max_unusable : float
        Share of the files that may be unreadable.
    quiet : bool
        No progress bars.
    """

    folders: object
    num_clips: int
    seed: int = 0
    num_workers: int = 0
    max_unusable: float = 0.05
    quiet: bool = False

    def __post_init__(self):
        with tempfile.TemporaryDirectory() as scratch:
            corpora = prepare_corpora(self.folders, scratch, self.max_unusable)
            manifests = [corpus.train_csv for corpus in corpora]
            seconds = CHUNK / SAMPLE_RATE
            self.crops = RandomCrops(manifests, seconds, seed=self.seed)
        corpora = [corpus.name for corpus in corpora]
        self.notes = {"corpora": corpora, "clips": self.num_clips, "seed": self.seed}

    def frames(self, frames_of, dim):
        """Frames of all clips in memory, float32, [M, dim]; see `store_frames`."""
        with tempfile.TemporaryDirectory() as scratch:
            stored = RowFile(Path(scratch) / "frames", "float32", dim)
            settings = _BATCH, self.num_workers, self.quiet
            store_frames(frames_of, self.crops, self.num_clips, stored, *settings)
            return np.array(stored.rows)


@dataclass
class Fitted:
    """What was fitted.

    Arguments
    ---------
    fingerprint : str
    num_frames : int
        To which it was fitted.
    counts : list of torch.Tensor
        How often each code occurs in them, for each codebook, int64, shape [K].
    left : list of float, optional
        Share of the variance that each residual codebook leaves over.
    """

    fingerprint: str
    num_frames: int
    counts: list
    left: list | None = None

    def table(self):
        """The figures of each codebook, as text."""
        header = "  codebook   codes used   perplexity"
        lines = [header + ("   variance left" if self.left else "")]
        for number, counts in enumerate(self.counts):
            used = 100 * (counts > 0).double().mean()
            line = f"  {number + 1:8d}   {used:8.1f} %   {perplexity(counts):10.1f}"
            left = f"   {100 * self.left[number]:11.1f} %" if self.left else ""
            lines.append(line + left)
        return "\n".join(lines)


def fit_mel_rvq(
    path, clips, n_codebooks, codebook_size, n_mels, stack, passes, device="cpu"
):
    """Fits and writes what `lobes.MelRVQ` reads.

    Arguments
    ---------
    path : str or Path
    clips : Clips
    n_codebooks, codebook_size : int
    n_mels, stack : int
        See `nnet.quantise.LevelFreeMel`.
    passes : int
        Of k-means over all frames, for each codebook.
    device : torch.device
        That computes frames.

    Returns
    -------
    Fitted
    """
    settings = {"n_mels": n_mels, "stack": stack, "n_codebooks": n_codebooks}
    frames, tensors = _mel_frames(clips, n_mels, stack, device)
    fit = n_codebooks, codebook_size, passes, clips.seed, clips.quiet
    codebooks, left = find_residual_codebooks(frames.numpy().copy(), *fit)
    tensors["codebooks"] = codebooks
    notes = {**clips.notes, "passes": passes}
    key = save_targets(path, "mel_rvq", settings, tensors, notes)
    counts = _count(lambda rows: residual_codes(rows, codebooks)[0], frames, codebooks)
    return Fitted(key, len(frames), counts, left)


def fit_random_projection(
    path, clips, n_codebooks, codebook_size, n_mels, stack, dim, device="cpu"
):
    """Fits and writes what `lobes.RandomProjection` reads.

    Only mean and deviation of the frames are fitted. The rest follows from the seed of
    the clips.

    Arguments
    ---------
    path, clips, n_codebooks, codebook_size, n_mels, stack, device
        As for `fit_mel_rvq`.
    dim : int
        Of the projections.

    Returns
    -------
    Fitted
    """
    settings = {"n_mels": n_mels, "stack": stack, "n_codebooks": n_codebooks}
    frames, tensors = _mel_frames(clips, n_mels, stack, device)
    sizes = frames.shape[1], n_codebooks, codebook_size, dim
    tables = draw_projections(*sizes, clips.seed)
    tensors["projections"], tensors["codebooks"] = tables
    key = save_targets(path, "random_projection", settings, tensors, clips.notes)
    counts = _count(lambda rows: projected_codes(rows, *tables), frames, tables[1])
    return Fitted(key, len(frames), counts)


def fit_clusters(path, clips, encoder, layer, codebook_size, passes, device="cpu"):
    """Fits and writes what `lobes.Clusters` reads.

    Arguments
    ---------
    path, clips, codebook_size, passes, device
        As for `fit_mel_rvq`.
    encoder : str or Path
        A folder that a recipe exported, or a published name.
    layer : int or str
        Of its layers; see `nnet.chunks.encode_in_chunks`.

    Returns
    -------
    Fitted
    """
    teacher = load_teacher(encoder, layer)
    settings = {
        "encoder": _found_anywhere(source_name(encoder, teacher)),
        "encoder_key": module_key(teacher),
        "layer": layer,
    }
    licence = encoder_licence(encoder)
    frames = clips.frames(partial(embed, teacher.to(device), layer), teacher.dim)
    found = find_clusters(
        frames, codebook_size, passes, seed=clips.seed, quiet=clips.quiet
    )
    notes = {**clips.notes, "passes": passes, "reseeded": found.reseeded}
    tensors = {"centroids": found.centroids}
    key = save_targets(path, "clusters", settings, tensors, notes, licence)
    return Fitted(key, len(frames), [found.counts])


def _found_anywhere(source):
    """A folder's whole path: the command may later run in another folder."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.is_dir() else source


@torch.no_grad()
def _mel_frames(clips, n_mels, stack, device):
    """Standardised frames [M, D], and the mean and deviation that make them so."""
    mel = LevelFreeMel(n_mels, stack).to(device)

    def frames_of(wavs, lengths):
        rows = zip(mel(wavs.to(device)), lengths, strict=True)
        return [frames[: length // HOP] for frames, length in rows]

    frames = torch.from_numpy(clips.frames(frames_of, mel.dim))
    mean = frames.double().mean(0).float()
    std = frames.double().std(0).clamp(min=_SMALLEST).float()
    return standardise(frames, mean, std), {"mean": mean, "std": std}


def _count(codes_of, frames, codebooks):
    """How often each code occurs, for each codebook."""
    codes = torch.cat([codes_of(rows) for rows in frames.split(_AT_ONCE)])
    return [torch.bincount(row, minlength=codebooks.shape[1]) for row in codes.T]
