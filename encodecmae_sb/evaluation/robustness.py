"""How much worse a model is on corrupted recordings, and how sure that is.

A condition is `CLEAN`, or (name of a corruption, strength). An output is the array that
a model gives for all clips: probabilities [clips, classes], or texts [clips].
"""

from dataclasses import dataclass

import numpy as np
import torch
from speechbrain.utils.metric_stats import ErrorRateStats

from .corruptions import GROUPS, STRENGTHS
from .metrics import clip_scores, resampled_scores
from .probe import DRAWS
from .resampling import resampled_rates

CLEAN = ("clean", 0)


@dataclass
class ClipScorer:
    """Scores outputs of classifiers.

    Arguments
    ---------
    targets : torch.Tensor
        See `metrics.clip_scores`.
    seed : int
        Of the sets that are drawn from the clips.
    groups : list of str, optional
        Clips of one group, such as a recording, are drawn together.
    """

    targets: torch.Tensor
    seed: int
    groups: list | None = None
    worse = -1  # of the score, when it falls

    @property
    def names(self):
        """The metrics, the main one first."""
        return ["mAP" if self.targets.dim() == 2 else "accuracy"]

    def scores(self, output):
        """The metrics of an output: name -> (score, scores of drawn sets [D])."""
        output = torch.from_numpy(output)
        (name,) = self.names
        settings = DRAWS, self.seed, self.groups
        draws = resampled_scores(output, self.targets, *settings)
        return {name: (clip_scores(output, self.targets)[name], draws)}


@dataclass
class SpeechScorer:
    """Scores outputs of recognisers: error rates in %.

    Arguments
    ---------
    texts : list of str
        Transcripts.
    seed : int
        Of the sets that are drawn from the utterances.
    groups : list of str, optional
        Utterances of one group, such as a speaker, are drawn together.
    """

    texts: list
    seed: int
    groups: list | None = None
    worse = 1
    names = ("WER", "CER")

    def scores(self, output):
        """The metrics of an output: name -> (score, scores of drawn sets [D])."""
        groups, found = self.groups or list(range(len(self.texts))), {}
        for name, units in zip(self.names, (str.split, list), strict=True):
            stats = ErrorRateStats()
            heard = [units(text) for text in output.tolist()]
            stats.append(range(len(heard)), heard, [units(text) for text in self.texts])
            errors, totals = (
                np.array([row[key] for row in stats.scores])
                for key in ("num_edits", "num_ref_tokens")
            )
            draws = 100 * resampled_rates(errors, totals, groups, DRAWS, self.seed)
            found[name] = (100 * errors.sum() / totals.sum(), draws)
        return found


