"""Speech-like sound: words of a made-up language, spoken by many voices.

Voices share one inventory of phones and one lexicon, so what stands around a hidden
phone says much about it, and the same word in another voice is the same word. Vowel
formants are the averages of men in Peterson and Barney (1952, J. Acoust. Soc. Am. 24);
consonants follow textbooks of phonetics.
"""

import functools

import numpy as np

from .signals import (
    BLOCK,
    bands,
    filtered,
    harmonics,
    log_uniform,
    noise,
    num_blocks,
    phase_of,
    resonances,
    smooth,
    spread,
    wander,
)

# First three formants in Hz; level of the voice; level, centre and width (Hz) of noise;
# seconds. A plosive is two rows: the closure and the burst.
_VOWELS = {
    name: [(*formants, 1.0, 0.0, 2000, 2000, seconds)]
    for name, formants, seconds in (
        ("i", (270, 2290, 3010), 0.11),
        ("I", (390, 1990, 2550), 0.08),
        ("e", (530, 1840, 2480), 0.09),
        ("ae", (660, 1720, 2410), 0.13),
        ("a", (730, 1090, 2440), 0.13),
        ("O", (570, 840, 2410), 0.12),
        ("U", (440, 1020, 2240), 0.08),
        ("u", (300, 870, 2240), 0.11),
        ("V", (640, 1190, 2390), 0.08),
        ("3", (490, 1350, 1690), 0.12),
    )
}
_SONORANTS = {
    "m": [(250, 1050, 2200, 0.35, 0.0, 2000, 2000, 0.07)],
    "n": [(250, 1500, 2500, 0.35, 0.0, 2000, 2000, 0.07)],
    "N": [(250, 2000, 2700, 0.35, 0.0, 2000, 2000, 0.07)],
    "l": [(350, 1050, 2800, 0.5, 0.0, 2000, 2000, 0.06)],
    "r": [(350, 1200, 1600, 0.5, 0.0, 2000, 2000, 0.06)],
    "w": [(300, 650, 2200, 0.5, 0.0, 2000, 2000, 0.06)],
    "j": [(270, 2200, 3000, 0.5, 0.0, 2000, 2000, 0.05)],
}
_FRICATIVES = {
    "s": [(350, 1700, 2600, 0.0, 1.0, 6800, 1500, 0.11)],
    "S": [(350, 1800, 2500, 0.0, 1.0, 3200, 900, 0.11)],
    "f": [(350, 1100, 2300, 0.0, 0.25, 7500, 5000, 0.10)],
    "T": [(350, 1400, 2500, 0.0, 0.2, 5500, 4000, 0.09)],
    "h": [(500, 1500, 2500, 0.0, 0.25, 1800, 1200, 0.06)],
    "z": [(300, 1700, 2600, 0.25, 0.5, 6800, 1500, 0.08)],
    "v": [(300, 1100, 2300, 0.3, 0.12, 7000, 5000, 0.06)],
}
_PLOSIVES = {
    name: [
        (*formants, hum, 0.0, centre, width, 0.055),
        (*formants, 2 * hum, burst, centre, width, 0.02 if hum else 0.035),
    ]
    for name, formants, hum, burst, centre, width in (
        ("p", (300, 900, 2200), 0.0, 0.5, 900, 1500),
        ("t", (300, 1750, 2700), 0.0, 1.0, 4800, 2000),
        ("k", (300, 1900, 2300), 0.0, 0.8, 1900, 700),
        ("b", (250, 900, 2200), 0.12, 0.25, 800, 1500),
        ("d", (250, 1750, 2700), 0.12, 0.5, 4500, 2000),
        ("g", (250, 1900, 2300), 0.12, 0.4, 1800, 700),
    )
}
_FALLING = [("a", "I"), ("e", "I"), ("a", "U"), ("O", "I"), ("O", "U")]  # diphthongs
_NUM_WORDS = 400
_UPPER = np.array([3500.0, 4500.0])  # the formants that hardly move, Hz
_WIDTHS = np.array([70.0, 90.0, 140.0, 250.0, 350.0])
_SILENCE = np.array([500, 1500, 2500, 0.0, 0.0, 2000, 2000, 1.0])


@functools.lru_cache(1)
def lexicon():
    """The words, the same in every run.

    Returns
    -------
    list of numpy.ndarray
        The rows of the phones of each word, shape [P, 8]. The first are the most
        frequent, and short.
    """
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    consonants = {**_SONORANTS, **_FRICATIVES, **_PLOSIVES}
    names, vowels = list(consonants), list(_VOWELS)
    words = []
    for number in range(_NUM_WORDS):
        rows = []
        for _ in range(1 + rng.binomial(2, 0.15 + 0.35 * number / _NUM_WORDS)):
            if rng.random() < 0.85:
                rows += consonants[names[rng.integers(len(names))]]
                if rng.random() < 0.15:  # as in "three" and "quick"
                    rows += _SONORANTS["rlwj"[rng.integers(4)]]
            if rng.random() < 0.25:
                first, second = _FALLING[rng.integers(len(_FALLING))]
                rows += _VOWELS[first] + _VOWELS[second]
            else:
                rows += _VOWELS[vowels[rng.integers(len(vowels))]]
            if rng.random() < 0.45:
                rows += consonants[names[rng.integers(len(names))]]
        words.append(np.array(rows, dtype=float))
    return words


