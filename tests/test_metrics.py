"""Metrics of predictions against values by hand."""

import numpy as np
import pytest
import torch

from encodecmae_sb.evaluation.metrics import (
    accuracy_scores,
    average_precision,
    class_rows,
    multi_label_scores,
    resampled_scores,
)


def test_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    wanted = torch.tensor([1, 0, 1, 0])
    assert average_precision(scores, wanted) == pytest.approx((1 + 2 / 3) / 2)
    # The same score for all: no order helps.
    assert average_precision(torch.zeros(4), wanted) == pytest.approx(0.5)
    assert average_precision(-scores, wanted) == pytest.approx((1 / 2 + 2 / 4) / 2)
    # A probe whose training diverged is no better than that.
    nothing = torch.full((4,), torch.nan)
    assert average_precision(nothing, wanted) == pytest.approx(0.5)


def test_figures_of_classes():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    rows = class_rows(probabilities, torch.tensor([0, 1, 1]), ["a", "b"])
    assert rows[0] | {"precision": 0.5, "recall": 1.0} == rows[0]
    assert rows[1] | {"precision": 1.0, "recall": 0.5} == rows[1]
    assert rows[1]["f1"] == pytest.approx(2 / 3)
    # A class that does not occur does not count.
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    scores = multi_label_scores(probabilities, targets)
    assert scores == {"mAP": 1.0, "micro_f1": pytest.approx(2 * 2 / (3 + 2))}


def old_average_precision(scores, wanted):
    """The sum of steps by hand; clips of the same score count together."""
    order = scores.argsort(descending=True, stable=True)
    scores, wanted = scores[order], wanted[order].double()
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[:-1] != scores[1:]
    taken, found = torch.arange(1, len(scores) + 1)[last], wanted.cumsum(0)[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return ((found / taken) * gained).sum().item() / found[-1].item()


def old_row(given, wanted):
    """Clips, precision, recall and F1 of a class by hand."""
    right = (given & wanted).sum().item()
    given, clips = given.sum().item(), wanted.sum().item()
    precision = right / given if given else 0.0
    recall = right / clips if clips else 0.0
    return [clips, precision, recall, 2 * right / (given + clips) if right else 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_gives_the_values_by_hand(seed):
    generator = torch.Generator().manual_seed(seed)
    # In steps, so that many scores are equal. Class 3 never occurs, class 4 is never
    # predicted.
    scores = torch.rand(60, 6, generator=generator).mul(8).round() / 8
    scores[:, 4] = 0
    several = (torch.rand(60, 6, generator=generator) < 0.3).float()
    several[:, 3] = 0
    one = torch.tensor([0, 1, 2, 4, 5])[torch.randint(5, (60,), generator=generator)]

    rows = class_rows(scores, several, list("abcdef"))
    precisions = []
    for i, row in enumerate(rows):
        expected = old_row(scores[:, i] > 0.5, several[:, i] > 0.5)
        assert list(row.values())[1:-1] == expected
        if i != 3:
            precisions.append(old_average_precision(scores[:, i], several[:, i]))
            assert row["average_precision"] == pytest.approx(precisions[-1], rel=1e-12)
    metrics = multi_label_scores(scores, several)
    assert metrics["mAP"] == pytest.approx(np.mean(precisions), rel=1e-12)
    given, wanted = scores > 0.5, several > 0.5
    assert metrics["micro_f1"] == old_row(given, wanted)[-1]

    rows = class_rows(scores, one, list("abcdef"))
    expected = [old_row(scores.argmax(1) == i, one == i) for i in range(6)]
    assert [list(row.values())[1:] for row in rows] == expected
    expected = [row for row in expected if row[0]]
    metrics = accuracy_scores(scores, one)
    assert metrics["accuracy"] == (scores.argmax(1) == one).double().mean().item()
    assert metrics["balanced_accuracy"] == sum(row[2] for row in expected) / 5
    assert metrics["macro_f1"] == sum(row[3] for row in expected) / 5


def test_draws_of_several_labels_are_those_of_repeated_clips():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(12, 3, generator=generator) < 0.4).float()
    # Scores in steps, so that some are equal.
    scores = torch.rand(12, 3, generator=generator).mul(5).round() / 5
    draws = resampled_scores(scores, targets, 20, seed=3)
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=20)
    for count, draw in zip(counts, draws, strict=True):
        rows = torch.arange(12).repeat_interleave(torch.tensor(count))
        expected = multi_label_scores(scores[rows], targets[rows])["mAP"]
        assert draw == pytest.approx(expected, abs=1e-6)
