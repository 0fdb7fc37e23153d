"""Learning rates over a run."""

import math


def cosine_schedule(progress, lr, warmup=0.01, final=0.05):
    """Learning rate after a share of a run: linear warm-up, then half a cosine.

    Example
    -------
    >>> cosine_schedule(0.01, lr=1.0), round(cosine_schedule(1.0, lr=1.0), 2)
    (1.0, 0.05)
    """
    if progress < warmup:
        return lr * progress / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
