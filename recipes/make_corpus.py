#!/usr/bin/env python3
"""Make the synthetic corpus: speech laid out as LibriSpeech, sounds as ESC-50.

The corpus lets every recipe and test of this project run without a download, and
a larger one made by the same script trains the small codec. Speech is spoken by
espeak-ng (sentences of ``sentences.txt`` and strings of digits); sound events and
instrument notes are synthesised with NumPy. The voices, the timbres and the
sentences of the splits train, dev and test are disjoint, whatever the size.

Use::

    python recipes/make_corpus.py OUT
    python recipes/make_corpus.py BIG --train_voices 150 --utterances_per_voice 40 \
        --clips_per_class 150

Result::

    OUT/speech/SPEAKERS.TXT
    OUT/speech/{train,dev,test}/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac  (16 kHz)
    OUT/speech/{train,dev,test}/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt
    OUT/sound/audio/FOLD-CLIP-TAKE-TARGET.flac  (22.05 kHz)
    OUT/sound/meta/sounds.csv
    OUT/README.md

Chapter 1 of a speaker holds sentences, chapter 2 strings of digits. All audio is
mono 16-bit FLAC. The same seed, size and espeak-ng version give the same samples.

espeak-ng is the program, if it is installed, else the library in the Python package
espeakng-loader (``pip install 'encodecmae_sb[espeak]'``; its licence is GPL-3.0).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

SPEECH_RATE = 16000
SOUND_RATE = 22050
SPLITS = ("train", "dev", "test")
FOLDS = 5
UTTERANCES_PER_VOICE = 28
SENTENCE_SHARE = 0.6
MIN_SECONDS, MAX_SECONDS = 1.0, 4.0
SENTENCES = Path(__file__).with_name("sentences.txt")
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()

# First key of each random stream, so that no two kinds of draw share one.
STREAM_SPLIT, STREAM_ORDER, STREAM_DIGITS, STREAM_UTTERANCE = 1, 2, 3, 4
STREAM_VOICE, STREAM_ACCENT, STREAM_CLIP = 5, 6, 7


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng voice ``accent+variant`` with its usual prosody."""

    speaker: int
    split: str
    sex: str
    accent: str
    variant: str
    pitch: int  # espeak-ng units, 0 to 99
    speed: int  # words per minute
    pitch_range: int  # per cent of the variant's own


# The variants of dev and test voices appear in no other split.
BASE_VOICES = (
    Voice(101, "train", "M", "en-gb", "m3", 45, 160, 100),
    Voice(102, "train", "F", "en-us", "f1", 55, 165, 110),
    Voice(103, "train", "M", "en-us", "m1", 40, 170, 90),
    Voice(104, "train", "F", "en-gb", "f3", 50, 160, 120),
    Voice(105, "train", "M", "en-gb-scotland", "m4", 60, 175, 120),
    Voice(106, "train", "F", "en-gb-x-rp", "f4", 45, 170, 100),
    Voice(107, "train", "M", "en-029", "m7", 50, 155, 80),
    Voice(108, "train", "F", "en-us-nyc", "linda", 35, 180, 90),
    Voice(109, "train", "M", "en-gb-x-gbclan", "m8", 35, 165, 110),
    Voice(110, "train", "F", "en-gb-x-gbcwmd", "aunty", 45, 165, 100),
    Voice(9001, "dev", "M", "en-us", "m2", 50, 165, 100),
    Voice(9002, "dev", "F", "en-gb", "f2", 50, 165, 110),
    Voice(9003, "dev", "M", "en-gb-scotland", "m6", 60, 170, 90),
    Voice(9101, "test", "F", "en-us", "f5", 45, 165, 110),
    Voice(9102, "test", "M", "en-gb", "m5", 45, 170, 100),
    Voice(9103, "test", "F", "en-029", "Annie", 55, 160, 100),
)
NUM_BASE_TRAIN = sum(voice.split == "train" for voice in BASE_VOICES)
FIRST_EXTRA_SPEAKER = 111

