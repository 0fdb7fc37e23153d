"""How sure the scores of a comparison are."""

import math

import pytest
import torch

from encodecmae_sb.evaluation.comparison import spread
from encodecmae_sb.evaluation.metrics import resampled_scores


def test_spread_by_hand():
    assert spread([[0.5]]) == {"mean": 0.5}
    two = spread([[0.4, 0.6]])
    assert two["std_repeats"] == pytest.approx(math.sqrt(0.02))
    # Seeds of a probe alone tell nothing of how sure the score is.
    assert set(two) == {"mean", "std_repeats"}
    folds = spread([[0.4], [0.6]])
    assert folds["stderr_folds"] == pytest.approx(0.1)


def test_the_interval_is_that_of_other_test_clips():
    """300 of 400 clips are right, so the standard error is sqrt(0.75 * 0.25 / 400)."""
    targets = torch.arange(400) % 4
    given = torch.where(torch.arange(400) < 300, targets, (targets + 1) % 4)
    guesses = torch.eye(4)[given]
    draws = resampled_scores(guesses, targets, 2000)
    expected = math.sqrt(0.75 * 0.25 / 400)
    assert draws.std() == pytest.approx(expected, rel=0.1)
    whole = spread([[0.75]], [[draws]])
    assert whole["low"] == pytest.approx(0.75 - 1.96 * expected, abs=0.008)
    assert whole["high"] == pytest.approx(0.75 + 1.96 * expected, abs=0.008)
    # Two folds of 200 each tell as much; what varies with the seed comes on top.
    halves = [resampled_scores(guesses[i::2], targets[i::2], 2000, i) for i in (0, 1)]
    folds = spread([[0.75], [0.75]], [[half] for half in halves])
    assert folds["high"] - folds["low"] == pytest.approx(2 * 1.96 * expected, rel=0.15)
    seeds = spread([[0.65, 0.85]], [[draws - 0.1, draws + 0.1]])
    both = math.sqrt(expected**2 + 0.1**2 / 2)
    assert seeds["high"] - seeds["low"] > 2 * 1.4 * both
