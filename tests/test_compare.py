"""The probing recipe as a user runs it."""

import math
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch
from classification import read_rows, write_rows
from commands import ROOT
from hyperpyyaml import load_hyperpyyaml
from probing import HEADER, QUICK, make_home, metrics_of, run

from encodecmae_sb.data.clip_data import ClipData
from encodecmae_sb.data.clips import inspect_clips
from encodecmae_sb.data.corpora import find_clips
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.pipelines.compare import Comparison
from encodecmae_sb.pretrained.folder import export_encoder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with tiny encoders and sounds."""
    return make_home(tmp_path_factory.mktemp("probe"))


def widths(rows):
    return {row["encoder"]: row["width"] for row in rows}


@pytest.fixture(scope="module")
def finished(home):
    """A run with an encoder for each fold."""
    output = home / "finished"
    return output, run(home, output)


def test_a_run_compares_encoders(home, finished):
    output, text = finished
    metrics = metrics_of(output)
    each = f"{home}/{{fold}}/encoder"
    rows = read_rows(output / "probes.csv")
    for name in ("logmel", "random", each):
        assert name in text
        assert metrics[f"{name}/mlp/accuracy"] > 0.8
        folds = [metrics[f"{name}/mlp/fold_{i}/accuracy"] for i in range(3)]
        assert metrics[f"{name}/mlp/accuracy"] == pytest.approx(np.mean(folds))
        deviation = np.std(folds, ddof=1)
        assert metrics[f"{name}/mlp/accuracy_std_folds"] == pytest.approx(deviation)
        expected = deviation / math.sqrt(3)
        assert metrics[f"{name}/mlp/accuracy_stderr_folds"] == pytest.approx(expected)
        low, high = (metrics[f"{name}/mlp/accuracy_{end}"] for end in ("low", "high"))
        assert low <= metrics[f"{name}/mlp/accuracy"] <= high
        own = [row for row in rows if row["encoder"] == name]
        assert len(own) == 3 * QUICK["repeats"]
        # Probes are chosen once for each fold.
        assert len({(row["fold"], row["choice"].partition(",")[0]) for row in own}) == 3
    names = ("logmel", "random", each)
    best = max(names, key=lambda name: metrics[f"{name}/mlp/accuracy"])
    assert f"{best}/mlp/accuracy_behind_best" not in metrics
    for name in set(names) - {best}:
        differences = [
            metrics[f"{best}/mlp/fold_{i}/accuracy"]
            - metrics[f"{name}/mlp/fold_{i}/accuracy"]
            for i in range(3)
        ]
        behind = metrics[f"{name}/mlp/accuracy_behind_best"]
        assert behind == pytest.approx(np.mean(differences))
        stderr = np.std(differences, ddof=1) / math.sqrt(3)
        measured = metrics[f"{name}/mlp/accuracy_behind_best_stderr_folds"]
        assert measured == pytest.approx(stderr, abs=1e-9)
        low = metrics[f"{name}/mlp/accuracy_behind_best_low"]
        assert low <= behind <= metrics[f"{name}/mlp/accuracy_behind_best_high"]
    assert metrics["most_frequent_class"] == 0.5
    assert widths(rows) == {"logmel": "512", "random": "64", each: "64"}
    for name in ("metrics.json", "probes.csv", "probe.png", "clips.csv"):
        assert name in text
        assert (output / name).exists()
    assert not (output / "layers.png").exists()


def test_vectors_are_computed_once_and_for_each_encoder(home, finished, tmp_path):
    output, _ = finished
    files = {path: path.stat().st_mtime_ns for path in output.glob("save/*/*")}
    # Log-mel, two random encoders that all folds share, and one encoder a fold.
    assert sum(path.suffix == ".bin" for path in files) == 1 + 2 + 3
    before = metrics_of(output)
    run(home, output)
    assert metrics_of(output) == before
    assert {p: p.stat().st_mtime_ns for p in output.glob("save/*/*")} == files
    # Nothing depends on what was there.
    run(home, tmp_path / "new")
    assert metrics_of(tmp_path / "new") == before


def test_a_run_that_was_cut_off_goes_on_at_its_fold(home, finished, tmp_path):
    output, _ = finished
    done = sorted((output / "save/probes").glob("*.json"))
    other = tmp_path / "run"
    for path in (output / "save").rglob("*.*"):
        target = other / "save" / path.relative_to(output / "save")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (other / "save/probes" / done[0].name).unlink()
    kept = other / "save/probes" / done[1].name
    time = kept.stat().st_mtime_ns
    run(home, other)
    assert kept.stat().st_mtime_ns == time
    assert metrics_of(other) == metrics_of(output)


def test_layer_by_layer(home, tmp_path):
    first = f"{home}/0/encoder"
    options = {"encoders": f"[logmel, {first}]", "repeats": 1, "hidden_layers": "[0]"}
    text = run(home, tmp_path / "all", layers=True, **options)
    metrics = metrics_of(tmp_path / "all")
    assert "of each layer" in text
    assert (tmp_path / "all/layers.png").exists()
    assert metrics[f"{first}/mlp/accuracy"] == metrics[f"{first}/mlp/layer_1/accuracy"]
    assert "logmel/mlp/layer_0/accuracy" not in metrics
    assert f"{first}/mlp/accuracy_std_repeats" not in metrics
    rows = read_rows(tmp_path / "all/probes.csv")
    for layer, chosen in ((1, "last"), (0, 0)):
        # What is probed alone is the same as among all.
        run(home, tmp_path / f"{layer}", layer=chosen, **options)
        alone = [
            row["valid"] + row["choice"] + row["macro_f1"]
            for row in read_rows(tmp_path / f"{layer}/probes.csv")
            if row["encoder"] == first
        ]
        among = [
            row["valid"] + row["choice"] + row["macro_f1"]
            for row in rows
            if row["encoder"] == first and row["layer"] == str(layer)
        ]
        assert alone == among


def test_several_labels_a_clip(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    for row in rows:
        row["label"] += ";even" if int(row["ID"]) % 4 < 2 else ""
        row["fold"] = ("train", "valid", "test")[int(row["fold"])]
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows], HEADER)
    first = f"{home}/0/encoder"
    options = {"csv": tmp_path / "clips.csv", "encoders": f"[logmel, {first}]"}
    text = run(home, tmp_path / "run", multi_label=True, pooling="mean", **options)
    rows = read_rows(tmp_path / "run/probes.csv")
    assert widths(rows) == {"logmel": "512", first: "32"}
    metrics = metrics_of(tmp_path / "run")
    assert 0 < metrics["logmel/mlp/mAP"] <= 1
    assert metrics["logmel/mlp/mAP_low"] <= metrics["logmel/mlp/mAP"]
    assert metrics["logmel/mlp/mAP_low"] < metrics["logmel/mlp/mAP_high"]
    assert "logmel/mlp/mAP_std_folds" not in metrics
    assert "logmel/mlp/mAP_stderr_folds" not in metrics
    # Log-mel frames are pooled in their own way, and have no layer.
    assert (metrics["logmel/pooling"], metrics["logmel/layer"]) == ("mean_std", "-")
    assert (metrics[f"{first}/pooling"], metrics[f"{first}/layer"]) == ("mean", "last")
    for row in rows:
        logmel = row["encoder"] == "logmel"
        expected = ("-", "mean_std") if logmel else ("last", "mean")
        assert (row["layer"], row["pooling"]) == expected
    line = next(line for line in text.splitlines() if line.startswith("logmel "))
    assert line.split()[1:4] == ["512", "-", "mean_std"]


def test_an_official_split_says_what_other_test_clips_would_change(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    for i, row in enumerate(rows):
        row["fold"] = ("train", "valid", "test")[int(row["fold"])]
        if i % 4 == 3:  # so that not all is right, whatever the probe
            row["label"] = "tone"
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows], HEADER)
    options = {"csv": tmp_path / "clips.csv", "encoders": "[logmel]", "repeats": 1}
    text = run(home, tmp_path / "run", **options)
    metrics = metrics_of(tmp_path / "run")
    accuracy = metrics["logmel/mlp/accuracy"]
    low, high = metrics["logmel/mlp/accuracy_low"], metrics["logmel/mlp/accuracy_high"]
    assert 0 < low < accuracy < high <= 1
    (row,) = read_rows(tmp_path / "run/probes.csv")
    assert (row["low"], row["high"]) == (f"{low:.4f}", f"{high:.4f}")
    for said in (text, metrics["interval_covers"], row["interval_covers"]):
        assert "95 %: other test clips; not other seeds" in said
    assert f"{low:.3f} to {high:.3f}" in text


def test_random_is_another_encoder_in_each_repeat(home, tmp_path, finished):
    output, text = finished
    # What was stored for one initialisation is not taken for another.
    options = {"encoders": f"[random, {home}/0/encoder]", "hidden_layers": "[0]"}
    run(home, tmp_path / "run", repeats=3, **options)
    assert len(list(tmp_path.glob("run/save/features/*.bin"))) == 3 + 1
    files = {path.read_bytes() for path in tmp_path.glob("run/save/features/*.bin")}
    assert len(files) == 3 + 1
    # Each is the one that its seed gives, chosen for with the first.
    own = [
        r for r in read_rows(tmp_path / "run/probes.csv") if r["encoder"] == "random"
    ]
    assert {row["repeat"] for row in own} == {"0", "1", "2"}
    for fold in ("0", "1", "2"):
        chosen = {r["choice"] for r in own if r["fold"] == fold}
        assert len(chosen) == 1
    assert "for random also other weights" in text
    covers = metrics_of(output)["interval_covers"]
    assert "each of the 3 folds and seeds of mlp (2 were tried; for random" in covers
    assert "not other training clips, pretrainings, folds" in covers


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    (mini, options, _) = sb.parse_arguments([str(ROOT / "hparams/probe_mini.yaml")])
    hparams = load_hyperpyyaml(Path(mini).read_text())
    clips = inspect_clips(find_clips("esc50", hparams["data_folder"])[:3], None)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    data = ClipData(clips, [], [], False, 0)
    comparison = Comparison(hparams, options, data)
    assert comparison.device == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": f"[{ROOT}]"}, "is not an exported folder"),
        ({"encoders": "[nowhere]"}, "no encoder in encoders=nowhere"),
        ({"encoders": "[logmel, random]"}, "architecture of the first encoder"),
        ({"encoders": "[logmel, logmel]"}, "each once"),
        ({"encoders": "[]"}, "give one or more"),
        ({"repeats": 0}, "repeats=0"),
        ({"hidden_layers": "[]"}, "hidden_layers="),
        ({"hidden_layers": "[-1]"}, "hidden_layers="),
        ({"lrs": "[0]"}, "lrs="),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"patience": 0}, "patience=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"layer": "weighted"}, "allowed are last, last_no_norm"),
        ({"layer": 7}, "layer=7"),
        ({"pooling": "attentive"}, "allowed are mean, mean_std"),
        ({"layer": "last_no_norm", "layers": True}, "give one of the two"),
        ({"layers": "yes please"}, "allowed are True, False"),
        ({"lrs": "[0.1, 10]"}, "up to 1"),
        ({"probes": "[linear, svm]"}, "probes=.*linear, mlp, knn"),
        ({"probes": "[knn, knn]"}, "each once"),
        ({"strengths": "[0]"}, "strengths=.*above 0"),
        ({"neighbours": "[1.5]"}, "neighbours=.*whole numbers"),
        ({"labels_per_class": "[1, some]"}, "labels_per_class=.*and all"),
        ({"normalise": "level"}, "normalise=level: allowed are True"),
        ({"resample": "speakers"}, "resample=speakers: allowed"),
        ({"resample": "groups"}, "no clip has a group"),
    ],
)
def test_bad_settings_end_with_a_message(home, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(home, tmp_path, **options)


def test_bad_labels_end_with_a_message(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    same = [(row["ID"], row["wav"], "tone", row["fold"]) for row in rows]
    write_rows(tmp_path / "same.csv", same, HEADER)
    with pytest.raises(SystemExit, match="have the label tone"):
        run(home, tmp_path, csv=tmp_path / "same.csv")
    none = [(row["ID"], row["wav"], row["fold"]) for row in rows]
    write_rows(tmp_path / "none.csv", none, header=("ID", "wav", "fold"))
    with pytest.raises(SystemExit, match="lacks the columns label"):
        run(home, tmp_path, csv=tmp_path / "none.csv")


def test_an_encoder_that_gives_nan_is_refused(home, tmp_path):
    torch.manual_seed(0)
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 2, 2, 64))
    encoder.projection.bias.data[0] = math.nan
    export_encoder(encoder.eval(), tmp_path / "bad")
    with pytest.raises(SystemExit, match="not finite"):
        run(home, tmp_path / "run", encoders=f"[{tmp_path}/bad]")
