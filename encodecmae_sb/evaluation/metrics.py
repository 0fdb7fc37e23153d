"""Metrics of classifiers, as numbers and as tables."""

import statistics

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from encodecmae_sb.utils.files import write_csv


def clip_scores(probabilities, targets):
    """The metrics of clips with one label each, or with any number of labels.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [clips, classes].
    targets : torch.Tensor
        int64, shape [clips], or 0 and 1, shape [clips, classes].

    Returns
    -------
    dict of str to float
        See `accuracy_scores` and `multi_label_scores`. The first is the main metric.

    Example
    -------
    >>> import torch
    >>> list(clip_scores(torch.eye(2), torch.eye(2)))
    ['mAP', 'micro_f1']
    """
    multi_label = targets.dim() == 2
    return (multi_label_scores if multi_label else accuracy_scores)(
        probabilities, targets
    )


def accuracy_scores(probabilities, targets):
    """Metrics of clips with one label each.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [clips, classes].
    targets : torch.Tensor
        int64, shape [clips].

    Returns
    -------
    dict of str to float
        `accuracy`; `balanced_accuracy`, the mean of the classes' recalls; and
        `macro_f1`, the mean of their F1 scores; of the classes that occur.

    Example
    -------
    >>> import torch
    >>> accuracy_scores(torch.eye(2), torch.tensor([0, 1]))["accuracy"]
    1.0
    """
    rows = class_rows(probabilities, targets, range(probabilities.shape[1]))
    rows = [row for row in rows if row["clips"]]
    return {
        "accuracy": (probabilities.argmax(1) == targets).double().mean().item(),
        "balanced_accuracy": sum(row["recall"] for row in rows) / len(rows),
        "macro_f1": sum(row["f1"] for row in rows) / len(rows),
    }


def multi_label_scores(probabilities, targets, threshold=0.5):
    """Metrics of clips with any number of labels.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [clips, classes].
    targets : torch.Tensor
        0 or 1, shape [clips, classes].
    threshold : float
        Probability above which a label counts as given.

    Returns
    -------
    dict of str to float
        `mAP`, the mean over the classes that occur of the average precision; and
        `micro_f1` at the threshold.

    Example
    -------
    >>> import torch
    >>> multi_label_scores(torch.eye(2), torch.eye(2))["mAP"]
    1.0
    """
    precisions = [
        average_precision(scores, wanted)
        for scores, wanted in zip(probabilities.T, targets.T, strict=True)
        if wanted.any()
    ]
    _, _, f1, _ = precision_recall_fscore_support(
        targets > 0.5, probabilities > threshold, average="micro", zero_division=0
    )
    return {"mAP": sum(precisions) / len(precisions), "micro_f1": float(f1)}


def average_precision(scores, wanted):
    """Area under the curve of precision over recall, as a sum of steps.

    Arguments
    ---------
    scores : torch.Tensor
        Shape [clips].
    wanted : torch.Tensor
        0 or 1, at least one 1, shape [clips].

    Returns
    -------
    float

    Example
    -------
    >>> import torch
    >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 0, 1]))
    0.8333333333333333
    """
    # A probe whose training diverged gives NaN, which scikit-learn refuses.
    return float(average_precision_score(wanted > 0.5, scores.nan_to_num()))


def resampled_scores(probabilities, targets, draws=1000, seed=0, groups=None):
    """Accuracy, or mAP, on sets of clips that are drawn with replacement.

    This is the bootstrap. Each set has as many clips, or groups of clips, as there are.
    How much the scores of the sets differ says how much another test set of this size
    would change.

    Arguments
    ---------
    probabilities, targets : torch.Tensor
        As for `clip_scores`.
    draws : int
        Sets, D.
    seed : int
        The same seed and number of clips, or of groups, give the same sets.
    groups : array-like, optional
        The group of each clip, such as its speaker, shape [clips]. Clips of one group
        are alike, so they are drawn together; default: each clip by itself.

    Returns
    -------
    numpy.ndarray
        float64, shape [D].

    Example
    -------
    >>> import torch
    >>> targets = torch.tensor([0, 1, 1, 1])
    >>> resampled_scores(torch.eye(2)[[0, 1, 1, 0]], targets, draws=3).shape
    (3,)
    """
    rng = np.random.default_rng(seed)
    units, members = len(targets), slice(None)
    if groups is not None:
        names, members = np.unique(groups, return_inverse=True)
        units = len(names)
    scores = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        number = min(_DRAWS_AT_ONCE, draws - start)
        # How often each clip is in each set, [clips, sets]. Contiguous by clip, because
        # rows of clips are taken below.
        counts = rng.multinomial(units, np.full(units, 1 / units), size=number)
        counts = np.ascontiguousarray(counts.T[members], dtype=np.int32)
        if targets.dim() == 1:
            right = (probabilities.argmax(1) == targets).numpy()
            scores.append(counts[right].sum(0) / counts.sum(0))
        else:
            scores.append(_resampled_precision(probabilities, targets, counts))
    return np.concatenate(scores)


