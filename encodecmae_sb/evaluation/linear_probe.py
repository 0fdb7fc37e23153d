"""A linear probe whose regularisation is chosen on the training clips.

Logistic regression has one minimum and no random seed. So two encoders differ by their
vectors only, and not by the luck of a training.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from encodecmae_sb.utils.errors import UserError

from .metrics import resampled_scores
from .probe import DRAWS

# Inverse strengths of the regularisation to choose from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_INNER_FOLDS = 3  # where the training clips have no groups of their own


def linear_probe(vectors, targets, groups, fold, strengths=STRENGTHS, draws_seed=0):
    """Tests a linear probe on one group of clips, trained on all others.

    Each channel is normalised to mean 0 and deviation 1 of the training clips. The
    strength is that with the best mean accuracy when each group of the training clips
    is left out in turn. With a single group, three parts of its clips are.

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
        Of the sets that are drawn from the test clips. Encoders that are compared need
        the same.

    Returns
    -------
    dict
        `accuracy`; `strength`, which was chosen; `draws`, the accuracy on `DRAWS` sets
        drawn from the test clips.

    Raises
    ------
    UserError
        If vectors are not finite, or the training clips have a single class.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> targets = np.arange(60) % 2
    >>> vectors = targets[:, None] + 0.1 * rng.normal(size=(60, 3))
    >>> groups = np.array(list("abc")).repeat(20)
    >>> linear_probe(vectors, targets, groups, "a")["accuracy"]
    1.0
    """
    test = groups == fold
    probe = fit_linear_probe(vectors, targets, groups, fold, strengths)
    probabilities = probe.probabilities(vectors[test])
    tensors = torch.from_numpy(probabilities), torch.from_numpy(targets[test])
    return {
        "accuracy": float((probabilities.argmax(1) == targets[test]).mean()),
        "strength": probe.model.C,
        "draws": resampled_scores(*tensors, DRAWS, draws_seed).tolist(),
    }


@dataclass
class LinearProbe:
    """A linear probe that was fitted.

    Arguments
    ---------
    mean, scale : numpy.ndarray
        Of the training vectors, shape [width].
    model : sklearn.linear_model.LogisticRegression
    num_classes : int
    """

    mean: np.ndarray
    scale: np.ndarray
    model: LogisticRegression
    num_classes: int

    def probabilities(self, vectors):
        """Vectors [clips, width] -> probabilities, float64, [clips, classes]."""
        found = np.zeros((len(vectors), self.num_classes))
        normalised = (vectors - self.mean) / self.scale
        found[:, self.model.classes_] = self.model.predict_proba(normalised)
        return found


def fit_linear_probe(vectors, targets, groups, fold, strengths=STRENGTHS):
    """Fits a linear probe on all groups of clips but one; see `linear_probe`.

    Arguments
    ---------
    vectors, targets, groups, fold, strengths
        As for `linear_probe`.

    Returns
    -------
    LinearProbe

    Raises
    ------
    UserError
        As `linear_probe`.
    """
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).sum())
        raise UserError(
            f"{bad} of the {len(vectors)} vectors are not finite (NaN or Inf): the "
            "encoder that gave them is damaged."
        )
    train, known, inner = (part[groups != fold] for part in (vectors, targets, groups))
    if len(set(known)) < 2:
        raise UserError(
            f"fold {fold}: the other clips have one class. Give more clips."
        )
    mean, deviation = train.mean(0), train.std(0)
    # A channel that hardly varies holds rounding errors only.
    scale = np.maximum(deviation, max(1e-3 * deviation.mean(), 1e-12))
    train = (train - mean) / scale
    if len(set(inner)) == 1:
        inner = np.arange(len(inner)) % _INNER_FOLDS
    scores = [_inner_score(train, known, inner, c) for c in strengths]
    model = _fit(train, known, strengths[int(np.argmax(scores))])
    return LinearProbe(mean, scale, model, 1 + targets.max())


def _inner_score(vectors, targets, groups, strength):
    """Mean accuracy on each group left out, with one strength."""
    scores = []
    for group in sorted(set(groups)):
        out = groups == group
        if len(set(targets[~out])) > 1:
            model = _fit(vectors[~out], targets[~out], strength)
            scores.append(model.score(vectors[out], targets[out]))
    return np.mean(scores) if scores else 0.0


def _fit(vectors, targets, strength):
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        # With weak regularisation and classes that a plane divides there is no end.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors, targets)
