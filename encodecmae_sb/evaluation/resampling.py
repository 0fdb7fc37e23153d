"""The bootstrap over groups of clips that belong together, such as speakers."""

import numpy as np


def resampled_groups(groups, draws=1000, seed=0):
    """Draws groups of clips with replacement, as often as there are groups.

    Clips of one speaker are alike: a test set with other clips of the same speakers
    says little about other speakers. So speakers are drawn, each with all its clips.
    If every clip is a group of its own, this is the usual bootstrap over clips.

    Arguments
    ---------
    groups : int
        Number of groups, G.
    draws : int
        Sets of groups, D.
    seed : int
        The same seed and number of groups give the same sets.

    Returns
    -------
    numpy.ndarray
        How often each group is in each set, int64, shape [D, G]. Each row sums to G.

    Raises
    ------
    ValueError
        If there are no groups.

    Example
    -------
    >>> counts = resampled_groups(4, draws=1000)
    >>> counts.shape, counts.sum(1).min(), counts.sum(1).max()
    ((1000, 4), np.int64(4), np.int64(4))
    >>> speakers = np.array([0, 0, 1, 2, 2, 3])  # of six clips
    >>> counts[:, speakers].shape  # how often each clip is in each set
    (1000, 6)
    """
    if groups < 1:
        raise ValueError(f"groups={groups}: there must be one or more.")
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def resampled_rates(errors, totals, groups, draws=1000, seed=0):
    """Error rates on sets of groups of clips that are drawn with replacement.

    Arguments
    ---------
    errors, totals : array-like
        Of each clip, such as word errors and words, [clips].
    groups : list of str
        The group of each clip, such as its speaker, [clips].
    draws : int
        Sets, D.
    seed : int

    Returns
    -------
    numpy.ndarray
        Errors of a set by its total, float64, [D].

    Example
    -------
    >>> rates = resampled_rates([1, 1, 3], [4, 4, 4], ["a", "a", "b"])
    >>> np.unique(rates).tolist()  # a twice, both (b has one clip), b twice
    [0.25, 0.4166666666666667, 0.75]
    """
    names, numbers = np.unique(groups, return_inverse=True)
    counts = resampled_groups(len(names), draws, seed)
    errors, totals = (counts @ np.bincount(numbers, x) for x in (errors, totals))
    return errors / totals
