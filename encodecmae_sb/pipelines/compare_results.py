"""What a comparison of encoders leaves behind: metrics, tables and pictures."""

from dataclasses import dataclass
from pathlib import Path

from encodecmae_sb.evaluation.comparison import (
    behind_best,
    by_layer,
    covered,
    layer_metrics,
    main_rows,
    spread,
    tables_of,
    with_interval,
)
from encodecmae_sb.evaluation.metrics import write_rows
from encodecmae_sb.evaluation.plots import draw_bars, draw_lines
from encodecmae_sb.utils.experiment import write_metrics

from .clip_vectors import RANDOM, step_of
from .compare import LEVELLED


@dataclass(frozen=True)
class Results:
    """What was measured, for the table on the screen.

    Arguments
    ---------
    metrics : dict
        What `metrics.json` says.
    rows : dict of (str, str) to dict
        Probe and encoder -> one of its rows, of the layer that the yaml names.
    curves : dict of str to dict of str to list
        Probe -> encoder -> scores and draws of each layer, as for `spread`.
    pictures : dict of str to str
        Name of a file -> what it shows.
    """

    metrics: dict
    rows: dict
    curves: dict
    pictures: dict


def write_results(comparison, rows, few_labels, output):
    """Writes metrics, the table of all probes, and pictures.

    Arguments
    ---------
    comparison : Comparison
    rows : list of dict
        From `Comparison.compare`.
    few_labels : dict
        From `Comparison.compare_labels`; empty if that was not asked for.
    output : Path
        The folder to write to.

    Returns
    -------
    Results
    """
    hparams, data, key = comparison.hparams, comparison.data, comparison.score_name
    folds = [fold.name for fold in data.folds]
    draw_folds = comparison.resample == "folds"
    write_rows(
        output / "probes.csv",
        [with_interval(row, folds, comparison.resample) for row in rows],
    )
    columns = list(rows[0])
    others = columns[columns.index(key) + 1 : columns.index("draws")]
    metrics, shown, curves, panels = {}, {}, {}, {}
    for probe in comparison.probes:
        layers_of = by_layer([row for row in rows if row["probe"] == probe])
        tables = {}
        for name, layers in layers_of.items():
            own = main_rows(layers, hparams["layer"])
            at = f"{name}/{probe}/"
            metrics |= layer_metrics(at, own, folds, key, others, draw_folds)
            if len(layers) > 1:
                for i, each in enumerate(layers):
                    more = layer_metrics(
                        f"{at}layer_{i}/", each, folds, key, (), draw_folds
                    )
                    metrics |= more
            shown[probe, name] = own[0]
            tables[name] = tables_of(own, folds, key, draw_folds)
        curves[probe] = {
            name: [tables_of(own, folds, key, draw_folds) for own in layers]
            for name, layers in layers_of.items()
        }
        names = [f"{name}/{probe}" for name in tables]
        metrics |= behind_best(names, list(tables.values()), key)
        panels[probe] = tables
    for (_, name), row in shown.items():
        metrics |= {f"{name}/{about}": row[about] for about in ("layer", "pooling")}
    for name, numbers in few_labels.items():
        for number, tables in numbers.items():
            for what, value in spread(*tables).items():
                suffix = "" if what == "mean" else f"_{what}"
                metrics[f"{name}/labels_{number}/{key}{suffix}"] = value
    chance = None
    if not data.multi_label:
        chance = metrics["most_frequent_class"] = data.most_frequent_class()
    random = RANDOM in comparison.encoders
    covers = covered(folds, hparams["repeats"], random, comparison.resample)
    metrics |= {
        "clips": len(data.clips),
        "classes": len(data.labels),
        "folds": len(folds),
        "repeats": hparams["repeats"],
        "resample": comparison.resample,
        "interval_covers": covers,
        "unusable_files": data.unusable,
    }
    write_metrics(output, metrics)
    draw_bars(panels, output / "probe.png", key, chance)
    pictures = {"probe.png": "the table as a picture"}
    pictures |= _draw_lines(hparams, curves, panels, few_labels, output, key)
    return Results(metrics, shown, curves, pictures)


def _draw_lines(hparams, curves, panels, few_labels, output, key):
    """Draws the score over layers, steps and labels, where there are several."""
    for name in ("layers.png", "steps.png", "labels.png"):
        (output / name).unlink(missing_ok=True)
    pictures = {}
    if hparams["layers"]:
        lines = {
            probe: {
                name: {
                    i if len(layers) > 1 else None: tables
                    for i, tables in enumerate(layers)
                }
                for name, layers in own.items()
            }
            for probe, own in curves.items()
        }
        draw_lines(lines, output / "layers.png", "layer, counted from 0", key)
        pictures["layers.png"] = "layer by layer"
    lines = {probe: _over_steps(tables) for probe, tables in panels.items()}
    if any(len(line) > 1 for own in lines.values() for line in own.values()):
        draw_lines(lines, output / "steps.png", "step of the pretraining", key)
        pictures["steps.png"] = "over the steps of a pretraining"
    if few_labels:
        # "all" stands at the end, at no number.
        lines = {
            "linear": {
                name: {str(number): tables for number, tables in own.items()}
                for name, own in few_labels.items()
            }
        }
        draw_lines(lines, output / "labels.png", "labelled clips per class", key)
        pictures["labels.png"] = "with few labelled clips"
    return pictures


def _over_steps(tables):
    """Lines of encoders that one pretraining kept: folder -> step -> tables.

    Other encoders have one place, None, which is drawn as a line across.
    """
    lines = {}
    for name, own in tables.items():
        level = LEVELLED if name.endswith(LEVELLED) else ""
        step = step_of(name.removesuffix(level))
        folder = f"{Path(name.removesuffix(level)).parent}{level}"
        lines.setdefault(name if step is None else folder, {})[step] = own
    return lines
