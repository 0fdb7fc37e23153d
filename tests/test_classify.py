"""The classification recipe as a user runs it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from classification import (
    ROOT,
    command,
    keys_of,
    load,
    make_home,
    read_rows,
    results,
    run,
    run_here,
    write_rows,
)
from commands import environment
from killed import run_killed

from encodecmae_sb.data.clip_data import folder_of_data
from encodecmae_sb.pretrained.licence import ENCODEC, recorded_licence


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny encoder and three kinds of short sounds in 3 folds."""
    return make_home(tmp_path_factory.mktemp("classify"))


def assert_same(output, reference):
    (weights, *rest), (expected, *expected_rest) = results(output), results(reference)
    assert rest == expected_rest
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.fixture(scope="module")
def frozen(home):
    """A finished run with a frozen encoder."""
    output = home / "frozen"
    return output, run(home, output)


TUNED = {"freeze": False, "pooling": "attentive", "head": "mlp", "freeze_steps": 3}
TUNED |= {"number_of_epochs": 3, "hidden_size": 16, "layer": "last"}
TUNED |= {"class_weights": "balanced"}


@pytest.fixture(scope="module")
def tuned(home):
    """A finished run that fine-tunes."""
    output = home / "tuned"
    run(home, output, **TUNED)
    return output


def test_a_run_says_what_it_made(frozen):
    output, text = frozen
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9
    folds = [metrics[f"fold_{i}/accuracy"] for i in range(3)]
    assert metrics["accuracy"] == pytest.approx(np.mean(folds))
    assert metrics["accuracy_std"] == pytest.approx(np.std(folds, ddof=1))
    assert metrics["most_frequent_class"] == pytest.approx(1 / 3)
    assert (metrics["pretrained"], metrics["layer"]) == (True, "weighted")
    for name in ("classifier", "metrics.json", "per_class.csv", "confusion.png"):
        assert name in text
        assert (output / name).exists()
    assert "deviation" in text
    assert "--pretrained False" in text
    rows = read_rows(output / "per_class.csv")
    assert [row["label"] for row in rows] == ["high", "low", "noise"]
    assert all(row["clips"] == "12" for row in rows)
    readme = (output / "classifier/README.md").read_text()
    assert "mean of the folds" in readme
    assert ENCODEC.reason in readme  # of the encoder
    assert recorded_licence(output / "classifier") == ENCODEC


