"""Speaker verification: scores of trials, and how often they are wrong."""

import numpy as np
import torch
import torch.nn.functional as F

from .resampling import resampled_groups

_AT_ONCE = 4_000_000  # counts of trials, to bound memory


def cosine_scores(vectors, first, second, mean=None):
    """Cosine of the angle between the vectors of two clips.

    Vectors of all clips of an encoder have much in common, so all cosines are near 1.
    The mean of other clips takes out what is common.

    Arguments
    ---------
    vectors : torch.Tensor
        Shape [clips, W].
    first, second : array-like of int
        The clips of each trial, [trials].
    mean : torch.Tensor, optional
        Subtracted first, [W].

    Returns
    -------
    numpy.ndarray
        float64, from -1 to 1, [trials].

    Example
    -------
    >>> cosine_scores(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), [0], [1]).round(3)
    array([0.707])
    """
    vectors = vectors.double()
    if mean is not None:
        vectors = vectors - mean.double()
    vectors = F.normalize(vectors, dim=1)
    pairs = zip(
        *(torch.as_tensor(x).split(10_000) for x in (first, second)), strict=True
    )
    return torch.cat([(vectors[a] * vectors[b]).sum(1) for a, b in pairs]).numpy()


def verification_errors(scores, targets, counts=None, p_target=0.01):
    """Equal error rate and minimum detection cost, as SpeechBrain defines them.

    The same as `EER` and `minDCF` of `speechbrain.utils.metric_stats`, for many sets of
    trials at once. Those keep every score for every threshold, which would be gigabytes
    for a list of usual length.

    Arguments
    ---------
    scores : numpy.ndarray
        Higher for one speaker, [trials].
    targets : numpy.ndarray
        Whether it is one speaker, bool, [trials].
    counts : numpy.ndarray, optional
        How often each trial is in each set, [sets, trials], with trials of both kinds
        in each; default: one set, with every trial once.
    p_target : float
        How probable one speaker is, for the detection cost. A miss and a false alarm
        cost 1.

    Returns
    -------
    eer : numpy.ndarray
        From 0 to 1, [sets].
    min_dcf : numpy.ndarray
        From 0 to `p_target`, which is the cost of never accepting, [sets].

    Example
    -------
    >>> scores, targets = np.array([0.9, 0.6, 0.7, 0.1]), np.array([1, 1, 0, 0]) > 0
    >>> verification_errors(scores, targets)
    (array([0.5]), array([0.005]))
    """
    if counts is None:
        counts = np.ones((1, len(scores)))
    order = np.argsort(scores, kind="stable")
    # Trials of the same score are accepted or rejected together.
    last = np.flatnonzero(np.diff(scores[order], append=np.inf))
    rejected = []
    for kind in (targets, ~targets):
        number = (counts * kind)[:, order].cumsum(1)[:, last]
        rejected.append(number / number[:, -1:])
    misses, alarms = rejected[0], 1 - rejected[1]  # [sets, thresholds]
    nearest = np.abs(alarms - misses).argmin(1)[:, None]
    eer = np.take_along_axis(alarms + misses, nearest, 1)[:, 0] / 2
    return eer, (p_target * misses + (1 - p_target) * alarms).min(1)


def resampled_eer(scores, targets, speakers, draws=1000, seed=0):
    """Equal error rates on sets of speakers that are drawn with replacement.

    A speaker who is drawn twice brings all trials twice; a trial of two speakers counts
    as often as pairs of them are drawn. Sets without trials of both kinds are drawn
    anew.

    Arguments
    ---------
    scores, targets : numpy.ndarray
        As for `verification_errors`.
    speakers : numpy.ndarray
        The two speakers of each trial, from 0, [2, trials].
    draws : int
        Sets, D.
    seed : int

    Returns
    -------
    numpy.ndarray
        float64, [D].

    Example
    -------
    >>> speakers = np.array([[0, 1, 0, 0], [0, 1, 1, 1]])
    >>> scores, targets = np.array([0.9, 0.8, 0.2, 0.1]), speakers[0] == speakers[1]
    >>> resampled_eer(scores, targets, speakers, draws=3)
    array([0., 0., 0.])
    """
    groups, step = int(speakers.max()) + 1, max(1, _AT_ONCE // len(scores))
    found = np.zeros(0)
    while len(found) < draws:
        sets = resampled_groups(groups, draws, seed)
        seed += 1  # of more sets, if some are of no use
        for start in range(0, draws, step):
            first, second = (sets[start : start + step, x] for x in speakers)
            counts = np.where(targets, first, first * second)  # [sets, trials]
            usable = (counts @ targets > 0) & (counts @ ~targets > 0)
            eer, _ = verification_errors(scores, targets, counts[usable])
            found = np.append(found, eer)
    return found[:draws]
