"""The bootstrap over groups."""

import numpy as np
import pytest
import torch

from encodecmae_sb.evaluation.metrics import resampled_scores
from encodecmae_sb.evaluation.resampling import resampled_groups


def test_clips_that_are_groups_of_their_own_are_drawn_as_clips():
    targets = torch.tensor([0, 1, 1, 1, 0])
    probabilities = torch.eye(2)[[0, 1, 1, 0, 1]]
    right = (probabilities.argmax(1) == targets).numpy()
    # More than the other function draws at once.
    counts = resampled_groups(5, draws=250, seed=3)
    expected = resampled_scores(probabilities, targets, draws=250, seed=3)
    assert np.array_equal(counts[:, right].sum(1) / 5, expected)


def test_a_seed_gives_the_draws():
    one, same, other = (resampled_groups(6, 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_every_group_is_drawn_equally_often():
    counts = resampled_groups(8, draws=4000)
    assert (counts.sum(1) == 8).all()
    assert counts.mean(0) == pytest.approx(np.ones(8), abs=0.07)
    # With replacement: a group is absent from a set with (1 - 1 / 8) ** 8.
    assert (counts == 0).mean() == pytest.approx((7 / 8) ** 8, abs=0.02)


def test_a_mean_over_groups_varies_as_statistics_says():
    """The deviation of the mean is that of the groups over the root of their number."""
    values = np.random.default_rng(0).standard_normal(20)
    means = resampled_groups(20, draws=5000) @ values / 20
    assert means.std() == pytest.approx(values.std() / np.sqrt(20), rel=0.05)


def test_no_groups():
    with pytest.raises(ValueError, match="groups=0"):
        resampled_groups(0)
