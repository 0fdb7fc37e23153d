"""Linear and nearest-neighbour probes, chosen within the training clips.

Neither has a random seed: logistic regression has one minimum, and neighbours are not
trained. So two encoders differ by their vectors only, and not by the luck of a
training.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor

from encodecmae_sb.utils.errors import UserError

from .metrics import clip_scores, resampled_scores
from .probe import DRAWS

LINEAR, KNN = "linear", "knn"
# Inverse strengths of the regularisation to choose from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_INNER_FOLDS = 3  # where the training clips have no groups of their own


def simple_probe(
    kind, vectors, targets, train, test, inner, choices, draws_seed=0, groups=None
):
    """Chooses a probe within the training clips, fits it on all of them and tests it.

    Each channel is normalised to mean 0 and deviation 1 of the training clips. The
    choice is that with the best mean score over the inner splits. If several are equal,
    it is the first of them.

    Arguments
    ---------
    kind : str
        "linear": logistic regression, one for each label of multi-label targets.
        "knn": the labels of the nearest training clips, by the cosine of the vectors'
        angle, each weighted by the inverse of its distance.
    vectors : numpy.ndarray
        float, shape [clips, width].
    targets : numpy.ndarray
        See `data.clips.targets_of`: int, shape [clips], or 0 and 1, shape
        [clips, classes].
    train, test : numpy.ndarray of int
        Places of the clips to fit and to test on.
    inner : list of (numpy.ndarray, numpy.ndarray)
        Splits to choose on: places of clips to fit and to check on.
    choices : sequence
        Inverse strengths of the regularisation, or numbers of neighbours.
    draws_seed : int
        Of the sets that are drawn from the test clips. Encoders that are compared need
        the same.
    groups : numpy.ndarray, optional
        The group of each test clip, such as its speaker: the sets are drawn by groups.

    Returns
    -------
    dict
        `choice`; `valid`, its mean score over the inner splits; the metrics of
        `clip_scores` on the test clips; `draws`, the first of them on `DRAWS` sets
        drawn from the test clips.

    Raises
    ------
    UserError
        If vectors are not finite, or the training clips have a single class.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(60) % 2
    >>> vectors = np.where(targets, 1.0, -1.0)[:, None] + 0.1 * rng.normal(size=(60, 3))
    >>> train, test = np.arange(40), np.arange(40, 60)
    >>> inner = [(train[:20], train[20:])]
    >>> row = simple_probe("knn", vectors, targets, train, test, inner, [1, 3])
    >>> row["choice"], row["accuracy"]
    (1, 1.0)
    """
    probe = fit_probe(kind, vectors, targets, train, inner, choices)
    outcome = probe.probabilities(vectors[test]), targets[test]
    outcome = tuple(map(torch.from_numpy, outcome))
    return {
        "choice": probe.choice,
        "valid": probe.valid,
        **clip_scores(*outcome),
        "draws": resampled_scores(*outcome, DRAWS, draws_seed, groups).tolist(),
    }


@dataclass(frozen=True)
class FittedProbe:
    """A probe that was chosen and fitted.

    Arguments
    ---------
    choice : float
        Inverse strength of the regularisation, or number of neighbours.
    valid : float
        Its mean score over the inner splits.
    mean, scale : numpy.ndarray
        That normalise the vectors, shape [width].
    predict : callable
        Normalised vectors [clips, width] -> probabilities [clips, classes].
    """

    choice: float
    valid: float
    mean: np.ndarray
    scale: np.ndarray
    predict: Callable

    def probabilities(self, vectors):
        """Vectors [clips, width] -> probabilities, float64, [clips, classes]."""
        return self.predict((vectors - self.mean) / self.scale)


def fit_probe(kind, vectors, targets, train, inner, choices=STRENGTHS):
    """Chooses a probe within the training clips and fits it on all of them.

    Arguments
    ---------
    kind, vectors, targets, train, inner, choices
        See `simple_probe`.

    Returns
    -------
    FittedProbe

    Raises
    ------
    UserError
        As `simple_probe`.
    """
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).sum())
        raise UserError(
            f"{bad} of the {len(vectors)} vectors are not finite (NaN or Inf): the "
            "encoder that gave them is damaged."
        )
    if targets.ndim == 1 and len(set(targets[train])) < 2:
        raise UserError("The training clips have one class: give clips of others.")
    mean, deviation = vectors[train].mean(0), vectors[train].std(0)
    # A channel that hardly varies holds rounding errors only.
    scale = np.maximum(deviation, max(1e-3 * deviation.mean(), 1e-12))
    vectors = (vectors - mean) / scale
    scores = [_inner_score(kind, vectors, targets, inner, choice) for choice in choices]
    best = int(np.argmax(scores))
    predict = _fit(kind, vectors, targets, train, choices[best])
    return FittedProbe(choices[best], float(scores[best]), mean, scale, predict)


def leave_one_out(places, groups):
    """Splits in which each group is left out once.

    Arguments
    ---------
    places : numpy.ndarray of int
        Of the clips.
    groups : numpy.ndarray
        The fold, the speaker or another unit of each, which is left out whole. If all
        are in one group, three parts of the clips are left out in turn.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Places of clips to fit and to check on.

    Example
    -------
    >>> [(fit.tolist(), check.tolist()) for fit, check in
    ...     leave_one_out(np.array([4, 5, 6]), np.array(["a", "a", "b"]))]
    [([6], [4, 5]), ([4, 5], [6])]
    """
    if len(set(groups)) == 1:
        groups = np.arange(len(places)) % _INNER_FOLDS
    names = sorted(set(groups))
    return [(places[groups != name], places[groups == name]) for name in names]


def few_of_each(targets, places, number, seed):
    """Draws some clips of each class.

    Arguments
    ---------
    targets : numpy.ndarray of int
        Shape [clips].
    places : numpy.ndarray of int
        Of the clips to draw from.
    number : int
        Clips per class; classes with fewer give all they have.
    seed : int

    Returns
    -------
    numpy.ndarray of int
        Their places; the same for the same seed. Those of a smaller number are among
        those of a larger one.

    Example
    -------
    >>> drawn = few_of_each(np.arange(9) % 3, np.arange(9), 2, seed=0)
    >>> sorted((drawn % 3).tolist())
    [0, 0, 1, 1, 2, 2]
    """
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(places)
    classes = targets[mixed]
    return np.concatenate(
        [mixed[classes == label][:number] for label in sorted(set(classes))]
    )


def folds_within_classes(targets, places):
    """A fold for each clip, such that each class is in as many folds as can be.

    Example
    -------
    >>> folds_within_classes(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 3]))
    array([0, 0, 1, 1])
    """
    counted, folds = {}, []
    for label in targets[places]:
        folds.append(counted.get(label, 0) % _INNER_FOLDS)
        counted[label] = counted.get(label, 0) + 1
    return np.array(folds)


def linear_probe(vectors, targets, groups, fold, strengths=STRENGTHS, draws_seed=0):
    """Tests a linear probe on one group of clips, trained on all others.

    The strength is chosen when each group of the training clips is left out in turn.

    Arguments
    ---------
    vectors : numpy.ndarray
        float, shape [clips, width].
    targets : numpy.ndarray of int
        Shape [clips].
    groups : numpy.ndarray of str
        The fold, the speaker or another unit that is left out whole, shape [clips].
    fold : str
        The group to test on.
    strengths : sequence of float
        Inverse strengths of the regularisation to choose from.
    draws_seed : int
        See `simple_probe`.

    Returns
    -------
    dict
        See `simple_probe`.

    Raises
    ------
    UserError
        As `simple_probe`.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(60) % 2
    >>> vectors = targets[:, None] + 0.1 * rng.normal(size=(60, 3))
    >>> groups = np.array(list("abc")).repeat(20)
    >>> linear_probe(vectors, targets, groups, "a")["accuracy"]
    1.0
    """
    train, test = np.flatnonzero(groups != fold), np.flatnonzero(groups == fold)
    inner = leave_one_out(train, groups[train])
    return simple_probe(
        LINEAR, vectors, targets, train, test, inner, strengths, draws_seed
    )


def _inner_score(kind, vectors, targets, inner, choice):
    """Mean of the main score over the splits that can be used; 0 without any."""
    scores = []
    for fit, check in inner:
        if targets.ndim == 1 and len(set(targets[fit])) < 2:
            continue
        predicted = _fit(kind, vectors, targets, fit, choice)(vectors[check])
        outcome = torch.from_numpy(predicted), torch.from_numpy(targets[check])
        scores.append(next(iter(clip_scores(*outcome).values())))
    return np.mean(scores) if scores else 0.0


def _fit(kind, vectors, targets, train, choice):
    """Fits on some clips; returns a function of vectors that gives probabilities."""
    classes = targets.shape[1] if targets.ndim == 2 else 1 + targets.max()
    fit = _fit_linear if kind == LINEAR else _fit_neighbours
    return fit(vectors[train], targets[train], choice, classes)


def _fit_linear(vectors, targets, strength, classes):
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    several = targets.ndim == 2
    if several:
        model = OneVsRestClassifier(model)
    with warnings.catch_warnings():
        # With weak regularisation and classes that a plane divides there is no end.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A label that all clips of an inner split have, or none.
        warnings.filterwarnings("ignore", message="Label .* is present")
        model.fit(vectors, targets)

    def predict(heard):
        probabilities = np.zeros((len(heard), classes))
        known = slice(None) if several else model.classes_
        probabilities[:, known] = model.predict_proba(heard)
        return probabilities

    return predict


def _fit_neighbours(vectors, targets, number, classes):
    # As a regression of 0 and 1, one for each class: for several labels as for one.
    wanted = targets if targets.ndim == 2 else np.eye(classes)[targets]
    number = min(number, len(vectors))
    model = KNeighborsRegressor(number, metric="cosine", weights="distance")
    return model.fit(vectors, wanted.astype(np.float64)).predict