# Material of the further training voices. Whispers are left out (two of them share
# the formants of held-out variants), and so are aliases of other variants.
EXTRA_VARIANTS = {
    "F": (
        "f1 f3 f4 linda aunty steph Andrea anika belinda steph3 Alicia grandma"
    ).split(),
    "M": (
        "m1 m3 m4 m7 m8 Alex Andy adam antonio benjamin boris david Denis "
        "Diogo ed edward Gene gustave Henrique Hugo iven iven3 Jacky john "
        "kaukovalta klatt klatt2 klatt3 klatt4 Lee marcelo Marco Mario max "
        "Michael michel miguel Mike Nguyen norbert pablo paul pedro quincy "
        "RicishayMax rob robert robosoft3 sandro shelby Storm travis Tweaky "
        "victor zac grandpa croak"
    ).split(),
}
# The languages after the English accents read English words by their own rules.
EXTRA_ACCENTS = (
    "en-gb en-us en-gb-scotland en-gb-x-rp en-029 en-us-nyc en-gb-x-gbclan "
    "en-gb-x-gbcwmd de fr-fr es it nl sv pl pt-br tr fi cs ro hu "
    "da nb id ca hr et"
).split()


@dataclass(frozen=True)
class Utterance:
    """One line of a transcript and the voice that speaks it."""

    voice: Voice
    chapter: int
    index: int
    text: str  # capitals, as in LibriSpeech

    @property
    def id(self) -> str:
        """``SPEAKER-CHAPTER-NNNN``."""
        return f"{self.voice.speaker}-{self.chapter}-{self.index:04d}"

    def folder(self, root: Path) -> Path:
        """The chapter's folder below ``root``."""
        return root / self.voice.split / str(self.voice.speaker) / str(self.chapter)


def stream(*key: int) -> np.random.Generator:
    """Random generator of its own for each key of non-negative integers."""
    return np.random.default_rng(key)


def choose_voices(train_voices: int, seed: int) -> list[Voice]:
    """The base voices of dev and test, and ``train_voices`` training voices."""
    variants = [(name, sex) for sex in "FM" for name in EXTRA_VARIANTS[sex]]
    most = NUM_BASE_TRAIN + len(variants) * len(EXTRA_ACCENTS)
    if not 1 <= train_voices <= most:
        raise ValueError(f"train_voices must be 1 to {most}, not {train_voices}")
    train = [voice for voice in BASE_VOICES if voice.split == "train"][:train_voices]
    order = stream(seed, STREAM_ACCENT).permutation(len(variants))
    for number in range(train_voices - len(train)):
        variant_round, place = divmod(number, len(variants))
        choice = int(order[place])
        variant, sex = variants[choice]
        accents = stream(seed, STREAM_ACCENT, choice).permutation(EXTRA_ACCENTS)
        rng = stream(seed, STREAM_VOICE, number)
        train.append(
            Voice(
                speaker=FIRST_EXTRA_SPEAKER + number,
                split="train",
                sex=sex,
                accent=str(accents[variant_round]),
                variant=variant,
                pitch=int(rng.integers(25, 76)),
                speed=int(rng.integers(140, 191)),
                pitch_range=int(rng.integers(60, 151)),
            )
        )
    return train + [voice for voice in BASE_VOICES if voice.split != "train"]


def split_sentences(seed: int) -> dict[str, list[str]]:
    """The sentences, in capitals: 70 % for train, 15 % each for dev and test."""
    sentences = SENTENCES.read_text(encoding="ascii").upper().splitlines()
    order = stream(seed, STREAM_SPLIT).permutation(len(sentences))
    shuffled = [sentences[i] for i in order]
    dev, test = int(0.70 * len(shuffled)), int(0.85 * len(shuffled))
    parts = shuffled[:dev], shuffled[dev:test], shuffled[test:]
    return dict(zip(SPLITS, parts, strict=True))


def draw_digits(rng: np.random.Generator) -> str:
    """Three to six spelled-out digits, such as ``FOUR ZERO NINE``."""
    return " ".join(DIGITS[d] for d in rng.integers(0, 10, rng.integers(3, 7)))


def plan_speech(
    voices: list[Voice], utterances_per_voice: int, seed: int
) -> list[Utterance]:
    """What each voice says. Dev and test voices speak the default number of times."""
    sentences = split_sentences(seed)
    spoken = dict.fromkeys(SPLITS, 0)
    utterances = []
    for voice in voices:
        train = voice.split == "train"
        total = utterances_per_voice if train else UTTERANCES_PER_VOICE
        num_sentences = round(SENTENCE_SHARE * total)
        own = sentences[voice.split]
        for index in range(num_sentences):
            # Each sentence of the split is used once before any is used again.
            cycle, place = divmod(spoken[voice.split], len(own))
            key = (seed, STREAM_ORDER, SPLITS.index(voice.split), cycle)
            text = own[stream(*key).permutation(len(own))[place]]
            utterances.append(Utterance(voice, 1, index, text))
            spoken[voice.split] += 1
        for index in range(total - num_sentences):
            rng = stream(seed, STREAM_DIGITS, voice.speaker, index)
            utterances.append(Utterance(voice, 2, index, draw_digits(rng)))
    return utterances


