"""Crops: which are drawn, and batches of them."""

import csv
import math
import os

import numpy as np
import pytest
import torch
from recordings import noise, write

import encodecmae_sb.data.crops as crops_module
from encodecmae_sb.data.crops import CropCollator, DrawSampler, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.data.shards.reading import ShardCrops
from encodecmae_sb.utils.errors import UserError


def manifest(path, durations):
    """A manifest of files that need not exist, named by their number."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav"])
        rows.writerows([i, d, f"{path.stem}/{i}"] for i, d in enumerate(durations))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Replaces reading: notes what was asked for, and returns zeros."""
    asked = []

    def fake(path, target_rate, start=0.0, seconds=None):
        asked.append((path, start))
        return torch.zeros(8)

    monkeypatch.setattr(crops_module, "read_audio", fake)
    return asked


def close(counts, shares):
    """Whether counts are those of draws with these shares, within 5 sigma."""
    counts, shares = np.array(counts), np.array(shares)
    sigma = np.sqrt(counts.sum() * shares * (1 - shares))
    return (np.abs(counts - counts.sum() * shares) <= 5 * sigma).all()


def test_files_are_drawn_by_duration_and_positions_uniformly(tmp_path, reads):
    durations = np.array([0.5, 1, 2, 4, 8, 12])
    crops = RandomCrops([manifest(tmp_path / "a.csv", durations)], crop_seconds=2)
    for draw in range(6000):
        crops[draw]
    files = np.array([int(path.split("/")[-1]) for path, _ in reads])
    starts = np.array([start for _, start in reads])
    counts = np.bincount(files, minlength=6)
    assert close(counts, durations / durations.sum())
    assert (starts[files < 3] == 0).all()  # as short as a crop: from the start
    for file in (3, 4, 5):
        found = np.sort(starts[files == file]) / (durations[file] - 2)
        assert 0 <= found[0] <= found[-1] <= 1
        uniform = np.arange(len(found)) / len(found)
        assert np.abs(found - uniform).max() < 2 / math.sqrt(len(found))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        (None, [1 / 4, 3 / 4, 0]),
        ([5, 3, 2], [0.5, 0.3, 0.2]),
        ([1, 0, 1], [0.5, 0, 0.5]),
    ],
)
def test_corpora_are_drawn_by_weight(tmp_path, reads, weights, shares):
    manifests = [
        manifest(tmp_path / "a.csv", [10, 10]),
        manifest(tmp_path / "b.csv", [20, 20, 20]),
        manifest(tmp_path / "c.csv", [1e-9]),
    ]
    crops = RandomCrops(manifests, weights=weights)
    drawn = [crops[i]["corpus"] for i in range(3000)]
    assert close(np.bincount(drawn, minlength=3), shares)
    assert ["abc"[i] for i in drawn] == [
        path[path.rindex("/") - 1] for path, _ in reads
    ]


@pytest.mark.parametrize(
    "weights",
    [
        *([], [1], [1, 2, 3], [0, 0], [1, -1], [1, math.nan], [1, math.inf]),
        *(1, 0.5, "1, 2", {"a": 1, "b": 2}, ["1", 2], [[1], [2]], [True, True]),
    ],
)
def test_wrong_corpus_weights(tmp_path, weights):
    manifests = [manifest(tmp_path / f"{name}.csv", [1, 1]) for name in "ab"]
    with pytest.raises(UserError) as caught:
        RandomCrops(manifests, weights=weights)
    assert f"corpus_weights={weights} for 2 corpora" in str(caught.value)
    with pytest.raises(UserError, match="corpus_weights"):
        ShardCrops(manifests, weights=weights)


def test_a_draw_is_a_function_of_seed_and_number(tmp_path):
    for i in range(4):
        write(tmp_path / "audio" / f"{i}.wav", noise(1 + i, 16000, seed=i), 16000)
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")

    def draws(numbers, seed=0):
        crops = RandomCrops([corpus.train_csv], crop_seconds=0.5, seed=seed)
        return {i: (crops[i]["wav"], crops[i]["seed"]) for i in numbers}

    forwards, backwards = draws([3, 7, 10**9]), draws([10**9, 7, 3])
    for i in forwards:
        assert torch.equal(forwards[i][0], backwards[i][0])
        assert forwards[i][1] == backwards[i][1]
    assert forwards[3][1] != forwards[7][1]
    assert not torch.equal(forwards[3][0], forwards[7][0])
    assert draws([3], seed=1)[3][1] != forwards[3][1]


