"""Pretraining from stored codes, without the codec."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from commands import ROOT, flags, run_recipe
from stored_codes import (  # noqa: F401
    Killed,
    bundled_codec,
    extracted_codes,
    few_crops_compared,
    own_codes,
    some_speech,
)

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.lobes import Codec

pytestmark = pytest.mark.usefixtures("few_compared")


@pytest.fixture(scope="module")
def pretrain(corpus, extracted):
    """Runs the recipe; returns what two runs must agree on, bit for bit."""
    # A sample of 512 crops would take the most of the time.
    patch = pytest.MonkeyPatch()
    patch.setattr("encodecmae_sb.brains.pretrain._UNIGRAM_CROPS", 16)

    def run(output, yaml="mini", **options):
        given = {
            "data_folder": corpus,
            "codes_folder": extracted,
            "codec": "bundled",
            "training_steps": 4,
            "valid_interval": 2,
            "valid_items": 2,
            "ckpt_interval_minutes": 0,
            "ckpt_interval_steps": 1,
            "precision": "fp32",
            "normalise": "null",
            **options,
        }
        arguments = [str(ROOT / f"hparams/{yaml}.yaml"), *flags(output, **given)]
        run_recipe("pretrain", *arguments, "--noprogressbar")
        weights = (output / "encoder/encoder.ckpt").read_bytes()
        metrics = json.loads((output / "metrics.json").read_text())
        return hashlib.sha256(weights).hexdigest(), metrics

    yield run
    patch.undo()


def no_codec(*args, **keywords):
    raise AssertionError("the codec was built")


def test_pretraining_from_codes_killed_and_resumed(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr(Codec, "__init__", no_codec)
    results = pretrain(tmp_path / "whole")
    assert results[1]["step"] == 4
    assert results[1]["codec"] == "bundled"
    forward, calls = PretrainBrain.compute_forward, [0]

    def killed(*args, **kwargs):
        calls[0] += 1
        if calls[0] in (2, 5):
            raise Killed
        return forward(*args, **kwargs)

    monkeypatch.setattr(PretrainBrain, "compute_forward", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            pretrain(tmp_path / "run")
    assert list(tmp_path.glob("run/save/CKPT*"))
    assert pretrain(tmp_path / "run", num_workers=1) == results


def test_it_measures_what_training_from_audio_measures(pretrain, tmp_path):
    """Crops are the same up to a frame, and codes are nearly the same."""
    options = {"training_steps": 2, "n_codebooks": 3, "crop_seconds": 0.8}
    _, stored = pretrain(tmp_path / "codes", **options)
    computed = {"codes_folder": "null", "store_targets": False}
    _, audio = pretrain(tmp_path / "audio", **options, **computed)
    assert stored.keys() == audio.keys()
    assert "masked_ce_4" not in stored
    for name in ("unigram_ce_1", "unigram_ce_3", "masked_ce_1", "masked_ce_3"):
        assert stored[name] == pytest.approx(audio[name], abs=0.1)
        assert stored[name] != audio[name]


def test_codec_latents_with_stored_codes(pretrain, tmp_path, monkeypatch, codec):
    monkeypatch.setattr(Codec, "encode", no_codec)
    pretrain(tmp_path / "run", "base_ec", training_steps=1, ffn_dim=64, dim=48)
    weights = torch.load(tmp_path / "run/encoder/encoder.ckpt", weights_only=True)
    name = "encoder.model.0.conv.conv.weight_v"
    assert torch.equal(weights[f"front_end.{name}"], codec.net.state_dict()[name])


def test_codes_that_do_not_fit(pretrain, mine, tmp_path, capsys):
    corpus, folder = mine
    output = tmp_path / "run"
    for options, message in [
        ({"codec": "encodec_24khz"}, "--codec bundled"),
        ({"n_codebooks": 9}, "--n_codebooks 8"),
        ({"codebook_size": 512}, "--codebook_size 1024"),
        ({"codes_folder": tmp_path}, "extract_codes.py"),
        ({"normalise": "level"}, "Give --normalise null, .*8 --normalise level"),
    ]:
        with pytest.raises(SystemExit, match=message):
            pretrain(output, **{"codes_folder": folder, **options})
    paths = sorted(corpus.glob("train/*.flac"))
    os.utime(paths[0], (0, 0))
    for i in range(7):
        shutil.copy(paths[1], corpus / f"train/new{i}.flac")
    with pytest.raises(SystemExit) as caught:
        pretrain(output, data_folder=corpus, codes_folder=folder, n_codebooks=4)
    text = str(caught.value)
    assert "8 of 20 audio files" in text
    assert f"{paths[0]}: changed since" in text
    assert "new0.flac: no codes" in text
    assert "and 3 more" in text
    # What it says to do mends it.
    command = text.splitlines()[-1].split()
    assert command[:3] == ["python", "recipes/extract_codes.py", str(folder)]
    run_recipe("extract_codes", *command[2:], "--num_workers", 0, "--device", "cpu")
    made = capsys.readouterr().out
    assert f"--codes_folder {folder}" in made
    pretrain(output, data_folder=corpus, codes_folder=folder, training_steps=1)
