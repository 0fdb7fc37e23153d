"""Corruptions of recordings, each in three strengths, to test models under.

Their groups are those of Li et al. (arXiv 2503.17577): noise, modification,
compression. The choice of corruptions and the strengths are our own.

A corrupted recording follows from the recording, the seed and the strength alone. A
stronger corruption draws the same numbers as a weaker one: noise begins at the same
place, and the same pieces are lost, and more. All corruptions but `speed` keep the
length, and none moves the sound in time.
"""

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
import torchaudio.functional as F

from encodecmae_sb.bundled import sound_folder, speech_folder
from encodecmae_sb.lobes import Codec
from encodecmae_sb.lobes.augment import read_background
from encodecmae_sb.nnet.draws import hash_seeds, uniform
from encodecmae_sb.nnet.effects import echoes, from_db, in_blocks, make_noise, pieces
from encodecmae_sb.pretrained.codec_files import (
    BUNDLED,
    OFFICIAL,
    checksum,
    official_file,
)
from encodecmae_sb.utils.digests import tensors_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.signal import resample

VERSION = 1  # raise it when a corruption gives other samples than before
GROUPS = ("noise", "modification", "compression")
STRENGTHS = (1, 2, 3)

_BACKGROUND_SECONDS = 300
_TALKERS = 6
_MAINS = 50  # Hz
_HARMONICS = 8
_LOST = SAMPLE_RATE // 50  # samples of a lost piece: 20 ms
_TELEPHONE = 8000  # Hz
_WINDOW = 1024  # samples of the Fourier transform that shifts the pitch
# Quieter parts of the background are not used: pieces of 128 ms, relative to its level.
_GATE = 48, 0.03  # in blocks; as an amplitude
_ROOM_OF_EQUAL_ENERGY = 0.3  # seconds; its echoes have the energy of the direct sound
_MP3_DELAY = 1105  # samples: of LAME 576, of a decoder 529


@dataclass(frozen=True)
class Corruption:
    """A corruption in three strengths.

    Arguments
    ---------
    name : str
        On the command line and in files.
    group : str
        One of `GROUPS`.
    title : str
        In tables.
    values : tuple of float
        From weak to strong.
    label : str
        A value in words, with {} for it.
    apply : callable
        Samples [N], value, seed [1] and `Sounds` -> samples.
    missing : callable, optional
        Returns why it cannot be applied on this machine, or None.
    """

    name: str
    group: str
    title: str
    values: tuple
    label: str
    apply: Callable
    missing: Callable = lambda: None

    def labels(self):
        """The strengths in words, from weak to strong."""
        return [self.label.format(value) for value in self.values]


class Sounds:
    """What is added to recordings, and what they are coded with; made when needed.

    Arguments
    ---------
    noise_folder : str or Path, optional
        Of environmental noise; default: the sounds in this package.
    tested : collection of str or Path
        The recordings under test. None of them is used as noise.
    device : str or torch.device
        Of the neural codecs.
    """

    def __init__(self, noise_folder=None, tested=(), device="cpu"):
        self.own_folder = noise_folder is not None
        self.noise_folder = noise_folder or sound_folder()
        self.tested = {os.path.realpath(path) for path in tested}
        self.device = device

    @functools.cached_property
    def noise(self):
        """White and pink noise, see `make_noise`."""
        return {name: in_blocks(sound) for name, sound in make_noise().items()}

    @functools.cached_property
    def speech(self):
        """Voices in this package."""
        return self._read(speech_folder())

    @functools.cached_property
    def environment(self):
        """Environmental sounds."""
        return self._read(self.noise_folder)

    def _read(self, folder):
        audio = read_background([folder], _BACKGROUND_SECONDS, self.tested)
        blocks = in_blocks(audio)
        length, floor = _GATE
        # Silence must not become the noise of a recording: its SNR could not be met.
        parts = [
            part for part in blocks.split(length) if part.square().mean() > floor**2
        ]
        if not parts:
            raise UserError(
                f"{folder} has no audio for noise: it cannot be read, is silent, is "
                "for validation or test, or is what is tested. Give another folder: "
                "--noise_folder FOLDER"
            )
        return torch.cat(parts)

    @functools.cached_property
    def official_codec(self):
        """EnCodec with the official weights."""
        return Codec(OFFICIAL).to(self.device)

    @functools.cached_property
    def bundled_codec(self):
        """The small codec in this package."""
        return Codec(BUNDLED).to(self.device)

    def lacking(self, name):
        """Why there is nothing of this package for a corruption, or None.

        The sounds of this package may all be under test. A folder that the user gives
        must have audio.
        """
        if name == "environment" and not self.own_folder:
            try:
                _ = self.environment
            except UserError as error:
                return str(error)
        return None

    def key(self, name):
        """A name for what a corruption takes from here; it changes with the files."""
        if name == "bundled_codec":
            return checksum(BUNDLED)
        taken = {"babble": "speech", "environment": "environment"}.get(name)
        if taken is None:
            return ""
        return tensors_key({taken: getattr(self, taken)})[:12]


