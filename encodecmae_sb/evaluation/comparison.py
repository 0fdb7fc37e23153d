"""Compares encoders by the scores of their probes, and says how sure that is.

A row is the score of a probe, with `encoder`, `layer` and `fold`; see
`pipelines.compare.Comparison.compare`.
"""

import math

import numpy as np


def spread(scores, draws=None):
    """Mean of scores over folds and repeats, and how sure it is.

    The interval comes from a bootstrap of two things at once: the test clips of every
    fold are drawn anew, and so are the repeats, the same ones for all folds. It covers
    what other test clips and other seeds would change. It does not cover other training
    clips, other folds or another pretraining. A few repeats show only part of what
    seeds change.

    Arguments
    ---------
    scores : array-like
        Shape [folds, repeats].
    draws : array-like, optional
        The scores on sets drawn from the test clips, shape [folds, repeats, sets].

    Returns
    -------
    dict of str to float
        `mean`; with draws `low` and `high`, the 95 % interval of the mean; with more
        than one fold `std_folds`, the deviation of the folds, and `stderr_folds`, the
        standard error of their mean; with more than one repeat `std_repeats`, the
        deviation of the repeats within a fold.

    Example
    -------
    >>> result = spread([[0.5, 0.7], [0.9, 0.9]])
    >>> [round(result[key], 3) for key in ("mean", "stderr_folds", "std_repeats")]
    [0.75, 0.15, 0.1]
    >>> spread([[0.5]], [[[0.4] * 500 + [0.6] * 500]])
    {'mean': 0.5, 'low': 0.4, 'high': 0.6}
    """
    scores = np.asarray(scores, dtype=np.float64)
    folds, repeats = scores.shape
    result = {"mean": scores.mean().item()}
    if draws is not None:
        each = np.mean(draws, axis=0)  # [repeats, sets]
        sets = each.shape[1]
        drawn = np.random.default_rng(0).integers(repeats, size=(repeats, sets))
        means = each[drawn, np.arange(sets)].mean(0)
        low, high = np.quantile(means, [0.025, 0.975]).tolist()
        result |= {"low": low, "high": high}
    if folds > 1:
        result["std_folds"] = scores.mean(1).std(ddof=1).item()
        result["stderr_folds"] = result["std_folds"] / math.sqrt(folds)
    if repeats > 1:
        result["std_repeats"] = math.sqrt(scores.var(1, ddof=1).mean())
    return result


def by_layer(rows):
    """Rows of each encoder and, within it, of each layer: name -> list of rows."""
    found = {}
    for row in rows:
        layers = found.setdefault(row["encoder"], {})
        layers.setdefault(row["layer"], []).append(row)
    return {name: list(layers.values()) for name, layers in found.items()}


def main_rows(layers, layer):
    """Of the rows of each layer, those of the layer that the yaml names."""
    if len(layers) == 1 or isinstance(layer, str):
        return layers[-1]
    return layers[layer]


def tables_of(rows, folds, key, draw_folds=False):
    """Scores and draws of one encoder and layer, as for `spread`.

    Arguments
    ---------
    rows : list of dict
    folds : list of str
    key : str
        Name of the score.
    draw_folds : bool
        Each set of draws has folds that are drawn anew, the same for all encoders, with
        their clips. Otherwise each set has all folds.

    Returns
    -------
    scores : numpy.ndarray
        Shape [folds, repeats].
    draws : numpy.ndarray
        Shape [folds, repeats, sets].
    """
    own = [[row for row in rows if row["fold"] == fold] for fold in folds]
    scores = np.array([[row[key] for row in each] for each in own])
    draws = np.array([[row["draws"] for row in each] for each in own])
    if draw_folds:
        sets = np.arange(draws.shape[2])
        drawn = np.random.default_rng(1).integers(
            len(folds), size=(len(folds), len(sets))
        )
        # [folds, sets, repeats] -> [folds, repeats, sets]
        draws = draws[drawn, :, sets].swapaxes(1, 2)
    return scores, draws


