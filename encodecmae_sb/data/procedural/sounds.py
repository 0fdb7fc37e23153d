"""Music, impacts, textures, animals and machines.

Each is a pattern that comes back, with small changes, and whose parameters are
constant in a clip and vary widely between clips.
"""

import numpy as np
from scipy import fft

from .signals import (
    BLOCK,
    bands,
    filtered,
    harmonics,
    log_uniform,
    modes,
    noise,
    num_blocks,
    phase_of,
    place,
    resonances,
    smooth,
    spread,
    wander,
)

_SCALES = (
    (0, 2, 4, 5, 7, 9, 11),  # major
    (0, 2, 3, 5, 7, 8, 10),  # minor
    (0, 2, 4, 7, 9),  # pentatonic
    (0, 3, 5, 6, 7, 10),  # blues
)


def _attack(note, seconds, rate):
    """Lets a note begin softly, in place."""
    size = min(len(note), max(2, int(seconds * rate)))
    note[:size] *= np.linspace(0, 1, size, dtype=np.float32)
    size = min(len(note), int(0.01 * rate))
    note[len(note) - size :] *= np.linspace(1, 0, size, dtype=np.float32)
    return note


def _instrument(rng, longest, rate):
    """A function (pitch in Hz) -> note, float32: a timbre that stays in a clip.

    No note is longer than `longest` samples.
    """
    kind = rng.choice(["struck", "held", "bell"], p=[0.45, 0.4, 0.15])
    decay, attack = log_uniform(rng, 0.06, 1.2), log_uniform(rng, 0.002, 0.06)
    fall, odd = rng.uniform(5, 25), rng.random() < 0.3
    vibrato = np.float32(rng.uniform(4, 7))
    depth = np.float32(rng.choice([0.0, rng.uniform(0.003, 0.02)]))
    ratios = np.sort(np.append(1.0, rng.uniform(1.2, 9, rng.integers(3, 9))))
    levels = rng.uniform(0.1, 1, len(ratios)) / np.sqrt(ratios)
    seconds = 1.5 * decay + 0.1 if kind == "held" else 4 * decay
    size = min(longest, int(min(1.5, seconds) * rate))
    time = np.arange(size, dtype=np.float32) / np.float32(rate)
    turn = np.float32(2 * np.pi)

    def note(pitch):
        if kind == "bell":
            decays = decay / np.sqrt(ratios)
            tone = modes(rng, size, pitch * ratios, levels, decays, rate)
            return _attack(tone, attack, rate)
        # Strings that were struck lose their high harmonics first.
        duller = fall * (1 + 2 * time / decay) if kind == "struck" else fall
        pitches = np.float32(pitch) * (1 + depth * np.sin(turn * vibrato * time))
        phase = phase_of(pitches, rate)
        tone = harmonics(phase, pitches, duller, rate)
        if odd:  # half a turn later, the odd harmonics have the other sign
            tone -= harmonics(phase + np.float32(np.pi), pitches, duller, rate)
        if kind == "struck":
            tone *= np.exp(-time / np.float32(decay))
        return _attack(tone, attack if kind == "struck" else 5 * attack, rate)

    return note


