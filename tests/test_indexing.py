"""Indexing tar shards from elsewhere, or again."""

import collections
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from commands import ROOT, execute
from shard_folders import CROP, coded_shards, two_corpora  # noqa: F401

from encodecmae_sb.data.manifest import read_manifest
from encodecmae_sb.data.shards.indexing import index_shards
from encodecmae_sb.data.shards.reading import (
    ShardCrops,
    find_packed_codes,
    prepare_shards,
)
from encodecmae_sb.data.tars import Member
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv


def test_shards_from_elsewhere(audio, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    files = sorted(audio[0].glob("*.wav"))
    for number in range(3):
        with tarfile.open(folder / f"part{number}.tar", "w") as tar:
            for i, file in enumerate(files[20 * number : 20 * (number + 1)]):
                text = tarfile.TarInfo(f"some/sample{i}.txt")
                text.size = 5
                tar.addfile(text, io.BytesIO(b"hello"))
                tar.add(file, f"some/sample{i}.wav")
    os.truncate(folder / "part2.tar", (folder / "part2.tar").stat().st_size // 2)
    with pytest.raises(UserError, match="--index"):
        prepare_shards(folder, tmp_path)
    with pytest.raises(UserError, match="--max_unusable"):
        index_shards(folder, max_unusable=0.01)
    assert not (folder / "shards.json").exists()
    index_shards(folder)
    (corpus,) = prepare_shards(folder, tmp_path)
    assert corpus.name == "foreign"
    valid = read_manifest(corpus.valid_csv)
    rows = read_manifest(corpus.train_csv) + valid
    assert 0 < len(valid) < 10
    assert 45 < len(rows) < 55
    by_samples = {row["num_samples"] for row in rows}
    assert by_samples == {str(soundfile.info(file).frames) for file in files}


def test_shards_for_the_test_are_named(audio, tmp_path, caplog):
    folder = tmp_path / "foreign"
    folder.mkdir()
    with tarfile.open(folder / "test-0.tar", "w") as tar:
        tar.add(audio[0] / "0.wav", "0.wav")
    with pytest.raises(UserError, match=r"test-0\.tar.*another name"):
        index_shards(folder)
    with tarfile.open(folder / "more.tar", "w") as tar:
        for i in range(3):
            tar.add(audio[0] / f"{i}.wav", f"{i}.wav")
    index_shards(folder)
    (record,) = [r for r in caplog.records if "for the test" in r.getMessage()]
    assert record.getMessage().endswith("test-0.tar")
    (corpus,) = prepare_shards(folder, tmp_path)
    names = (corpus.train_csv, corpus.valid_csv)
    assert sum(len(read_manifest(name)) for name in names) == 3


def add(tar, name, content):
    """Adds a file to a tar file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


# Of each item of a foreign shard its JSON, and the corpus and ID that come of it.
ODD = [
    (b'["a", "list"]', "foreign", "0"),
    (b'{"ID": broken', "foreign", "1"),
    (b"\xff\xfe", "foreign", "2"),
    (b'{"ID": 77}', "foreign", "77"),
    (b'{"ID": ["x"], "corpus": null}', "foreign", "4"),
    (b'{"ID": "\\ud800", "corpus": ""}', "foreign", "\\ud800"),
    (b'{"corpus": "../a/b\\u0000"}', ".._a_b_", "6"),
    (b'{"corpus": "C:\\\\a, (b)", "ID": 8.5}', "C:_a, (b)", "8.5"),
    (b'{"corpus": 12}', "foreign", "8"),
    (b'{"corpus": "' + 300 * b"x" + b'"}', 60 * "x", "9"),
    (b'{"corpus": "' + 300 * b"x" + b'y"}', 60 * "x", "10"),
    (b"[" * 100000, "foreign", "11"),
]


def test_odd_items_of_shards_from_elsewhere(audio, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    content = (audio[0] / "0.wav").read_bytes()
    for part in ("train", "val"):  # each corpus in both
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i, (known, *_) in enumerate([*ODD, *ODD]):
                # A name that is not Unicode, once.
                name = "caf\udce9" if i == 0 else str(i % len(ODD))
                add(tar, f"{part}/{i}/{name}.json", known)
                add(tar, f"{part}/{i}/{name}.wav", content)
    index_shards(folder)
    corpora = prepare_shards(folder, tmp_path / "manifests")
    found = collections.Counter()
    for corpus in corpora:
        train = read_manifest(corpus.train_csv)
        assert corpus.train_csv.parent == tmp_path / "manifests"
        assert len(train) == len(read_manifest(corpus.valid_csv))
        assert all("/train/" not in row["ID"] for row in train)
        for row in train:
            name = corpus.name.removesuffix("_1")
            found[name, row["ID"].rpartition("/")[2]] += 1
    expected = collections.Counter((corpus, ID) for _, corpus, ID in [*ODD, *ODD])
    expected["foreign", "0"] -= 1
    expected["foreign", "caf\\udce9"] += 1
    assert found == expected
    crops = ShardCrops([corpus.train_csv for corpus in corpora], CROP)
    for draw in range(crops.crops_per_pass):
        assert not crops[draw]["unusable"]


def test_indexing_again_forgets_nothing(with_codes, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(with_codes[1], folder)
    for path in folder.glob("*.tar.csv"):
        path.unlink()
    recipe = ROOT / "recipes/make_shards.py"
    execute([sys.executable, recipe, folder, "--index"], tmp_path)
    for path in with_codes[1].glob("*.tar.csv"):
        rows, again = read_manifest(path), read_manifest(folder / path.name)
        assert [row["codes"] for row in rows] == [row["codes"] for row in again]
    index = (with_codes[1] / "shards.json").read_text()
    assert (folder / "shards.json").read_text() == index


def npy(array, version=None):
    """The content of a NumPy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def test_items_without_codes_among_coded_ones(audio, with_codes, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(with_codes[1], folder)
    content = (audio[0] / "1.wav").read_bytes()
    frames = int(soundfile.info(audio[0] / "1.wav").duration * 75)
    codes = np.zeros((frames, 8), np.uint16)
    unfit = {
        "none": None,
        "other_type": npy(codes.astype(np.int64)),
        "other_width": npy(codes[:, :4]),
        "other_order": npy(np.asfortranarray(codes)),
        "no_array": b"junk",
        "other_version": npy(codes, (2, 0)),
    }
    known = json.dumps({"corpus": "noises"}).encode()
    with tarfile.open(folder / "train-more.tar", "w") as tar:
        for name, made in {**unfit, "fit": npy(codes)}.items():
            add(tar, f"{name}.json", known)
            add(tar, f"{name}.wav", content)
            if made is not None:
                add(tar, f"{name}.codes.npy", made)
    index_shards(folder, max_unusable=0.2)
    reported = {
        Member.at(row["path"]).name: row["reason"]
        for row in read_manifest(folder / "unusable_files.csv")
    }
    assert set(reported) == {f"{name}.wav" for name in unfit}
    assert all("no codes of 8 codebooks" in why for why in reported.values())
    (corpus, _) = prepare_shards(folder, tmp_path / "manifests")
    (stored,) = find_packed_codes(folder).of_manifests([corpus.train_csv], 3)
    crops = ShardCrops([corpus.train_csv], CROP, targets=[stored])
    for draw in range(crops.crops_per_pass):
        item = crops[draw]
        assert item["targets"].shape[1] == 3
        assert not item["unusable"]
    # An index of before, in which they stand.
    table = read_manifest(folder / "train-more.tar.csv")
    assert [row["ID"] for row in table] == ["fit"]
    write_csv(folder / "train-more.tar.csv", [{**table[0], "codes": ""}])
    (corpus, _) = prepare_shards(folder, tmp_path / "manifests")
    with pytest.raises(UserError, match="1 of .*have no codes.*--index"):
        find_packed_codes(folder).of_manifests([corpus.train_csv], 3)
