"""Lengths of the items of a padded batch, as counts and as shares.

SpeechBrain hands over relative lengths: shares of the longest item. Inside this
package lengths are counts (of samples, frames or steps). Convert where the two meet,
and only there.
"""


def absolute_lengths(relative, size):
    """Counts from relative lengths.

    Arguments
    ---------
    relative : torch.Tensor
        Lengths relative to `size`, shape [B].
    size : int
        Padded length.

    Returns
    -------
    torch.Tensor
        int64, at most `size`, shape [B].

    Example
    -------
    >>> import torch
    >>> absolute_lengths(torch.tensor([1.0, 0.3947]), 38)
    tensor([38, 15])
    """
    return (relative * size).round().long().clamp(max=size)


def relative_lengths(counts, size):
    """Relative lengths from counts, for what SpeechBrain computes.

    `absolute_lengths` gives the counts back exactly. So does SpeechBrain where it
    rounds, as its CTC loss does; it does not where it cuts the fraction off.

    Arguments
    ---------
    counts : torch.Tensor
        int64, shape [B].
    size : int
        Padded length, below 2 ** 23.

    Returns
    -------
    torch.Tensor
        float32, shape [B].

    Example
    -------
    >>> import torch
    >>> relative_lengths(torch.tensor([38, 15]), 38)
    tensor([1.0000, 0.3947])
    """
    return counts / size