def corrupt(name, strength, wav, seed, sounds):
    """Corrupts a recording.

    Arguments
    ---------
    name : str
        One of `CORRUPTIONS`.
    strength : int
        1, 2 or 3.
    wav : torch.Tensor
        Samples at 24 kHz in [-1, 1], shape [N].
    seed : int
        Of what is drawn, at least 0.
    sounds : Sounds

    Returns
    -------
    torch.Tensor
        float32, shape [N]; of `speed` shape [N / speed]. Not limited to [-1, 1].

    Example
    -------
    >>> wav = torch.rand(24000) - 0.5
    >>> corrupt("gain", 2, wav, 0, Sounds()).allclose(0.1 * wav)
    True
    """
    corruption = CORRUPTIONS[name]
    value = corruption.values[strength - 1]
    return corruption.apply(wav, value, torch.tensor([seed]), sounds).float()


def add_noise(wav, noise, snr):
    """Adds noise with a ratio of powers, over the whole recording.

    Arguments
    ---------
    wav, noise : torch.Tensor
        Shape [N].
    snr : float
        Power of the recording relative to the noise, in dB.

    Returns
    -------
    torch.Tensor
        Shape [N]; silence stays as it is.

    Example
    -------
    >>> wav, noise = torch.randn(2, 1000)
    >>> ratio = wav.norm() / (add_noise(wav, noise, 20.0) - wav).norm()
    >>> round(ratio.item(), 3)
    10.0
    """
    tiny = torch.finfo(torch.float32).tiny
    gain = wav.norm() / noise.norm().clamp(min=tiny) * from_db(torch.tensor(-snr))
    return wav + gain * noise


def _white(wav, snr, seed, sounds):
    return add_noise(wav, pieces(sounds.noise["white"], seed, 0, len(wav))[0], snr)


def _pink(wav, snr, seed, sounds):
    return add_noise(wav, pieces(sounds.noise["pink"], seed, 0, len(wav))[0], snr)


def _babble(wav, snr, seed, sounds):
    """Several talkers at once."""
    talkers = (pieces(sounds.speech, seed, i, len(wav))[0] for i in range(_TALKERS))
    return add_noise(wav, sum(talkers), snr)


def _environment(wav, snr, seed, sounds):
    return add_noise(wav, pieces(sounds.environment, seed, 0, len(wav))[0], snr)


def _hum(wav, snr, seed, sounds):
    """A power line and its harmonics, each softer than the one before."""
    time = torch.arange(len(wav), dtype=torch.float64) / SAMPLE_RATE
    number = torch.arange(1, _HARMONICS + 1)[:, None]
    phase = uniform(seed, 0, _HARMONICS).T
    tones = (2 * torch.pi * (_MAINS * number * time + phase)).sin() / number
    return add_noise(wav, tones.sum(0).float(), snr)


def _gain(wav, db, seed, sounds):
    return wav * from_db(torch.tensor(db))


def _clipping(wav, percent, seed, sounds):
    """The loudest samples are cut off; silence does not count as samples."""
    heard = wav.abs()[wav != 0].sort().values
    if not len(heard):
        return wav
    limit = heard[int(len(heard) * (1 - percent / 100))].item()
    return wav.clamp(-limit, limit)