def espeak() -> list[str]:
    """What runs espeak-ng: the program, or Python with the library."""
    if shutil.which("espeak-ng") is not None:
        return ["espeak-ng"]
    if importlib.util.find_spec("espeakng_loader") is not None:
        return [sys.executable, str(Path(__file__).with_name("espeak.py"))]
    raise SystemExit(
        "make_corpus: espeak-ng is not installed; fix: pip install espeakng-loader, "
        "or apt-get install espeak-ng"
    )


def speak(
    text: str, voice: str, pitch: int, speed: int, pitch_range: int
) -> np.ndarray:
    """Speech by espeak-ng: float32 samples at 16 kHz, shape (time,)."""
    # Lower case: espeak-ng spells some words in capitals letter by letter.
    ssml = f'<prosody range="{pitch_range}%">{text.lower()}</prosody>'
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = [*espeak(), "-m", "-v", voice, "-p", str(pitch), "-s", str(speed)]
        subprocess.run([*command, "-w", str(wav), ssml], check=True)
        samples, rate = soundfile.read(wav, dtype="float32")
    resampled = torchaudio.functional.resample(
        torch.from_numpy(samples), rate, SPEECH_RATE
    )
    return resampled.numpy()


def trim_silence(samples: np.ndarray, margin: float = 0.05) -> np.ndarray:
    """Keep at most ``margin`` seconds around what is above 1 % of the peak."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    if not loud.size:
        raise ValueError("espeak-ng returned silence")
    keep = int(margin * SPEECH_RATE)
    return samples[max(loud[0] - keep, 0) : loud[-1] + 1 + keep]


def make_utterance(utterance: Utterance, root: Path, seed: int) -> float:
    """Speak one utterance into its file and return its length in seconds."""
    voice = utterance.voice
    rng = stream(
        seed, STREAM_UTTERANCE, voice.speaker, utterance.chapter, utterance.index
    )
    pitch = int(np.clip(voice.pitch + rng.integers(-5, 6), 0, 99))
    speed = voice.speed * rng.uniform(0.92, 1.08)
    peak = rng.uniform(0.2, 0.8)
    name = f"{voice.accent}+{voice.variant}"
    for _ in range(4):
        samples = speak(utterance.text, name, pitch, round(speed), voice.pitch_range)
        samples = trim_silence(samples)
        seconds = len(samples) / SPEECH_RATE
        if MIN_SECONDS <= seconds <= MAX_SECONDS:
            break
        speed *= 1.25 if seconds > MAX_SECONDS else 0.8
    samples = samples * (peak / np.abs(samples).max())
    write_flac(utterance.folder(root) / f"{utterance.id}.flac", samples, SPEECH_RATE)
    return seconds


def write_flac(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write mono samples, shape (time,), as 16-bit FLAC in its smallest form."""
    # FLAC does not store low bits that are zero in a whole block: 12 bits, still
    # some 60 dB below the speech, take little more than half the space of 16.
    samples = np.round(samples * 2**11) / 2**11
    soundfile.write(
        path, samples, rate, format="FLAC", subtype="PCM_16", compression_level=1.0
    )


def write_transcripts(utterances: list[Utterance], root: Path) -> None:
    """One ``SPEAKER-CHAPTER.trans.txt`` in each chapter's folder."""
    lines: dict[Path, list[str]] = {}
    for utterance in utterances:
        name = f"{utterance.voice.speaker}-{utterance.chapter}.trans.txt"
        path = utterance.folder(root) / name
        lines.setdefault(path, []).append(f"{utterance.id} {utterance.text}\n")
    for path, text in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(text), encoding="ascii")


