"""The self-training recipe through every stage."""

import hashlib
import json
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, execute, flags, run_recipe
from stored_codes import killed_when
from teachers import PUBLISHED, copy_speech, make_encoder

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.crops import FixedCrops
from encodecmae_sb.data.stored import RowFile
from encodecmae_sb.pipelines import clusters
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.pretrained.licence import ENCODEC, recorded_licence
from encodecmae_sb.pretrained.pretraining import load_pretraining


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    return copy_speech(tmp_path_factory.mktemp("corpus") / "speech")


SETTINGS = {
    "dim": 16,
    "ffn_dim": 32,
    "n_clusters": 8,
    "cluster_clips": 6,
    "encode_batch_size": 2,
    "training_steps": 4,
    "valid_interval": 2,
    "ckpt_interval_minutes": 0,
    "ckpt_interval_steps": 1,
    "precision": "fp32",
    "normalise": "null",  # as the teachers here
    "store_targets": None,  # self-training has no such key
}


@pytest.fixture(scope="module")
def self_train(corpus, teacher_folder):
    """Runs the recipe; returns what two runs must agree on, bit for bit."""

    def run(output, **options):
        given = {"data_folder": corpus, "teacher": teacher_folder}
        given |= {**SETTINGS, **options}
        yaml = str(ROOT / "hparams/self_train_mini.yaml")
        run_recipe("self_train", yaml, *flags(output, **given), "--noprogressbar")
        weights = (output / "encoder/encoder.ckpt").read_bytes()
        metrics = json.loads((output / "metrics.json").read_text())
        return hashlib.sha256(weights).hexdigest(), metrics

    return run


@pytest.fixture(scope="module")
def finished(self_train, tmp_path_factory):
    output = tmp_path_factory.mktemp("self_train") / "run"
    return output, self_train(output)


