"""Utterances and their transcripts."""

import numpy as np
import pytest
import soundfile
import torch
from recognition import link_speaker, write_manifest

from encodecmae_sb.data.speech import (
    SpeechSet,
    leave_out_short,
    librispeech_set,
    load_sets,
    manifest_set,
    speech_dataset,
)
from encodecmae_sb.data.tokenizer import Tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Bundled utterances of a speaker in LibriSpeech's layout."""
    return link_speaker(tmp_path_factory.mktemp("corpus"))


def test_a_declared_rate_is_checked_in_a_folder_too(corpus, tmp_path):
    splits = {f"{part}_splits": ["small"] for part in ("train", "valid", "test")}
    csvs = {f"{part}_csv": None for part in ("train", "valid", "test")}
    hparams = {**splits, **csvs, "data_folder": corpus, "save_folder": tmp_path}
    hparams |= {"max_unusable": 0.05, "source_sample_rate": 16000}
    train, _, _ = load_sets(hparams)
    assert len(train.rows) == 28
    message = r"\.flac has 16000 Hz, but source_sample_rate=48000"
    with pytest.raises(ValueError, match=message):
        load_sets({**hparams, "source_sample_rate": 48000})
    with pytest.raises(ValueError, match="data_folder=.*a path is allowed"):
        load_sets({**hparams, "data_folder": [str(corpus), str(corpus)]})
    for splits in (960, [5], None, {"a": 1}):
        with pytest.raises(ValueError, match="train_splits=.*names of folders"):
            load_sets({**hparams, "train_splits": splits})


def test_manifest_errors(tmp_path):
    wav = str(tmp_path / "a.wav")
    soundfile.write(wav, np.zeros(8000), 8000)
    good = {"ID": "a", "wav": "$data_root/a.wav", "wrd": "ONE"}
    path = tmp_path / "x.csv"
    (row,) = manifest_set(write_manifest(path, [good]), tmp_path).rows
    assert row["wav"] == wav
    assert row["duration"] == 1.0
    with pytest.raises(FileNotFoundError, match="No such manifest"):
        manifest_set(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"lacks the columns \['wrd'\]"):
        manifest_set(write_manifest(path, [{"ID": "a", "wav": wav}]))
    with pytest.raises(ValueError, match="8000 Hz, but source_sample_rate=16000"):
        manifest_set(write_manifest(path, [good]), tmp_path, 16000)
    with pytest.raises(ValueError, match="occurs more than once"):
        manifest_set(write_manifest(path, [good, good]), tmp_path)
    empty = {**good, "ID": "b", "wrd": " "}
    with pytest.raises(ValueError, match=r"(?s)1 of 2 utterances.*b: no transcript"):
        manifest_set(write_manifest(path, [good, empty]), tmp_path)
    loaded = manifest_set(write_manifest(path, [good, empty]), tmp_path, None, 0.5)
    assert loaded.left_out == [("b", "no transcript")]
    gone = {**good, "ID": "c", "wav": "$data_root/c.wav", "duration": "1.0"}
    write_manifest(path, [{**good, "duration": "1.0"}, gone])
    loaded = manifest_set(path, tmp_path, None, 0.5)
    assert loaded.left_out == [(str(tmp_path / "c.wav"), "no such file")]


def test_no_transcripts(tmp_path):
    (tmp_path / "dev").mkdir()
    soundfile.write(tmp_path / "dev/a.wav", np.zeros(8000), 8000)
    with pytest.raises(ValueError, match="trans.txt is needed"):
        librispeech_set(tmp_path, ["dev"], tmp_path / "save")


def test_too_short_for_ctc():
    texts = {"a": "ABAB", "b": "AABB", "c": "AAB"}
    rows = [{"ID": name, "wrd": text, "duration": 4.0} for name, text in texts.items()]
    speech = SpeechSet("train", rows)
    speech.tokenize(Tokens.of_characters(["AB"]))
    leave_out_short(speech, [4, 4, 4])
    assert [row["ID"] for row in speech.rows] == ["a", "c"]
    assert speech.left_out == [("b", "4 output steps for a target that needs 6")]
    with pytest.raises(ValueError, match="All utterances of train are too short"):
        leave_out_short(speech, [1, 1])


def test_transcripts_are_tokenized_once(corpus, tmp_path):
    speech = librispeech_set(corpus, ["small"], tmp_path)
    tokens = Tokens.of_characters([row["wrd"] for row in speech.rows])
    encoded = []

    class Counting:
        def encode(self, text):
            encoded.append(text)
            return tokens.encode(text)

    speech.tokenize(Counting())
    leave_out_short(speech, [10000] * len(speech.rows))
    dataset = speech_dataset(speech)
    for row, item in zip(speech.rows, dataset, strict=True):
        assert item["tokens"].dtype == torch.int64
        assert tokens.decode(item["tokens"]) == row["wrd"]
    assert encoded == [row["wrd"] for row in speech.rows]