def write_speakers(
    utterances: list[Utterance], seconds: list[float], path: Path
) -> None:
    """LibriSpeech's list of speakers; the name is the espeak-ng voice."""
    totals: dict[Voice, float] = {}
    for utterance, length in zip(utterances, seconds, strict=True):
        totals[utterance.voice] = totals.get(utterance.voice, 0.0) + length
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for voice, total in totals.items():
        lines.append(
            f"{voice.speaker:<4} | {voice.sex} | {voice.split:<16} "
            f"| {total / 60:5.2f} | {voice.accent}+{voice.variant}\n"
        )
    path.write_text("".join(lines), encoding="ascii")


def noise(
    rng: np.random.Generator, n: int, low: float, high: float, slope: float = 0.0
) -> np.ndarray:
    """Noise between ``low`` and ``high`` Hz, falling as f**-slope; unit RMS, (n,)."""
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SOUND_RATE), 10.0)
    gain = frequency**-slope / (1 + (low / frequency) ** 4)
    gain /= 1 + (frequency / high) ** 4
    shaped = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * gain, n)
    return shaped / np.sqrt(np.mean(shaped**2))


def modes(rng: np.random.Generator, n: int, frequency, level, decay) -> np.ndarray:
    """Sum of decaying sinusoids, shape (n,).

    ``frequency`` (Hz), ``level`` and ``decay`` (seconds to 1/e) have one entry per
    mode, shape (modes,).
    """
    time = np.arange(n) / SOUND_RATE
    out = np.zeros(n)
    for f, a, d in zip(*np.broadcast_arrays(frequency, level, decay), strict=True):
        if f < 0.45 * SOUND_RATE:
            phase = rng.uniform(0, 2 * np.pi)
            out += a * np.exp(-time / d) * np.sin(2 * np.pi * f * time + phase)
    return out


def harmonics(frequency: np.ndarray, level: Iterable[float]) -> np.ndarray:
    """Harmonic tone whose pitch follows ``frequency`` in Hz, shape (n,)."""
    phase = 2 * np.pi * np.cumsum(frequency) / SOUND_RATE
    out = np.zeros(len(frequency))
    for k, a in enumerate(level, start=1):
        out += a * np.sin(k * phase) * (k * frequency < 0.45 * SOUND_RATE)
    return out


def place(out: np.ndarray, event: np.ndarray, start: float) -> None:
    """Add ``event`` to ``out`` from ``start`` seconds on, cut at the end."""
    first = int(start * SOUND_RATE)
    event = event[: max(len(out) - first, 0)]
    out[first : first + len(event)] += event


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A value in [low, high], uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def dog(rng: np.random.Generator, n: int) -> np.ndarray:
    """One to three barks: a rough harmonic yelp that rises and falls."""
    out = np.zeros(n)
    base = log_uniform(rng, 220, 700)
    formants = rng.uniform([500, 1300], [1000, 2600])
    start = rng.uniform(0.0, 0.1)
    for _ in range(rng.integers(1, 4)):
        size = int(rng.uniform(0.12, 0.28) * SOUND_RATE)
        u = np.arange(size) / size
        pitch = base * rng.uniform(0.9, 1.1) * (0.7 + 0.5 * np.sin(np.pi * u**0.6))
        pitch *= 1 + 0.03 * noise(rng, size, 30, 120)
        k = np.arange(1, 25)[:, None] * base
        level = (1 / (1 + ((k - formants) / 350) ** 2)).sum(1)
        bark = harmonics(pitch, level)
        bark /= np.abs(bark).max()
        bark += rng.uniform(0.05, 0.2) * noise(rng, size, 500, 3000)
        place(out, np.tanh(2 * bark) * u**0.3 * (1 - u) ** 1.2, start)
        start += size / SOUND_RATE + rng.uniform(0.08, 0.4)
    return out


def siren(rng: np.random.Generator, n: int) -> np.ndarray:
    """A wail, a fast yelp or a two-tone horn."""
    time = np.arange(n) / SOUND_RATE
    low = log_uniform(rng, 400, 800)
    ratio = rng.uniform(1.3, 2.2)
    kind = rng.integers(3)
    rate = rng.uniform(*((0.4, 1.2), (2.5, 5.0), (0.8, 1.8))[kind])
    sweep = np.sin(2 * np.pi * (rate * time + rng.uniform()))
    # The horn switches between its two tones within some 10 ms.
    sweep = np.tanh(sweep * 40 / rate) if kind == 2 else sweep
    level = rng.uniform(0.3, 1.0, 12) / np.arange(1, 13) ** rng.uniform(0.8, 2.5)
    return harmonics(low * ratio ** (0.5 + 0.5 * sweep), level)


