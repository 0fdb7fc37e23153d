"""The parts of a recogniser: head, counts of steps, beam search."""

import sys
from types import SimpleNamespace

import pytest
import torch

from encodecmae_sb.inference.recogniser import build_searcher, known_words, search
from encodecmae_sb.lobes import CTCHead
from encodecmae_sb.nnet.lengths import absolute_lengths, relative_lengths


def test_relative_lengths_give_the_counts_back():
    for size in (38, 49, 300, 22500):
        counts = torch.arange(1, size + 1)
        assert torch.equal(
            absolute_lengths(relative_lengths(counts, size), size), counts
        )


def test_the_beam_search_sees_every_step_and_no_more():
    labels = ["", *"ABC"]
    searcher = build_searcher(SimpleNamespace(labels=labels), {"beam_size": 4})
    # 15 of 38 steps: 15 / 38 * 38 is below 15 in single precision.
    log_probs = torch.full((2, 38, 4), -9.0)
    log_probs[:, :, 0] = 0.0
    log_probs[:, 14, 2] = 9.0  # the last step of the first item
    log_probs[:, 15, 3] = 9.0
    steps = torch.tensor([15, 38])
    assert search(searcher, log_probs.log_softmax(-1), steps) == ["B", "BC"]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("stack", [1, 2, 3])
def test_head_does_not_mix_items(recurrent, stack):
    head = CTCHead(8, 5, hidden_size=6, recurrent=recurrent, stack=stack).eval()
    items = [torch.randn(n, 8) for n in (7, 12, 20)]
    batch = torch.randn(3, 20, 8)
    for row, item in zip(batch, items, strict=True):
        row[: len(item)] = item
    together, num_steps = head(batch, torch.tensor([7, 12, 20]))
    for row, length, item in zip(together, num_steps.tolist(), items, strict=True):
        alone, _ = head(item[None])
        assert length == len(alone[0])
        assert torch.allclose(row[: len(alone[0])], alone[0], atol=1e-5)


def test_words_of_a_language_model_are_known_by_its_content(tmp_path, monkeypatch):
    """An exported folder calls the file otherwise."""
    module = SimpleNamespace(load_unigram_set_from_arpa=lambda path: {path})
    name = "speechbrain.integrations.decoders.kenlm_scorer"
    monkeypatch.setitem(sys.modules, name, module)
    arpa, binary = tmp_path / "language_model.ckpt", tmp_path / "words.binary"
    arpa.write_text("\\data\\\nngram 1=1\n")
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    assert known_words(arpa) == {str(arpa)}
    assert known_words(binary) is None
    assert known_words(None) is None
