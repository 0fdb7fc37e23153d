"""Resampling, the same one for files and for batches."""

from fractions import Fraction

import torchaudio

# Half-width of torchaudio's filter, in zero crossings.
LOWPASS_WIDTH = 6


def resampling_ratio(sample_rate, target_rate):
    """Input and output samples per resampling block, as two small integers.

    Rates that share no large factor (44 099 Hz, say) would need a filter bank
    of gigabytes; the nearest ratio of integers up to 1000 replaces theirs, which
    is off by less than 1e-4 (0.2 cents: 24 001 Hz is taken for 24 000 Hz).

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