def relative_loss(clean, score, worse):
    """How much worse a score is, in % of the clean one.

    Arguments
    ---------
    clean, score : float or numpy.ndarray
        Of any shapes that fit each other.
    worse : int
        -1 if a lower score is worse, 1 if a higher one is.

    Returns
    -------
    numpy.ndarray
        NaN where the clean score is 0.

    Example
    -------
    >>> relative_loss(0.8, 0.6, -1).round(1).item(), relative_loss(10, 15, 1).item()
    (25.0, 50.0)
    """
    clean, score = np.asarray(clean, float), np.asarray(score, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = 100 * worse * (score - clean) / clean
    return np.where(clean == 0, np.nan, loss)


def score_rows(model, outputs, corruptions, missing, scorer):
    """The rows of a table: clean, each corruption in each strength, means of groups.

    The intervals come from a bootstrap of the clips, the same sets for every row. So
    those of a loss compare clean and corrupted copies of the same clips.

    Arguments
    ---------
    model : str
    outputs : dict
        Condition -> output.
    corruptions : list of Corruption
    missing : dict of str to str
        Corruptions that cannot be applied here, and why.
    scorer : ClipScorer or SpeechScorer

    Returns
    -------
    list of dict
        `model`, `group`, `corruption` (`mean` for means), `strength` (1 to 3, 0 for
        the clean clips and for means), `title`, `value`, `note`; then of each metric
        the score with `_low` and `_high`, the 95 % interval; `loss`, that of the main
        metric relative to the clean clips in %, and its interval. None where there is
        no figure.
    """
    main = scorer.names[0]
    clean = scorer.scores(outputs[CLEAN])

    def figures(parts):
        """Of one condition, or the mean of several."""
        row = {}
        for name in scorer.names:
            scores, draws = zip(*(part[name] for part in parts), strict=True)
            row |= _with_interval(name, np.mean(scores), np.mean(draws, axis=0))
        scores, draws = (
            [
                relative_loss(clean[main][i], part[main][i], scorer.worse)
                for part in parts
            ]
            for i in (0, 1)  # the score, and those of the drawn sets
        )
        return row | _with_interval("loss", np.mean(scores), np.mean(draws, axis=0))

    def make_row(group, corruption, title, strength=0, value="", note="", parts=()):
        about = {"model": model, "group": group, "corruption": corruption}
        about |= {"strength": strength, "title": title, "value": value, "note": note}
        return about | (figures(parts) if parts else dict.fromkeys(none))

    none = figures([clean])
    rows, every = [make_row("", "clean", "clean", parts=[clean])], []
    for group in GROUPS:
        measured = []
        for each in (each for each in corruptions if each.group == group):
            about = group, each.name, each.title
            if each.name in missing:
                note = f"not available: {missing[each.name]}"
                rows.append(make_row(*about, note=note))
                continue
            for strength, value in zip(STRENGTHS, each.labels(), strict=True):
                scores = scorer.scores(outputs[each.name, strength])
                measured.append(scores)
                rows.append(make_row(*about, strength, value, parts=[scores]))
        if measured:
            rows.append(make_row(group, "mean", f"mean of {group}", parts=measured))
        every += measured
    if every:
        rows.append(make_row("", "mean", "mean of all", parts=every))
    return rows


def _with_interval(name, value, draws):
    """A figure and its 95 % interval; None where it is not defined."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def as_metrics(rows, names):
    """The rows of all models as one flat object.

    Arguments
    ---------
    rows : list of dict
        From `score_rows`.
    names : list of str
        The metrics.

    Returns
    -------
    dict of str to float
        Such as `MODEL/white_1/accuracy_low`, `MODEL/mean_noise/loss`.
    """
    metrics = {}
    for row in rows:
        where = row["corruption"]
        if row["strength"]:
            where += f"_{row['strength']}"
        elif where == "mean":
            where += f"_{row['group'] or 'all'}"
        for name in (*names, "loss"):
            for key in (name, f"{name}_low", f"{name}_high"):
                if row[key] is not None and not (where == "clean" and "loss" in key):
                    metrics[f"{row['model']}/{where}/{key}"] = row[key]
    return metrics


def as_markdown(rows, names):
    """A table with a row for each condition, and numbered columns for each model.

    Arguments
    ---------
    rows, names
        As for `as_metrics`.

    Returns
    -------
    str
    """
    by_model = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    several = len(by_model) > 1
    header = ["corruption", "strength"]
    for number in range(1, len(by_model) + 1):
        columns = (*(f"{name} (95 %)" for name in names), "loss, % (95 %)")
        header += [f"{number}: {column}" if several else column for column in columns]
    lines = [header, ["---"] * len(header)]
    for same in zip(*by_model.values(), strict=True):
        first = same[0]
        bold = "**" if first["corruption"] in ("clean", "mean") else ""
        cells = [f"{bold}{first['title']}{bold}", first["value"]]
        for row in same:
            for name in (*names, "loss"):
                digits = 3 if name in ("accuracy", "mAP") else 1
                cells.append(_cell(row, name, digits))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    # Paths are too long for the head of a column.
    listed = [f"{number}: {model}" for number, model in enumerate(by_model, 1)]
    legend = "\n".join(f"- {line}" for line in listed) if several else ""
    notes = dict.fromkeys(
        f"{row['title']}: {row['note']}" for row in rows if row["note"]
    )
    parts = [table, legend, *(f"{note}." for note in notes)]
    return "\n\n".join(filter(None, parts))


def _cell(row, name, digits):
    if row["note"]:
        return "not available"
    if row["corruption"] == "clean" and name == "loss":
        return ""
    if row[name] is None:
        return "-"
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