def notes(rng, num_samples, rate):
    """Notes and chords of a scale, in a rhythm that comes back; float32, shape [N]."""
    out = np.zeros(num_samples, np.float32)
    instrument = _instrument(rng, num_samples, rate)
    scale = np.array(_SCALES[rng.integers(len(_SCALES))])
    root, slot = rng.integers(36, 73), log_uniform(rng, 0.09, 0.45) * rate
    triad = np.arange(rng.integers(1, 4)) * 2  # every second degree
    size = int(rng.integers(2, 7))
    if rng.random() < 0.4:  # runs up or down the scale
        degrees = rng.integers(0, 5) + np.arange(size) * rng.choice([-1, 1])
    else:
        degrees = rng.integers(0, 8, size)
    sounding = rng.random(size) < 0.8
    sounding[rng.integers(size)] = True
    gains = rng.uniform(0.5, 1, size)
    shared, start = {}, -rng.uniform(0, 2) * slot
    position = 0
    while start < num_samples:
        place_in = position % size
        if sounding[place_in]:
            # Chords move by steps, after each round.
            shift = (position // size) % 2 if len(triad) > 1 else 0
            for degree in degrees[place_in] + shift + triad:
                octave, step = divmod(int(degree), len(scale))
                key = 12 * octave + int(scale[step])
                if key not in shared:
                    shared[key] = instrument(440 * 2 ** ((root + key - 69) / 12))
                place(out, shared[key], start, gains[place_in])
        start += slot
        position += 1
    return out


def _hit(rng, rate):
    """An object that was struck, float32: modes, and the noise of the contact."""
    base = log_uniform(rng, 60, 3500)
    ratios = np.arange(1, rng.integers(2, 14)) ** rng.uniform(0.8, 1.8)
    ratios *= np.exp(0.05 * rng.standard_normal(len(ratios)))
    levels = rng.uniform(0.2, 1, len(ratios)) / np.sqrt(np.arange(1, len(ratios) + 1))
    decay = log_uniform(rng, 0.004, 0.4)
    decays = decay / ratios ** rng.uniform(0.2, 1)
    size = int(min(5 * decay, 1.0) * rate) + BLOCK
    event = modes(rng, size, base * ratios, levels, decays, rate)
    burst = int(log_uniform(rng, 0.002, 0.12) * rate)
    hiss = noise(rng, burst) * np.exp(-np.linspace(0, 5, burst, dtype=np.float32))
    if rng.random() < 0.5:  # a dull contact
        hiss = np.cumsum(hiss - 0.02 * np.cumsum(hiss)) * 0.3
    place(event, hiss, 0, log_uniform(rng, 0.02, 1.5))
    return _attack(event, 0.0005, rate)


def impacts(rng, num_samples, rate):
    """Knocks, ticks, steps, drums: a few objects in a rhythm; float32, shape [N]."""
    out = np.zeros(num_samples, np.float32)
    slot = log_uniform(rng, 0.06, 0.5) * rate
    loose = rng.choice([0.0, 0.01, 0.06])
    for _ in range(rng.integers(1, 4)):
        event, size = _hit(rng, rate), int(rng.integers(1, 7))
        gains = rng.uniform(0.3, 1, size) * (rng.random(size) < 0.6)
        gains[rng.integers(size)] = 1
        start, position = -rng.uniform(0, 1) * slot, 0
        while start < num_samples:
            if gains[position % size]:
                late = loose * slot * rng.standard_normal()
                place(out, event, start + late, gains[position % size])
            start += slot
            position += 1
    return out


def calls(rng, num_samples, rate):
    """Animals and sirens: one call, again and again; float32, shape [N]."""
    blocks, second = num_blocks(num_samples), rate / BLOCK
    kind = rng.choice(["bird", "animal", "siren", "insect"], p=[0.3, 0.4, 0.15, 0.15])
    low, high, short, long, trill = {
        "bird": (1500, 6000, 0.04, 0.3, 30),
        "animal": (90, 1200, 0.08, 0.6, 12),
        "siren": (300, 1500, 0.3, 2.0, 2),
        "insect": (2500, 7000, 0.02, 0.2, 30),
    }[kind]
    base, size = log_uniform(rng, low, high), log_uniform(rng, short, long) * second
    size = max(3, int(size))
    gap = 0 if kind == "siren" else max(1, int(log_uniform(rng, 0.03, 0.5) * second))
    u = (np.arange(size) + 0.5) / size
    sweep, arch = rng.uniform(-0.6, 0.6), rng.uniform(-0.2, 0.8)
    octaves = sweep * (u - 0.5) + arch * np.sin(np.pi * u)
    waves = rng.uniform(0, trill) * size / second
    octaves += rng.choice([0.0, 0.15]) * np.sin(2 * np.pi * waves * u)
    if kind == "siren" and rng.random() < 0.3:  # two tones
        octaves = np.where(u < 0.5, 0.0, rng.uniform(0.2, 0.6))
    shape = u ** rng.uniform(0.2, 1) * (1 - u) ** rng.uniform(0.2, 1.2)
    level = np.ones(size) if kind == "siren" else shape / shape.max()
    opening = np.sin(np.pi * u) ** rng.uniform(0.5, 2)  # of a mouth
    # One period of the pattern: a few calls, each at a pitch of its own.
    melody = rng.uniform(-0.4, 0.4, 1 if kind == "siren" else rng.integers(1, 4))
    octaves = np.append(octaves, np.full(gap, octaves[-1])) + melody[:, None]
    silent = np.zeros(gap)
    level = np.tile(np.append(level, silent), len(melody))
    opening = np.tile(np.append(opening, silent), len(melody))
    period = np.stack([octaves.ravel(), level, opening])
    first = int(rng.integers(period.shape[1]))
    times = -(-(blocks + 1 + first) // period.shape[1])
    octaves, level, opening = np.tile(period, times)[:, first : first + blocks + 1]
    octaves = smooth(octaves, 2) + 0.02 * wander(rng, blocks + 1, 10)
    pitch = np.clip(base * 2**octaves, 50, 0.4 * rate)
    now = spread(pitch, num_samples)
    tone = harmonics(phase_of(now, rate), now, rng.uniform(5, 20), rate)
    level, opening = smooth(level, 2)[:blocks, None], opening[:blocks]
    rough = log_uniform(rng, 0.003, 0.6)
    hiss = noise(rng, num_samples)
    if kind in ("bird", "insect"):
        centre = np.clip(pitch[:blocks], 500, 0.45 * rate)
        around = bands(centre, 0.3 * centre, rate)
        gains = np.ones_like(around), around
    else:
        scale = log_uniform(rng, 0.6, 2.5)
        low, high = rng.uniform(250, 500), rng.uniform(500, 1000)
        formants = np.stack(
            [
                scale * (low + (high - low) * opening),
                scale * (1100 + rng.uniform(-300, 900) * opening),
                np.full(blocks, scale * 2600),
            ],
            axis=1,
        )
        gains = (resonances(formants, scale * np.array([90, 130, 220]), rate),) * 2
    level = level.astype(np.float32)
    parts = [(tone, gains[0] * level), (hiss, gains[1] * level * np.float32(rough))]
    return filtered(parts, num_samples)


def textures(rng, num_samples, rate):
    """Wind, rain, waves, fire: noise that changes slowly; float32, shape [N]."""
    blocks, second = num_blocks(num_samples), rate / BLOCK
    period = log_uniform(rng, 0.1, 1.0) * second
    swell = np.exp(rng.uniform(0, 0.8) * wander(rng, blocks, period))
    gains = np.zeros((blocks, BLOCK + 1), np.float32)
    for _ in range(rng.integers(1, 4)):
        move = np.exp(rng.uniform(0, 0.4) * wander(rng, blocks, period))
        centre = np.clip(log_uniform(rng, 80, 9000) * move, 50, 0.45 * rate)
        width = centre * log_uniform(rng, 0.1, 1.5)
        gains += np.float32(rng.uniform(0.2, 1)) * bands(centre, width, rate)
    gains *= swell[:, None].astype(np.float32)
    out = filtered([(noise(rng, num_samples), gains)], num_samples)
    if rng.random() < 0.6:  # drops or crackles
        per_second = log_uniform(rng, 8, 600)
        hits = np.zeros(num_samples, np.float32)
        count = rng.poisson(per_second * num_samples / rate)
        where = rng.integers(num_samples, size=count)
        hits[where] = rng.exponential(1.0, count) * rng.choice([-1, 1], count)
        size = int(0.02 * rate)
        pitches = log_uniform(rng, 400, 8000, 3)
        decays = log_uniform(rng, 0.0005, 0.006, 3)
        grain = modes(rng, size, pitches, rng.uniform(0.2, 1, 3), decays, rate)
        padded = fft.next_fast_len(num_samples + size, real=True)
        spectrum = fft.rfft(hits, padded) * fft.rfft(grain, padded)
        out += (
            np.float32(log_uniform(rng, 0.1, 3))
            * fft.irfft(spectrum, padded)[:num_samples]
        )
    return out


def machines(rng, num_samples, rate):
    """Motors, fans, hums: periodic pulses and pulsed noise; float32, shape [N]."""
    blocks, second = num_blocks(num_samples), rate / BLOCK
    drift = rng.uniform(-0.3, 0.3) * np.arange(blocks + 1) / second
    drift += rng.choice([0.0, 0.03, 0.15]) * wander(rng, blocks + 1, 0.3 * second)
    pitch = np.clip(log_uniform(rng, 12, 400) * np.exp(drift), 8, 2000)
    now = spread(pitch, num_samples)
    phase = phase_of(now, rate)
    centres = log_uniform(rng, 60, 7000, 4)
    levels = rng.uniform(0.1, 1, 4)
    gains = sum(
        level * bands(np.full(1, centre), np.full(1, 0.4 * centre), rate)
        for level, centre in zip(levels, centres, strict=True)
    )
    pulse = (0.5 + 0.5 * np.cos(phase)) ** np.float32(log_uniform(rng, 0.5, 12))
    hiss = noise(rng, num_samples) * pulse
    tone = harmonics(phase, now, rng.uniform(4, 10), rate)
    load = np.exp(rng.uniform(0, 0.3) * wander(rng, blocks, 0.4 * second))
    gains = gains * load[:, None].astype(np.float32)
    ratio = np.float32(log_uniform(rng, 0.1, 10))
    return filtered([(tone + ratio * hiss, gains.astype(np.float32))], num_samples)
