"""Pretraining on targets besides the codec."""

import json
import math
from types import SimpleNamespace

import pytest
from commands import ROOT, flags, results, run_recipe
from fitted import KINDS, fitted_targets, named, some_speech  # noqa: F401
from stored_codes import Killed

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.lobes import CodecLatents, MaskedCodecLoss
from encodecmae_sb.nnet.loss import default_weights
from encodecmae_sb.nnet.targets import identify
from encodecmae_sb.pipelines import extract as pipeline
from encodecmae_sb.pipelines.pretrain import find_licence
from encodecmae_sb.pretrained.licence import ENCODEC, recorded_licence
from encodecmae_sb.pretrained.pretraining import load_pretraining, read_licence

LINES = {
    "mel_rvq": "[FOLDER/mel_rvq, 3]",
    "random_projection": "[FOLDER/random_projection, 3]",
    "clusters": "[FOLDER/clusters]",
    "several": "[[!name:encodecmae_sb.lobes.MelRVQ [FOLDER/mel_rvq], "
    "!name:encodecmae_sb.lobes.Clusters [FOLDER/clusters]], [3, 1]]",
}
CLASSES = dict(zip(KINDS, ["MelRVQ", "RandomProjection", "Clusters"], strict=False))


def pretrain(fitted, corpus, output, kind, **options):
    """A tiny pretraining on one kind of targets; its metrics."""
    sizes = {"mel_rvq": (3, 32), "random_projection": (3, 32), "clusters": (1, 16)}
    n_codebooks, size = sizes.get(kind, (5, 32))
    name = CLASSES.get(kind, "SeveralTargets")
    arguments = LINES[kind].replace("FOLDER", str(fitted[0]))
    given = {
        "targets": f"!name:encodecmae_sb.lobes.{name} {arguments}",
        "n_codebooks": n_codebooks,
        "codebook_size": size,
        "data_folder": corpus,
        "training_steps": 4,
        "valid_interval": 2,
        "precision": "fp32",
        **options,
    }
    yaml = ROOT / "hparams/mini.yaml"
    run_recipe("pretrain", yaml, *flags(output, **given), "--noprogressbar")
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining(fitted, corpus, tmp_path, kind):
    metrics = pretrain(fitted, corpus, tmp_path / "run", kind)
    count = {"clusters": 1, "several": 5}.get(kind, 3)
    found = {key for key in metrics if key.startswith("masked_ce_")}
    assert found == {f"masked_ce_{q}" for q in range(1, count + 1)}
    assert all(math.isfinite(metrics[key]) for key in found)
    assert CLASSES.get(kind, "MelRVQ") in metrics["targets"]
    identity = json.loads((tmp_path / "run/save/identity.json").read_text())
    assert identity["targets_content"]["digest"]
    # The clusters are of an encoder that has EnCodec's licence.
    licence = ENCODEC if kind in ("clusters", "several") else None
    assert recorded_licence(tmp_path / "run/encoder") == licence
    assert load_pretraining(tmp_path / "run").licence == licence


def test_the_licence_of_the_codec_that_is_heard(fitted, tmp_path):
    """Whatever the targets are."""
    model = SimpleNamespace(encoder=SimpleNamespace(front_end=CodecLatents()))
    targets = named(fitted[0], "mel_rvq")
    hparams = {"model": model, "targets": targets, "save_folder": tmp_path}
    label = identify(targets)
    for codec, licence in [("encodec_24khz", ENCODEC), ("bundled", None)]:
        assert find_licence({**hparams, "codec": codec}, label) == licence
        assert read_licence(tmp_path) == licence


def test_a_killed_run_goes_on(fitted, corpus, tmp_path, monkeypatch):
    saved = {"ckpt_interval_steps": 1}
    pretrain(fitted, corpus, tmp_path / "whole", "several", **saved)
    real, calls = PretrainBrain.fit_batch, []

    def fit_batch(self, batch):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainBrain, "fit_batch", fit_batch)
        with pytest.raises(Killed):
            pretrain(fitted, corpus, tmp_path / "run", "several", **saved)
    assert list(tmp_path.glob("run/save/CKPT*"))
    pretrain(fitted, corpus, tmp_path / "run", "several", **saved)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    weights = {"codebook_weights": "[1, 1, 1, 1, 1]"}
    with pytest.raises(SystemExit, match="codebook_weights"):
        pretrain(fitted, corpus, tmp_path / "run", "several", **weights)


def test_arguments_of_another_class(fitted, corpus, tmp_path):
    """A mapping on the command line is merged into the yaml's."""
    lines = "!name:encodecmae_sb.lobes.MelRVQ {file: some}"
    with pytest.raises(SystemExit, match="give arguments as a list"):
        pretrain(fitted, corpus, tmp_path, "mel_rvq", targets=lines)


def test_weights_are_those_of_the_targets(fitted, corpus, tmp_path, monkeypatch):
    """Or those of the yaml."""
    seen = []
    real = MaskedCodecLoss.forward

    def forward(self, *args, **kwargs):
        seen.append(self.weights.tolist())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MaskedCodecLoss, "forward", forward)
    pretrain(fitted, corpus, tmp_path / "a", "several", training_steps=1)
    expected = [*(0.75 * default_weights(4)).tolist(), 0.25]
    assert seen[0] == pytest.approx(expected)
    seen.clear()
    weights = {"codebook_weights": "[1, 0, 0, 0, 3]", "training_steps": 1}
    pretrain(fitted, corpus, tmp_path / "b", "several", **weights)
    assert seen[0] == [0.25, 0, 0, 0, 0.75]


def test_pretraining_from_stored_codes(fitted, corpus, tmp_path, monkeypatch, capsys):
    """The command that fit_targets prints, with a folder of codes."""
    monkeypatch.setattr(pipeline, "COMPARED_CROPS", 2)
    targets = f"!name:encodecmae_sb.lobes.MelRVQ [{fitted[0]}/mel_rvq, 3]"
    options = ["--targets", targets, "--data_folder", corpus, "--device", "cpu"]
    run_recipe("extract_codes", tmp_path / "codes", *options, "--num_workers", "0")
    text = capsys.readouterr().out
    assert "--n_codebooks 3 --codebook_size 32 --targets '!name:" in text
    metrics = [
        pretrain(fitted, corpus, tmp_path / name, "mel_rvq", training_steps=2, **more)
        for name, more in [("a", {}), ("b", {"codes_folder": tmp_path / "codes"})]
    ]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["targets"] == metrics[1]["targets"] == "MelRVQ mel_rvq"
    output, more = tmp_path / "c", {"codes_folder": tmp_path / "codes"}
    with pytest.raises(SystemExit, match="holds codes of targets MelRVQ"):
        pretrain(fitted, corpus, output, "clusters", **more)