def rain(rng: np.random.Generator, n: int) -> np.ndarray:
    """Steady hiss with many single drops."""
    out = noise(rng, n, rng.uniform(300, 1000), rng.uniform(4000, 9000), 0.5)
    out *= rng.uniform(0.1, 0.4) * (1 + 0.2 * noise(rng, n, 0.5, 4))
    for _ in range(rng.poisson(log_uniform(rng, 40, 300) * n / SOUND_RATE)):
        pitch = log_uniform(rng, 1500, 8000)
        drop = modes(rng, 600, [pitch], [rng.exponential(0.8)], [0.002])
        place(out, drop, rng.uniform(0, n / SOUND_RATE))
    return out


def knock(rng: np.random.Generator, n: int) -> np.ndarray:
    """Knuckles on wood or steps on a floor: a row of short dull thuds."""
    out = np.zeros(n)
    pitch = log_uniform(rng, 90, 400) * np.array([1, 1.6, 2.3, 3.4, 5.1])
    pitch *= rng.uniform(0.9, 1.1, 5)
    level = rng.uniform(0.3, 1.0, 5) / np.arange(1, 6)
    decay = log_uniform(rng, 0.015, 0.05) / np.arange(1, 6) ** 0.5
    gap = log_uniform(rng, 0.16, 0.5)
    start = rng.uniform(0.0, 0.2)
    while start < n / SOUND_RATE - 0.1:
        thud = modes(rng, 6000, pitch * rng.uniform(0.97, 1.03), level, decay)
        thud[:200] += rng.uniform(0.1, 0.4) * noise(rng, 200, 400, 4000)
        place(out, thud * rng.uniform(0.5, 1.0), start)
        start += gap * rng.uniform(0.85, 1.15)
    return out


def clock(rng: np.random.Generator, n: int) -> np.ndarray:
    """Ticks and tocks: very short bright clicks, evenly spaced."""
    out = np.zeros(n)
    pitch = log_uniform(rng, 1800, 5000) * np.array([1, 1.47, 2.09])
    tock = rng.uniform(0.7, 1.0)
    decay = log_uniform(rng, 0.002, 0.008)
    gap = log_uniform(rng, 0.2, 0.55)
    start = rng.uniform(0.0, gap)
    count = 0
    while start < n / SOUND_RATE:
        ratio = tock if count % 2 else 1.0
        click = modes(rng, 1500, pitch * ratio, [1, 0.6, 0.3], decay)
        place(out, click * rng.uniform(0.85, 1.0), start)
        place(out, 0.4 * click, start + 0.012)
        start += gap
        count += 1
    return out


