"""Probes: small classifiers on fixed vectors, which measure what the vectors hold.

As in HEAREval (https://arxiv.org/abs/2203.03022), every probe of a small grid is
trained until validation stops improving, and the one with the best validation is
tested. Unlike there, the choice is made anew in every fold, on the fold's own
validation set, and the chosen probe is trained again from other seeds.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.data.clip_batches import EpochBatches
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.utils.errors import UserError

from .metrics import clip_scores, multi_label_scores, resampled_scores

DRAWS = 1000  # of test clips, for intervals


@dataclass(frozen=True)
class ProbeGrid:
    """The probes to choose from, and how to train each of them.

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
        Training stops after so many epochs without a better validation.

    Raises
    ------
    UserError
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
    """Raises a `UserError` unless a setting is a whole number from a minimum."""
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
    """Trains one probe. The same seed gives the same probe, whatever was drawn before.

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
    """The main one of `clip_scores`, without the others, which take longer."""
    if targets.dim() == 2:
        return multi_label_scores(logits.sigmoid().cpu(), targets.cpu())["mAP"]
    # Moved first: not every device has double precision.
    return (logits.argmax(1) == targets).cpu().double().mean().item()


def probe_vectors(
    train,
    valid,
    test,
    num_classes,
    grid,
    repeats=1,
    seed=0,
    choice=None,
    draws_seed=0,
    groups=None,
):
    """Chooses a probe on the validation set and tests it.

    Vectors are normalised to mean 0 and deviation 1 of the training set: the scales of
    different encoders differ by orders of magnitude.

    Arguments
    ---------
    train, valid, test : (torch.Tensor, torch.Tensor)
        Vectors float32 [clips, width] and targets, see `targets_of`, on one device.
    num_classes : int
    grid : ProbeGrid
    repeats : int
        How often to train and test the chosen probe, each time from another seed.
    seed : int
        Of the first repeat and of the choice.
    choice : (int, float), optional
        Hidden layers and learning rate, if they were chosen before.
    draws_seed : int
        Of the sets that are drawn from the test clips. Encoders that are compared need
        the same.
    groups : list of str, optional
        The group of each test clip, see `resampled_scores`.

    Returns
    -------
    list of dict
        For each repeat: `repeat`, `hidden_layers`, `lr`, `epoch`, `valid` (the main
        metric on the validation set), the metrics of `clip_scores` on the test set, and
        `draws`, the main metric on `DRAWS` sets drawn from the test clips, see
        `resampled_scores`.

    Raises
    ------
    UserError
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
                "draws": resampled_scores(*outcome, DRAWS, draws_seed, groups).tolist(),
            }
        )
    return rows