def covered(folds, repeats, random_weights=False, resample="clips"):
    """What a 95 % interval covers, in words.

    Example
    -------
    >>> covered(["test"], repeats=1)
    '95 %: other test clips; not other seeds, training clips, pretrainings'
    >>> covered(["a", "b"], repeats=1, resample="folds")  # doctest: +ELLIPSIS
    '95 %: other folds and test clips (2 folds: too narrow for so few); not other ...'
    """
    several = len(folds) > 1
    text = "95 %: other " + (
        "groups of test clips" if resample == "groups" else "test clips"
    )
    left_out = "training clips, pretrainings"
    if resample == "folds":
        text = "95 %: other folds and test clips"
        narrow = too_narrow(len(folds))
        text += f" ({len(folds)} folds{narrow})" if narrow else ""
    elif several:
        text += f" of each of the {len(folds)} folds"
        left_out += ", folds"
    if repeats == 1:
        return f"{text}; not other seeds, {left_out}"
    text += f" and seeds of mlp ({repeats} were tried"
    if random_weights:
        text += "; for random also other weights, new for each seed"
    return f"{text}); not other {left_out}"


def too_narrow(number):
    """A warning for a bootstrap over so few folds or speakers, in words, or nothing.

    Its 95 % intervals cover about 81 % with 4, and 90 % with 10: the percentile
    bootstrap of the mean of normal values.

    Example
    -------
    >>> too_narrow(4), too_narrow(10)
    (': too narrow for so few', '')
    """
    return ": too narrow for so few" if number < 10 else ""


def with_interval(row, folds, resample="clips"):
    """A row with the 95 % interval of this one probe, instead of its draws."""
    row = dict(row)
    draws = row.pop("draws")
    own = spread([[np.mean(draws)]], [[draws]])
    # A single fold has no folds to draw.
    resample = "clips" if resample == "folds" else resample
    covers = covered(folds[:1], 1, resample=resample)
    return {**row, "low": own["low"], "high": own["high"], "interval_covers": covers}


def layer_metrics(prefix, rows, folds, key, others=(), draw_folds=False):
    """Metrics of one encoder and layer, by name.

    Arguments
    ---------
    prefix : str
        Of the names.
    rows : list of dict
    folds : list of str
    key : str
        The main metric, given with its interval.
    others : list of str
        Other metrics.
    draw_folds : bool
        See `tables_of`.

    Returns
    -------
    dict of str to float
    """
    metrics = {}
    for name in (key, *others):
        scores, draws = tables_of(rows, folds, name, draw_folds)
        draws = draws if name == key else None
        for what, value in spread(scores, draws).items():
            metrics[f"{prefix}{name}{'' if what == 'mean' else f'_{what}'}"] = value
        if len(folds) > 1:
            for fold, own in zip(folds, scores, strict=True):
                metrics[f"{prefix}fold_{fold}/{name}"] = spread([own])["mean"]
    return metrics


def behind_best(names, tables, key, lower_is_better=False):
    """How far each encoder is behind the best one, fold by fold and clip by clip.

    Folds and clips differ more than encoders do. So the difference of two encoders on
    the same folds and clips is surer than either of their means.

    Arguments
    ---------
    names : list of str
    tables : list of (array-like, array-like)
        Scores and draws of each, as for `spread`.
    key : str
        Name of the score.
    lower_is_better : bool
        Whether the score is an error. What is behind is a positive number in any case.

    Returns
    -------
    dict of str to float

    Example
    -------
    >>> tables = [([[8.0]], [[[7.0, 9.0]]]), ([[5.0]], [[[4.0, 6.0]]])]
    >>> behind = behind_best(["a", "b"], tables, "wer", lower_is_better=True)
    >>> behind["a/wer_behind_best"]
    3.0
    """
    sign = -1 if lower_is_better else 1
    best = max(range(len(names)), key=lambda i: sign * spread(tables[i][0])["mean"])
    metrics = {}
    for i, name in enumerate(names):
        if i != best:
            pairs = zip(tables[best], tables[i], strict=True)
            difference = spread(*(sign * np.subtract(a, b) for a, b in pairs))
            for what in ("mean", "low", "high", "stderr_folds"):
                if what in difference:
                    suffix = "" if what == "mean" else f"_{what}"
                    metrics[f"{name}/{key}_behind_best{suffix}"] = difference[what]
    return metrics
