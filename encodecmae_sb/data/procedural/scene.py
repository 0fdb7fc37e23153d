"""A clip: one to three sounds, in a room, through a channel."""

import numpy as np

from encodecmae_sb.utils.grid import SAMPLE_RATE

from .signals import log_uniform, noise, through, unit
from .sounds import calls, impacts, machines, notes, textures
from .speech import speak

# Raise it when `render` gives other samples. It is part of the identity of a training.
VERSION = 1

# What is heard, and how often.
KINDS = {
    "speech": (speak, 0.4),
    "notes": (notes, 0.18),
    "impacts": (impacts, 0.12),
    "calls": (calls, 0.12),
    "machines": (machines, 0.08),
    "textures": (textures, 0.1),
}
_NAMES = list(KINDS)
_SHARES = np.cumsum([share for _, share in KINDS.values()])


def render(seed, draw, num_samples, sample_rate=SAMPLE_RATE, kind=None):
    """Synthetic audio, a pure function of its arguments.

    Arguments
    ---------
    seed : int
        From 0 to 2**64 - 1. Another seed, other clips.
    draw : int
        From 0 to 2**64 - 1. Another draw, another clip.
    num_samples : int
        N.
    sample_rate : int
        In Hz.
    kind : str, optional
        One of `KINDS`, for the main sound. Default: drawn.

    Returns
    -------
    numpy.ndarray
        Samples in [-1, 1], mono, float32, shape [N].

    Example
    -------
    >>> clip = render(seed=1, draw=2, num_samples=24000)
    >>> clip.shape, bool((clip == render(1, 2, 24000)).all())
    ((24000,), True)
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, draw]))
    main = _draw_kind(rng) if kind is None else kind
    out = unit(KINDS[main][0](rng, num_samples, sample_rate))
    others = int(np.searchsorted([0.65, 0.92], rng.random()))  # how many
    for _ in range(others):
        other = KINDS[_draw_kind(rng)][0](rng, num_samples, sample_rate)
        out = out + unit(other) * np.float32(10 ** (-rng.uniform(3, 25) / 20))
    return _record(rng, out, sample_rate)


def _draw_kind(rng):
    place = np.searchsorted(_SHARES, rng.random() * _SHARES[-1])
    return _NAMES[min(int(place), len(_NAMES) - 1)]


def _record(rng, samples, rate):
    """A recording of a sound: room, equaliser, band, noise and level."""
    room = rng.random() < 0.5
    reverb = log_uniform(rng, 0.1, 1.0), log_uniform(rng, 0.05, 1.0) if room else 0.0
    gains = np.cumsum(rng.uniform(0, 3) * rng.standard_normal(7))
    low = log_uniform(rng, 20, 300) if rng.random() < 0.4 else 5.0
    narrow = rng.random() < 0.4
    high = rng.choice([3800.0, 5400.0, 7800.0, 10800.0]) if narrow else rate
    floor = 10 ** (-rng.uniform(25, 80) / 20)
    samples = samples + np.float32(floor) * noise(rng, len(samples))
    samples = through(rng, samples, rate, reverb, gains - gains.mean(), low, high)
    peak = float(np.abs(samples).max())
    level = log_uniform(rng, 0.08, 0.95)
    samples = samples * np.float32(level / max(peak, 1e-9))
    return np.clip(samples, -1, 1)