_DRAWS_AT_ONCE = 100


def _resampled_precision(probabilities, targets, counts):
    """The mAP with each clip counted so many times, [clips, sets] -> [sets]."""
    total, classes = np.zeros((2, counts.shape[1]))
    for scores, wanted in zip(probabilities.T.numpy(), targets.T.numpy(), strict=True):
        if not wanted.any():
            continue
        order = np.argsort(-scores, kind="stable")
        right = np.flatnonzero(wanted[order] > 0.5)
        # Clips of the same score count together, as in `average_precision`.
        last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        ends = last[np.searchsorted(last, right)]
        taken = counts[order].cumsum(0, dtype=np.int32)[ends]
        gained = counts[order[right]]
        found = gained.cumsum(0)
        at_end = found[np.searchsorted(right, ends, side="right") - 1]
        sums = (gained * at_end / np.maximum(taken, 1)).sum(0)
        total += sums / np.maximum(found[-1], 1)
        classes += found[-1] > 0
    return total / np.maximum(classes, 1)


def class_rows(probabilities, targets, labels, threshold=0.5):
    """The metrics of each class.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [clips, classes].
    targets : torch.Tensor
        As for `accuracy_scores` or for `multi_label_scores`.
    labels : list of str
    threshold : float
        For multi-label targets.

    Returns
    -------
    list of dict
        `label`, `clips` (with this label), `precision`, `recall`, `f1`, and for
        multi-label targets `average_precision`.

    Example
    -------
    >>> import torch
    >>> class_rows(torch.eye(2), torch.tensor([0, 0]), ["a", "b"])[0]["recall"]
    0.5
    """
    multi_label = targets.dim() == 2
    columns = precision_recall_fscore_support(
        targets > 0.5 if multi_label else targets,
        probabilities > threshold if multi_label else probabilities.argmax(1),
        labels=range(len(labels)),
        zero_division=0,
    )
    rows = []
    for i, (label, *row) in enumerate(zip(labels, *columns, strict=True)):
        precision, recall, f1, clips = (value.item() for value in row)
        row = {"label": label, "clips": clips}
        row |= {"precision": precision, "recall": recall, "f1": f1}
        if multi_label:
            row["average_precision"] = (
                average_precision(probabilities[:, i], targets[:, i]) if clips else 0.0
            )
        rows.append(row)
    return rows


def over_folds(names, rows):
    """Means over folds, deviations, and the metrics of every fold.

    Arguments
    ---------
    names : list of str
        Of the folds.
    rows : list of dict of str to float
        Metrics of each.

    Returns
    -------
    dict of str to float
        Of each metric the mean; with more than one fold also `METRIC_std` and
        `fold_NAME/METRIC`.

    Example
    -------
    >>> over_folds(["a", "b"], [{"mAP": 0.5}, {"mAP": 0.5}])
    {'mAP': 0.5, 'mAP_std': 0.0, 'fold_a/mAP': 0.5, 'fold_b/mAP': 0.5}
    """
    metrics = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        metrics[key] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"{key}_std"] = statistics.stdev(values)
    if len(rows) > 1:
        for name, row in zip(names, rows, strict=True):
            metrics |= {f"fold_{name}/{key}": value for key, value in row.items()}
    return metrics


def write_rows(path, rows):
    """Writes a list of dicts as a CSV file; fractions with four digits."""
    rounded = (
        {
            key: f"{value:.4f}" if isinstance(value, float) else value
            for key, value in row.items()
        }
        for row in rows
    )
    write_csv(path, rounded)
