"""Tokens of transcripts."""

import pytest

from encodecmae_sb.data.tokenizer import Tokens, check_characters


def test_other_transcripts_make_other_units():
    texts = ["ONE TWO THREE TWO ONE", "THREE THREE TEN"] * 3
    one, again = Tokens.of_pieces(texts, 16), Tokens.of_pieces(texts, 16)
    assert one.digest() == again.digest() != Tokens.of_pieces(texts[:1], 16).digest()


def test_characters_that_training_never_had():
    tokens = Tokens.of_characters(["ONE", "TWO"])
    rows = [{"ID": "a", "wrd": "ONE"}, {"ID": "b", "wrd": "TWÖ?"}]
    with pytest.raises(ValueError, match=r"'Ö' \(1, first in b\)"):
        check_characters(tokens, rows, "dev")
    check_characters(tokens, rows[:1], "dev")


def test_tokens_survive_a_file(tmp_path):
    texts = ["ONE TWO THREE", "FOUR FIVE SIX SEVEN"] * 3
    for tokens in (Tokens.of_characters(texts), Tokens.of_pieces(texts, 24)):
        tokens.save(tmp_path / "tokens")
        loaded = Tokens()
        loaded.load(tmp_path / "tokens")
        assert loaded.labels == tokens.labels
        for text in texts:
            assert 0 not in loaded.encode(text)
            assert loaded.decode(loaded.encode(text)) == text
