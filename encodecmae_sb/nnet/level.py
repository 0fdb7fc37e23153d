"""The level of a recording, and what makes the input of an encoder independent of it.

The level is measured once for a recording, on its waveform, and the waveform is brought
to a fixed level before a front end sees it. So log-mel energies are shifted by one
number, before their floor is applied: a copy that is louder or softer has the same
frames.

Why not the mean of the log-mel frames? It depends on pauses and on empty bins: two
speakers of the same level would be moved apart by the silence around them, or by a
telephone's band. And it depends on padding, so a front end would have to know lengths.
Here each block of 13 ms counts by its own amplitude. Silence hardly counts, and zeros
do not count at all, so padding changes nothing. The level of a long file follows from
two sums, so a file is measured in one pass, in pieces of any number of blocks.

Shapes: B items, N samples.
"""

import torch
import torch.nn.functional as F

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP

NORMALISATIONS = (None, "level")
# Root mean square that a recording is brought to: -20 dB of full scale, where speech
# and sounds commonly lie. So the mean and deviation of LogMel fit.
REFERENCE = 0.1
# Softer recordings are not brought to that level: this is the step of a 16-bit file.
FLOOR = 2.0**-15


def check_normalise(normalise):
    """Returns a front end's `normalise`.

    Raises
    ------
    UserError
        If there is no such normalisation.

    Example
    -------
    >>> check_normalise("level")
    'level'
    """
    if normalise not in NORMALISATIONS:
        raise UserError(
            f"normalise={normalise!r}: allowed are level (frames do not depend on the "
            "level of a recording) and null."
        )
    return normalise


def block_sums(wavs):
    """Sums from which `level_of` computes levels; those of pieces may be added.

    A block has 320 samples. Its amplitude is its root mean square, without its mean.

    Arguments
    ---------
    wavs : torch.Tensor
        Samples, shape [B, N]. A piece of a recording, but for the last one, has a whole
        number of blocks.

    Returns
    -------
    torch.Tensor
        Sum of the amplitudes of all blocks, and of their squares, float32, [B, 2].
    """
    # Filled up to whole blocks: a graph for any N must not ask whether N has a rest.
    missing = -(-wavs.shape[1] // HOP) * HOP - wavs.shape[1]
    blocks = F.pad(wavs.float(), (0, missing)).unflatten(1, (-1, HOP))
    blocks = blocks - blocks.mean(-1, keepdim=True)
    amplitudes = blocks.square().mean(-1).sqrt()
    return torch.stack([amplitudes.sum(1), amplitudes.square().sum(1)], dim=1)


def level_of(sums):
    """Levels: the mean amplitude of blocks, each weighted by its amplitude.

    Arguments
    ---------
    sums : torch.Tensor
        From `block_sums`, shape [B, 2].

    Returns
    -------
    torch.Tensor
        At least `FLOOR`, shape [B].
    """
    tiny = torch.finfo(sums.dtype).tiny
    return (sums[:, 1] / sums[:, 0].clamp(min=tiny)).clamp(min=FLOOR)


def measure_levels(wavs, lengths=None):
    """The level of each recording.

    Arguments
    ---------
    wavs : torch.Tensor
        Samples, shape [B, N]; zeros, or anything else, after an item's end.
    lengths : list of int, optional
        Samples of each item. Default: all, which is right if zeros follow the end.

    Returns
    -------
    torch.Tensor
        float32, shape [B].

    Example
    -------
    >>> tone = torch.sin(torch.arange(8000) / 9)
    >>> wavs = torch.stack([tone, 0.1 * tone, torch.zeros(8000)])
    >>> [round(level, 3) for level in measure_levels(wavs).tolist()]
    [0.706, 0.071, 0.0]
    """
    if lengths is None:
        return level_of(block_sums(wavs))
    items = zip(wavs, lengths, strict=True)
    return level_of(torch.cat([block_sums(wav[None, :n]) for wav, n in items]))


def at_reference(wavs, levels=None):
    """Recordings, or pieces of them, brought to one level.

    Arguments
    ---------
    wavs : torch.Tensor
        Samples, shape [B, N].
    levels : torch.Tensor, optional
        Of the recordings, shape [B]; default: measured, each item being a whole
        recording with zeros after its end.

    Returns
    -------
    torch.Tensor
        Shape [B, N].

    Example
    -------
    >>> wavs = 0.001 * torch.randn(2, 24000)
    >>> bool((measure_levels(at_reference(wavs)) - REFERENCE).abs().max() < 1e-4)
    True
    """
    if levels is None:
        levels = measure_levels(wavs)
    return wavs * (REFERENCE / levels)[:, None]
