"""Results of encoders side by side: metrics, tables and pictures of error rates."""

from encodecmae_sb.evaluation.comparison import (
    behind_best,
    by_layer,
    layer_metrics,
    main_rows,
    spread,
    tables_of,
    with_interval,
)
from encodecmae_sb.evaluation.metrics import write_rows
from encodecmae_sb.evaluation.plots import draw_bars, draw_lines
from encodecmae_sb.utils.experiment import write_metrics

PART = ["test"]  # error rates are of one test set, without folds
ENDS = ("low", "high")


def write_errors(output, rows, key, others, about, hparams, chance=None):
    """Writes `metrics.json`, `probes.csv`, `probe.png` and, if asked, `layers.png`.

    Arguments
    ---------
    output : Path
    rows : list of dict
        With `encoder`, `layer`, `fold` ("test"), an error rate in per cent, `draws` of
        it, and what else belongs into the CSV file. Another metric may have draws, too,
        such as `draws_cer`.
    key : str
        The error rate by which encoders are compared; lower is better.
    others : list of str
        Other metrics.
    about : dict
        Further lines of `metrics.json`; `interval_covers` also goes into the CSV file.
    hparams : dict
        Reads `layer` and `layers`.
    chance : float, optional
        The error rate of an encoder that hears nothing, for the picture.

    Returns
    -------
    metrics : dict
    encoders : dict of str to list of dict
        Of each encoder the rows of the layer that the yaml names.
    """
    covers = {"interval_covers": about["interval_covers"]}
    table = []
    for row in rows:
        row = with_interval(row, PART) | covers
        for other in others:
            row.pop(f"draws_{other}", None)
        table.append(row)
    write_rows(output / "probes.csv", table)
    layers_of = by_layer(rows)
    encoders = {
        name: main_rows(layers, hparams["layer"]) for name, layers in layers_of.items()
    }
    metrics = {}
    for name, layers in layers_of.items():
        metrics |= layer_metrics(f"{name}/", encoders[name], PART, key, others)
        if len(layers) > 1:
            for i, own in enumerate(layers):
                metrics |= layer_metrics(f"{name}/layer_{i}/", own, PART, key)
        for other in others:
            if f"draws_{other}" in encoders[name][0]:
                own = [
                    {**row, "draws": row[f"draws_{other}"]} for row in encoders[name]
                ]
                found = spread(*tables_of(own, PART, other))
                metrics |= {f"{name}/{other}_{end}": found[end] for end in ENDS}
        metrics[f"{name}/layer"] = encoders[name][0]["layer"]
    tables = [tables_of(own, PART, key) for own in encoders.values()]
    metrics |= about | behind_best(list(encoders), tables, key, lower_is_better=True)
    write_metrics(output, metrics)
    highest = max(spread(*table)["high"] for table in tables)
    limit = 1.05 * max(highest, chance or 1)
    title = f"{key.upper()} in %"
    bars = {"": dict(zip(encoders, tables, strict=True))}
    draw_bars(bars, output / "probe.png", title, chance, limit)
    picture = output / "layers.png"
    picture.unlink(missing_ok=True)
    if hparams["layers"]:
        lines = {
            name: {
                i if len(layers) > 1 else None: tables_of(own, PART, key)
                for i, own in enumerate(layers)
            }
            for name, layers in layers_of.items()
        }
        draw_lines({"": lines}, picture, "layer, counted from 0", title)
    return metrics, encoders


def error_table(metrics, encoders, key, other, decimals=1):
    """The table of error rates that a run prints.

    Arguments
    ---------
    metrics, encoders
        From `write_errors`.
    key, other : str
        The error rate, and another metric beside it.
    decimals : int
        Of the other metric.

    Returns
    -------
    str

    Example
    -------
    >>> metrics = {"fbank/wer": 8.0, "fbank/wer_low": 7.0, "fbank/wer_high": 9.5}
    >>> metrics |= {"fbank/cer": 3.0, "interval_covers": "95 %: other speakers"}
    >>> rows = {"fbank": [{"width": 512, "layer": "-"}]}
    >>> print(error_table(metrics, rows, "wer", "cer"))  # doctest: +ELLIPSIS
    encoder  width    layer   WER %  95 % interval       CER   behind best  ...
    fbank      512        -     8.0     7.0 to 9.5       3.0             -  ...
    (95 %: other speakers; lower is better)
    """
    wide = max(map(len, [*encoders, "encoder"]))

    def cell(name, width, decimals=1):
        if name not in metrics:
            return f"{'-':>{width}}"
        return f"{metrics[name]:{width}.{decimals}f}"

    def interval(name):
        if f"{name}_low" not in metrics:
            return f"{'-':>15}"
        return f"{metrics[f'{name}_low']:.1f} to {metrics[f'{name}_high']:.1f}".rjust(
            15
        )

    both = any(f"{name}/{other}_low" in metrics for name in encoders)
    title = f"{'95 % interval':>15}"
    lines = [
        f"{'encoder':{wide}}{'width':>7}{'layer':>9}{key.upper() + ' %':>8}{title}"
        f"{other.upper() + (' %' if both else ''):>10}{title if both else ''}"
        f"{'behind best':>14}{title}"
    ]
    for name, (row, *_) in encoders.items():
        score = f"{name}/{key}"
        lines.append(
            f"{name:{wide}}{row['width']:7d}{row['layer']:>9}{cell(score, 8)}"
            f"{interval(score)}{cell(f'{name}/{other}', 10, decimals)}"
            f"{interval(f'{name}/{other}') if both else ''}"
            f"{cell(f'{score}_behind_best', 14)}{interval(f'{score}_behind_best')}"
        )
    return "\n".join([*lines, f"({metrics['interval_covers']}; lower is better)"])
