"""Manifests: the parts of a folder to train on, to validate on, and for the test."""

import os
import re

import numpy as np
import pytest
from recordings import both, noise, write
from speechbrain.dataio.dataset import DynamicItemDataset

from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.utils.errors import UserError


def test_librispeech_layout(tmp_path):
    folder = tmp_path / "LibriSpeech"
    speakers = {
        "train-clean-100": (19, 26),
        "dev-clean": (84, 174),
        "test-clean": (61,),
    }
    for part in speakers:
        for speaker in speakers[part]:
            chapter = folder / part / str(speaker) / "7"
            for i in range(2):
                write(chapter / f"{speaker}-7-000{i}.flac", noise(0.2, 16000), 16000)
            lines = [f"{speaker}-7-000{i} HELLO {part} {i}\n" for i in range(2)]
            (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    for path, part in [
        (corpus.train_csv, "train-clean-100"),
        (corpus.valid_csv, "dev-clean"),
    ]:
        dataset = DynamicItemDataset.from_csv(path)
        dataset.set_output_keys(["id", "wav", "duration", "spk_id", "wrd"])
        assert len(dataset) == 4
        for item in dataset:
            assert item["id"].startswith(part)
            assert os.path.exists(item["wav"])
            assert item["duration"] == pytest.approx(0.2)
            assert int(item["spk_id"]) in speakers[part]
            assert item["wrd"] == f"HELLO {part} {item['id'][-1]}"


def in_parts(folder, *parts):
    """Thirty files in each part of a folder, enough for some to be held out."""
    for part in parts:
        for i in range(30):
            write(folder / part / f"{i}.wav", np.zeros(320))
    return folder


def tops(csv_file):
    """The parts that the files of a manifest lie in."""
    return {row["ID"].split("/")[0] for row in read_manifest(csv_file)}


@pytest.mark.parametrize(
    ("parts", "train", "valid"),
    [
        ("train val test", "train", "val"),
        ("train validation eval", "train", "validation"),
        ("Train-clean-100 Dev-clean", "Train-clean-100", "Dev-clean"),
        ("train2017 val2017 test2017", "train2017", "val2017"),
        # Without a part to validate on, but never from what is there for the test.
        ("train-clean-100 test-clean", "train-clean-100", "train-clean-100"),
        ("train eval", "train", "train"),
        ("dev-clean test-clean test-other", "dev-clean", "dev-clean"),
        ("music test", "music", "music"),
        # Names of sounds, not of parts.
        ("train valves", "train valves", "train valves"),
    ],
)
def test_parts_of_a_folder(tmp_path, parts, train, valid):
    folder = in_parts(tmp_path / "audio", *parts.split())
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    assert tops(corpus.train_csv) == set(train.split())
    assert tops(corpus.valid_csv) <= set(valid.split())


def folders_of(corpus):
    return {row["ID"].rpartition("/")[0] for row in both(corpus)}


@pytest.mark.parametrize(
    ("parts", "used", "warned"),
    [
        (
            "LibriSpeech/train-clean-100 LibriSpeech/dev-clean LibriSpeech/test-clean",
            "LibriSpeech/train-clean-100 LibriSpeech/dev-clean",
            "for the test: LibriSpeech/test-clean",
        ),
        ("train/en train/en/test/x dev", "train/en dev", "for the test: train/en/test"),
        ("train dev test/a", "train dev", ""),
        # Once what is there for the test is gone, there is no part to validate on.
        ("train/a dev/test", "train/a", "one file in 20 .*for the test: dev/test"),
    ],
)
def test_test_parts_below_the_first_level(tmp_path, caplog, parts, used, warned):
    folder = in_parts(tmp_path / "audio", *parts.split())
    for name in used.split():  # a file may be called so
        write(folder / name / "test.wav", np.zeros(320))
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    assert folders_of(corpus) == set(used.split())
    assert len(both(corpus)) == 31 * len(used.split())
    assert read_manifest(corpus.valid_csv)
    said = [r.getMessage() for r in caplog.records if "for the test" in r.getMessage()]
    assert len(said) == bool(warned)
    assert re.search(f"{warned}$", "".join(said))


def test_nothing_but_test_parts(tmp_path):
    folder = in_parts(tmp_path / "audio", "test-clean", "test-other")
    with pytest.raises(UserError, match=r"test-clean, test-other.*--data_folder"):
        prepare_corpora(folder, tmp_path / "save")
    # The folder itself may be named as the one to train on.
    (corpus,) = prepare_corpora(folder / "test-clean", tmp_path / "save")
    assert len(both(corpus)) == 30


def test_transcripts_of_a_linked_part(tmp_path):
    elsewhere = tmp_path / "disk" / "1" / "7"
    for i in range(3):
        write(elsewhere / f"1-7-000{i}.flac", noise(0.2, 16000), 16000)
    lines = "".join(f"1-7-000{i} HELLO\n" for i in range(3))
    (elsewhere / "1-7.trans.txt").write_text(lines)
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "train-clean-100").symlink_to(tmp_path / "disk")
    (corpus,) = prepare_corpora(tmp_path / "LibriSpeech", tmp_path / "save")
    assert [row.get("wrd") for row in both(corpus)] == ["HELLO"] * 3
