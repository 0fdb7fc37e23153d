"""Probes: small classifiers on vectors that stay as they are, to tell their worth.

As in HEAREval (https://arxiv.org/abs/2203.03022), every probe of a small grid is
trained until validation stops improving, and the one that validates best is tested.
Here the choice is made for each fold on its own validation fold (HEAREval makes it on
the first and keeps it), and the chosen probe is trained again from other seeds.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.data.clips import EpochBatches
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.utils.errors import UserError

from .metrics import clip_scores, multi_label_scores, resampled_scores

DRAWS = 1000  # of test clips, for intervals


@dataclass(frozen=True)
class ProbeGrid:
    """The probes to choose from, and how each is trained.

    Arguments
    ---------
    hidden_layers : list of int
        Numbers of hidden layers to try; 0 is a linear probe.
    lrs : list of float
        Learning rates to try.
    hidden_size : int
        Width of the hidden layers.
    dropout : float
        After each hidden layer.
    batch_size : int
    number_of_epochs : int
        At most.
    patience : int
        Epochs without a better validation after which training stops.

    Raises
    ------
    ValueError
        If a value has no meaning.

    Example
    -------
    >>> ProbeGrid(hidden_layers=[0, 1], lrs=[0.01]).choices
    [(0, 0.01), (1, 0.01)]
    """

    hidden_layers: list
    lrs: list
    hidden_size: int = 256
    dropout: float = 0.1
    batch_size: int = 64
    number_of_epochs: int = 100
    patience: int = 10

    def __post_init__(self):
        for name, check, allowed, example in (
            ("hidden_layers", _count, "whole numbers from 0", "[0, 1]"),
            ("lrs", _rate, "numbers above 0 and up to 1", "[0.01, 0.001]"),
        ):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(map(check, values)):
                values = []
            if not values:
                raise UserError(
                    f"{name}={getattr(self, name)}: give a list of {allowed}, such as "
                    f'--{name} "{example}".'
                )
        least = {
            "hidden_size": 1,
            "batch_size": 2,
            "number_of_epochs": 1,
            "patience": 1,
        }
        for name, minimum in least.items():
            check_whole(name, getattr(self, name), minimum)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout}: from 0 to below 1.")

    @property
    def choices(self):
        """Pairs of hidden layers and learning rate, the simpler probes first."""
        return list(itertools.product(self.hidden_layers, self.lrs))


def _count(value, minimum=0):
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and value >= minimum


def _rate(value):
    return isinstance(value, (int, float)) and 0 < value <= 1


def check_whole(name, value, minimum):
    """Raises a ValueError unless a setting is a whole number from a minimum."""
    if not _count(value, minimum):
        raise UserError(f"{name}={value}: a whole number from {minimum} is needed.")


def build_probe(width, num_classes, hidden_layers, hidden_size, dropout):
    """A linear classifier or an MLP with batch norm.

    Arguments
    ---------
    width : int
        Of the vectors.
    num_classes : int
    hidden_layers, hidden_size : int
    dropout : float

    Returns
    -------
    torch.nn.Sequential
        Vectors [B, width] -> logits [B, num_classes].

    Example
    -------
    >>> build_probe(64, 10, 2, 32, 0.1)(torch.rand(8, 64)).shape
    torch.Size([8, 10])
    """
    probe = nn.Sequential()
    for _ in range(hidden_layers):
        probe.append(nn.Linear(width, hidden_size))
        probe.append(nn.BatchNorm1d(hidden_size))
        probe.append(nn.ReLU())
        probe.append(nn.Dropout(dropout))
        width = hidden_size
    probe.append(nn.Linear(width, num_classes))
    for module in probe:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return probe


@dataclass
class TrainedProbe:
    """A probe at its best epoch.

    Arguments
    ---------
    probe : torch.nn.Module
        In eval mode.
    choice : (int, float)
        Hidden layers and learning rate.
    epoch : int
        Counted from 1; 0: not trained yet.
    score : float
        Accuracy, or mAP of multi-label targets, on the validation set.
    loss : float
        On the validation set.
    """

    probe: nn.Module
    choice: tuple
    epoch: int = 0
    score: float = -math.inf
    loss: float = math.inf

    def better_than(self, other):
        """Whether it validates better."""
        return (self.score, -self.loss) > (other.score, -other.loss)


def train_probe(train, valid, num_classes, choice, grid, seed):
    """Trains one probe; the same for the same seed, whatever came before.

    Arguments
    ---------
    train, valid : (torch.Tensor, torch.Tensor)
        Vectors [clips, width] and targets, see `targets_of`, on one device.
    num_classes : int
    choice : (int, float)
        Hidden layers and learning rate.
    grid : ProbeGrid
        All else.
    seed : int

    Returns
    -------
    TrainedProbe

    Example
    -------
    >>> y = torch.arange(40) % 2
    >>> x = y[:, None] + 0.1 * torch.randn(40, 3)
    >>> grid = ProbeGrid([0], [0.1])
    >>> train_probe((x, y), (x, y), 2, (0, 0.1), grid, seed=0).score
    1.0
    """
    inputs, targets = train
    multi_label = targets.dim() == 2
    loss_of = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
    batches = EpochBatches([0.0] * len(inputs), grid.batch_size, seed)
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        probe = build_probe(
            inputs.shape[1], num_classes, choice[0], grid.hidden_size, grid.dropout
        ).to(inputs.device)
        optimizer = torch.optim.Adam(probe.parameters(), lr=choice[1])
        best = TrainedProbe(probe, choice)
        for epoch in range(1, grid.number_of_epochs + 1):
            probe.train()
            batches.set_epoch(epoch)
            for rows in batches:
                loss = loss_of(probe(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            probe.eval()
            with torch.no_grad():
                logits = probe(valid[0])
                loss = loss_of(logits, valid[1]).item()
            now = TrainedProbe(probe, choice, epoch, _score(logits, valid[1]), loss)
            if now.better_than(best):
                best, weights = now, copy.deepcopy(probe.state_dict())
            elif epoch - best.epoch >= grid.patience:
                break
    probe.load_state_dict(weights)
    probe.eval()
    return best


def _score(logits, targets):
    """What validation goes by; `clip_scores` computes more, and takes longer."""
    if targets.dim() == 2:
        return multi_label_scores(logits.sigmoid().cpu(), targets.cpu())["mAP"]
    # Moved first: not every device has double precision.
    return (logits.argmax(1) == targets).cpu().double().mean().item()


def probe_vectors(
    train, valid, test, num_classes, grid, repeats=1, seed=0, choice=None, draws_seed=0
):
    """Chooses a probe on the validation set and tests it.

    Vectors are brought to mean 0 and deviation 1, as measured on the training set:
    those of different encoders differ in scale by orders of magnitude.

    Arguments
    ---------
    train, valid, test : (torch.Tensor, torch.Tensor)
        Vectors float32 [clips, width] and targets, see `targets_of`, on one device.
    num_classes : int
    grid : ProbeGrid
    repeats : int
        How often the chosen probe is trained, each time from another seed, and
        tested.
    seed : int
        Of the first repeat and of the choice.
    choice : (int, float), optional
        Hidden layers and learning rate, where they are chosen already.
    draws_seed : int
        Of the sets that are drawn from the test clips; what is to be compared must
        have the same.

    Returns
    -------
    list of dict
        For each repeat: `repeat`, `hidden_layers`, `lr`, `epoch`, `valid` (the score
        gone by), the figures of `clip_scores` on the test set, and `draws`, a list of
        the first of them on `DRAWS` sets drawn from the test clips, see
        `resampled_scores`.

    Raises
    ------
    ValueError
        If vectors are not finite, there is a single class, or `repeats` is below 1.

    Example
    -------
    >>> y = torch.arange(40) % 2
    >>> x = y[:, None] + 0.1 * torch.randn(40, 3)
    >>> rows = probe_vectors(
    ...     (x, y), (x, y), (x, y), 2, ProbeGrid([0, 1], [0.1]), repeats=2
    ... )
    >>> [row["accuracy"] for row in rows]
    [1.0, 1.0]
    """
    check_whole("repeats", repeats, 1)
    if num_classes < 2:
        raise UserError(f"num_classes={num_classes}: at least two are needed.")
    for name, (inputs, _) in (("train", train), ("valid", valid), ("test", test)):
        bad = (~torch.isfinite(inputs).all(1)).sum().item()
        if bad:
            raise UserError(
                f"{bad} of the {len(inputs)} vectors of {name} are not finite (NaN or "
                "Inf): the encoder that gave them is damaged."
            )
    # In double precision, which not every device has.
    deviation, mean = torch.std_mean(train[0].cpu().double(), 0, correction=0)
    # A channel that hardly varies holds rounding errors only.
    floor = max(1e-3 * deviation.mean().item(), 1e-12)
    device = train[0].device
    mean, scale = (x.float().to(device) for x in (mean, deviation.clamp(min=floor)))
    train, valid, test = (((x - mean) / scale, y) for x, y in (train, valid, test))

    def trained(choice, number):
        return train_probe(train, valid, num_classes, choice, grid, seed + number)

    best = None
    for tried in grid.choices if choice is None else [choice]:
        probe = trained(tried, 0)
        if best is None or probe.better_than(best):
            best = probe
    rows = []
    for number in range(repeats):
        probe = best if number == 0 else trained(best.choice, number)
        with torch.no_grad():
            logits = probe.probe(test[0])
        outcome = probabilities(logits, test[1].dim() == 2).cpu(), test[1].cpu()
        rows.append(
            {
                "repeat": number,
                "hidden_layers": probe.choice[0],
                "lr": probe.choice[1],
                "epoch": probe.epoch,
                "valid": probe.score,
                **clip_scores(*outcome),
                "draws": resampled_scores(*outcome, DRAWS, draws_seed).tolist(),
            }
        )
    return rows


def spread(scores, draws=None):
    """Mean of scores over folds and repeats, and how sure it is.

    Arguments
    ---------
    scores : array-like
        Shape [folds, repeats].
    draws : array-like, optional
        The same on sets drawn from the test clips, shape [folds, repeats, sets].

    Returns
    -------
    dict of str to float
        `mean`; `low` and `high`, the 95 % interval of the mean, where there are
        draws; `std_folds` and `std_repeats`, deviations from fold to fold and, within
        a fold, from repeat to repeat; `stderr_folds`, the standard error of the mean
        of the folds. What a single fold or repeat cannot tell is left out.

        The interval is that of a bootstrap in two ways at once: the test clips of
        every fold are drawn anew, and with them the repeats, the same ones for all
        folds. So it covers what other test clips and other seeds would change. It does
        not cover other training clips, other folds or another pretraining, and few
        repeats show less than all of what seeds do.

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


