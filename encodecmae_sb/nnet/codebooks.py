"""Which codebooks a training step predicts: some of them, drawn by their weight."""

from typing import NamedTuple

import numpy as np
import torch


class DrawnCodebooks(NamedTuple):
    """Some of Q codebooks.

    Arguments
    ---------
    numbers : torch.Tensor
        Which ones, in ascending order, int64, shape [n].
    factors : torch.Tensor
        1 / the chance to be drawn of each, float32, shape [n]. A sum over the drawn
        codebooks with these factors is in the mean the sum over all codebooks.
    """

    numbers: torch.Tensor
    factors: torch.Tensor

    def to(self, device):
        """The same on another device."""
        return DrawnCodebooks(*(x.to(device, non_blocking=True) for x in self))


class CodebookSampler:
    """Draws codebooks without replacement, with chances in proportion to weights.

    No chance is above 1: what is left of the chance of a heavy codebook goes to the
    others. The chances lie one after another on a line of length `count`. Points 1
    apart, the first of them at random in [0, 1), fall on the codebooks that are drawn
    (systematic sampling, Madow 1949). Which ones depends on seed and step alone.

    Arguments
    ---------
    weights : list of float
        Of each codebook in the loss, at least 0, more than `count` of them above it.
    count : int
        Codebooks in a draw.
    seed : int

    Example
    -------
    >>> sampler = CodebookSampler([0.4, 0.3, 0.2, 0.1], count=2, seed=0)
    >>> sampler.chances.round(6).tolist()
    [0.8, 0.6, 0.4, 0.2]
    >>> sampler.draw(step=7).numbers
    tensor([0, 1])
    """

    def __init__(self, weights, count, seed):
        weights = np.array(weights, dtype=float)
        certain = np.zeros(len(weights), bool)
        while True:
            rest = np.where(certain, 0.0, weights)
            chances = rest * (count - certain.sum()) / rest.sum()
            if (chances < 1).all():
                break
            certain |= chances >= 1
        self.certain = np.flatnonzero(certain)
        self.chances = np.where(certain, 1.0, chances)
        self.ends = np.cumsum(chances)
        self.ends[np.flatnonzero(rest)[-1] :] = np.inf  # safe from rounding
        self.count, self.seed = count, seed

    def choose(self, place):
        """The codebooks for a first point in [0, 1), in ascending order."""
        points = place + np.arange(self.count - len(self.certain))
        drawn = np.searchsorted(self.ends, points, side="right")
        return np.sort(np.concatenate([self.certain, drawn]))

    def draw(self, step):
        """The codebooks of an optimizer step.

        Arguments
        ---------
        step : int

        Returns
        -------
        DrawnCodebooks
        """
        numbers = self.choose(np.random.default_rng([self.seed, step]).random())
        factors = 1 / self.chances[numbers]
        return DrawnCodebooks(torch.from_numpy(numbers), torch.tensor(factors).float())
