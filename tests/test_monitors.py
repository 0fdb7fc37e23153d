"""Monitors: known answers, and a run that has them and is the same without."""

import json
import math

import pytest
import torch
from commands import ROOT, flags, run_recipe

from encodecmae_sb.evaluation.monitors import (
    MOST_FRAMES,
    Monitors,
    between_share,
    effective_rank,
    perplexity,
    word_agreement,
    word_probe,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rank_of_known_frames():
    line = draw(400, 1) @ draw(1, 16, seed=1) + 5
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    # Singular values that are all the same, and two of them that are 1 : 3.
    basis, _ = torch.linalg.qr(draw(400, 16) - draw(400, 16).mean(0))
    assert effective_rank(basis - basis.mean(0)) == pytest.approx(16, abs=1e-2)
    assert effective_rank(draw(20000, 16)) == pytest.approx(16, abs=0.1)
    two = torch.tensor([[1.0, 0], [-1, 0], [0, 3], [0, -3]])
    expected = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert effective_rank(two) == pytest.approx(expected, abs=1e-6)
    assert effective_rank(7 + 100 * two) == pytest.approx(expected, abs=1e-4)
    assert effective_rank(torch.full((9, 4), 0.1)) == 0
    assert effective_rank(torch.zeros(9, 4)) == 0


def test_variance_between_known_files():
    files = torch.arange(40).repeat_interleave(50)
    assert between_share(draw(40, 8)[files], files) == pytest.approx(1)
    # Frames that know nothing of their file: (40 - 1) / (2000 - 1).
    assert between_share(draw(2000, 64), files) == pytest.approx(39 / 1999, abs=2e-3)
    # Files and frames vary as much as each other.
    both = draw(40, 256)[files] + draw(2000, 256, seed=1)
    assert between_share(both, files) == pytest.approx(0.5, abs=0.03)
    assert between_share(torch.ones(2000, 3), files) == 0
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(2))
    shuffled = between_share(both[order], 3 * files[order] + 1)
    assert shuffled == pytest.approx(between_share(both, files))


def test_agreement_with_known_words():
    """Each word has a direction, and each file a loud voice, which does not count."""
    generator = torch.Generator().manual_seed(0)
    spoken = torch.randint(20, (60, 4), generator=generator)  # four words in a file
    files = torch.arange(60).repeat_interleave(20)
    which = spoken.repeat_interleave(5, 1).flatten()
    frames = torch.eye(20)[which] + 0.01 * draw(1200, 20) + 9 * draw(60, 20)[files]
    words = [set(map(str, row)) for row in spoken.tolist()]
    assert word_agreement(frames, files, words) > 0.45
    assert abs(word_agreement(frames, files, words[1:] + words[:1])) < 0.1
    assert math.isnan(word_agreement(torch.ones(1200, 20), files, words))
    assert math.isnan(word_agreement(frames, files, [{"same"}] * 60))


def test_words_found_by_a_linear_probe():
    """Each word has a direction of the file's vector, beside much that is no word."""
    generator = torch.Generator().manual_seed(0)
    said = torch.rand(90, 6, generator=generator) < 0.3
    words = [{f"w{i}" for i in row.nonzero()[:, 0].tolist()} for row in said]
    directions = draw(6, 40, seed=1)
    found = 3 + draw(90, 40) + 2 * said.float() @ directions
    assert word_probe(found, words) > 0.9
    assert word_probe(0.001 * found - 7, words) == pytest.approx(
        word_probe(found, words), abs=1e-4
    )
    assert word_probe(draw(90, 40, seed=2), words) == pytest.approx(0.5, abs=0.1)
    # A word of every file, or of few of them, is not probed.
    same = [{*each, "always", f"once{i}"} for i, each in enumerate(words)]
    assert word_probe(found, same) == word_probe(found, words)
    assert math.isnan(word_probe(found[:15], words[:15]))
    assert math.isnan(word_probe(found / 0, words))
    assert math.isnan(word_probe(found, [set()] * 90))
    assert math.isnan(word_probe(found[:1], words[:1]))
    # Frames that have collapsed know no words.
    assert word_probe(torch.ones(90, 40), words) == 0.5
    # A word of one part only cannot be learnt from the others, and does not count.
    part = [{*each, "part"} if i < 10 else each for i, each in enumerate(words)]
    assert word_probe(found, part) == word_probe(found, words)


