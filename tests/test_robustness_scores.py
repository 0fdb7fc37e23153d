"""Scores of models under corruptions, and their intervals."""

import numpy as np
import pytest
import torch
from speechbrain.utils.metric_stats import ErrorRateStats

from encodecmae_sb.evaluation.corruptions import CORRUPTIONS
from encodecmae_sb.evaluation.metrics import clip_scores
from encodecmae_sb.evaluation.robustness import (
    CLEAN,
    ClipScorer,
    SpeechScorer,
    score_rows,
)

OFFICIAL = "encodec"


def test_scores_of_clips():
    torch.manual_seed(0)
    targets = torch.arange(40) % 4
    clean = torch.nn.functional.one_hot(targets, 4).float() + 1.6 * torch.rand(40, 4)
    worse = clean.roll(1, 0)
    worse[:20] = clean[:20]
    chosen = [CORRUPTIONS[name] for name in ("white", OFFICIAL)]
    outputs = {("white", 1): clean, ("white", 2): worse, ("white", 3): worse}
    outputs = {key: value.numpy() for key, value in {CLEAN: clean, **outputs}.items()}
    missing = {OFFICIAL: "no weights"}
    rows = score_rows("m", outputs, chosen, missing, ClipScorer(targets, 0))
    by = {(row["corruption"], row["group"], row["strength"]): row for row in rows}
    assert len(rows) == 1 + 3 + 1 + 1 + 1  # the mean of noise, and of all
    first = by["clean", "", 0]
    assert first["accuracy"] == clip_scores(clean, targets)["accuracy"]
    assert first["accuracy_low"] < first["accuracy"] <= first["accuracy_high"]
    same, bad = by["white", "noise", 1], by["white", "noise", 2]
    # Compared on the same sets, equal outputs differ in no set.
    assert (same["loss"], same["loss_low"], same["loss_high"]) == (0, 0, 0)
    expected = 100 * (1 - bad["accuracy"] / first["accuracy"])
    assert bad["loss"] == pytest.approx(expected)
    assert 0 < bad["loss_low"] < bad["loss"] < bad["loss_high"]
    assert by["mean", "noise", 0]["loss"] == pytest.approx(2 / 3 * expected)
    assert by["mean", "", 0]["accuracy"] == by["mean", "noise", 0]["accuracy"]
    assert by[OFFICIAL, "compression", 0]["accuracy"] is None
    assert "no weights" in by[OFFICIAL, "compression", 0]["note"]


def test_scores_of_texts():
    """As SpeechBrain's own error rates; a higher rate is a loss."""
    texts = ["ONE TWO", "THREE FOUR FIVE", "SIX"]
    heard = np.array(["ONE TWO", "THREE FOR FIVE", ""])
    scores = SpeechScorer(texts, 0).scores(heard)
    for name, units in (("WER", str.split), ("CER", list)):
        stats = ErrorRateStats()
        stats.append(range(3), [units(x) for x in heard], [units(x) for x in texts])
        assert scores[name][0] == pytest.approx(stats.summarize("error_rate"))
        assert scores[name][1].min() >= 0
    outputs = {("gain", i): np.array(["", "", ""]) for i in (1, 2, 3)} | {CLEAN: heard}
    chosen = [CORRUPTIONS["gain"]]
    rows = score_rows("m", outputs, chosen, {}, SpeechScorer(texts, 0))
    assert rows[1]["WER"] == 100
    assert rows[1]["loss"] == pytest.approx(100 * (100 - 100 / 3) / (100 / 3))
    right = {key: np.array(texts) for key in outputs}
    assert score_rows("m", right, chosen, {}, SpeechScorer(texts, 0))[1]["loss"] is None