def _errors(result):
    """Lengths of the two halves of an error bar, shape [2, 1]."""
    mean = result["mean"]
    return [
        [max(0.0, mean - result.get("low", mean))],
        [max(0.0, result.get("high", mean) - mean)],
    ]


def draw_bars(names, scores, draws, path, score_name, chance=None):
    """Draws a bar for each encoder, with its 95 % interval and its folds.

    Arguments
    ---------
    names : list of str
    scores, draws : list of array-like
        Of each, as for `spread`.
    path : str or Path
        The PNG file to write.
    score_name : str
    chance : float, optional
        What is reached without listening, drawn as a line.
    """
    pyplot = _pyplot()
    spreads = [spread(*tables) for tables in zip(scores, draws, strict=True)]
    figure, axes = pyplot.subplots(
        figsize=(8, 1.2 + 0.5 * len(names)), layout="constrained"
    )
    axes.barh(
        range(len(names)),
        [row["mean"] for row in spreads],
        xerr=np.concatenate([_errors(row) for row in spreads], axis=1),
        color="C0",
        alpha=0.6,
        capsize=4,
    )
    for i, table in enumerate(scores):
        points = np.mean(table, 1) if len(table) > 1 else np.asarray(table)[0]
        axes.plot(points, [i] * len(points), ".", color="black", markersize=4)
    if chance is not None:
        axes.axvline(chance, color="grey", linestyle=":")
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    dots = "folds" if len(scores[0]) > 1 else "repeats"
    axes.set(xlim=(0, 1), xlabel=f"{score_name} (bar: 95 % interval; dots: {dots})")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_layers(curves, path, score_name):
    """Draws the score over the layers of each encoder.

    Arguments
    ---------
    curves : dict of str to list of (array-like, array-like)
        Name -> for each layer scores and draws, as for `spread`. What has one layer
        only is drawn as a line across.
    path : str or Path
        The PNG file to write.
    score_name : str
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for i, (name, layers) in enumerate(curves.items()):
        spreads = [spread(*tables) for tables in layers]
        means = [row["mean"] for row in spreads]
        errors = np.concatenate([_errors(row) for row in spreads], axis=1)
        if len(layers) == 1:
            axes.axhline(means[0], color=f"C{i}", linestyle="--", label=_short(name))
        else:
            axes.errorbar(
                range(len(layers)),
                means,
                errors,
                color=f"C{i}",
                marker="o",
                capsize=3,
                label=_short(name),
            )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="layer, counted from 0", ylabel=f"{score_name}, with 95 % interval")
    axes.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _short(name, length=36):
    """The end of a long path."""
    return name if len(name) <= length else "…" + name[1 - length :]
