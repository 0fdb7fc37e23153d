"""Text as tokens for CTC: characters, or SentencePiece units."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import sentencepiece

from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError

BLANK = 0


class Tokens:
    """A vocabulary. Token 0 is CTC's blank.

    Without arguments it is empty, to be filled by `load`.

    Arguments
    ---------
    characters : list of str, optional
        One token each.
    model : bytes, optional
        A serialised SentencePiece model instead, whose token 0 is `<unk>`.

    Example
    -------
    >>> tokens = Tokens.of_characters(["ONE TWO", "TEN"])
    >>> tokens.encode("NEW")
    [3, 2, 6]
    >>> tokens.decode([3, 2, 6])
    'NEW'
    >>> len(tokens)
    7
    """

    def __init__(self, characters=None, model=None):
        self.characters = characters
        self.model = model
        self.labels = []
        if characters is not None:
            self.labels = [""] + list(characters)
        if model is not None:
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            size = self.pieces.get_piece_size()
            self.labels = [self.pieces.id_to_piece(i) for i in range(size)]
            self.labels[BLANK] = ""
        self.index = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def of_characters(cls, texts):
        """One token per character that occurs."""
        return cls(characters=sorted(set().union(*texts)))

    @classmethod
    def of_pieces(cls, texts, vocab_size, model_type="bpe"):
        """SentencePiece units learnt from the texts.

        Arguments
        ---------
        texts : list of str
        vocab_size : int
            Number of units, `<unk>` included.
        model_type : str
            `"bpe"` or `"unigram"`.

        Raises
        ------
        UserError
            If the text is too small for so many units, or has more characters.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=1.0,
                unk_id=BLANK,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            most = re.search(r"value <= (\d+)", str(error))
            least = re.search(r"required_chars. \d+ vs (\d+)", str(error))
            advice = f"SentencePiece says: {error}"
            if most:
                advice = f"the largest that fits is {most[1]}; set --vocab_size to it"
            elif least:
                advice = f"it has {least[1]} characters; set --vocab_size to more"
            raise UserError(
                f"vocab_size={vocab_size} does not fit the text of the training set: "
                f"{advice}."
            ) from error
        return cls(model=written.getvalue())

    def __len__(self):
        return len(self.labels)

    def digest(self):
        """Tells vocabularies apart."""
        return digest([self.labels, self.model.hex() if self.model else ""])

    def encode(self, text):
        """Text -> list of token numbers.

        Raises
        ------
        UserError
            If a character is none of the tokens.
        """
        if self.model is not None:
            return self.pieces.encode(text)
        unknown = sorted(set(text) - set(self.index))
        if unknown:
            raise UserError(f"{text!r} has characters without a token: {unknown}")
        return [self.index[character] for character in text]

    def decode(self, numbers):
        """List of token numbers -> text."""
        if self.model is not None:
            return self.pieces.decode([int(n) for n in numbers])
        return "".join(self.labels[int(n)] for n in numbers)

    def save(self, path):
        """Writes the vocabulary to a file."""
        if self.model is not None:
            Path(path).write_bytes(self.model)
        else:
            text = json.dumps({"characters": self.characters})
            Path(path).write_text(text, encoding="utf-8")

    def load(self, path):
        """Reads what `save` wrote, into this object."""
        data = Path(path).read_bytes()
        if data.startswith(b"{"):
            self.__init__(characters=json.loads(data)["characters"])
        else:
            self.__init__(model=data)


def make_tokens(texts, token_type, vocab_size):
    """The vocabulary of a training set.

    Arguments
    ---------
    texts : list of str
        Its transcripts.
    token_type : str
        "char", or "bpe" or "unigram" (SentencePiece).
    vocab_size : int
        Number of SentencePiece units.

    Returns
    -------
    Tokens

    Raises
    ------
    UserError
        If there is no such type, or `vocab_size` does not fit the texts.

    Example
    -------
    >>> len(make_tokens(["ONE TWO", "TEN"], "char", None))
    7
    """
    if token_type == "char":
        return Tokens.of_characters(texts)
    if token_type in ("bpe", "unigram"):
        return Tokens.of_pieces(texts, vocab_size, token_type)
    raise UserError(f"token_type={token_type!r}: allowed are char, bpe and unigram.")


def check_characters(tokens, rows, name):
    """Makes sure that the vocabulary has every character of a set.

    Arguments
    ---------
    tokens : Tokens
        Made from the training set.
    rows : list of dict
        With keys `ID` and `wrd`.
    name : str
        Of the set, for the message.

    Raises
    ------
    UserError
        Naming the characters and where they are.
    """
    known = set("".join(tokens.labels).replace("▁", " "))
    unknown = Counter()
    first = {}
    for row in rows:
        for character in set(row["wrd"]) - known:
            unknown[character] += 1
            first.setdefault(character, row["ID"])
    if unknown:
        listed = ", ".join(
            f"{character!r} ({count}, first in {first[character]})"
            for character, count in unknown.most_common(10)
        )
        raise UserError(
            f"The transcripts of {name} have characters that the training transcripts "
            f"never have (in how many utterances): {listed}. Normalise the `wrd` "
            "column alike in all sets (case, punctuation, digits)."
        )