def birds(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two to eight whistled chirps with a sweep and a trill."""
    out = np.zeros(n)
    base = log_uniform(rng, 2000, 5000)
    sweep, curve = rng.uniform(-0.5, 0.5, 2)
    trill, depth = rng.uniform(15, 60), rng.uniform(0.0, 0.12)
    length, gap = rng.uniform(0.06, 0.25), rng.uniform(0.04, 0.25)
    start = rng.uniform(0.0, 0.2)
    for _ in range(rng.integers(2, 9)):
        size = int(length * rng.uniform(0.8, 1.2) * SOUND_RATE)
        u = np.arange(size) / size
        octave = sweep * (u - 0.5) + curve * 4 * (u - 0.5) ** 2
        octave += depth * np.sin(2 * np.pi * trill * u * size / SOUND_RATE)
        chirp = harmonics(base * rng.uniform(0.95, 1.05) * 2**octave, [1, 0.15, 0.05])
        place(out, chirp * np.sin(np.pi * u) * rng.uniform(0.5, 1.0), start)
        start += size / SOUND_RATE + gap * rng.uniform(0.7, 1.3)
    return out


def plucked_string(rng: np.random.Generator, n: int) -> np.ndarray:
    """A guitar-like note; high harmonics die first, and are slightly sharp."""
    pitch = 440 * 2 ** ((rng.integers(40, 77) - 69) / 12)
    k = np.arange(1, 41)
    frequency = k * pitch * np.sqrt(1 + log_uniform(rng, 1e-5, 3e-4) * k**2)
    # A string plucked at this share of its length lacks the modes with a node there.
    level = np.abs(np.sin(np.pi * k * rng.uniform(0.08, 0.4))) / k ** rng.uniform(1, 2)
    decay = rng.uniform(0.3, 1.2) / (1 + rng.uniform(0.05, 0.3) * (k - 1))
    out = np.zeros(n)
    note = modes(rng, n, frequency, level, decay)
    note[:300] += 0.05 * noise(rng, 300, 800, 5000) * np.linspace(1, 0, 300)
    place(out, note, rng.uniform(0.0, 0.15))
    return out


def flute(rng: np.random.Generator, n: int) -> np.ndarray:
    """A blown note: few harmonics, soft attack, vibrato and some breath."""
    out = np.zeros(n)
    size = int(n * rng.uniform(0.7, 0.95))
    time = np.arange(size) / SOUND_RATE
    pitch = 440 * 2 ** ((rng.integers(60, 92) - 69) / 12)
    wave = np.sin(2 * np.pi * (rng.uniform(4, 6.5) * time + rng.uniform()))
    wave *= np.clip((time - 0.15) / 0.3, 0, 1)
    fall = rng.uniform(0.2, 0.6) ** np.arange(6) * rng.uniform(0.5, 1.5, 6)
    note = harmonics(pitch * (1 + rng.uniform(0.002, 0.012) * wave), fall)
    note *= 1 + rng.uniform(0.05, 0.25) * wave
    note += log_uniform(rng, 0.01, 0.05) * noise(rng, size, pitch, 3 * pitch)
    attack, release = rng.uniform(0.04, 0.15), rng.uniform(0.05, 0.2)
    note *= np.clip(time / attack, 0, 1) * np.clip((time[-1] - time) / release, 0, 1)
    place(out, note, rng.uniform(0.0, 0.05))
    return out


def bell(rng: np.random.Generator, n: int) -> np.ndarray:
    """A struck bell, bar or glass: inharmonic partials that ring on."""
    ratios = (
        (0.5, 1, 1.2, 1.5, 2, 2.51, 2.67, 3.01, 4.17),
        (1, 2.76, 5.4, 8.93),
        (1, 3.98, 9.1),
        (1, 2.32, 4.25, 6.63, 9.38),
    )[rng.integers(4)]
    pitch = 440 * 2 ** ((rng.integers(62, 92) - 69) / 12)
    frequency = pitch * np.array(ratios) * rng.uniform(0.99, 1.01, len(ratios))
    level = rng.uniform(0.2, 1.0, len(ratios)) / np.arange(1, len(ratios) + 1) ** 0.7
    decay = rng.uniform(0.25, 1.0) * (pitch / frequency) ** rng.uniform(0.3, 0.9)
    out = np.zeros(n)
    place(out, modes(rng, n, frequency, level, decay), rng.uniform(0.0, 0.15))
    return out


def engine(rng: np.random.Generator, n: int) -> np.ndarray:
    """A motor: low irregular harmonics of the firing rate, and pulsed noise."""
    time = np.arange(n) / SOUND_RATE
    rate = log_uniform(rng, 18, 70) * (1 + rng.uniform(-0.25, 0.35) * time)
    rate *= 1 + 0.02 * noise(rng, n, 1, 12)
    k = np.arange(1, 81)
    level = rng.uniform(0.2, 1.0, 80) / (1 + (k / rng.uniform(4, 15)) ** 2)
    pulse = 0.5 + 0.5 * np.sin(2 * np.pi * np.cumsum(rate) / SOUND_RATE)
    hiss = noise(rng, n, 100, rng.uniform(800, 2500), 0.5) * pulse**2
    tone = harmonics(rate, level)
    return tone / np.abs(tone).max() + rng.uniform(0.05, 0.2) * hiss


# ESC-50's name where it has the class; whether ESC-10 has it; the synthesiser.
CLASSES: tuple[tuple[str, bool, Callable], ...] = (
    ("dog", True, dog),
    ("siren", False, siren),
    ("rain", True, rain),
    ("door_wood_knock", False, knock),
    ("clock_tick", True, clock),
    ("chirping_birds", False, birds),
    ("plucked_string", False, plucked_string),
    ("flute", False, flute),
    ("bell", False, bell),
    ("engine", False, engine),
)


def add_room(rng: np.random.Generator, dry: np.ndarray) -> np.ndarray:
    """Light reverberation of a random room, shape (n,) to (n,)."""
    size = int(0.3 * SOUND_RATE)
    tail = np.exp(-np.arange(size) / (rng.uniform(0.01, 0.06) * SOUND_RATE))
    tail *= rng.standard_normal(size)
    response = rng.uniform(0.0, 0.3) * tail / np.sqrt(np.sum(tail**2))
    response[0] += 1.0
    length = len(dry) + size
    spectrum = np.fft.rfft(dry, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[: len(dry)]


def make_clip(target: int, index: int, folder: Path, seed: int) -> dict:
    """Synthesise one clip and return its row of the csv, with its length."""
    category, esc10, synthesise = CLASSES[target]
    rng = stream(seed, STREAM_CLIP, target, index)
    n = int(rng.uniform(1.0, 1.8) * SOUND_RATE)
    samples = add_room(rng, synthesise(rng, n))
    # A clip may be cut while it sounds: fade the cut, over 10 ms.
    samples[-220:] *= np.linspace(1, 0, 220)
    samples *= log_uniform(rng, 0.15, 0.8) / np.abs(samples).max()
    slope = rng.uniform(0.5, 1.0)
    samples += log_uniform(rng, 1e-4, 8e-4) * noise(rng, n, 50, 8000, slope)
    fold, clip = index % FOLDS + 1, 100000 + 1000 * target + index
    name = f"{fold}-{clip}-A-{target}.flac"
    write_flac(folder / name, samples, SOUND_RATE)
    return {
        "filename": name,
        "fold": fold,
        "target": target,
        "category": category,
        "esc10": esc10,
        "src_file": clip,
        "take": "A",
        "seconds": n / SOUND_RATE,
    }


def write_sound_table(rows: list[dict], path: Path) -> None:
    """The clips in ESC-50's columns and order."""
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.DictWriter(
            file, columns, extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["filename"]))


