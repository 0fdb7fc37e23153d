"""Frames of log-mel that do not depend on the level, and how they become codes.

Sources: residual k-means of log-mel as in MuQ (arXiv 2501.01108); random projections
and random codebooks as in BEST-RQ (arXiv 2202.01855).

B items, N samples, T frames, M frames in a row, D features, Q codebooks, K entries, P
dimensions of a projection.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.utils.grid import HOP

from .clusters import find_clusters, nearest
from .front_ends import LogMel

# Energies are raised by this share of their mean (-40 dB): what lies below is not heard
# beside the rest, and is often only rounding noise.
_FLOOR = math.log(1e-4)
# LogMel has an absolute floor. Waveforms are made larger by this factor (80 dB), so
# that only digital silence reaches it.
_GAIN = 1e4
_LIMIT = 5.0  # standard deviations; what lies further out counts as if it lay there


class LevelFreeMel(nn.Module):
    """Log-mel frames less their mean: the shape of the spectrum, at any level.

    Frame t takes samples [320 (t - 1), 320 (t + 1)), and comes with the `stack` - 1
    frames before it. The mean over all bins of these frames is taken off. So how the
    level changes within them is kept, and the level itself is not. A frame depends on
    nothing after it: chunks of a file with `context_samples` before them give the
    frames of the whole file.

    Digital silence gives zeros.

    Arguments
    ---------
    n_mels : int
        Mel bins from 20 Hz to 12 kHz.
    stack : int
        Frames side by side. Before the first frame it is repeated.

    Example
    -------
    >>> mel = LevelFreeMel(n_mels=40, stack=3)
    >>> wavs = torch.rand(2, 24000)
    >>> mel(wavs).shape
    torch.Size([2, 75, 120])
    >>> torch.allclose(mel(wavs), mel(0.1 * wavs), atol=1e-4)
    True
    """

    def __init__(self, n_mels=64, stack=3):
        super().__init__()
        self.stack = stack
        self.dim = n_mels * stack
        self.context_samples = HOP * stack
        self.log_mel = LogMel(
            n_mels, win_length=2 * HOP, centered=False, mean=0.0, std=1.0
        )

    def forward(self, wavs):
        """Samples in [-1, 1], shape [B, N] -> float32 frames [B, ceil(N / 320), D]."""
        wavs = F.pad(_GAIN * wavs.float(), (HOP, -wavs.shape[1] % HOP))
        frames = self.log_mel(wavs).transpose(1, 2)  # [B, n_mels, T]
        frames = F.pad(frames, (self.stack - 1, 0), mode="replicate")
        frames = frames.unfold(2, self.stack, 1).permute(0, 2, 3, 1).flatten(2)
        floor = frames.logsumexp(-1, keepdim=True) - math.log(self.dim) + _FLOOR
        frames = torch.logaddexp(frames, floor)
        return frames - frames.mean(-1, keepdim=True)


def standardise(frames, mean, std):
    """Frames [..., D] with mean 0 and deviation 1, none further out than 5."""
    return ((frames - mean) / std).clamp(-_LIMIT, _LIMIT)


def residual_codes(frames, codebooks):
    """Each codebook codes what the ones before it left over.

    Arguments
    ---------
    frames : torch.Tensor
        float32, shape [M, D].
    codebooks : torch.Tensor
        float32, shape [Q, K, D].

    Returns
    -------
    codes : torch.Tensor
        int64, shape [M, Q].
    left : torch.Tensor
        What the last one left over, shape [M, D].

    Example
    -------
    >>> codebooks = torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]])
    >>> residual_codes(torch.tensor([[9.0], [1.5]]), codebooks)
    (tensor([[1, 0],
            [0, 1]]), tensor([[0.0000],
            [0.5000]]))
    """
    codes = []
    for entries in codebooks:
        index, _ = nearest(frames, entries)
        codes.append(index)
        frames = frames - entries[index]
    return torch.stack(codes, -1), frames


def find_residual_codebooks(frames, n_codebooks, codebook_size, passes, seed, quiet):
    """Residual k-means: each codebook has the clusters of what is left over.

    Arguments
    ---------
    frames : numpy.ndarray
        float32, shape [M, D]; changed in place to what is left over at the end.
    n_codebooks, codebook_size : int
        Q and K.
    passes, seed, quiet
        As for `find_clusters`.

    Returns
    -------
    codebooks : torch.Tensor
        float32, shape [Q, K, D].
    left : list of float
        Share of the frames' variance that each codebook leaves over, Q of them.

    Example
    -------
    >>> import numpy as np
    >>> frames = np.random.default_rng(0).normal(size=(500, 4)).astype("float32")
    >>> codebooks, left = find_residual_codebooks(frames, 2, 8, 3, 0, quiet=True)
    >>> codebooks.shape, 1 > left[0] > left[1] > 0
    (torch.Size([2, 8, 4]), True)
    """
    codebooks, left = [], []
    variance = float(frames.var(0).sum())
    rest = torch.from_numpy(frames)  # shares its memory
    for number in range(n_codebooks):
        draws = seed + number  # else each codebook would start from the same frames
        found = find_clusters(frames, codebook_size, passes, seed=draws, quiet=quiet)
        codebooks.append(found.centroids)
        for rows in rest.split(2**13):
            index, _ = nearest(rows, found.centroids)
            rows -= found.centroids[index]
        left.append(float(rest.square().sum(1).mean()) / variance)
    return torch.stack(codebooks), left


def draw_projections(dim, n_codebooks, codebook_size, projected, seed):
    """Random projections and codebooks, from a seed of their own.

    Arguments
    ---------
    dim : int
        D of the frames.
    n_codebooks, codebook_size, projected : int
        Q, K and P.
    seed : int

    Returns
    -------
    projections : torch.Tensor
        Xavier-uniform, shape [Q, D, P].
    codebooks : torch.Tensor
        Normal, then of length 1, shape [Q, K, P].

    Example
    -------
    >>> projections, codebooks = draw_projections(120, 2, 1024, 16, seed=0)
    >>> projections.shape, codebooks.shape
    (torch.Size([2, 120, 16]), torch.Size([2, 1024, 16]))
    """
    generator = torch.Generator().manual_seed(seed)
    bound = math.sqrt(6 / (dim + projected))
    shape = n_codebooks, dim, projected
    projections = bound * (2 * torch.rand(shape, generator=generator) - 1)
    shape = n_codebooks, codebook_size, projected
    codebooks = torch.randn(shape, generator=generator)
    return projections, F.normalize(codebooks, dim=-1)


def projected_codes(frames, projections, codebooks):
    """The entry of each codebook whose direction is nearest to the projected frame.

    Arguments
    ---------
    frames : torch.Tensor
        float32, shape [M, D].
    projections : torch.Tensor
        Shape [Q, D, P].
    codebooks : torch.Tensor
        Entries of length 1, shape [Q, K, P].

    Returns
    -------
    torch.Tensor
        int64, shape [M, Q].

    Example
    -------
    >>> tables = draw_projections(120, 2, 1024, 16, seed=0)
    >>> projected_codes(torch.zeros(5, 120), *tables).shape
    torch.Size([5, 2])
    """
    # Among vectors of length 1 the nearest has the largest product, and the length of
    # the frame's own projection changes no order.
    codes = [
        (frames @ projection @ entries.T).argmax(-1)
        for projection, entries in zip(projections, codebooks, strict=True)
    ]
    return torch.stack(codes, -1)
