"""The scores of HEAR, by the names that tasks give them."""

import warnings

import numpy as np
import torch
from scipy.stats import norm
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score

from .metrics import resampled_scores
from .resampling import resampled_groups
from .sound_events import EventScore, SegmentScore

CHROMA = 12  # pitches of an octave


def _top1(probabilities, targets):
    return (probabilities.argmax(1) == targets.argmax(1)).mean()


def _chroma(probabilities, targets):
    """As `_top1`; octaves do not matter, if labels are pitches one after another."""
    return (probabilities.argmax(1) % CHROMA == targets.argmax(1) % CHROMA).mean()


def _mean_precision(probabilities, targets):
    """Mean over all labels of the average precision; 0 for a label that is absent."""
    return average_precision_score(targets, probabilities, average="macro")


def _areas(probabilities, targets):
    """The area under the ROC curve for each label; NaN for one that is absent."""
    try:
        return np.atleast_1d(roc_auc_score(targets, probabilities, average=None))
    except ValueError:  # of older versions of scikit-learn
        return np.array([np.nan])


def _d_prime(probabilities, targets):
    return (norm.ppf(_areas(probabilities, targets)) * np.sqrt(2)).mean()


def _area(probabilities, targets):
    return _areas(probabilities, targets).mean()


SCENE_SCORES = {
    "top1_acc": _top1,
    "pitch_acc": _top1,
    "chroma_acc": _chroma,
    "mAP": _mean_precision,
    "d_prime": _d_prime,
    "aucroc": _area,
}
EVENT_SCORES = {
    "event_onset_200ms_fms": EventScore(0.2),
    "event_onset_50ms_fms": EventScore(0.05),
    "event_onset_offset_50ms_20perc_fms": EventScore(0.05, offset_share=0.2),
    "segment_1s_er": SegmentScore(1.0),
}
# From 0 to 1, and more is better: what can be averaged over tasks.
COMPARABLE = ({*SCENE_SCORES} - {"d_prime"}) | ({*EVENT_SCORES} - {"segment_1s_er"})
# They need a sound with, and a sound without, each label.
NEED_EVERY_LABEL = ("d_prime", "aucroc")


def scene_scores(names, probabilities, targets):
    """Scores of scenes.

    Arguments
    ---------
    names : list of str
        Of `SCENE_SCORES`.
    probabilities, targets : numpy.ndarray
        Targets are 0 or 1. Shape [sounds, labels].

    Returns
    -------
    dict of str to float
        NaN, or infinite, where a score is not defined for these targets.

    Example
    -------
    >>> scene_scores(["top1_acc", "mAP"], np.eye(3), np.eye(3))
    {'top1_acc': 1.0, 'mAP': 1.0}
    """
    # A head whose training diverged gives NaN, which scikit-learn refuses.
    probabilities = np.nan_to_num(probabilities)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.filterwarnings("ignore", "No positive class found", UserWarning)
        return {
            name: float(SCENE_SCORES[name](probabilities, targets)) for name in names
        }


def scene_draws(name, probabilities, targets, draws, seed):
    """A score on sets that are drawn from the test sounds, where that is cheap.

    Arguments
    ---------
    name : str
    probabilities, targets : numpy.ndarray
        As for `scene_scores`.
    draws : int
        Sets, D.
    seed : int

    Returns
    -------
    numpy.ndarray or None
        float64, shape [D]; None for d' and the area under the ROC curve.

    Example
    -------
    >>> scene_draws("top1_acc", np.eye(3), np.eye(3), 2, seed=0)
    array([1., 1.])
    """
    if name in NEED_EVERY_LABEL:
        return None
    probabilities = torch.from_numpy(np.nan_to_num(probabilities))
    targets = torch.from_numpy(targets)
    if name == "mAP":
        # Labels without a sound count as 0, as in `scene_scores`.
        present = targets.any(0).float().mean().item()
        return present * resampled_scores(probabilities, targets, draws, seed)
    right = targets.argmax(1)
    if name == "chroma_acc":
        predicted = probabilities.argmax(1) % CHROMA
        right = right % CHROMA
        probabilities = torch.nn.functional.one_hot(predicted, CHROMA)
    return resampled_scores(probabilities, right, draws, seed)


def event_counts(names, reference, estimated, num_labels):
    """What the scores of events are sums of.

    Arguments
    ---------
    names : list of str
        Of `EVENT_SCORES`.
    reference, estimated : list of list of (int, float, float)
        Events of each file, see `sound_events.find_events`.
    num_labels : int

    Returns
    -------
    dict of str to numpy.ndarray
        Of each score its counts, shape [files, counts].
    """
    return {
        name: np.stack(
            [
                EVENT_SCORES[name].counts(*pair, num_labels)
                for pair in zip(reference, estimated, strict=True)
            ]
        )
        for name in names
    }


def event_scores(counts):
    """Scores of events, of all files together.

    Arguments
    ---------
    counts : dict of str to numpy.ndarray
        From `event_counts`.

    Returns
    -------
    dict of str to float
        The main value of a score under its name, the others as `NAME_precision`.

    Example
    -------
    >>> name = "event_onset_200ms_fms"
    >>> counts = event_counts([name], [[(0, 0.0, 9.0)]], [[(0, 5.0, 9.0)]], 1)
    >>> event_scores(counts)[name]
    1.0
    """
    scores = {}
    for name, rows in counts.items():
        main = EVENT_SCORES[name].main
        for what, value in EVENT_SCORES[name].scores(rows.sum(0)).items():
            scores[name if what == main else f"{name}_{what}"] = value
    return scores


def event_draws(name, rows, draws, seed):
    """The main value of a score on sets that are drawn from the test files, [draws]."""
    score = EVENT_SCORES[name]
    times = resampled_groups(len(rows), draws, seed)  # each file by itself
    return score.scores(times @ rows)[score.main]
