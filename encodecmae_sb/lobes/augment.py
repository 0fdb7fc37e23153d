"""What the model hears in training in place of the clean audio.

Shapes: B items, N samples, F frequencies.
"""

import hashlib
import math
import os

import numpy as np
import torch
from torch import nn

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.manifest import check_folders, part_named, training_files
from encodecmae_sb.nnet.draws import hash_seeds, uniform
from encodecmae_sb.nnet.effects import (
    BLOCK,
    echoes,
    from_db,
    in_blocks,
    make_noise,
    pieces,
    rms,
)
from encodecmae_sb.nnet.level import FLOOR, measure_levels
from encodecmae_sb.nnet.masking import frame_mask
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.values import is_number

# Turns an item's seed, which its mask is drawn from, into another one.
_OWN_SEEDS = -1
# Numbers of the draws of each effect. So one is drawn alike with the others or without.
_LEVEL, _EQUALISER, _ROOM, _NOISE, _BACKGROUND = range(0, 100, 20)

# The equaliser's gains are drawn at these frequencies and joined by straight lines over
# the logarithm of the frequency.
_BANDS = 62.5 * 2.0 ** torch.arange(8)  # Hz, to 8 kHz
_EQUALISER_SAMPLES = 4096  # length of the filter, half of it before the sound
_QUIETEST_ROOM = 15.0  # dB by which what comes directly is louder than all echoes
_LONGEST = 10  # seconds that are taken of a file for the background


