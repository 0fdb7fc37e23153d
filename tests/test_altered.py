"""Altered copies: drawn from a seed alone, made once, learned from like recordings."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, flags, run_recipe
from stored_codes import killed_when, some_speech  # noqa: F401

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.nnet.draws import hash_seeds
from encodecmae_sb.pipelines import altered
from encodecmae_sb.pipelines.pretrain import choose_copies
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.threads import map_on_threads


@pytest.fixture(scope="module")
def alter():
    return altered.AlteredAudio()


def noise(seconds, level=0.1):
    generator = torch.Generator().manual_seed(0)
    return level * torch.randn(int(seconds * 24000), generator=generator)


def test_it_follows_from_the_seed(alter):
    wav = noise(1)
    assert torch.equal(alter(wav, 3), alter(wav, 3))
    assert not torch.equal(alter(wav, 3)[:9000], alter(wav, 4)[:9000])


def test_what_is_drawn():
    """Every speed; the bandwidth of 8 kHz for 0.35 of the copies, 16 kHz for 0.25."""
    alter = altered.AlteredAudio()
    alter.effects = lambda wavs, lengths, seeds: wavs
    copies = [alter(noise(0.5), seed) for seed in range(300)]
    lengths = {len(copy) for copy in copies}
    assert lengths == {-(-12000 * 100 // speed) for speed in altered._SPEEDS}

    def limited(copy, frequency):
        power = torch.fft.rfft(copy).abs().square()
        first = int(1.2 * frequency / 12000 * len(power))
        return power[first:].sum() < 0.01 * power.sum()

    telephone = [limited(copy, 4000) for copy in copies]
    wide = [limited(copy, 8000) for copy in copies]
    assert 0.27 < np.mean(telephone) < 0.43
    assert 0.52 < np.mean(wide) < 0.68
    assert all(b for a, b in zip(telephone, wide, strict=True) if a)


def test_each_minute_by_itself(alter, monkeypatch):
    monkeypatch.setattr(altered, "_PART_SECONDS", 1)
    wav = noise(2.5, level=0.01)
    whole = alter(wav, 7)
    seeds = hash_seeds(torch.tensor(7), torch.arange(3))
    parts = [alter._alter(*part) for part in zip(wav.split(24000), seeds, strict=True)]
    assert torch.equal(whole, torch.cat(parts))


def test_loud_short_and_silent(alter):
    for seed in range(20):
        assert alter(noise(1, level=1.0), seed).abs().max() <= 1
        assert len(alter(noise(0.0134), seed)) >= 320
        assert not alter(torch.zeros(9000), seed).any()


@pytest.fixture
def corpora(corpus, tmp_path):
    return prepare_corpora(corpus, tmp_path / "save")


def files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_copies_of_what_is_trained_on(corpora, tmp_path, alter):
    (before,) = corpora
    (after,) = altered.add_copies(corpora, 2, 5, tmp_path / "save")
    rows, more = read_manifest(before.train_csv), read_manifest(after.train_csv)
    assert more[: len(rows)] == rows
    assert len(more) == 3 * len(rows)
    assert after.valid_csv == before.valid_csv
    assert after.num_files == before.num_files
    assert (before.num_copies, after.num_copies) == (0, 2 * len(rows))
    assert len({row["ID"] for row in more}) == len(more)
    for row in more[len(rows) :]:
        wav, rate = soundfile.read(row["wav"])
        assert (rate, len(wav)) == (24000, int(row["num_samples"]))
        assert float(row["duration"]) == pytest.approx(len(wav) / 24000, abs=1e-6)
    one, two = more[len(rows)], more[len(rows) + 1]
    source = read_audio(rows[0]["wav"], 24000)
    for row, number in ((one, 1), (two, 2)):
        seed = int(altered.digest([5, rows[0]["ID"], number]), 16)
        expected = alter(source, seed)
        assert torch.allclose(read_audio(row["wav"], 24000), expected, atol=1e-4)
    assert not torch.equal(
        *(read_audio(row["wav"], 24000)[:5000] for row in (one, two))
    )


def test_made_once_and_gone_on_with(corpora, tmp_path, monkeypatch):
    save, other = tmp_path / "save", tmp_path / "other"
    altered.add_copies(corpora, 1, 5, other)
    add = partial(altered.add_copies, corpora, 1, 5, save)
    with monkeypatch.context() as patch:
        killed_when(patch, add, altered, "write_audio", 3)
    there = files(save / "altered")
    assert 0 < len(there) < len(files(other / "altered"))
    first = add()
    assert files(save / "altered") == files(other / "altered")
    with monkeypatch.context() as patch:
        patch.setattr(altered, "write_audio", None)
        assert add() == first
    # Another seed: other copies.
    (one,), (two,) = first, altered.add_copies(corpora, 1, 6, save)
    assert len(list((save / "altered").iterdir())) == 2
    assert one.name == two.name
    first, second = (files(path) for path in (save / "altered").iterdir())
    assert all(first[name] != second[name] for name in first)


def test_a_damaged_copy_is_made_again(corpora, tmp_path):
    add = partial(altered.add_copies, corpora, 1, 5, tmp_path / "save")
    first = add()
    there = files(tmp_path / "save/altered")
    path = next((tmp_path / "save/altered").rglob("*.flac"))
    path.write_bytes(path.read_bytes()[:2000])
    assert add() == first
    assert files(tmp_path / "save/altered") == there


def test_threads_do_not_change_copies(corpora, tmp_path):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            altered.add_copies(corpora, 1, 5, tmp_path / str(count))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert files(tmp_path / "1/altered") == files(tmp_path / "2/altered")


def test_a_file_that_cannot_be_read(corpora, tmp_path):
    (before,) = corpora
    rows = read_manifest(before.train_csv)
    lost = tmp_path / "lost.wav"
    shutil.copyfile(rows[0]["wav"], lost)
    text = before.train_csv.read_text()
    before.train_csv.write_text(text.replace(rows[0]["wav"], str(lost)))
    lost.write_bytes(b"no audio")
    (after,) = altered.add_copies(corpora, 1, 5, tmp_path / "save")
    ((path, reason),) = after.unusable
    assert path == str(lost)
    assert "no altered copy: unreadable" in reason
    assert len(read_manifest(after.train_csv)) == 2 * len(rows) - 1
    # Repaired while a training goes on: it stays without a copy.
    shutil.copyfile(rows[0]["wav"], lost)
    for begun, missing in ((True, 1), (False, 0)):
        (after,) = altered.add_copies(corpora, 1, 5, tmp_path / "save", begun)
        assert after.unusable == []
        assert len(read_manifest(after.train_csv)) == 2 * len(rows) - missing


@pytest.mark.parametrize("copies", [-1, 101, True, 1.0, None, "some"])
def test_values_that_are_not_allowed(copies):
    with pytest.raises(UserError, match=f"altered_copies={copies}: give"):
        choose_copies({"altered_copies": copies, "data_folder": None})


def test_audio_that_cannot_be_copied(corpora, tmp_path, monkeypatch, capsys):
    """A number is refused there, and `auto` says that there are none."""

    def refused(match, **hparams):
        with pytest.raises(UserError, match="altered_copies=1, but .*" + match):
            choose_copies({**hparams, "altered_copies": 1})
        assert choose_copies({**hparams, "altered_copies": 0}) == 0
        assert capsys.readouterr().out == ""
        assert choose_copies({**hparams, "altered_copies": "auto"}) == 0
        assert "Altered copies: none, because" in capsys.readouterr().out

    refused("not of shards or procedural audio", data_folder="procedural")
    data, inside = tmp_path / "data", tmp_path / "data/results/save"
    data.mkdir()
    folders = {"data_folder": str(data), "save_folder": inside}
    refused("which is in data_folder=.*data. Give", **folders)
    folders["save_folder"] = tmp_path / "save"
    refused("codes_folder=codes has no codes", **folders, codes_folder="codes")
    for copies in (1, "auto"):
        chosen = choose_copies({**folders, "altered_copies": copies})
        assert chosen == copies

    limit = partial(altered.limit_copies, corpora)
    assert [limit(copies) for copies in (0, 2, "auto")] == [0, 2, 1]
    monkeypatch.setattr(altered, "MOST_HOURS", 1e-3)
    with pytest.raises(UserError, match="altered_copies=1, but .* at most 0.001 h"):
        limit(1)
    assert limit("auto") == 0
    assert "none, because with copies there are" in capsys.readouterr().out
    assert limit(0) == 0


def test_an_error_leaves_threads_as_they_were():
    threads = torch.get_num_threads()

    def fails(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="a"):
        list(map_on_threads(fails, "abc"))
    assert torch.get_num_threads() == threads


@pytest.fixture
def pretrain(corpus):
    """Runs the recipe and returns the weights."""
    options = {
        "data_folder": corpus,
        "codec": "bundled",
        "training_steps": 4,
        "valid_interval": 2,
        "valid_items": 2,
        "precision": "fp32",
        "monitors": False,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
    }

    def run(output, **more):
        arguments = flags(output, **{**options, **more})
        run_recipe(
            "pretrain", ROOT / "hparams/mini.yaml", *arguments, "--noprogressbar"
        )
        return (output / "encoder/encoder.ckpt").read_bytes()

    return run


@pytest.mark.parametrize("store_targets", ["auto", False])
def test_recipe(pretrain, tmp_path, store_targets, capfd, monkeypatch):
    run = partial(pretrain, store_targets=store_targets, altered_copies=1)
    once = run(tmp_path / "once")
    printed = capfd.readouterr().out
    rows = read_manifest(next((tmp_path / "once/save").glob("*_train.csv")))
    said = f"Training on {2 * len(rows)} files ({len(rows)} of them altered copies)"
    assert said in printed
    metrics = json.loads((tmp_path / "once/metrics.json").read_text())
    assert metrics["altered_files"] == len(rows)
    made = (tmp_path / "once/encoder/README.md").read_text()
    assert f"with {len(rows)} altered copies" in made
    again = partial(run, tmp_path / "again")
    killed_when(monkeypatch, again, PretrainBrain, "compute_forward", 3)
    assert again() == once
    assert run(tmp_path / "without", altered_copies=0) != once
    with pytest.raises(SystemExit, match="altered_copies: .*1.*2"):
        run(tmp_path / "once", altered_copies=2, training_steps=6)


def test_auto_goes_on_as_it_began(pretrain, tmp_path, monkeypatch, capfd):
    run = partial(pretrain, store_targets="auto")
    once = run(tmp_path / "one", altered_copies=1)
    auto = partial(run, tmp_path / "auto", altered_copies="auto")
    killed_when(monkeypatch, auto, PretrainBrain, "compute_forward", 3)
    assert auto() == once
    # Without copies, because there are codes of the files alone.
    codes = tmp_path / "one/save/targets"
    with pytest.raises(SystemExit, match="altered_copies=1, but codes_folder="):
        auto(codes_folder=codes, training_steps=6)
    none = partial(run, tmp_path / "none", altered_copies="auto")
    capfd.readouterr()
    first = none(codes_folder=codes)
    assert "Altered copies: none, because codes_folder=" in capfd.readouterr().out
    longer = none(training_steps=6)
    assert longer != first
    assert not (tmp_path / "none/save/altered").exists()
