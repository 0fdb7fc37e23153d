"""Building blocks of synthetic audio: sources, filters that move, modes, rooms.

Slow quantities (pitch, levels, resonances) are given per block of 256 samples. Nothing
here loops over samples.
"""

import numpy as np
from scipy import fft

BLOCK = 256  # samples
_BINS = BLOCK + 1  # of the spectrum of two blocks
# Overlapping windows whose squares add up to one.
_WINDOW = np.sin(np.pi * (np.arange(2 * BLOCK) + 0.5) / (2 * BLOCK)).astype(np.float32)
_TO_UNIT = np.float32(np.sqrt(12))
_RAMP = (np.arange(BLOCK) / BLOCK).astype(np.float32)


def log_uniform(rng, low, high, size=None):
    """Values between two numbers, uniform in their logarithm."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def num_blocks(num_samples):
    """Blocks that describe a number of samples, one beyond the end included."""
    return -(-num_samples // BLOCK) + 1


def smooth(values, width):
    """A moving average over `width` blocks, with a triangular window.

    Arguments
    ---------
    values : numpy.ndarray
        Shape [F, ...].
    width : int
        Half of the window.

    Returns
    -------
    numpy.ndarray
        Shape [F, ...].

    Example
    -------
    >>> smooth(np.array([0.0, 0.0, 4.0, 0.0, 0.0]), 2)
    array([0., 1., 2., 1., 0.])
    """
    weights = np.append(np.arange(1, width + 1), np.arange(width - 1, 0, -1))
    edges = [(width - 1, width - 1)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, edges, mode="edge")
    parts = (w * padded[i : i + len(values)] for i, w in enumerate(weights))
    return sum(parts) / weights.sum()


def wander(rng, blocks, period):
    """A random curve of unit deviation that changes within `period` blocks."""
    points = rng.standard_normal(int(blocks / period) + 3)
    places = (np.arange(blocks) + rng.uniform(0, period)) / period
    before = places.astype(int)
    share = places - before
    share = share * share * (3 - 2 * share)  # no corners
    return points[before] + share * (points[before + 1] - points[before])


def spread(values, num_samples):
    """Values of blocks, shape [F] -> samples, joined by straight lines, float32."""
    values = values.astype(np.float32)
    steps = np.diff(values)[:, None] * _RAMP + values[:-1, None]
    return steps.reshape(-1)[:num_samples]


def noise(rng, num_samples):
    """White noise of unit deviation, float32."""
    # Uniform values cost a fifth of normal ones; filters make them normal.
    return (rng.random(num_samples, np.float32) - np.float32(0.5)) * _TO_UNIT


def phase_of(pitch, rate):
    """The phase of a tone in radians, float32, shape [N].

    Arguments
    ---------
    pitch : numpy.ndarray
        In Hz, per sample, shape [N].
    rate : int
        Samples a second.
    """
    turns = np.cumsum(pitch, dtype=np.float64) / rate
    turns -= np.floor(turns)
    return turns.astype(np.float32) * np.float32(2 * np.pi)


def harmonics(phase, pitch, fall, rate):
    """All harmonics of a tone, the k-th of them a ** k strong, at unit deviation.

    The sum has a closed form, so it costs one cosine a sample:
    sum over k of a^k cos(k p) = (a cos p - a^2) / (1 - 2 a cos p + a^2).

    Arguments
    ---------
    phase, pitch : numpy.ndarray
        Shape [N].
    fall : float or numpy.ndarray
        Nepers by which harmonics fall up to half the rate, at least 4: what lies above
        would be heard at wrong pitches.
    rate : int
    """
    a = np.exp(-np.float32(2) * fall * pitch / np.float32(rate)).astype(np.float32)
    cosine = np.cos(phase)
    cosine *= a
    square = a * a
    tone = (cosine - square) / (1 + square - 2 * cosine)
    return tone / np.sqrt(0.5 * square / (1 - square))


def resonances(pitches, widths, rate):
    """Gain of resonators in a row, as of a vocal tract: 1 at 0 Hz.

    Arguments
    ---------
    pitches : numpy.ndarray
        Hz, shape [F, M].
    widths : numpy.ndarray
        Hz, shape [M].
    rate : int

    Returns
    -------
    numpy.ndarray
        float32, shape [F, 257].
    """
    f = np.linspace(0, rate / 2, _BINS, dtype=np.float32)
    power = np.float32(1)
    for pitch, width in zip(pitches.T.astype(np.float32), widths, strict=True):
        x = (f / pitch[:, None]) ** 2
        power = power * ((1 - x) ** 2 + x * (np.float32(width) / pitch[:, None]) ** 2)
    return 1 / np.sqrt(power + np.float32(1e-6))


def bands(pitches, widths, rate):
    """Gain of band filters, 1 at their centres, float32, shape [F, 257].

    Arguments
    ---------
    pitches, widths : numpy.ndarray
        Hz, shape [F].
    rate : int
    """
    f = np.linspace(0, rate / 2, _BINS, dtype=np.float32)
    pitches, widths = pitches.astype(np.float32), widths.astype(np.float32)
    return 1 / (1 + ((f - pitches[:, None]) / widths[:, None]) ** 2)


def filtered(parts, num_samples):
    """The sum of signals, each through a filter that moves.

    Arguments
    ---------
    parts : list of (numpy.ndarray, numpy.ndarray)
        Samples [N], and the gain of each block and frequency [F, 257].
    num_samples : int
        N.

    Returns
    -------
    numpy.ndarray
        float32, shape [N].
    """
    blocks = num_blocks(num_samples)
    whole = 0
    for samples, gains in parts:
        padded = np.zeros((blocks + 1) * BLOCK, np.float32)
        padded[BLOCK : BLOCK + num_samples] = samples
        halves = padded.reshape(-1, BLOCK)
        frames = np.concatenate([halves[:-1], halves[1:]], axis=1) * _WINDOW
        whole = whole + fft.rfft(frames, axis=1) * gains
    frames = fft.irfft(whole, 2 * BLOCK, axis=1) * _WINDOW
    out = frames[:-1, BLOCK:] + frames[1:, :BLOCK]
    return out.reshape(-1)[:num_samples]


def modes(rng, num_samples, pitches, levels, decays, rate):
    """Sinusoids that die away, float32, shape [N].

    Arguments
    ---------
    rng : numpy.random.Generator
        For the phases.
    num_samples : int
    pitches, levels, decays : numpy.ndarray
        Hz, amplitude and seconds to 1 / e of each mode, shape [M].
    rate : int
    """
    kept = pitches < 0.47 * rate
    pitches, levels, decays = pitches[kept], levels[kept], decays[kept]
    phases = np.exp(1j * rng.uniform(0, 2 * np.pi, len(pitches)))
    power = (2j * np.pi * pitches - 1 / decays) / rate
    # Each mode is z ** n: a product of coarse and fine powers.
    fine = np.exp(power[:, None] * np.arange(BLOCK)).astype(np.complex64)
    starts = np.arange(-(-num_samples // BLOCK)) * BLOCK
    coarse = np.exp(power[:, None] * starts) * (levels * phases)[:, None]
    coarse = coarse.astype(np.complex64)
    out = np.zeros((len(starts), BLOCK), np.float32)
    for a, b in zip(coarse, fine, strict=True):
        # Leave out what can no longer be heard.
        heard = int(np.count_nonzero(np.abs(a) > 1e-3 * levels.max()))
        a = a[:heard, None]
        out[:heard] += a.real * b.real - a.imag * b.imag
    return out.reshape(-1)[:num_samples]


def place(out, event, start, gain=1.0):
    """Adds an event to a signal from sample `start` on, in place, cut at both ends."""
    start = int(start)
    event = event[max(0, -start) : max(0, len(out) - start)]
    if len(event):
        start = max(0, start)
        out[start : start + len(event)] += np.float32(gain) * event


def unit(samples):
    """A signal at unit deviation; silence stays."""
    power = float(np.mean(np.square(samples)))
    return samples / np.float32(np.sqrt(power)) if power > 1e-12 else samples


def through(rng, samples, rate, reverb, gains, low, high):
    """A signal in a room, through a microphone.

    Arguments
    ---------
    rng : numpy.random.Generator
        For the room.
    samples : numpy.ndarray
        Shape [N].
    rate : int
    reverb : (float, float)
        Seconds to -60 dB, and the level of the tail beside the direct sound; a level of
        0: no room.
    gains : numpy.ndarray
        dB of an equaliser at frequencies spread evenly over the octaves above 50 Hz.
    low, high : float
        Hz, where the band ends. Beyond `high` nothing is left.

    Returns
    -------
    numpy.ndarray
        float32, shape [N].
    """
    seconds, level = reverb
    tail = int(min(seconds, 1.0) * rate) if level else 0
    size = fft.next_fast_len(len(samples) + tail, real=True)
    spectrum = fft.rfft(samples, size)
    if tail:
        fall = np.exp(np.linspace(0, -6.9 * tail / (seconds * rate), tail))
        response = noise(rng, tail) * fall.astype(np.float32)
        # Walls take away high notes: the tail is duller than the direct sound.
        response[1:] += response[:-1]
        response *= level / np.sqrt(np.sum(response**2))
        response[0] += 1
        spectrum = spectrum * fft.rfft(response, size)
    coarse = np.linspace(0, rate / 2, 513)
    octaves = np.log2(np.maximum(coarse, 50) / 50)
    at = np.linspace(0, np.log2(rate / 100), len(gains))
    curve = 10 ** (np.interp(octaves, at, gains) / 20)
    curve /= np.sqrt(1 + (low / np.maximum(coarse, 1)) ** 4)
    curve *= np.clip((high - coarse) / (0.04 * rate / 2) + 0.5, 0, 1)
    fine = np.linspace(0, 512, len(spectrum))
    spectrum *= np.interp(fine, np.arange(513), curve).astype(np.float32)
    return fft.irfft(spectrum, size)[: len(samples)]