def call(job: tuple) -> object:
    """Call ``job[0]`` with the rest; one argument, as a process pool passes."""
    return job[0](*job[1:])


def run_jobs(jobs: list[tuple], label: str) -> list:
    """Results of the jobs, in order, from one process per core."""
    workers = os.cpu_count() or 1
    with multiprocessing.Pool(workers, torch.set_num_threads, (1,)) as pool:
        results = pool.imap(call, jobs, chunksize=8)
        return list(tqdm(results, desc=label, total=len(jobs), mininterval=1.0))


def make_speech(
    root: Path, train_voices: int, utterances_per_voice: int, seed: int
) -> dict[str, tuple[int, int, float]]:
    """Make the speech; return (voices, utterances, seconds) of each split."""
    voices = choose_voices(train_voices, seed)
    utterances = plan_speech(voices, utterances_per_voice, seed)
    write_transcripts(utterances, root)
    jobs = [(make_utterance, utterance, root, seed) for utterance in utterances]
    seconds = run_jobs(jobs, "speech")
    write_speakers(utterances, seconds, root / "SPEAKERS.TXT")
    figures = {}
    pairs = list(zip(utterances, seconds, strict=True))
    for split in SPLITS:
        lengths = [s for utterance, s in pairs if utterance.voice.split == split]
        count = sum(voice.split == split for voice in voices)
        figures[split] = (count, len(lengths), sum(lengths))
    return figures


def make_sounds(root: Path, clips_per_class: int, seed: int) -> dict[str, float]:
    """Make the sounds; return the seconds of each class."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    jobs = [
        (make_clip, target, index, root / "audio", seed)
        for target in range(len(CLASSES))
        for index in range(clips_per_class)
    ]
    rows = run_jobs(jobs, "sound")
    write_sound_table(rows, root / "meta" / "sounds.csv")
    figures = {name: 0.0 for name, _, _ in CLASSES}
    for row in rows:
        figures[row["category"]] += row["seconds"]
    return figures


README = """# Synthetic corpus

Speech in the layout of LibriSpeech and sounds in the layout of ESC-50, made by
this project so that its recipes and tests run without a download. It is no
substitute for recorded audio: results on it say that the code works, not how well
a model does on real corpora.

## Speech (`speech/`)

{speech_minutes:.1f} minutes, {speech_mb:.1f} MB, 16 kHz mono 16-bit FLAC.

| split | voices | utterances | minutes |
|---|---|---|---|
{speech_rows}

