"""What makes audio worse: noise, rooms. For augmentation and for tests of robustness.

Everything follows from what is given: nothing is drawn from global state.

Shapes: B items, N samples.
"""

import math

import torch

from encodecmae_sb.utils.grid import SAMPLE_RATE

from .draws import hash_seeds

# Pieces of sounds begin at multiples of so many samples: 64 times less to index.
BLOCK = 64
_NOISE_SAMPLES = 2**18
_FIRST_ECHO = 0.003  # seconds


def from_db(db):
    """Decibels -> factors of an amplitude.

    Example
    -------
    >>> from_db(torch.tensor([0.0, 20.0]))
    tensor([ 1., 10.])
    """
    return (db * (math.log(10) / 20)).exp()


def rms(wavs, lengths):
    """Root mean square of each item.

    Arguments
    ---------
    wavs : torch.Tensor
        Zero after each item's end, shape [B, N].
    lengths : torch.Tensor
        Samples of each item, int64, shape [B].

    Returns
    -------
    torch.Tensor
        Shape [B, 1].

    Example
    -------
    >>> rms(torch.tensor([[0.5, -0.5, 0.0]]), torch.tensor([2]))
    tensor([[0.5000]])
    """
    norm = torch.linalg.vector_norm(wavs, dim=1, keepdim=True)
    return norm / lengths.clamp(min=1)[:, None].sqrt()


def in_blocks(sound):
    """A sound as `pieces` takes it; what does not fill a block is left out.

    Arguments
    ---------
    sound : torch.Tensor
        Shape [M].

    Returns
    -------
    torch.Tensor
        Shape [M // 64, 64].
    """
    return sound[: len(sound) // BLOCK * BLOCK].view(-1, BLOCK)


def pieces(sound, seeds, number, samples):
    """A piece of a sound for each item.

    After its end the sound goes on from its beginning.

    Arguments
    ---------
    sound : torch.Tensor
        From `in_blocks`, shape [M / 64, 64].
    seeds : torch.Tensor
        int64, shape [B].
    number : int
        Of the draw; others begin elsewhere.
    samples : int
        Length of the pieces, N.

    Returns
    -------
    torch.Tensor
        Shape [B, N].

    Example
    -------
    >>> sound = in_blocks(torch.arange(128.0))
    >>> pieces(sound, torch.tensor([1]), 0, 200).shape
    torch.Size([1, 200])
    """
    blocks, block = sound.shape
    start = hash_seeds(seeds, number) % blocks
    count = torch.arange(-(-samples // block), device=seeds.device)
    index = (start[:, None] + count) % blocks
    found = sound.index_select(0, index.flatten())
    return found.view(len(seeds), -1)[:, :samples]


def make_noise():
    """White and pink noise of power 1, without a seam at the end.

    Returns
    -------
    dict of str to torch.Tensor
        `white` and `pink`, each of shape [262144], always the same.

    Example
    -------
    >>> {name: round(sound.square().mean().item(), 1)
    ...  for name, sound in make_noise().items()}
    {'white': 1.0, 'pink': 1.0}
    """
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(_NOISE_SAMPLES, generator=generator)
    spectrum = torch.fft.rfft(white)
    # Pink: power falls by 3 dB an octave, from 20 Hz on.
    lowest = 20 * _NOISE_SAMPLES / SAMPLE_RATE
    pink = torch.arange(len(spectrum)).clamp(min=lowest).rsqrt()
    pink = torch.fft.irfft(spectrum * pink)
    return {"white": white, "pink": pink / pink.square().mean().sqrt()}


def echoes(noise, seconds):
    """Echoes of an impulse in a room: exponentially decaying noise.

    Arguments
    ---------
    noise : torch.Tensor
        White noise, shape [B, N].
    seconds : torch.Tensor
        Times in which the echoes fall by 60 dB, shape [B, 1].

    Returns
    -------
    torch.Tensor
        Of energy 1, silent for the first 3 ms, shape [B, N].

    Example
    -------
    >>> heard = echoes(torch.randn(1, 24000), torch.tensor([[0.3]]))
    >>> round(heard.square().sum().item(), 3), heard[0, :72].abs().max().item()
    (1.0, 0.0)
    """
    time = torch.arange(noise.shape[1], device=noise.device) / SAMPLE_RATE
    decay = (-3 * math.log(10) * time / seconds).exp() * (time > _FIRST_ECHO)
    heard = decay * noise
    return heard / torch.linalg.vector_norm(heard, dim=1, keepdim=True)
