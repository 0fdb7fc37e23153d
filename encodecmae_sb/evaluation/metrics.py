"""What is said about a classifier: figures, tables and a picture."""

import numpy as np
import torch

from encodecmae_sb.utils.files import write_csv


def clip_scores(probabilities, targets):
    """The figures of clips with one label each, or with any number of labels.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [clips, classes].
    targets : torch.Tensor
        int64, shape [clips], or 0 and 1, shape [clips, classes].

    Returns
    -------
    dict of str to float
        See `accuracy_scores` and `multi_label_scores`. The first is what is gone by.

    Example
    -------
    >>> list(clip_scores(torch.eye(2), torch.eye(2)))
    ['mAP', 'micro_f1']
    """
    multi_label = targets.dim() == 2
    return (multi_label_scores if multi_label else accuracy_scores)(
        probabilities, targets
    )


def accuracy_scores(probabilities, targets):
    """Figures for clips with one label each.

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
    """Figures for clips with any number of labels.

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
    >>> multi_label_scores(torch.eye(2), torch.eye(2))["mAP"]
    1.0
    """
    precisions = [
        average_precision(probabilities[:, i], targets[:, i])
        for i in range(targets.shape[1])
        if targets[:, i].any()
    ]
    given, wanted = probabilities > threshold, targets > 0.5
    right = (given & wanted).sum().item()
    total = given.sum().item() + wanted.sum().item()
    return {
        "mAP": sum(precisions) / len(precisions),
        "micro_f1": 2 * right / total if total else 0.0,
    }


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
    >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 0, 1]))
    0.8333333333333333
    """
    order = scores.argsort(descending=True, stable=True)
    scores, wanted = scores[order], wanted[order].double()
    found = wanted.cumsum(0)
    # Clips of the same score come in together.
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[:-1] != scores[1:]
    taken = torch.arange(1, len(scores) + 1)[last]
    found = found[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return ((found / taken) * gained).sum().item() / found[-1].item()


def resampled_scores(probabilities, targets, draws=1000, seed=0):
    """Accuracy, or mAP, on sets of clips that are drawn with replacement.

    The bootstrap: each set has as many clips as there are, and their spread is what
    another test set of this size would change.

    Arguments
    ---------
    probabilities, targets : torch.Tensor
        As for `clip_scores`.
    draws : int
        Sets, D.
    seed : int
        The same seed and number of clips give the same sets.

    Returns
    -------
    numpy.ndarray
        float64, shape [D].

    Example
    -------
    >>> targets = torch.tensor([0, 1, 1, 1])
    >>> resampled_scores(torch.eye(2)[[0, 1, 1, 0]], targets, draws=3).shape
    (3,)
    """
    rng = np.random.default_rng(seed)
    clips = len(targets)
    scores = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        number = min(_DRAWS_AT_ONCE, draws - start)
        # How often each clip is in each set, [clips, sets]: a clip's row in one piece.
        counts = rng.multinomial(clips, np.full(clips, 1 / clips), size=number)
        counts = np.ascontiguousarray(counts.T, dtype=np.int32)
        if targets.dim() == 1:
            right = (probabilities.argmax(1) == targets).numpy()
            scores.append(counts[right].sum(0) / clips)
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
        # As in `average_precision`, clips of the same score come in together.
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
    """One row of figures a class.

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
    >>> class_rows(torch.eye(2), torch.tensor([0, 0]), ["a", "b"])[0]["recall"]
    0.5
    """
    rows = []
    for i, label in enumerate(labels):
        if targets.dim() == 1:
            given, wanted = probabilities.argmax(1) == i, targets == i
        else:
            given, wanted = probabilities[:, i] > threshold, targets[:, i] > 0.5
        right = (given & wanted).sum().item()
        given, clips = given.sum().item(), wanted.sum().item()
        row = {
            "label": label,
            "clips": clips,
            "precision": right / given if given else 0.0,
            "recall": right / clips if clips else 0.0,
            "f1": 2 * right / (given + clips) if right else 0.0,
        }
        if targets.dim() == 2:
            row["average_precision"] = (
                average_precision(probabilities[:, i], wanted) if clips else 0.0
            )
        rows.append(row)
    return rows


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


def confusion_matrix(predicted, targets, num_classes):
    """Counts of clips by label (rows) and prediction (columns), int64.

    Example
    -------
    >>> confusion_matrix(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    tensor([[0, 0],
            [1, 1]])
    """
    cells = targets * num_classes + predicted
    counts = torch.bincount(cells, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def draw_confusion(counts, labels, path, title):
    """Draws a confusion matrix, each row in shares of its label's clips.

    Arguments
    ---------
    counts : torch.Tensor
        From `confusion_matrix`.
    labels : list of str
    path : str or Path
        The PNG file to write.
    title : str
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    number = len(labels)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # Large enough to read every label, up to hundreds of them.
    side = min(2.5 + 0.45 * number, 12 + 0.14 * number)
    size = max(4, min(10, 60 * side / (number + 10)))
    figure, axes = pyplot.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(number), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(number), labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    if number <= 60:
        for i, j in counts.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            text = str(counts[i, j].item())
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
    figure.colorbar(image, shrink=0.7, label="share of the label's clips")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
