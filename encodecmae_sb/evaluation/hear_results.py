"""Tables of HEAR: what each encoder reaches in each task, and on average."""

import csv
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import write_metrics

from .comparison import spread
from .hear_scores import COMPARABLE
from .metrics import write_rows
from .plots import draw_tasks

INTERVAL_COVERS = (
    "95 %: other test files of each fold; not other heads, training files, folds, "
    "pretrainings, and of random not other weights"
)
# Scores of the paper; the file has the columns, and rows where a source was at hand.
PUBLISHED = Path(__file__).parent / "published_hear.csv"
_COLUMNS = {"task", "encoder", "score", "value", "source"}


@dataclass
class Result:
    """What an encoder reaches in a task.

    Arguments
    ---------
    task, encoder : str
    score : str
        The main score of the task.
    folds : dict of str to float
        The main score in each fold.
    draws : numpy.ndarray, optional
        The main score, mean of the folds, on sets drawn from the test files.
    others : dict of str to float
        Means over folds of the other scores.
    """

    task: str
    encoder: str
    score: str
    folds: dict
    draws: np.ndarray = None
    others: dict = field(default_factory=dict)

    @property
    def spread(self):
        """Mean, interval and deviation over folds, see `comparison.spread`."""
        draws = None if self.draws is None else [[self.draws]] * len(self.folds)
        return spread([[value] for value in self.folds.values()], draws)


def results_of(rows, main_scores):
    """Results of the heads that were chosen.

    Arguments
    ---------
    rows : list of dict
        Heads: `task`, `encoder`, `fold`, `chosen`, `scores` and `draws`.
    main_scores : dict of str to str
        Of each task.

    Returns
    -------
    list of Result
        For each encoder and task, in the order of the rows.

    Example
    -------
    >>> row = {"task": "esc50", "encoder": "logmel", "chosen": True, "draws": None}
    >>> rows = [row | {"fold": f"{i}", "scores": {"top1_acc": i / 2}} for i in (0, 1)]
    >>> results_of(rows, {"esc50": "top1_acc"})[0].spread["mean"]
    0.25
    """
    groups = defaultdict(list)
    for row in rows:
        if row["chosen"]:
            groups[row["encoder"], row["task"]].append(row)
    results = []
    for (encoder, task), own in groups.items():
        main = main_scores[task]
        draws = [row["draws"] for row in own]
        scores = {
            name: float(np.mean([row["scores"][name] for row in own]))
            for name in own[0]["scores"]
        }
        others = {name: value for name, value in scores.items() if name != main}
        folds = {row["fold"]: row["scores"][main] for row in own}
        draws = None if None in draws else np.mean(draws, axis=0)
        results.append(Result(task, encoder, main, folds, draws, others))
    return results


def mean_over_tasks(results):
    """The mean of the main scores of one encoder, where they can be averaged.

    Arguments
    ---------
    results : list of Result
        Of one encoder.

    Returns
    -------
    dict of str to float
        `mean`, and `low` and `high` if all have intervals; empty if nothing can be
        averaged.

    Example
    -------
    >>> results = [Result(f"{i}", "a", "top1_acc", {"test": i / 4}) for i in range(3)]
    >>> mean_over_tasks([*results, Result("s", "a", "segment_1s_er", {"test": 1.5})])
    {'mean': 0.25}
    """
    used = [result for result in results if result.score in COMPARABLE]
    if not used:
        return {}
    mean = np.mean([result.spread["mean"] for result in used])
    draws = [result.draws for result in used]
    draws = None if any(each is None for each in draws) else np.mean(draws, axis=0)
    return spread([[mean]], None if draws is None else [[draws]])