def test_what_a_run_reports(finished, corpus):
    output, (_, metrics) = finished
    assert metrics["step"] == 4
    assert metrics["student_continued"] is True
    for name in ("masked_ce_1", "masked_accuracy_1", "unigram_ce_1"):
        assert 0 <= metrics[name] < 8
    assert 1 / 8 <= metrics["majority_accuracy"] <= 1
    # Counted again from what is stored: clusters on the validation crops.
    manifest = output / "save/speech_valid.csv"
    targets = StoredCodes(output / "save/targets").of_manifests([manifest], 1, "")
    crops = FixedCrops([manifest], 4, 0.5, targets=targets)
    codes = torch.cat([item["targets"][:, 0] for item in crops])
    counts = torch.bincount(codes, minlength=8)
    shares = counts[counts > 0] / counts.sum()
    assert metrics["clusters_used"] == (counts > 0).double().mean()
    perplexity = (-(shares * shares.log()).sum()).exp().item()
    assert metrics["cluster_perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert not list(output.glob("save/features*"))  # gigabytes, in earnest
    with np.load(output / "centroids.npz") as saved:
        assert saved["centroids"].shape == (8, 16)
        assert saved["counts"].min() > 0
    assert load_encoder_folder(output / "encoder").dim == 16
    assert recorded_licence(output / "encoder") == ENCODEC  # as that of the teacher
    assert load_pretraining(output).licence == ENCODEC
    assert (output / "curves.png").exists()


def test_killed_at_every_stage_it_ends_the_same(
    self_train, finished, tmp_path, monkeypatch
):
    output = tmp_path / "run"

    kill = partial(killed_when, monkeypatch, lambda: self_train(output))

    kill(RowFile, "append", 2)  # embedding
    assert list(output.glob("save/features-*"))
    kill(clusters, "find_clusters", 1)  # clustering
    assert not (output / "centroids.npz").exists()
    kill(RowFile, "append", 2)  # computing targets
    assert (output / "centroids.npz").exists()
    assert len(StoredCodes(output / "save/targets").entries) > 1
    kill(RowFile, "append", 1)
    kill(PretrainBrain, "compute_forward", 4)  # training
    assert list(output.glob("save/CKPT*"))
    assert self_train(output) == finished[1]


def test_two_processes_store_the_targets_of_one(
    finished, corpus, teacher_folder, tmp_path
):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    yaml = ROOT / "hparams/self_train_mini.yaml"
    given = {
        **SETTINGS,
        "data_folder": corpus,
        "teacher": teacher_folder,
        "distributed_backend": "gloo",
        "batch_size": 2,
        "training_steps": 1,
    }
    options = flags(tmp_path / "run", **given)
    script = ROOT / "recipes/self_train.py"
    text = execute([sys.executable, *launcher, script, yaml, *options], tmp_path)
    assert text.count("Next:") == 1
    stored, other = (
        StoredCodes(output / "save/targets")
        for output in (finished[0], tmp_path / "run")
    )
    assert stored.info.fingerprint == other.info.fingerprint
    assert len(other.parts) == 2
    manifests = [finished[0] / f"save/speech_{part}.csv" for part in ("train", "valid")]
    for one, two in zip(
        stored.of_manifests(manifests, 1, ""),
        other.of_manifests(manifests, 1, ""),
        strict=True,
    ):
        for file, frames in enumerate(one.frames):
            both = (codes.read(file, 0, frames) for codes in (one, two))
            assert np.array_equal(*both)


def test_a_student_of_a_published_teacher(self_train, tmp_path, capsys):
    export_encoder(make_encoder(**PUBLISHED), tmp_path / "teacher")
    options = {"teacher": tmp_path / "teacher", "training_steps": 2}
    _, metrics = self_train(tmp_path / "new", **options)
    assert metrics["student_continued"] is False
    assert metrics["student_hop_length"] == 320
    said = capsys.readouterr().out
    assert "nearest" in said
    assert "--student teacher" in said
    _, metrics = self_train(tmp_path / "on", **options, student="teacher")
    assert metrics["student_continued"] is True
    assert metrics["student_hop_length"] == 318
    assert "goes on from the teacher's weights, with its front end" in (
        capsys.readouterr().out
    )
    front_end = load_encoder_folder(tmp_path / "on/encoder").front_end
    assert (front_end.hop_length, front_end.centered) == (318, False)
    for name in ("new", "on"):
        readme = (tmp_path / name / "encoder/README.md").read_text()
        assert ("goes on from" in readme) == (name == "on")


def test_another_student_of_the_same_clusters(self_train, finished, tmp_path):
    _, metrics = self_train(tmp_path / "run", dim=32, training_steps=1)
    assert metrics["student_continued"] is False
    for name in ("majority_accuracy", "clusters_used", "cluster_perplexity"):
        assert metrics[name] == finished[1][1][name]


def test_targets_do_not_change_in_the_middle(self_train, finished):
    output, results = finished
    with pytest.raises(SystemExit, match="another teacher"):
        self_train(output, n_clusters=9)
    with pytest.raises(SystemExit, match="another teacher"):
        self_train(output, layer="last")
    assert self_train(output) == results


def test_bad_teachers_and_settings(self_train, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.projection.weight[0, 0] = torch.nan
    export_encoder(encoder, tmp_path / "nan")
    for options, message in [
        ({"teacher": tmp_path / "nan"}, "not finite"),
        ({"n_clusters": 5000}, "fewer than n_clusters=5000"),
        ({"student": "teacher", "dim": 32}, "--student fresh"),
    ]:
        with pytest.raises(SystemExit, match=message):
            self_train(tmp_path / "run", **options)


def test_the_papers_configuration(self_train, tmp_path, teacher_folder):
    yaml = str(ROOT / "hparams/self_train_base.yaml")
    with open(yaml) as file:
        text = file.read()
    assert "n_clusters: 1024" in text
    assert "cluster_clips: 10000" in text
    sizes = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "num_layers": 2}
    tiny = {"cluster_clips": 4, "n_clusters": 8, "training_steps": 1}
    tiny["store_targets"] = None
    options = flags(tmp_path / "run", **sizes, **tiny, teacher=teacher_folder)
    folder = tmp_path / "noises"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.normal(size=30000), 24000)
    options += ["--data_folder", str(folder), "--noprogressbar"]
    run_recipe("self_train", yaml, *options)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["student_continued"] is False  # shared feed-forwards
