"""Clips, their folds, manifests and batches."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

from encodecmae_sb.data.clip_batches import EpochBatches
from encodecmae_sb.data.clips import (
    Clip,
    inspect_clips,
    make_folds,
    read_manifests,
    targets_of,
    write_manifest,
)
from encodecmae_sb.utils.errors import UserError


def clips_of(rows):
    """Clips from (label, part)."""
    return [Clip(str(i), "", (lab,), part) for i, (lab, part) in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "1"), ("a", "2"), ("a", "3")], "have the label a"),
        ([("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")], "at least 3"),
        ([("a", "train"), ("b", "train"), ("a", "test")], "train, valid, test"),
        ([("a", p) for p in "123"] + [("b", "3")], "not in train"),
        (
            [("a", "train"), ("b", "train"), ("a", "valid"), ("c", "test")],
            "in test but not in train: c",
        ),
        ([("a", "../1"), ("b", "../1"), ("a", "2"), ("b", "3")], "Fold '../1'"),
    ],
)
def test_splits_that_cannot_work(rows, message):
    with pytest.raises(UserError, match=message):
        make_folds(clips_of(rows))


def test_folds_go_round():
    rows = [(label, fold) for label in "ab" for fold in ("1", "2", "10")]
    folds = make_folds(clips_of(rows))
    assert [fold.name for fold in folds] == ["1", "2", "10"]
    for fold, valid, train in zip(
        folds, ("2", "10", "1"), ("10", "1", "2"), strict=True
    ):
        assert {clip.part for clip in fold.valid} == {valid}
        assert {clip.part for clip in fold.train} == {train}
        assert {clip.part for clip in fold.test} == {fold.name}


def test_manifest_round_trip(tmp_path):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full(1600, 0.1), 16000)
    path = tmp_path / "clips.csv"
    path.write_text(
        "ID,wav,duration,label,fold\n"
        f"a,a.wav,0.1,cat;dog,1\nb,{tmp_path}/b.wav,0.1,dog,train\n"
    )
    clips, unusable = inspect_clips(read_manifests(True, csv=path))
    assert not unusable
    assert [clip.labels for clip in clips] == [("cat", "dog"), ("dog",)]
    write_manifest(tmp_path / "again.csv", clips)
    again, _ = inspect_clips(read_manifests(True, csv=tmp_path / "again.csv"))
    assert again == clips
    with pytest.raises(UserError, match="--multi_label"):
        targets_of(clips, ["cat", "dog"], False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,wav,duration,fold\na,a.wav,1,1\n", "lacks the columns label"),
        ("ID,wav,duration,label,fold\na,a.wav,1,,1\n", "line 2: the label is empty"),
        ("ID,wav,duration,label,fold\na,a.wav,1,x,\n", "line 2: the fold is empty"),
        ("ID,wav,duration,label,fold\na,a.wav\n", "line 2: the fold is empty"),
        ("", "is empty"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    path = tmp_path / "clips.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifests(csv=path)


def test_manifests_given_wrongly(tmp_path):
    with pytest.raises(UserError, match="either csv"):
        read_manifests(csv=None, train_csv="x")
    with pytest.raises(FileNotFoundError, match="No such manifest: csv="):
        read_manifests(csv=tmp_path / "none.csv")
    clip = Clip("a", "", ("x",), "1")
    with pytest.raises(UserError, match="more than once, the first is a"):
        inspect_clips([clip, clip])


@pytest.mark.parametrize(("number", "size"), [(2, 2), (5, 2), (9, 4), (41, 8), (3, 8)])
def test_batches_hold_every_clip_once_and_never_one_alone(number, size):
    sampler = EpochBatches(list(range(number)), size, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler)
    assert min(len(batch) for batch in first) > 1
    assert sorted(i for batch in first for i in batch) == list(range(number))
    assert list(sampler) == first
    if number > 5:
        sampler.set_epoch(2)
        assert list(sampler) != first


def test_a_share_of_the_other_folds_validates():
    clips = [Clip(f"clip {i}", "", (f"{i % 2}",), f"{i % 3}") for i in range(600)]
    for fold in make_folds(clips, valid_share=0.1):
        assert {clip.part for clip in fold.test} == {fold.name}
        assert len(fold.test) == 200
        chosen = {clip.id for clip in fold.valid}
        trained = {clip.id for clip in fold.train}
        assert 20 < len(chosen) < 60
        assert not chosen & trained
        others = {clip.part for clip in clips} - {fold.name}
        assert {clip.part for clip in fold.train} == others
        assert {clip.part for clip in fold.valid} == others
        assert len(chosen | trained) == 400
    with pytest.raises(UserError, match="between 0 and 1"):
        make_folds(clips, valid_share=10)
    with pytest.raises(UserError, match="is none"):
        make_folds(clips, valid_share=1e-9)
    parts = [
        replace(clip, part=("train", "valid", "test")[int(clip.part)]) for clip in clips
    ]
    with pytest.raises(UserError, match="of its own"):
        make_folds(parts, valid_share=0.1)