def metrics_of(results):
    """The metrics of all results, by name, for `metrics.json`.

    Numbers that are not finite are left out.
    """
    metrics = {}
    for result in results:
        start = f"{result.encoder}/{result.task}"
        for what, value in result.spread.items():
            suffix = "" if what == "mean" else f"_{what}"
            metrics[f"{start}/{result.score}{suffix}"] = value
        for name, value in result.others.items():
            metrics[f"{start}/{name}"] = value
        if len(result.folds) > 1:
            for fold, value in result.folds.items():
                metrics[f"{start}/fold_{fold}/{result.score}"] = value
    for encoder in dict.fromkeys(result.encoder for result in results):
        own = [result for result in results if result.encoder == encoder]
        for what, value in mean_over_tasks(own).items():
            suffix = "" if what == "mean" else f"_{what}"
            metrics[f"{encoder}/mean{suffix}"] = value
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def read_published(path=None):
    r"""Scores that others published, with their source.

    Arguments
    ---------
    path : str or Path, optional
        A CSV file with the columns task, encoder, score, value and source; default:
        that of the package.

    Returns
    -------
    list of dict
        Its rows; `value` is a float.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UserError
        If a column, a value or a source is missing.

    Example
    -------
    >>> path = getfixture("tmp_path") / "scores.csv"
    >>> _ = path.write_text(
    ...     "task,encoder,score,value,source\nesc50,mine,top1_acc,0.5,page 3\n"
    ... )
    >>> read_published(path)[0]["value"]
    0.5
    """
    path = Path(path or PUBLISHED).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No such file: published_scores={path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = _COLUMNS - set(reader.fieldnames or ())
        rows = list(reader)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}.")
    for number, row in enumerate(rows, 2):
        empty = [name for name in sorted(_COLUMNS) if not (row[name] or "").strip()]
        if empty:
            raise UserError(f"{path}, line {number}: the {empty[0]} is empty.")
        try:
            row["value"] = float(row["value"])
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: value={row['value']} is not a number."
            ) from error
    return rows


def published_results(rows, main_scores):
    """Those of the published scores that can stand beside ours, as `Result`.

    Arguments
    ---------
    rows : list of dict
        From `read_published`.
    main_scores : dict of str to str
        Of each task that was evaluated.

    Returns
    -------
    list of Result
        Of the encoder `NAME (published)`.
    """
    return [
        Result(
            row["task"],
            f"{row['encoder']} (published)",
            row["score"],
            {"test": row["value"]},
        )
        for row in rows
        if main_scores.get(row["task"]) == row["score"]
    ]


def write_results(rows, results, published, output):
    """Writes metrics, tables and a picture.

    Arguments
    ---------
    rows : list of dict
        Heads, as for `results_of`.
    results, published : list of Result
        Ours, and those that stand beside them.
    output : Path
        The folder to write to.
    """
    tasks = dict.fromkeys(result.task for result in results)
    metrics = metrics_of(results)
    for result in published:
        name = f"{result.encoder}/{result.task}/{result.score}"
        metrics[name] = result.spread["mean"]
    metrics |= {"tasks": len(tasks), "interval_covers": INTERVAL_COVERS}
    write_metrics(output, metrics)
    write_rows(output / "heareval.csv", map(_table_row, [*results, *published]))
    write_rows(output / "heads.csv", map(_head_row, rows))
    shown = [each for each in (*results, *published) if each.score in COMPARABLE]
    picture = output / "heareval.png"
    picture.unlink(missing_ok=True)
    if shown:
        spreads = {(each.task, each.encoder): each.spread for each in shown}
        draw_tasks(spreads, {each.task: each.score for each in shown}, picture)


def _table_row(result):
    numbers = result.spread
    return {
        "task": result.task,
        "encoder": result.encoder,
        "score": result.score,
        "value": numbers["mean"],
        **{what: numbers.get(what, "") for what in ("low", "high", "std_folds")},
        "folds": len(result.folds),
    }


def _head_row(row):
    """A head for the table; with its test score only if it was chosen."""
    row = dict(row)
    scores, _ = row.pop("scores"), row.pop("draws")
    way = row.pop("postprocessing") or {}
    test = next(iter(scores.values())) if row["chosen"] else ""
    row["lr"] = str(row["lr"])  # with all its digits
    return {**row, "postprocessing": json.dumps(way) if way else "", "test": test}
