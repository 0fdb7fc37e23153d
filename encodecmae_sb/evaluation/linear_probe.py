"""A linear probe whose regularisation is chosen on the training clips.

Logistic regression has one minimum and no random seed. So two encoders differ by their
vectors only, and not by the luck of a training.
"""

import warnings

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
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).sum())
        raise UserError(
            f"{bad} of the {len(vectors)} vectors are not finite (NaN or Inf): the "
            "encoder that gave them is damaged."
        )
    test = groups == fold
    if len(set(targets[~test])) < 2:
        raise UserError(
            f"fold {fold}: the other clips have one class. Give more clips."
        )
    train, heard = _normalised(vectors[~test], vectors[test])
    inner = groups[~test]
    if len(set(inner)) == 1:
        inner = np.arange(len(inner)) % _INNER_FOLDS
    scores = [_inner_score(train, targets[~test], inner, c) for c in strengths]
    strength = strengths[int(np.argmax(scores))]
    model = _fit(train, targets[~test], strength)
    probabilities = np.zeros((len(heard), 1 + targets.max()))
    probabilities[:, model.classes_] = model.predict_proba(heard)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(targets[test])
    return {
        "accuracy": float((probabilities.argmax(1) == targets[test]).mean()),
        "strength": strength,
        "draws": resampled_scores(*tensors, DRAWS, draws_seed).tolist(),
    }


def _normalised(train, test):
    mean, deviation = train.mean(0), train.std(0)
    # A channel that hardly varies holds rounding errors only.
    scale = np.maximum(deviation, max(1e-3 * deviation.mean(), 1e-12))
    return (train - mean) / scale, (test - mean) / scale


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