def test_codes_that_occur_and_that_are_predicted():
    monitors = Monitors([""], ["all"], n_codebooks=2, codebook_size=8)
    monitors.add_frames(draw(1, 9, 3), *torch.tensor([[9], [1], [0]]))
    codes = torch.tensor([[0, 7], [1, 7], [2, 7], [3, 7]])
    for _ in range(2):
        monitors.add_codes(codes, torch.tensor([[5, 1], [5, 1], [6, 1], [6, 2]]))
    row = monitors.row()
    shown = {name: round(value, 4) for name, value in row.items() if name[-1] in "12"}
    three_to_one = perplexity(torch.tensor([3, 1]))
    assert shown == {
        **{"codes_used_1": 0.5, "codes_predicted_1": 0.25},
        **{"codes_used_2": 0.125, "codes_predicted_2": 0.25},
        **{"code_perplexity_1": 4.0, "predicted_perplexity_1": 2.0},
        **{"code_perplexity_2": 1.0, "predicted_perplexity_2": round(three_to_one, 4)},
    }


def test_a_validation_that_does_not_come_to_a_corpus():
    """With `--debug` it has two batches."""
    monitors = Monitors(["", ""], ["first", "second"], n_codebooks=1, codebook_size=8)
    counts, seeds, corpus = torch.tensor([[9, 9], [1, 2], [0, 0]])
    monitors.add_frames(draw(2, 9, 3), counts, seeds, corpus)
    row = monitors.row()
    assert "first/effective_rank" in row
    assert "second/effective_rank" not in row


def test_frames_kept_are_few_and_depend_on_the_seed_alone():
    items = 100
    frames, counts = draw(items, 300, 2), torch.full((items,), 300)
    seeds, corpus = torch.arange(items), torch.zeros(items, dtype=torch.int64)
    counts[0] = 3
    state = torch.get_rng_state()
    kept = []
    for size in (7, 100):
        monitors = Monitors(["A B"] * items, ["all"], 1, 8)
        for i in range(0, items, size):
            part = slice(i, i + size)
            monitors.add_frames(frames[part], counts[part], seeds[part], corpus[part])
        kept.append(torch.cat(monitors.kept))
    assert torch.equal(*kept)
    assert monitors.counts[0] == 3
    assert MOST_FRAMES - items - 100 < len(kept[0]) <= MOST_FRAMES
    assert "utterance_word_agreement" in monitors.row()
    frames[5, :] = math.nan
    monitors.add_frames(frames[5:6], counts[5:6], seeds[5:6], corpus[5:6])
    monitors.words.append(set())
    assert math.isnan(monitors.row()["effective_rank"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_has_them_and_is_the_same_without(tmp_path):
    rows, weights = [], []
    for wanted in (True, False):
        output = tmp_path / str(wanted)
        options = flags(output, monitors=wanted, training_steps=4, valid_items=30)
        run_recipe("pretrain", ROOT / "hparams/mini.yaml", *options)
        rows.append(json.loads((output / "metrics.json").read_text()))
        weights.append((output / "encoder/encoder.ckpt").read_bytes())
    assert weights[0] == weights[1]
    with_monitors, without = rows
    assert without.items() <= with_monitors.items()
    new = with_monitors.keys() - without.keys()
    each = {f"codes_used_{q}" for q in range(1, 9)}
    each |= {f"predicted_perplexity_{q}" for q in range(1, 9)}
    kinds = {"effective_rank", "file_variance"}
    named = {f"{name}/{kind}" for name in ("speech", "sound") for kind in kinds}
    words = {f"{name}utterance_word_agreement" for name in ("", "speech/")}
    words.add("word_probe_auc")
    assert each | kinds | named | words < new
    assert len(new) == 32 + 6 + 3  # sounds have no words
    for name in new:
        assert math.isfinite(with_monitors[name])
    assert 1 < with_monitors["effective_rank"] < 32  # its width
    assert 0 < with_monitors["file_variance"] < 1
    assert 0.5 < with_monitors["word_probe_auc"] < 1
    drawn = (tmp_path / "True/curves.png").stat().st_size
    assert drawn > 1.5 * (tmp_path / "False/curves.png").stat().st_size
