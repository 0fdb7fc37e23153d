"""Pictures, drawn without a screen and written whole."""

import contextlib

import numpy as np
from sklearn.metrics import confusion_matrix

from encodecmae_sb.utils.files import whole_file

from .comparison import spread


@contextlib.contextmanager
def picture(path, rows=1, columns=1, **options):
    """A figure that becomes a PNG file when the block ends.

    Arguments
    ---------
    path : str or Path
        The file to write.
    rows, columns : int
        Of axes.
    **options
        Of `matplotlib.pyplot.subplots`, such as `figsize`, in inches.

    Yields
    ------
    figure : matplotlib.figure.Figure
    axes : matplotlib.axes.Axes or numpy.ndarray of them

    Example
    -------
    >>> path = getfixture("tmp_path") / "line.png"
    >>> with picture(path, figsize=(4, 3)) as (figure, axes):
    ...     lines = axes.plot([0, 1])
    >>> path.exists()
    True
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, layout="constrained", **options)
    try:
        yield figure, axes
        with whole_file(path) as scratch:
            figure.savefig(scratch, format="png", dpi=100)
    finally:
        pyplot.close(figure)


def draw_curves(history, path):
    """Draws loss, cross-entropy and accuracy over a pretraining.

    Arguments
    ---------
    history : History
        Filled by `PretrainBrain`.
    path : str or Path
        The PNG file to write.
    """
    steps = history.column("step")
    n_codebooks = sum(key.startswith("masked_ce_") for key in history.rows[-1])
    monitored = [row for row in history.rows if "effective_rank" in row]
    rows = 2 if monitored else 1
    size = {"figsize": (13, 4 * rows), "squeeze": False}
    with picture(path, rows, 3, **size) as (_, axes):
        losses, entropy, accuracy = axes[0]
        train_loss = history.column("train_loss")  # not before the first step
        losses.plot(steps[-len(train_loss) :], train_loss, ".-", label="training")
        losses.plot(steps, history.column("valid_loss"), ".-", label="validation")
        losses.set(title="Loss", xlabel="step", ylabel="nats (weighted)")
        losses.legend()
        for q in range(1, n_codebooks + 1):
            line = {"color": _viridis((q - 1) / n_codebooks)}
            named = line | {"label": f"codebook {q}"}
            entropy.plot(steps, history.column(f"masked_ce_{q}"), ".-", **named)
            entropy.plot(steps, history.column(f"unigram_ce_{q}"), ":", **line)
            share = [100 * value for value in history.column(f"masked_accuracy_{q}")]
            accuracy.plot(steps, share, ".-", **named)
        entropy.set(
            title="Hidden frames: cross-entropy (dotted: unigram)",
            xlabel="step",
            ylabel="nats",
        )
        accuracy.set(title="Hidden frames: accuracy", xlabel="step", ylabel="%")
        accuracy.legend(fontsize="small")
        if monitored:
            _draw_monitors(monitored, n_codebooks, *axes[1])
        for each in axes.flat:
            each.grid(alpha=0.3)


def _draw_monitors(rows, n_codebooks, rank, shares, codes):
    """Draws what `monitors` measured, on three axes."""
    kinds = (rank, "effective_rank"), (shares, "file_variance")
    words = (shares, "utterance_word_agreement"), (shares, "word_probe_auc")
    for axes, kind in (*kinds, *words):
        names = [key for key in rows[-1] if key.split("/")[-1] == kind]
        for name in names:
            there = [row for row in rows if name in row]
            steps = [row["step"] for row in there]
            axes.plot(steps, [row[name] for row in there], ".-", label=name)
        if names:
            axes.legend(fontsize="small")
    steps = [row["step"] for row in rows]
    for q in range(1, n_codebooks + 1):
        line = {"color": _viridis((q - 1) / n_codebooks)}
        occur = "clusters_used" if n_codebooks == 1 else f"codes_used_{q}"
        for style, name in ((".-", f"codes_predicted_{q}"), (":", occur)):
            codes.plot(steps, [100 * row[name] for row in rows], style, **line)
    rank.set(title="Effective rank of the frames", xlabel="step")
    shares.set(title="Between files; words", xlabel="step")
    codes.set(
        title="Codes predicted (dotted: that occur)",
        xlabel="step",
        ylabel="% of the codebook",
    )


def _viridis(share):
    from matplotlib import colormaps

    return colormaps["viridis"](share)


def draw_confusion(predicted, targets, labels, path, title):
    """Draws a confusion matrix, each row as shares of the clips with its label.

    Arguments
    ---------
    predicted, targets : torch.Tensor
        Indices into `labels`, int64, shape [clips].
    labels : list of str
    path : str or Path
        The PNG file to write.
    title : str
    """
    number = len(labels)
    counts = confusion_matrix(targets, predicted, labels=range(number))
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    # Large enough to read every label, up to hundreds of them.
    side = min(2.5 + 0.45 * number, 12 + 0.14 * number)
    size = max(4, min(10, 60 * side / (number + 10)))
    with picture(path, figsize=(side + 1, side)) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(number), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(number), labels, fontsize=size)
        axes.set(xlabel="predicted", ylabel="label", title=title)
        if number <= 60:
            for i, j in np.argwhere(counts):
                axes.text(
                    *(j, i, str(counts[i, j])),
                    ha="center",
                    va="center",
                    color="white" if shares[i, j] > 0.5 else "black",
                    fontsize=size,
                )
        figure.colorbar(image, shrink=0.7, label="share of the label's clips")


def draw_bars(panels, path, score_name, chance=None, limit=1):
    """Draws a bar for each encoder, with its 95 % interval and its folds.

    Arguments
    ---------
    panels : dict of str to dict of str to (array-like, array-like)
        Title of a panel -> name of a bar -> scores and draws, as for
        `comparison.spread`. All panels have the same bars.
    path : str or Path
        The PNG file to write.
    score_name : str
    chance : float, optional
        The score that is reached without listening, drawn as a line.
    limit : float
        Where the axis ends.
    """
    names = list(next(iter(panels.values())))
    size = {"figsize": (3 + 5 * len(panels), 1.2 + 0.5 * len(names)), "squeeze": False}
    with picture(path, columns=len(panels), sharey=True, **size) as (_, all_axes):
        for (title, bars), axes in zip(panels.items(), all_axes[0], strict=True):
            spreads = [spread(*tables) for tables in bars.values()]
            axes.barh(
                range(len(bars)),
                [row["mean"] for row in spreads],
                xerr=_errors(spreads),
                color="C0",
                alpha=0.6,
                capsize=4,
            )
            for i, (table, _) in enumerate(bars.values()):
                points = np.mean(table, 1) if len(table) > 1 else np.asarray(table)[0]
                axes.plot(points, [i] * len(points), ".", color="black", markersize=4)
                dots = "folds" if len(table) > 1 else "repeats"
            if chance is not None:
                axes.axvline(chance, color="grey", linestyle=":")
            label = f"{score_name} (bar: 95 % interval; dots: {dots})"
            axes.set(xlim=(0, limit), xlabel=label, title=title)
        all_axes[0, 0].set_yticks(
            range(len(names)), [short_name(name) for name in names]
        )
        all_axes[0, 0].invert_yaxis()


def draw_tasks(spreads, scores, path):
    """Draws bars of encoders in several tasks, with 95 % intervals where there are any.

    Arguments
    ---------
    spreads : dict of (str, str) to dict
        Of a task and an encoder, what `comparison.spread` gives.
    scores : dict of str to str
        The name of the score of each task.
    path : str or Path
        The PNG file to write.
    """
    encoders = list(dict.fromkeys(encoder for _, encoder in spreads))
    thick = 0.8 / len(encoders)
    bars = len(scores) * (len(encoders) + 1)
    with picture(path, figsize=(8, 1.5 + 0.2 * bars)) as (figure, axes):
        for i, encoder in enumerate(encoders):
            places = [n for n, task in enumerate(scores) if (task, encoder) in spreads]
            rows = [row for (_, name), row in spreads.items() if name == encoder]
            axes.barh(
                [place + (i - (len(encoders) - 1) / 2) * thick for place in places],
                [row["mean"] for row in rows],
                thick,
                xerr=_errors(rows),
                color=f"C{i}",
                alpha=0.7,
                capsize=2,
                label=short_name(encoder),
            )
        names = [f"{task}\n{score}" for task, score in scores.items()]
        axes.set_yticks(range(len(scores)), names, fontsize="small")
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="score, with 95 % interval")
        figure.legend(fontsize="small", loc="outside lower center")


def draw_lines(panels, path, label, score_name):
    """Draws the score over layers, steps or labels: a line for each encoder.

    Arguments
    ---------
    panels : dict of str to dict of str to dict
        Title of a panel -> name of a line -> place -> scores and draws, as for
        `comparison.spread`. Places are numbers, or names in their order. A line whose
        only place is None is drawn across.
    path : str or Path
        The PNG file to write.
    label : str
        What the places are.
    score_name : str
    """
    size = {"figsize": (1 + 6 * len(panels), 4.5), "squeeze": False}
    with picture(path, columns=len(panels), sharey=True, **size) as (_, all_axes):
        for (title, lines), axes in zip(panels.items(), all_axes[0], strict=True):
            for i, (name, points) in enumerate(lines.items()):
                style = {"color": f"C{i}", "label": short_name(name)}
                spreads = [spread(*tables) for tables in points.values()]
                means = [row["mean"] for row in spreads]
                if list(points) == [None]:
                    axes.axhline(means[0], linestyle="--", **style)
                    continue
                axes.errorbar(
                    *(list(points), means, _errors(spreads)),
                    marker="o",
                    capsize=3,
                    **style,
                )
            if not any(
                isinstance(place, str) for line in lines.values() for place in line
            ):
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(
                xlabel=label, ylabel=f"{score_name}, with 95 % interval", title=title
            )
            axes.legend(fontsize="small")


def draw_losses(tables, titles, path, score_name):
    """Draws how much worse each model is under each corruption, in three strengths.

    Arguments
    ---------
    tables : dict of str to (numpy.ndarray, numpy.ndarray)
        Model -> its scores and its losses in %, each [corruptions, strengths]; NaN
        where there is none.
    titles : list of str
        Of the corruptions.
    path : str or Path
        The PNG file to write.
    score_name : str
    """
    size = {"figsize": (2.6 + 2.6 * len(tables), 1.6 + 0.32 * len(titles))}
    with picture(path, 1, len(tables), squeeze=False, sharey=True, **size) as (
        figure,
        axes,
    ):
        for each, (name, (scores, losses)) in zip(axes[0], tables.items(), strict=True):
            # Losses of more than 100 %, as of error rates, have the darkest colour.
            image = each.imshow(losses, cmap="Reds", vmin=0, vmax=100, aspect="auto")
            for i, j in np.ndindex(*scores.shape):
                known = np.isfinite(scores[i, j])
                text = f"{scores[i, j]:.3g}" if known else "n/a"
                dark = losses[i, j] > 60
                colour = {"color": "white" if dark else "black"}
                each.text(j, i, text, ha="center", va="center", fontsize=8, **colour)
            each.set_xticks(range(scores.shape[1]), ["weak", "medium", "strong"])
            each.set_yticks(range(len(titles)), titles)
            each.set_title(short_name(name, 24), fontsize=9)
        figure.colorbar(image, ax=list(axes[0]), label="loss, % of the clean score")
        figure.suptitle(f"{score_name} (number) and loss (colour)", fontsize=10)


def _errors(spreads):
    """Lengths of the lower and upper halves of error bars, [2, bars]."""
    rows = [(row["mean"], row.get("low"), row.get("high")) for row in spreads]
    lower = [0.0 if low is None else max(0.0, mean - low) for mean, low, _ in rows]
    upper = [0.0 if high is None else max(0.0, high - mean) for mean, _, high in rows]
    return [lower, upper]


def short_name(name, length=36):
    """The end of a long path.

    Example
    -------
    >>> short_name("results/base/1234/encoder", 12)
    '…234/encoder'
    """
    return name if len(name) <= length else "…" + name[1 - length :]