Voices, timbres and sentences of the splits are disjoint. Chapter 1 of a speaker
holds sentences, chapter 2 strings of three to six digits. `SPEAKERS.TXT` names the
voice of each speaker.

## Sounds (`sound/`)

{sound_minutes:.1f} minutes, {sound_mb:.1f} MB, 22.05 kHz mono 16-bit FLAC;
{clips_per_class} clips of each class, spread evenly over {folds} folds. The classes,
in the order of their targets:
{classes}.

## How it was made

    {command}

The speech was spoken by {version}, the sentences are those of
`recipes/sentences.txt`, written for this project, and the sounds were synthesised
with NumPy. The same command and espeak-ng version give the same samples.

## Licence

This project synthesised all of it; espeak-ng is only the tool. The corpus is
offered under the project's own licence, Apache-2.0.
"""


def megabytes(folder: Path) -> float:
    """Size of all files below ``folder`` in MB (10**6 bytes)."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def write_readme(
    args: argparse.Namespace, version: str, speech: dict, sounds: dict
) -> None:
    """Describe the corpus with the figures of what was made."""
    speech_rows = [
        f"| {split} | {voices} | {count} | {seconds / 60:.1f} |"
        for split, (voices, count, seconds) in speech.items()
    ]
    options = ("seed", "train_voices", "utterances_per_voice", "clips_per_class")
    text = README.format(
        speech_minutes=sum(seconds for _, _, seconds in speech.values()) / 60,
        speech_mb=megabytes(args.out / "speech"),
        speech_rows="\n".join(speech_rows),
        sound_minutes=sum(sounds.values()) / 60,
        sound_mb=megabytes(args.out / "sound"),
        classes=", ".join(sounds),
        clips_per_class=args.clips_per_class,
        folds=FOLDS,
        command=" \\\n        ".join(
            ["python recipes/make_corpus.py OUT"]
            + [f"--{option} {getattr(args, option)}" for option in options]
        ),
        version=version,
    )
    (args.out / "README.md").write_text(text, encoding="utf-8")


def espeak_version() -> str:
    """Name and version of the installed espeak-ng, such as ``eSpeak NG 1.51``."""
    command = [*espeak(), "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    version = shown.stdout.split("text-to-speech:")[1].split()[0]
    return f"eSpeak NG {version}"


def prepare_folder(out: Path, force: bool) -> None:
    """Create ``out``; refuse a non-empty one unless ``force`` clears our files."""
    if force:
        shutil.rmtree(out / "speech", ignore_errors=True)
        shutil.rmtree(out / "sound", ignore_errors=True)
        (out / "README.md").unlink(missing_ok=True)
    elif out.exists() and any(out.iterdir()):
        raise SystemExit(
            f"make_corpus: {out} is not empty; --force replaces its speech/, sound/ "
            "and README.md"
        )
    out.mkdir(parents=True, exist_ok=True)


def parse_args() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description="Make the synthetic corpus of speech and sounds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make it in")
    for option, default, text in (
        ("--train_voices", NUM_BASE_TRAIN, "voices of train (dev and test: 3 each)"),
        (
            "--utterances_per_voice",
            UTTERANCES_PER_VOICE,
            f"utterances of each train voice (dev and test: {UTTERANCES_PER_VOICE})",
        ),
        ("--clips_per_class", 20, f"sounds of each class, a multiple of {FOLDS}"),
        ("--seed", 0, "seed of every draw"),
    ):
        parser.add_argument(option, type=int, default=default, help=text)
    parser.add_argument(
        "--force", action="store_true", help="replace an earlier corpus in OUT"
    )
    args = parser.parse_args()
    if min(args.seed, args.utterances_per_voice - 1, args.train_voices - 1) < 0:
        parser.error("--seed must be at least 0, voices and utterances at least 1")
    if args.clips_per_class % FOLDS or not 0 < args.clips_per_class <= 1000:
        parser.error(f"--clips_per_class must be a multiple of {FOLDS} up to 1000")
    return args


def main() -> None:
    """Make the corpus that the command line asks for."""
    args = parse_args()
    version = espeak_version()
    prepare_folder(args.out, args.force)
    speech = make_speech(
        args.out / "speech", args.train_voices, args.utterances_per_voice, args.seed
    )
    sounds = make_sounds(args.out / "sound", args.clips_per_class, args.seed)
    write_readme(args, version, speech, sounds)
    print((args.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