def test_draws_are_those_of_earlier_versions(tmp_path, reads):
    """A run that is resumed after an update goes on with the same crops."""
    manifests = [
        manifest(tmp_path / "a.csv", [0.5, 1, 2, 4, 8, 12]),
        manifest(tmp_path / "b.csv", [3] * 5),
    ]
    crops = RandomCrops(manifests, crop_seconds=2, seed=3)
    drawn = [crops[draw]["seed"] for draw in (0, 1, 2, 10**9)]
    assert [(path, round(float(start), 6)) for path, start in reads] == [
        ("b/0", 0.382828),
        ("b/4", 0.813381),
        ("b/2", 0.401739),
        ("a/5", 9.083286),
    ]
    assert drawn == [
        3684574418014248806,
        654679983617604038,
        2873400931701046956,
        4375600591368129908,
    ]


def test_a_file_that_went_bad_is_replaced_and_reported(tmp_path):
    for name in "abc":
        write(tmp_path / "audio" / f"{name}.wav", noise(1, 24000))
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")
    train = [row["wav"] for row in read_manifest(corpus.train_csv)]
    assert len(train) == 2
    crops = RandomCrops([corpus.train_csv], crop_seconds=0.5)
    with open(train[0], "w") as file:
        file.write("no longer audio")
    items = [crops[i] for i in range(20)]
    assert all(len(item["wav"]) == 12000 for item in items)
    reported = [bad for item in items for bad in item["unusable"]]
    assert {path for path, _ in reported} == {train[0]}
    assert all("unreadable" in reason for _, reason in reported)
    assert CropCollator()(items).unusable == reported
    os.unlink(train[1])
    with pytest.raises(UserError, match="in a row"):
        crops[0]


def test_utterances_that_can_be_read(tmp_path):
    """The crop of a file is kept where its first 10 s cannot be read."""
    paths = [write(tmp_path / f"{i}.flac", noise(12, 24000)) for i in range(3)]
    content = bytearray(paths[1].read_bytes())
    at = int(0.75 * len(content))
    content[at : at + 2000] = bytes(2000)
    paths[1].write_bytes(content)
    listed = tmp_path / "listed.csv"
    with open(listed, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "wrd"])
        words = ("ONE", "TWO", "")
        rows.writerows(
            [i, 12, p, w] for (i, p), w in zip(enumerate(paths), words, strict=True)
        )
    crops = FixedCrops([listed], 3, 1.0, utterances=True)
    assert not crops.unusable
    assert [len(item["wav"]) for item in crops.items] == [24000] * 3
    assert [len(item.get("utterance", "")) for item in crops.items] == [240000, 0, 0]
    assert all("utterance" not in item for item in FixedCrops([listed], 3, 1.0).items)


def test_short_files_are_padded(tmp_path):
    for i in range(3):
        write(tmp_path / "audio" / f"{i}.wav", noise(0.71, 24000, seed=i))
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")
    short = RandomCrops([corpus.train_csv], crop_seconds=4)[0]
    cropped = RandomCrops([corpus.train_csv], crop_seconds=0.2)[0]
    assert len(short["wav"]) == 17040
    assert len(cropped["wav"]) == 4800
    batch = CropCollator()([short, cropped])
    assert batch.wavs.shape == (2, 17280)  # 54 frames
    assert batch.lengths.tolist() == [17040, 4800]
    assert torch.equal(batch.wavs[0, :17040], short["wav"])
    assert (batch.wavs[0, 17040:] == 0).all()
    assert (batch.wavs[1, 4800:] == 0).all()
    assert batch.seeds.tolist() == [short["seed"], cropped["seed"]]
    assert batch.full is False
    assert CropCollator()([short]).full is False  # its last frame is not full
    assert CropCollator()([cropped, cropped]).full is True


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_draws_of_a_step(world_size):
    ranks = range(world_size)
    samplers = [DrawSampler(8, 2, rank, world_size) for rank in ranks]
    drawn = []
    for first in (0, 3, 6):
        for sampler in samplers:
            sampler.steps = range(first, first + 3)
            assert len(sampler) == 3 * sampler.batches_per_step
        each = [list(sampler) for sampler in samplers]
        count = samplers[0].batches_per_step
        for start in range(0, 3 * count, count):
            parts = [batches[start : start + count] for batches in each]
            drawn.append(sorted(d for part in parts for batch in part for d in batch))
    assert drawn == [list(range(8 * i, 8 * i + 8)) for i in range(9)]