@pytest.mark.parametrize("kind", ["frozen", "tuned"])
def test_the_export_predicts_what_the_recipe_did(kind, request, tmp_path, monkeypatch):
    output = request.getfixturevalue(kind)
    output = output[0] if isinstance(output, tuple) else output
    # Elsewhere, and from another working directory.
    shutil.copytree(output / "classifier", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    classifier = load("moved")
    readme = Path("moved/README.md").read_text()
    fold = readme.split("fold ")[1].split(" was held out")[0]
    rows = [r for r in read_rows(output / "predictions.csv") if r["fold"] == fold]
    assert len(rows) == 12
    for row in rows:
        probabilities, score, index, label = classifier.classify_file(row["wav"])
        assert label == [row["predicted"]]
        assert score.item() == pytest.approx(float(row["score"]), abs=1e-6)
        assert probabilities.sum().item() == pytest.approx(1)
        assert classifier.labels[index.item()] == label[0]


def test_a_fine_tuned_encoder_has_changed_and_a_frozen_one_has_not(home, frozen, tuned):
    encoder = torch.load(home / "encoder/encoder.ckpt", weights_only=True)
    for output, same in ((frozen[0], True), (tuned, False)):
        weights, _, _ = results(output)
        name = "transformer.layers.0.attention.out.weight"
        name = name if name in encoder else next(n for n in encoder if "weight" in n)
        assert torch.equal(weights[f"lobe.encoder.{name}"], encoder[name]) == same


# Two batches an epoch and a checkpoint after each and at its end: 18 and 9 a fold.
@pytest.mark.parametrize(("kind", "saves"), [("frozen", 23), ("tuned", 13)])
def test_killed_and_started_again_it_ends_the_same(
    home, kind, saves, request, tmp_path
):
    reference = request.getfixturevalue(kind)
    reference = reference[0] if kind == "frozen" else reference
    options = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    options |= TUNED if kind == "tuned" else {}
    output = tmp_path / "run"
    run_killed(command(home, output, **options), saves, cwd=home, env=environment())
    assert list(output.glob("save/1-*/CKPT*"))  # within the second fold
    first = next(output.glob("save/0-*/results.npz")).stat().st_mtime_ns
    run(home, output, **options)
    assert next(output.glob("save/0-*/results.npz")).stat().st_mtime_ns == first
    assert_same(output, reference)


def test_other_settings_in_the_same_folder_start_anew(home, frozen, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(frozen[0], output)
    run_here(home, output, features="logmel", pooling="mean", number_of_epochs=2)
    metrics = json.loads((output / "metrics.json").read_text())
    # Named are the pooling that is used, and nothing that belongs to an encoder.
    assert (metrics["features"], metrics["pooling"]) == ("logmel", "mean_std")
    assert not {"pretrained", "freeze", "layer"} & set(metrics)
    load(output / "classifier").classify_file(home / "0.wav")
    # And the first command finds its own results again, without training.
    started = set(output.glob("save/*/CKPT*"))
    run_here(home, output)
    assert set(output.glob("save/*/CKPT*")) == started
    assert_same(output, frozen[0])


def test_testing_only_does_not_count_as_trained(home, frozen, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(frozen[0], output)
    # As if it had been stopped before the end.
    for path in output.glob("save/*/results.npz"):
        path.unlink()
    run_here(home, output, test_only="")
    assert not list(output.glob("save/*/results.npz"))
    assert_same(output, frozen[0])
    with pytest.raises(SystemExit, match="Run without --test_only first"):
        run_here(home, tmp_path / "new", test_only="")


def test_several_labels_a_clip(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    for row in rows:
        row["label"] += "" if row["label"] == "noise" else ";tone"
        row["fold"] = ("train", "valid", "test")[int(row["fold"])]
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows])
    output = tmp_path / "run"
    text = run_here(
        home,
        output,
        csv=tmp_path / "clips.csv",
        multi_label=True,
        class_weights="balanced",
    )
    assert "mAP" in text
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["mAP"] > 0.9
    assert "average_precision" in read_rows(output / "per_class.csv")[0]
    classifier = load(output / "classifier")
    for row in read_rows(output / "predictions.csv"):
        probabilities, score, index, label = classifier.classify_file(row["wav"])
        assert label == [row["predicted"].split(";") if row["predicted"] else []]
        assert (score[0] > 0.5).all()
        assert len(score[0]) == len(index[0]) == (probabilities > 0.5).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_folder": ROOT}, "is not an exported folder"),
        ({"pooling": "max"}, "allowed are mean, mean_std, attentive"),
        ({"head": "deep"}, "allowed are linear, mlp"),
        ({"class_weights": "yes"}, "allowed are null, balanced"),
        ({"layer": 7}, "layer=7"),
        ({"csv": "none.csv"}, "No such manifest"),
        ({"csv": "null", "corpus_rate": 44100}, "has 22050 Hz, but corpus_rate=44100"),
        ({"corpus_rate": 16000}, "has 8000 Hz, but corpus_rate=16000"),
        ({"csv": "null", "corpus": "fsdd"}, "holds no recordings"),
    ],
)
def test_bad_settings_end_with_a_message(home, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run_here(home, tmp_path / "run", **options)


def test_a_debug_run_goes_to_a_folder_of_its_own(home, tmp_path):
    run(home, tmp_path / "run", debug="")
    assert (tmp_path / "run/debug/classifier/hyperparams.yaml").exists()
    assert not (tmp_path / "run/metrics.json").exists()


def test_the_command_that_makes_the_encoder_is_named(home, tmp_path):
    text = run(home, tmp_path / "run", expect=1, encoder_folder="nowhere")
    assert "python recipes/pretrain.py hparams/mini.yaml" in text
    assert "Traceback" not in text


def test_unusable_audio_is_refused_or_left_out(home, tmp_path):
    rows = [row.values() for row in read_rows(home / "clips.csv")]
    rows.append(["x", str(tmp_path / "none.wav"), "1", "low", "0"])
    write_rows(tmp_path / "clips.csv", rows)
    options = {"csv": tmp_path / "clips.csv", "number_of_epochs": 1}
    with pytest.raises(SystemExit, match="max_unusable"):
        run_here(home, tmp_path / "run", **options)
    text = run_here(home, tmp_path / "run", max_unusable=0.1, **options)
    assert "36 clips" in text
    assert "1 files left out" in text


def test_both_yamls_have_the_same_keys_and_each_is_read():
    keys = keys_of(ROOT / "hparams/classify.yaml")
    assert keys == keys_of(ROOT / "hparams/classify_mini.yaml")
    source = "".join(
        (ROOT / "encodecmae_sb" / name).read_text()
        for name in (
            *("pipelines/folds.py", "data/clip_data.py"),
            *("brains/classify.py", "brains/finetune.py", "brains/watched.py"),
        )
    )
    source += (ROOT / "recipes/classify.py").read_text()
    for key in keys:
        assert f'"{key}"' in source or f"hparams.{key}" in source


def test_results_are_named_after_the_users_own_data():
    """Not after the corpus that the yaml happens to name."""
    hparams = {"corpus": "esc50", "seed": 7, "csv": None, "train_csv": None}
    assert folder_of_data(hparams, []) == {}
    for key, value in (
        ("csv", "my/birds.csv"),
        ("train_csv", "birds.csv"),
        ("corpus", "/my/birds.py"),
    ):
        own = {**hparams, key: value}
        assert folder_of_data(own, [key]) == {
            "output_folder": "results/classify_birds/7"
        }
        assert folder_of_data(own, [key, "output_folder"]) == {}
