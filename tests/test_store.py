"""Targets that a pretraining stores at its start: as extracted before, and resumed."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import ROOT, flags, run_recipe
from stored_codes import (  # noqa: F401
    extracted_codes,
    few_crops_compared,
    killed_when,
    some_speech,
)

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.stored import RowFile
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.nnet.targets import Label
from encodecmae_sb.pipelines import store
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.utils import experiment
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def pretrain(corpus):
    """Runs the recipe; returns what two runs must agree on, bit for bit."""
    patch = pytest.MonkeyPatch()
    patch.setattr("encodecmae_sb.brains.pretrain._UNIGRAM_CROPS", 8)

    def run(output, *more, **options):
        given = {
            "data_folder": corpus,
            "codec": "bundled",
            "training_steps": 2,
            "valid_interval": 2,
            "valid_items": 2,
            "ckpt_interval_minutes": 0,
            "ckpt_interval_steps": 1,
            "precision": "fp32",
            "store_targets": "auto",
            "normalise": "null",
            **options,
        }
        arguments = [ROOT / "hparams/mini.yaml", *flags(output, **given), *more]
        run_recipe("pretrain", *arguments, "--noprogressbar")
        weights = (output / "encoder/encoder.ckpt").read_bytes()
        metrics = json.loads((output / "metrics.json").read_text())
        return hashlib.sha256(weights).hexdigest(), metrics

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def finished(pretrain, tmp_path_factory):
    output = tmp_path_factory.mktemp("store") / "run"
    return output, pretrain(output)


def identity(output):
    return json.loads((output / "save/identity.json").read_text())["codes"]


def other_codec(folder):
    torch.manual_seed(1)
    path = folder / "other.safetensors"
    save_codec(build_encodec(2, 8), path)
    return path


def never(*args, **kwargs):
    raise AssertionError("called")


def test_it_is_the_training_with_a_codes_folder(
    pretrain, finished, extracted, tmp_path, capfd
):
    output, results = finished
    assert pretrain(tmp_path / "run", codes_folder=extracted) == results
    assert not (tmp_path / "run/save/targets").exists()
    assert identity(output) == identity(tmp_path / "run")
    # One can go on as the other.
    shutil.copytree(output, tmp_path / "other")
    capfd.readouterr()
    longer = {"training_steps": 3, "codes_folder": extracted}
    longer = pretrain(tmp_path / "run", **longer)
    assert f"Codes: read from {extracted}" in capfd.readouterr().out
    assert pretrain(tmp_path / "other", training_steps=3) == longer
    text = capfd.readouterr().out
    assert f"Codes: read from {tmp_path / 'other/save/targets'}" in text
    assert "store_targets: auto" in text


def test_killed_while_storing_and_while_training(
    pretrain, finished, tmp_path, monkeypatch
):
    output = tmp_path / "run"

    kill = partial(killed_when, monkeypatch, lambda: pretrain(output))

    kill(RowFile, "append", 2)
    there = len(StoredCodes(output / "save/targets").entries)
    assert 0 < there < 13
    kill(PretrainBrain, "compute_forward", 2)
    parts = sorted(path.name for path in output.glob("save/targets/part-*.codes"))
    assert parts == ["part-00000.codes", "part-00001.codes"]
    monkeypatch.setattr(RowFile, "append", never)
    assert pretrain(output) == finished[1]


def test_long_corpora_on_request_only(pretrain, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "AUTO_HOURS", 10 / 3600)
    computed = pretrain(tmp_path / "auto")
    assert not (tmp_path / "auto/save/targets").exists()
    assert identity(tmp_path / "auto") == "computed for each crop"
    assert pretrain(tmp_path / "true", store_targets=True) == finished[1]
    assert computed != finished[1]
    # What began so goes on so, whatever would be chosen now.
    monkeypatch.undo()
    assert pretrain(tmp_path / "auto", training_steps=3) != computed
    assert not (tmp_path / "auto/save/targets").exists()
    monkeypatch.setattr(store, "extract", never)
    with pytest.raises(SystemExit, match="codes: computed for each crop -> stored"):
        pretrain(tmp_path / "auto", store_targets=True)


def test_another_codec(pretrain, finished, tmp_path, monkeypatch):
    codec = other_codec(tmp_path)
    # Before the training has begun they are made anew.
    monkeypatch.setattr(PretrainBrain, "fit_crops", never)
    for source in ("bundled", codec):
        with pytest.raises(AssertionError, match="called"):
            pretrain(tmp_path / "run", codec=source)
    assert StoredCodes(tmp_path / "run/save/targets").info.name == str(codec)
    monkeypatch.undo()
    assert pretrain(tmp_path / "run", codec=codec)[1]["codec"] == str(codec)
    # Then it is another training, and nothing is touched.
    output, _ = finished
    files = sorted(output.glob("save/targets/*"))
    before = [path.read_bytes() for path in files]
    with pytest.raises(SystemExit, match="(?s)codec: bundled.*other --output_folder"):
        pretrain(output, codec=codec)
    assert [path.read_bytes() for path in sorted(output.glob("save/targets/*"))] == (
        before
    )


def test_changed_audio_is_encoded_again(pretrain, corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus, tmp_path / "speech")
    folder = tmp_path / "speech"
    first, second = sorted(folder.glob("train/*.flac"))[:2]
    monkeypatch.setattr(PretrainBrain, "fit_crops", never)

    def stored():
        with pytest.raises(AssertionError, match="called"):
            pretrain(tmp_path / "run", data_folder=folder)
        codes = StoredCodes(tmp_path / "run/save/targets")
        manifest = tmp_path / "run/save/speech_train.csv"
        (files,) = codes.of_manifests([manifest], 8, "")
        numbers = {path: i for i, path in enumerate(files.paths)}
        return [
            files.read(numbers[str(path)], 0, 20).tolist() for path in (first, second)
        ]

    old = stored()
    shutil.copyfile(second, first)
    assert stored() == [old[1], old[1]]
    assert not np.array_equal(*old)


def test_a_debug_run_stores_in_its_own_folder(pretrain, tmp_path):
    with pytest.raises(FileNotFoundError, match="run/encoder"):
        pretrain(tmp_path / "run", "--debug")
    assert (tmp_path / "run/debug/save/targets/codes.json").exists()
    assert (tmp_path / "run/debug/encoder/encoder.ckpt").exists()


@pytest.mark.parametrize("main", [False, True])
def test_only_the_main_process_discards(tmp_path, monkeypatch, main):
    """A folder without codes.json may be one that the main process is just making."""
    for module in (store, experiment):
        monkeypatch.setattr(module, "if_main_process", lambda: main)
    monkeypatch.setattr(experiment, "ddp_barrier", lambda: None)
    monkeypatch.setattr(store, "StoredCodes", Path)
    folder, seen = tmp_path / "targets", []
    monkeypatch.setattr(store, "extract_for", lambda *_: seen.append(folder.exists()))
    folder.mkdir()
    brain = SimpleNamespace(
        checkpointer=SimpleNamespace(
            recorded=lambda key: None, list_checkpoints=lambda: []
        ),
        hparams=SimpleNamespace(save_folder=tmp_path, store_targets="auto"),
        identify=lambda **identity: None,
    )
    codec = {"n_codebooks": 8, "codebook_size": 1024}
    targets = SimpleNamespace(label=Label("codec", "bundled", "0"), **codec)
    assert store.store_targets(brain, targets, [], {}) == folder
    assert seen == [not main]


@pytest.mark.parametrize("choice", ["always", "null", 1])
def test_values_that_are_not_allowed(pretrain, tmp_path, choice):
    with pytest.raises(SystemExit, match="allowed are auto .*, True and False"):
        pretrain(tmp_path / "run", store_targets=choice)
    assert not list(tmp_path.glob("run/save/*.csv"))  # before any work


def test_what_cannot_be_stored(tmp_path, monkeypatch):
    """Shards have their targets with them; procedural audio has no files."""
    hparams = {"data_folder": "procedural", "store_targets": True}
    with pytest.raises(UserError, match="procedural audio is new"):
        store.check_store_targets(hparams, None)
    assert not store.is_to_store({**hparams, "store_targets": "auto"}, [])
    monkeypatch.setattr(store, "holds_shards", lambda folders: True)
    hparams["data_folder"] = str(tmp_path)
    with pytest.raises(UserError, match="make_shards.py"):
        store.check_store_targets(hparams, None)
    store.check_store_targets(hparams, "packed codes")
    hparams["store_targets"] = "auto"
    store.check_store_targets(hparams, None)
    assert not store.is_to_store(hparams, [])
