"""What checkpoints hold besides weights: measurements, and what is counted once."""

import json

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)


@register_checkpoint_hooks
class History:
    """What each validation measured, saved with every checkpoint.

    Example
    -------
    >>> history = History()
    >>> history.append({"step": 10, "loss": 0.5})
    >>> history.column("loss")
    [0.5]
    """

    def __init__(self):
        self.rows = []

    def append(self, row):
        """Adds a row: a dict of plain numbers."""
        self.rows.append(row)

    def column(self, name):
        """All values of one measurement, oldest first."""
        return [row[name] for row in self.rows if name in row]

    @mark_as_saver
    def save(self, path):
        """Writes the rows as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.rows, file)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads the rows back."""
        with open(path, encoding="utf-8") as file:
            self.rows = json.load(file)


@register_checkpoint_hooks
class Unigrams:
    """How often codes occur, counted once in a run and kept in its checkpoints.

    Attributes
    ----------
    log_probs : torch.Tensor or None
        See `PretrainBrain.count_codes`.
    """

    def __init__(self):
        self.log_probs = None

    @mark_as_saver
    def save(self, path):
        """Writes the tensor."""
        torch.save(self.log_probs.cpu(), path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads the tensor back."""
        self.log_probs = torch.load(path, map_location="cpu", weights_only=True)