class InputAugment(nn.Module):
    """Level, equaliser, room, noise, and another voice or sound in the background.

    For the key `input_augment` of a pretraining. Each effect is applied to an item with
    its probability; 0 switches it off. What is drawn follows from the item's seed
    alone: it depends neither on the other items of the batch nor on the number of
    processes, and a resumed run hears the same. For this reason the background does not
    come from the batch, whose items are others with other numbers of processes.

    In this order:

    * equaliser: a smooth filter without delay; a gain for each octave.
    * room: the echoes of an exponentially decaying noise are added.
      (Neither of the two changes the power of an item.)
    * noise: between white and pink.
    * background: a piece of the background audio.
    * level: a gain.

    Arguments
    ---------
    level_probability : float
    level_db : float
        The gain is between -level_db and level_db.
    equaliser_probability : float
    equaliser_db : float
        Gains of the octaves are between -equaliser_db and equaliser_db.
    room_probability : float
    room_seconds : list of float
        Shortest and longest time in which echoes fall by 60 dB. What directly comes is
        louder than they are, by 0 to 15 dB.
    noise_probability : float
    noise_snr : list of float
        Least and greatest power of the item relative to the noise, in dB.
    background_probability : float
    background_snr : list of float
        As `noise_snr`; the audio of the background counts with the level of its file.
    background : str, Path or list of them, optional
        Folders of voices and sounds, such as the data folder of the pretraining. What
        a pretraining on them validates on is left out, and so are parts for the test.
        Default: the small corpus in this package.
    background_seconds : float
        So much of it is kept in memory (300 s: 29 MB), from files drawn from the
        folders, of each at most 10 s.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no audio in it.
    UserError
        If none of the audio can be used, or an argument has no meaning.

    Example
    -------
    >>> augment = InputAugment(background_seconds=3)
    >>> wavs, lengths = 0.1 * torch.randn(2, 24000), torch.tensor([24000, 9000])
    >>> heard = augment(wavs, lengths, torch.tensor([1, 2]))
    >>> bool((heard[1, 9000:] == 0).all())
    True
    """

    def __init__(
        self,
        level_probability=1.0,
        level_db=10.0,
        equaliser_probability=0.5,
        equaliser_db=6.0,
        room_probability=0.3,
        room_seconds=(0.1, 0.5),
        noise_probability=0.5,
        noise_snr=(5.0, 30.0),
        background_probability=0.3,
        background_snr=(0.0, 20.0),
        background=None,
        background_seconds=300,
    ):
        super().__init__()
        self.level_probability = level_probability
        self.level_db = level_db
        self.equaliser_probability = equaliser_probability
        self.equaliser_db = equaliser_db
        self.room_probability = room_probability
        self.room_seconds = room_seconds
        self.noise_probability = noise_probability
        self.noise_snr = noise_snr
        self.background_probability = background_probability
        self.background_snr = background_snr
        self.background_seconds = background_seconds
        for name, value in vars(self).items():
            if not name.startswith("_") and name != "training":
                _check(name, value)
        audio = torch.zeros(BLOCK)
        if background_probability:
            folders = corpus_folders() if background is None else background
            audio = read_background(folders, background_seconds)
            if not len(audio):
                raise UserError(
                    f"background={folders} has no audio that can be used: it cannot be "
                    "read, is silent, or is for validation and test. Give other "
                    "folders, or background_probability: 0"
                )
        for name, sound in {"background": audio, **make_noise()}.items():
            self.register_buffer(name, in_blocks(sound), persistent=False)

    def fingerprint(self):
        """A digest of the background audio, for the identity of a run."""
        return hashlib.sha256(self.background.cpu().numpy().tobytes()).hexdigest()[:12]

    @torch.no_grad()
    def forward(self, wavs, lengths, seeds):
        """Alters a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at 24 kHz, zero after each item's end, shape [B, N].
        lengths : torch.Tensor
            Samples of each item, int64, shape [B].
        seeds : torch.Tensor
            A seed per item, int64, shape [B].

        Returns
        -------
        torch.Tensor
            Shape [B, N].
        """
        seeds, samples = hash_seeds(seeds, _OWN_SEEDS), wavs.shape[1]
        valid = frame_mask(lengths, samples).to(wavs.dtype)
        level = rms(wavs, lengths)
        heard = wavs.clone()
        if self.equaliser_probability or self.room_probability:
            heard = self._filtered(wavs, valid, lengths, level, seeds)
        if self.noise_probability:
            gain = level * self._factor("noise", _NOISE, seeds)
            # White and pink, of random shares of the power.
            angle = math.pi / 2 * uniform(seeds, _NOISE + 2, 1)
            shares = angle.cos(), angle.sin()
            for number, sound in enumerate((self.white, self.pink)):
                added = pieces(sound, seeds, _NOISE + 3 + number, samples)
                heard.addcmul_(gain * shares[number], added)
        if self.background_probability:
            gain = level * self._factor("background", _BACKGROUND, seeds)
            added = pieces(self.background, seeds, _BACKGROUND + 2, samples)
            heard.addcmul_(gain, added)
        if self.level_probability:
            chosen, at = uniform(seeds, _LEVEL, 2).split(1, dim=1)
            gain = from_db(self.level_db * (2 * at - 1))
            heard.mul_(torch.where(chosen < self.level_probability, gain, 1.0))
        return heard.mul_(valid)

    def _factor(self, effect, first, seeds):
        """Amplitude of what is added, relative to the item's, [B, 1]."""
        chosen, at = uniform(seeds, first, 2).split(1, dim=1)
        low, high = getattr(self, f"{effect}_snr")
        factor = from_db(-(low + (high - low) * at))
        return factor * (chosen < getattr(self, f"{effect}_probability"))

    def _filtered(self, wavs, valid, lengths, level, seeds):
        """Through an equaliser and into a room; one Fourier transform for both."""
        samples = wavs.shape[1]
        tail = int(self.room_seconds[1] / 2 * SAMPLE_RATE)  # to -30 dB
        # A multiple of a power of two, for speed. It leaves room for all that lasts
        # longer than the item, so what is heard does not depend on the size.
        size = -(-(samples + tail + _EQUALISER_SAMPLES // 2) // 4096) * 4096
        spectrum = torch.fft.rfft(wavs, size)
        changed = torch.zeros_like(level, dtype=torch.bool)
        if self.equaliser_probability:
            chosen = uniform(seeds, _EQUALISER, 1) < self.equaliser_probability
            spectrum.mul_(self._equaliser(size, seeds))
            changed = changed | chosen
        if self.room_probability:
            chosen = uniform(seeds, _ROOM, 1) < self.room_probability
            impulse = self._echoes(tail, seeds) * chosen
            impulse[:, 0] = 1  # what comes directly
            spectrum.mul_(torch.fft.rfft(impulse, size))
            changed = changed | chosen
        heard = torch.fft.irfft(spectrum, size)[:, :samples].mul_(valid)
        tiny = torch.finfo(torch.float32).tiny
        heard.mul_(level / rms(heard, lengths).clamp(min=tiny))
        return torch.where(changed, heard, wavs)

    def _equaliser(self, size, seeds):
        """Spectrum of a filter without delay [B, F]: all 1 where it was not chosen.

        The filter has a fixed length. So `size` changes nothing that is heard.
        """
        draws = uniform(seeds, _EQUALISER, 1 + len(_BANDS))
        gains = self.equaliser_db * (2 * draws[:, 1:] - 1)
        gains = gains * (draws[:, :1] < self.equaliser_probability)
        middle = _EQUALISER_SAMPLES // 2
        frequency = torch.linspace(0, SAMPLE_RATE / 2, middle + 1, device=seeds.device)
        place = (frequency.clamp(min=1) / _BANDS[0].item()).log2()
        place = place.clamp(min=0, max=len(_BANDS) - 1)
        bands = torch.arange(len(_BANDS), device=seeds.device)[:, None]
        hats = (1 - (place - bands).abs()).clamp(min=0)  # [bands, frequencies]
        impulse = torch.fft.irfft(from_db(gains @ hats), _EQUALISER_SAMPLES)
        # What comes before the impulse stands at the end. The window makes it smooth.
        window = torch.hann_window(_EQUALISER_SAMPLES, device=seeds.device)
        impulse *= window.roll(middle)
        whole = impulse.new_zeros(len(seeds), size)
        whole[:, :middle] = impulse[:, :middle]
        whole[:, -middle:] = impulse[:, middle:]
        return torch.fft.rfft(whole)

    def _echoes(self, samples, seeds):
        """Echoes of an impulse of power 1, [B, samples]."""
        at, strength = uniform(seeds, _ROOM + 1, 2).split(1, dim=1)
        low, high = self.room_seconds
        seconds = low + (high - low) * at
        noise = pieces(self.white, seeds, _ROOM + 3, samples)
        return echoes(noise, seconds) * from_db(-_QUIETEST_ROOM * strength)


def read_background(folders, seconds, left_out=()):
    """Voices or sounds of folders, one after another: the same for the same files.

    What a pretraining on the folders validates on is left out, and so are parts for
    the test.

    Arguments
    ---------
    folders : str, Path or list of them
    seconds : float
        So much at most; of each file at most 10 s.
    left_out : collection of str
        Real paths of files that are not to be used.

    Returns
    -------
    torch.Tensor
        Each file with a level of 1, shape [samples]; empty if none can be used.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no audio in it.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> read_background([sound_folder()], 2).shape
    torch.Size([48000])
    """
    paths = []
    for folder in check_folders(folders):
        for path in training_files(folder):
            # A part to validate on may also lie deeper: /data for /data/LibriSpeech.
            inside = path.relative_to(folder).parts[:-1]
            if "valid" not in map(part_named, inside):
                paths.append(path)
    found, missing = [], int(seconds * SAMPLE_RATE)
    for number in np.random.Generator(np.random.Philox(0)).permutation(len(paths)):
        if os.path.realpath(paths[number]) in left_out:
            continue
        try:
            wav = read_audio(paths[number], SAMPLE_RATE, seconds=_LONGEST)[:missing]
        except UnusableAudio:
            continue
        (level,) = measure_levels(wav[None])
        if level > FLOOR:
            found.append(wav / level)
            missing -= len(wav)
        if missing == 0:
            break
    return torch.cat(found) if found else torch.zeros(0)


def _check(name, value):
    """Raises a UserError if an argument of `InputAugment` has no meaning."""
    kind = name.split("_")[1]
    numbers = value if kind == "snr" or name == "room_seconds" else [value]
    known = isinstance(numbers, list | tuple) and all(map(is_number, numbers))
    if kind == "probability":
        good, what = known and 0 <= value <= 1, "a number from 0 to 1"
    elif kind == "db":
        good, what = known and 0 <= value <= 60, "decibels from 0 to 60"
    elif name == "background_seconds":
        good, what = known and value >= 1, "1 or more"
    elif kind == "snr":
        good = known and len(numbers) == 2 and -60 <= numbers[0] <= numbers[1] <= 100
        what = "the least and the greatest in dB, such as [5, 30]"
    else:
        good = known and len(numbers) == 2 and 0.05 <= numbers[0] <= numbers[1] <= 2
        what = "the shortest and the longest, from 0.05 to 2, such as [0.1, 0.5]"
    if not good:
        raise UserError(f"{name}={value!r} of an input augmentation: give {what}.")