def own_words(rng):
    """Words of a clip's own creature: a few states of its tract, in a few orders."""
    count = rng.integers(3, 6)
    states = np.empty((count, 8))
    states[:, 0] = rng.uniform(250, 900, count)
    states[:, 1] = rng.uniform(900, 2300, count)
    states[:, 2] = rng.uniform(2300, 3200, count)
    states[:, 3] = rng.choice([0.0, 0.4, 1.0, 1.0], count)
    states[:, 4] = np.where(states[:, 3] < 0.5, rng.uniform(0.1, 1.0, count), 0.0)
    states[:, 5] = log_uniform(rng, 800, 8000, count)
    states[:, 6] = log_uniform(rng, 400, 3000, count)
    states[:, 7] = log_uniform(rng, 0.05, 0.2, count)
    return [states[rng.integers(count, size=size)] for size in rng.integers(2, 5, 2)]


def _order(rng, count):
    """Numbers of words without end: a few in turn, or drawn by Zipf's law."""
    shares = 1 / (np.arange(count) + 3.0)
    shares = np.cumsum(shares / shares.sum())

    def draw(size):
        return np.minimum(np.searchsorted(shares, rng.random(size)), count - 1)

    if rng.random() < 0.4:
        phrase = draw(rng.integers(1, 4))
        while True:
            yield from phrase
    while True:
        yield from draw(8)


def speak(rng, num_samples, rate):
    """A voice that speaks.

    Arguments
    ---------
    rng : numpy.random.Generator
    num_samples : int
        N.
    rate : int
        Samples a second.

    Returns
    -------
    numpy.ndarray
        float32, shape [N].

    Example
    -------
    >>> speak(np.random.default_rng(0), 1600, 16000).shape
    (1600,)
    """
    words = lexicon() if rng.random() < 0.8 else own_words(rng)
    tract = log_uniform(rng, 0.85, 1.3)  # a child's is short: all formants are higher
    base = float(np.clip(115 * tract**3 * log_uniform(rng, 0.7, 1.5), 70, 450))
    speed = log_uniform(rng, 0.7, 1.5)
    accent = np.exp(0.04 * rng.standard_normal(3))  # of the voice, on the formants
    pauses, stress = rng.uniform(0, 0.4), rng.uniform(0, 0.3)
    blocks = num_blocks(num_samples)
    # Begin within a word, as a crop of a recording does.
    skipped = int(rng.uniform(0, 0.4) * rate / BLOCK)
    rows, counts, tune, total = [], [], [], 0
    for number in _order(rng, len(words)):
        word = words[number]
        pace = rate / BLOCK / speed * rng.uniform(0.88, 1.13)
        lengths = np.maximum(np.round(word[:, 7] * pace), 1).astype(int)
        rows.append(word)
        tune.append(np.sin(np.pi * (np.arange(lengths.sum()) + 0.5) / lengths.sum()))
        if rng.random() < pauses:
            pause = max(1, int(log_uniform(rng, 0.05, 0.3) * rate / BLOCK))
            rows.append(_SILENCE[None])
            lengths = np.append(lengths, pause)
            tune.append(np.zeros(pause))
        counts.append(lengths)
        total += lengths.sum()
        if total >= blocks + skipped:
            break
    states = np.repeat(np.concatenate(rows), np.concatenate(counts), axis=0)
    states = states[skipped : skipped + blocks]
    tune = smooth(np.concatenate(tune), 3)[skipped : skipped + blocks]
    formants = smooth(states[:, :3], 4) * tract * accent
    levels = smooth(states[:, 3:5], 2)
    fall = rng.uniform(0, 0.25) * np.arange(blocks) * BLOCK / rate
    pitch = base * np.exp(stress * tune - fall + 0.04 * wander(rng, blocks, 12))
    pitch = np.clip(pitch, 50, 600)

    upper = np.broadcast_to(_UPPER * tract, (blocks, 2))
    widths = _WIDTHS * tract * log_uniform(rng, 0.8, 1.6)
    tract_gains = resonances(np.concatenate([formants, upper], axis=1), widths, rate)
    # Lips radiate high notes better.
    tract_gains *= np.sqrt(1 + np.linspace(0, rate / 4000, BLOCK + 1) ** 2).astype("f4")
    breath = log_uniform(rng, 0.01, 0.3) if rng.random() < 0.95 else 3.0  # a whisper
    voiced = levels[:, :1] / max(1.0, breath)
    hiss = bands(np.minimum(states[:, 5] * tract**0.5, 0.45 * rate), states[:, 6], rate)
    hiss *= (0.5 * log_uniform(rng, 0.5, 2.0) * levels[:, 1:]).astype(np.float32)
    hiss += tract_gains * (breath * voiced).astype(np.float32)
    pitch_now = spread(np.append(pitch, pitch[-1])[: blocks + 1], num_samples)
    source = harmonics(phase_of(pitch_now, rate), pitch_now, rng.uniform(4, 12), rate)
    parts = [
        (source, tract_gains * voiced.astype(np.float32)),
        (noise(rng, num_samples), hiss),
    ]
    return filtered(parts, num_samples)
