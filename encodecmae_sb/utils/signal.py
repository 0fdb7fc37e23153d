"""Resampling, the same one for files and for batches."""

import functools
from fractions import Fraction

import torchaudio

# Half-width of torchaudio's filter, in zero crossings.
LOWPASS_WIDTH = 6


@functools.lru_cache
def resampling_ratio(sample_rate, target_rate):
    """Input and output samples per resampling block, as two small integers.

    Rates that share no large factor (such as 44 099 Hz and 24 000 Hz) would need a
    filter bank of gigabytes. The nearest ratio of integers up to 1000 replaces theirs.
    The error is below 1e-4: 24 001 Hz is treated as 24 000 Hz.

    Arguments
    ---------
    sample_rate, target_rate : int
        Rates in Hz.

    Returns
    -------
    (int, int)

    Example
    -------
    >>> resampling_ratio(44100, 24000)
    (147, 80)
    """
    ratio = Fraction(int(sample_rate), int(target_rate)).limit_denominator(1000)
    return ratio.numerator, ratio.denominator


def resample(waveform, sample_rate, target_rate):
    """Resamples along the last axis.

    Arguments
    ---------
    waveform : torch.Tensor
        Samples, shape [..., N].
    sample_rate, target_rate : int
        Rates in Hz.

    Returns
    -------
    torch.Tensor
        Shape [..., ceil(N * target_rate / sample_rate)].

    Example
    -------
    >>> import torch
    >>> resample(torch.zeros(1, 8000), 8000, 24000).shape
    torch.Size([1, 24000])
    """
    if sample_rate == target_rate:
        return waveform
    orig, new = resampling_ratio(sample_rate, target_rate)
    return torchaudio.functional.resample(
        waveform, orig, new, lowpass_filter_width=LOWPASS_WIDTH
    )
