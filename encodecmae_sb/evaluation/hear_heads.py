"""Shallow heads on fixed embeddings, in the protocol of HEAR.

The heads, their grid and their training are those of the package heareval 2021.1.3:
hidden layers with batch norm, Adam, no drawing of batches, a validation every few
epochs, and an end after several validations without a better one.
"""

import copy
import itertools
import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.utils.errors import UserError

from .probe import ProbeGrid, check_whole

INITIALISATIONS = {
    "uniform": nn.init.xavier_uniform_,
    "normal": nn.init.xavier_normal_,
}


@dataclass(frozen=True)
class HeadGrid(ProbeGrid):
    """The heads to choose from, and how to train each of them.

    Arguments
    ---------
    hidden_layers, lrs, hidden_size, dropout, batch_size, number_of_epochs
        As for `ProbeGrid`.
    patience : int
        Training stops after so many validations without a better one.
    initialisations : list of str
        Of the weights, to choose from: "uniform", "normal" (Glorot).
    valid_interval : int
        Epochs from one validation to the next.
    grid_points : int
        Heads that are trained, drawn from all combinations.

    Raises
    ------
    UserError
        If a value has no meaning.
    """

    initialisations: tuple = ("uniform",)
    valid_interval: int = 1
    grid_points: int = 8

    def __post_init__(self):
        super().__post_init__()
        names = self.initialisations
        if (
            not isinstance(names, (list, tuple))
            or not names
            or set(names) - set(INITIALISATIONS)
        ):
            raise UserError(
                f"initialisations={names}: give a list of {', '.join(INITIALISATIONS)}."
            )
        check_whole("grid_points", self.grid_points, 1)
        check_whole("valid_interval", self.valid_interval, 1)
        if self.valid_interval > self.number_of_epochs:
            raise UserError(
                f"valid_interval={self.valid_interval} is more than number_of_epochs="
                f"{self.number_of_epochs}: there would be no validation."
            )

    def drawn(self, seed):
        """The heads to train: hidden layers, initialisation, learning rate.

        Example
        -------
        >>> grid = HeadGrid([1, 2], [0.01], initialisations=["uniform"], grid_points=1)
        >>> grid.drawn(seed=42)
        [(2, 'uniform', 0.01)]
        """
        values = self.hidden_layers, self.initialisations, self.lrs
        heads = list(itertools.product(*values))
        random.Random(seed).shuffle(heads)
        return heads[: self.grid_points]


def build_head(width, num_labels, choice, grid):
    """A head with new weights.

    Arguments
    ---------
    width : int
        Of the embeddings.
    num_labels : int
    choice : (int, str, float)
        See `HeadGrid.drawn`.
    grid : HeadGrid

    Returns
    -------
    torch.nn.Sequential
        Embeddings [B, width] -> logits [B, num_labels].

    Example
    -------
    >>> grid = HeadGrid([1], [0.01], hidden_size=32)
    >>> build_head(64, 10, (1, "uniform", 0.01), grid)(torch.rand(8, 64)).shape
    torch.Size([8, 10])
    """
    head, gain = nn.Sequential(), 1.0
    for _ in range(choice[0]):
        linear = nn.Linear(width, grid.hidden_size)
        INITIALISATIONS[choice[1]](linear.weight, gain=gain)
        norm = nn.BatchNorm1d(grid.hidden_size)
        head.extend([linear, norm, nn.Dropout(grid.dropout), nn.ReLU()])
        width, gain = grid.hidden_size, nn.init.calculate_gain("relu")
    output = nn.Linear(width, num_labels)
    INITIALISATIONS[choice[1]](output.weight, gain=gain)
    return head.append(output)


@dataclass
class TrainedHead:
    """A head at its best validation.

    Arguments
    ---------
    head : torch.nn.Module
        In eval mode.
    epoch : int
        Of that validation, counted from 1.
    value : float
        Of that validation. More is better.
    note : object
        What else the validation gave, such as how events are made.
    """

    head: nn.Module
    epoch: int = 0
    value: float = -math.inf
    note: object = None


def train_head(train, validate, multi_label, choice, grid, seed):
    """Trains one head. The same seed gives the same head, whatever was drawn before.

    Arguments
    ---------
    train : (torch.Tensor, torch.Tensor)
        Embeddings [items, width] and targets, 0 or 1, float32 [items, labels], on one
        device.
    validate : callable
        Takes the head, in eval mode. Gives a value, of which more is better, and a
        note. A value that is not finite counts as the worst.
    multi_label : bool
    choice : (int, str, float)
        See `HeadGrid.drawn`.
    grid : HeadGrid
    seed : int

    Returns
    -------
    TrainedHead

    Raises
    ------
    UserError
        If no validation gave a finite value.

    Example
    -------
    >>> y = torch.eye(2)[torch.arange(40) % 2]
    >>> x = y + 0.1 * torch.randn(40, 2)
    >>> grid = HeadGrid([1], [0.1], number_of_epochs=20)
    >>> def validate(head):
    ...     return (head(x).argmax(1) == y.argmax(1)).float().mean().item(), None
    >>> train_head((x, y), validate, False, (1, "normal", 0.1), grid, seed=0).value
    1.0
    """
    inputs, targets = train
    starts = list(range(0, len(inputs), grid.batch_size))
    if len(starts) > 1 and len(inputs) - starts[-1] == 1:
        del starts[-1]  # batch norm needs two: one item joins the batch before
    batches = [slice(*pair) for pair in zip(starts, [*starts[1:], None], strict=True)]
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        head = build_head(inputs.shape[1], targets.shape[1], choice, grid)
        head.to(inputs.device)
        optimizer = torch.optim.Adam(head.parameters(), lr=choice[2])
        best, waited, weights = TrainedHead(head), 0, None
        for epoch in range(1, grid.number_of_epochs + 1):
            head.train()
            for rows in batches:
                loss = head_loss(head(inputs[rows]), targets[rows], multi_label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch % grid.valid_interval:
                continue
            head.eval()
            with torch.no_grad():
                value, note = validate(head)
            if math.isfinite(value) and value > best.value:
                best, waited = TrainedHead(head, epoch, value, note), 0
                weights = copy.deepcopy(head.state_dict())
            else:
                waited += 1
                if waited >= grid.patience:
                    break
    if weights is None:
        raise UserError(
            f"No validation of a head with lr={choice[2]} gave a number. Are there "
            "sounds of every label in the validation split?"
        )
    head.load_state_dict(weights)
    head.eval()
    return best


def head_loss(logits, targets, multi_label):
    """The loss of logits [items, labels]; targets are 0 or 1, of the same shape."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets.argmax(1))


@torch.no_grad()
def logits_of(head, inputs, batch_size):
    """Logits of many embeddings, [items, width] -> [items, labels]."""
    return torch.cat([head(part) for part in inputs.split(batch_size)])