def _speed(wav, factor, seed, sounds):
    return resample(wav, round(100 * factor), 100)


def _pitch(wav, semitones, seed, sounds):
    """Stretched in time by a phase vocoder, then as much faster."""
    # torchaudio's pitch_shift resamples by ratios of large numbers, for minutes.
    ratio = 2 ** (semitones / 12)
    hop = _WINDOW // 4
    window = torch.hann_window(_WINDOW)
    padded = torch.nn.functional.pad(wav, (0, max(0, _WINDOW - len(wav))))
    options = {"n_fft": _WINDOW, "hop_length": hop, "window": window}
    spectrum = torch.stft(padded, **options, pad_mode="constant", return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, _WINDOW // 2 + 1)[:, None]
    stretched = torch.istft(F.phase_vocoder(spectrum, 1 / ratio, advance), **options)
    return _cut(resample(stretched, round(1000 * ratio), 1000), len(wav))


def _reverberation(wav, seconds, seed, sounds):
    """Echoes whose energy grows with their duration; power stays as it is."""
    noise = pieces(sounds.noise["white"], seed, 0, int(seconds * SAMPLE_RATE))
    impulse = echoes(noise, torch.tensor([[seconds]]))[0]
    impulse = impulse * (seconds / _ROOM_OF_EQUAL_ENERGY) ** 0.5
    impulse[0] = 1  # what comes directly
    heard = F.fftconvolve(wav, impulse)[: len(wav)]
    tiny = torch.finfo(torch.float32).tiny
    return heard * (wav.norm() / heard.norm().clamp(min=tiny))


def _lowpass(wav, hertz, seed, sounds):
    """Resampling down and up again is a steep filter without delay."""
    return _cut(
        resample(resample(wav, SAMPLE_RATE, 2 * hertz), 2 * hertz, SAMPLE_RATE),
        len(wav),
    )


def _loss(wav, percent, seed, sounds):
    """Pieces of 20 ms become silent, as when packets are lost."""
    count = -(-len(wav) // _LOST)
    order = hash_seeds(seed, torch.arange(count)).argsort()
    kept = torch.ones(count)
    kept[order[: round(count * percent / 100)]] = 0
    return wav * kept.repeat_interleave(_LOST)[: len(wav)]


def _mu_law(wav, bits, seed, sounds):
    """The code of telephones: 8 kHz, logarithmic steps."""
    narrow = resample(wav, SAMPLE_RATE, _TELEPHONE).clamp(-1, 1)
    codes = F.mu_law_encoding(narrow, 2**bits)
    return _cut(
        resample(F.mu_law_decoding(codes, 2**bits), _TELEPHONE, SAMPLE_RATE), len(wav)
    )


def _mp3(wav, rate, seed, sounds):
    """At a constant rate. Level 0 of libsndfile is 160 kbit/s, level 1 is 8."""
    options = {"bitrate_mode": "CONSTANT", "compression_level": (160 - rate) / 152}
    heard = _through_file(
        wav, {"format": "MP3", "subtype": "MPEG_LAYER_III", **options}
    )
    # At low rates a file has no room to state the delay, and a decoder leaves it in.
    return _cut(heard[_MP3_DELAY:] if len(heard) > len(wav) else heard, len(wav))


def _opus(wav, rate, seed, sounds):
    """At a variable rate. Level 0 of libsndfile is 256 kbit/s, level 1 is 6."""
    options = {"compression_level": (256 - rate) / 250}
    heard = _through_file(wav, {"format": "OGG", "subtype": "OPUS", **options})
    return _cut(heard, len(wav))


def _through_file(wav, options):
    """Writes a file to memory, and reads it."""
    file = io.BytesIO()
    soundfile.write(file, wav.clamp(-1, 1).numpy(), SAMPLE_RATE, **options)
    file.seek(0)
    return torch.from_numpy(soundfile.read(file, dtype="float32")[0])


@functools.cache
def _cannot_write(kind, subtype):
    """Why libsndfile of this machine cannot write a format, or None."""
    try:
        options = {"format": kind, "subtype": subtype, "compression_level": 0.5}
        soundfile.write(io.BytesIO(), np.zeros(2400), SAMPLE_RATE, **options)
    except (soundfile.LibsndfileError, ValueError, TypeError):
        version = soundfile.__libsndfile_version__
        return (
            f"libsndfile {version} does not write {subtype}: pip install -U soundfile"
        )
    return None


def _no_mp3():
    return _cannot_write("MP3", "MPEG_LAYER_III")


def _no_opus():
    return _cannot_write("OGG", "OPUS")


def _encodec(wav, rate, seed, sounds):
    return _through_codec(wav, rate, sounds.official_codec)


def _bundled(wav, rate, seed, sounds):
    return _through_codec(wav, rate, sounds.bundled_codec)


def _through_codec(wav, rate, codec):
    """A codebook is 0.75 kbit/s."""
    device = next(codec.buffers()).device
    codes = codec.encode(wav[None].to(device))[..., : round(rate / 0.75)]
    return _cut(codec.decode(codes)[0].cpu(), len(wav))


def _no_official():
    if official_file().is_file():
        return None
    return (
        "its weights (CC BY-NC 4.0) are not on this machine; "
        f'encodecmae_sb.lobes.Codec("{OFFICIAL}") fetches them'
    )


def _cut(wav, samples):
    """A recording of a length: its end is left out, or silence is added."""
    return torch.nn.functional.pad(wav, (0, samples - len(wav)))


_SNRS = (20.0, 10.0, 0.0), "SNR {:.0f} dB"
_RATES, _KBITS = (6.0, 3.0, 1.5), "{} kbit/s"
_CHANGE, _CODE = "modification", "compression"
_ROWS = (
    ("white", "noise", "white noise", *_SNRS, _white),
    ("pink", "noise", "pink noise", *_SNRS, _pink),
    ("babble", "noise", "babble", *_SNRS, _babble),
    ("environment", "noise", "environment", *_SNRS, _environment),
    ("hum", "noise", "mains hum", *_SNRS, _hum),
    ("gain", _CHANGE, "gain", (-10.0, -20.0, -30.0), "{:.0f} dB", _gain),
    ("clipping", _CHANGE, "clipping", (1, 10, 30), "{} % of samples", _clipping),
    ("speed", _CHANGE, "speed", (1.1, 1.25, 1.5), "× {}", _speed),
    ("pitch", _CHANGE, "pitch", (1, 2, 4), "+{} semitones", _pitch),
    (
        "reverberation",
        _CHANGE,
        "reverberation",
        (0.3, 0.6, 1.2),
        "{} s",
        _reverberation,
    ),
    ("lowpass", _CHANGE, "low-pass", (4000, 2000, 1000), "{} Hz", _lowpass),
    ("loss", _CHANGE, "lost pieces", (10, 30, 50), "{} %", _loss),
    ("mp3", _CODE, "MP3", (64, 32, 16), _KBITS, _mp3, _no_mp3),
    ("opus", _CODE, "Opus", (24, 12, 6), _KBITS, _opus, _no_opus),
    ("mu_law", _CODE, "mu-law, 8 kHz", (8, 6, 4), "{} bits", _mu_law),
    ("encodec", _CODE, f"EnCodec, {OFFICIAL}", _RATES, _KBITS, _encodec, _no_official),
    ("bundled_codec", _CODE, "EnCodec, bundled", _RATES, _KBITS, _bundled),
)
CORRUPTIONS = {row[0]: Corruption(*row) for row in _ROWS}


def check_names(names):
    """The corruptions of these names, in the order of `CORRUPTIONS`.

    Arguments
    ---------
    names : list of str or None
        None: all.

    Returns
    -------
    list of Corruption

    Raises
    ------
    UserError
        If there is no such corruption.

    Example
    -------
    >>> [corruption.title for corruption in check_names(["mp3", "white"])]
    ['white noise', 'MP3']
    """
    unknown = [name for name in names or () if name not in CORRUPTIONS]
    if unknown:
        raise UserError(
            f"--corruptions {' '.join(unknown)}: unknown. There are "
            + ", ".join(CORRUPTIONS)
        )
    return [c for name, c in CORRUPTIONS.items() if names is None or name in names]
