"""The classification recipe as a user runs it, and what it exports."""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import run_recipe
from killed import run_killed
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.data import clip_batches, corpora
from encodecmae_sb.data.corpora import corpus_names
from encodecmae_sb.evaluation.metrics import (
    accuracy_scores,
    average_precision,
    class_rows,
    multi_label_scores,
)
from encodecmae_sb.inference.classifier import export_classifier
from encodecmae_sb.lobes import AudioEncoder, EnCodecMAE, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.pooling import POOLINGS, ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pipelines import folds
from encodecmae_sb.pipelines.folds import loss_weights
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.errors import UserError

ROOT = Path(__file__).parent.parent
RATE = 8000


def tiny_encoder(**front_end):
    torch.manual_seed(0)
    return AudioEncoder(LogMel(**front_end), ResiDualTransformer(32, 2, 2, 64)).eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny encoder and three kinds of short sounds in 3 folds."""
    folder = tmp_path_factory.mktemp("classify")
    export_encoder(tiny_encoder(), folder / "encoder")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(36):
        label = ("low", "high", "noise")[i % 3]
        seconds = rng.uniform(0.15, 0.4)
        time_axis = np.arange(int(seconds * RATE)) / RATE
        if label == "noise":
            wav = 0.1 * rng.standard_normal(len(time_axis))
        else:
            hz = rng.uniform(200, 300) if label == "low" else rng.uniform(2000, 3000)
            wav = 0.3 * np.sin(2 * np.pi * hz * time_axis)
        soundfile.write(folder / f"{i}.wav", wav, RATE)
        rows.append((f"{i}", f"{folder}/{i}.wav", f"{seconds}", label, f"{i // 12}"))
    write_rows(folder / "clips.csv", rows)
    return folder


def write_rows(path, rows, header=("ID", "wav", "duration", "label", "fold")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def command(home, output, **options):
    given = {
        "encoder_folder": home / "encoder",
        "csv": home / "clips.csv",
        "number_of_epochs": 6,
        "batch_size": 6,
        "lr": 0.02,
        "num_workers": 0,
        "output_folder": output,
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    yaml = ROOT / "hparams/classify_mini.yaml"
    start = [sys.executable, str(ROOT / "recipes/classify.py"), str(yaml)]
    return [*start, "--device", "cpu", *flags]


def run(home, output, expect=0, **options):
    done = subprocess.run(
        command(home, output, **options),
        capture_output=True,
        text=True,
        cwd=home,
        timeout=120,
        env=environment(),
    )
    text = done.stdout + done.stderr
    assert done.returncode == expect, text[-3000:]
    return text


def run_here(home, output, **options):
    """The same in this process, which saves the time of starting another."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_recipe("classify", *command(home, output, **options)[2:])
    return said.getvalue()


def environment():
    # One thread, so that sums are taken in the same order on every machine.
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def load(folder):
    return foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEClassifier",
    )


def results(output):
    """What two runs must agree on, bit for bit."""
    weights = torch.load(output / "classifier/classifier.ckpt", weights_only=True)
    metrics = json.loads((output / "metrics.json").read_text())
    return weights, metrics, (output / "predictions.csv").read_text()


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


def test_random_weights_and_an_encoder_for_each_fold(home, tmp_path):
    for fold in range(3):
        shutil.copytree(home / "encoder", tmp_path / f"without_{fold}")
    each = tmp_path / "without_{fold}"
    run_here(home, tmp_path / "run", encoder_folder=each, number_of_epochs=1)
    options = {"pretrained": False, "number_of_epochs": 1}
    text = run_here(home, tmp_path / "random", **options)
    assert "RANDOM" in text
    first, _, _ = results(tmp_path / "run")
    second, _, _ = results(tmp_path / "random")
    name = "lobe.encoder.projection.weight"
    assert not torch.equal(first[name], second[name])
    shutil.rmtree(tmp_path / "without_1")
    with pytest.raises(SystemExit, match="without_1"):
        run_here(home, tmp_path / "other", encoder_folder=each)


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


def classifiers(pooling, encoder, layer="last"):
    lobe = EnCodecMAE(
        encoder, input_sample_rate=24000, output_all_hiddens=layer == "all"
    )
    head = ClipHead(lobe.dim, 5, 2 if layer == "all" else 1, pooling, 8)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return ClipClassifier(lobe, head).eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("front_end", [{}, {"hop_length": 318, "centered": False}])
@pytest.mark.parametrize("layer", ["last", "all"])
def test_padding_changes_nothing(pooling, front_end, layer):
    classifier = classifiers(pooling, tiny_encoder(**front_end), layer)
    lengths = [110000, 96000, 40000, 96321]  # chunks of 96000
    wavs = torch.randn(4, 110000)
    lens = torch.tensor(lengths) / 110000
    with torch.no_grad():
        together = classifier(wavs, lens)
        for i, length in enumerate(lengths):
            alone = classifier(wavs[i : i + 1, :length])
            assert (together[i] - alone[0]).abs().max() < 1e-3
            counts = classifier.summarise(wavs[i : i + 1, :length])[1]
            frames = classifier.lobe(wavs[i : i + 1, :length])
            assert counts.item() == frames.shape[-2]


def test_log_mel_statistics():
    lobe = LogMelFrames()
    head = ClipHead(256, 2, pooling="mean_std")
    wav = torch.randn(1, 24000)
    summary, _ = ClipClassifier(lobe, head).summarise(wav)
    frames = LogMel()(wav)[0]
    expected = torch.cat([frames.mean(0), frames.std(0, correction=0)])
    # (Deviations of 0 are given as 1e-4.)
    assert torch.allclose(summary[0, 0], expected, atol=2e-4)


def test_two_models_side_by_side_from_elsewhere(tmp_path, monkeypatch):
    audio = tmp_path / "a.wav"
    noise = torch.rand(20000) - 0.5
    soundfile.write(audio, noise.numpy(), 16000, subtype="FLOAT")
    for name, pooling in (("one", "mean"), ("two", "attentive")):
        model = classifiers(pooling, tiny_encoder())
        labels = [f"{name}{i}" for i in range(4)] + ["yes"]
        export_classifier(model, labels, tmp_path / name)
    export_encoder(tiny_encoder(), tmp_path / "encoder")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    encoder = foreign_class(
        source=str(tmp_path / "encoder"),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    assert one.labels[0] == "one0"
    assert two.labels[0] == "two0"
    assert one.labels[4] == "yes"
    first, second = one.classify_file(audio)[0], two.classify_file(audio)[0]
    assert not torch.allclose(first, second)
    assert encoder.encode_file(audio).shape[1] == 32
    wavs = torch.zeros(2, 40000)
    wavs[0, :20000] = noise
    batch = two.classify_batch(wavs, torch.tensor([0.5, 1.0]), sample_rate=16000)
    assert (batch[0][0] - second[0]).abs().max() < 1e-3
    for bad in (torch.zeros(3), torch.full((1, 9000), torch.nan)):
        with pytest.raises(UserError):
            one.classify_batch(bad)
    with pytest.raises(FileNotFoundError):
        one.classify_file("none.wav")
    weights = tmp_path / "one/classifier.ckpt"
    weights.write_bytes((tmp_path / "two/classifier.ckpt").read_bytes())
    with pytest.raises(UserError, match="does not fit"):
        load(tmp_path / "one")


def test_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    wanted = torch.tensor([1, 0, 1, 0])
    assert average_precision(scores, wanted) == pytest.approx((1 + 2 / 3) / 2)
    # The same score for all: no order helps.
    assert average_precision(torch.zeros(4), wanted) == pytest.approx(0.5)
    assert average_precision(-scores, wanted) == pytest.approx((1 / 2 + 2 / 4) / 2)
    # A probe whose training diverged is no better than that.
    nothing = torch.full((4,), torch.nan)
    assert average_precision(nothing, wanted) == pytest.approx(0.5)


def test_figures_of_classes():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    rows = class_rows(probabilities, torch.tensor([0, 1, 1]), ["a", "b"])
    assert rows[0] | {"precision": 0.5, "recall": 1.0} == rows[0]
    assert rows[1] | {"precision": 1.0, "recall": 0.5} == rows[1]
    assert rows[1]["f1"] == pytest.approx(2 / 3)
    # A class that does not occur does not count.
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    scores = multi_label_scores(probabilities, targets)
    assert scores == {"mAP": 1.0, "micro_f1": pytest.approx(2 * 2 / (3 + 2))}


def test_weights_make_up_for_rare_classes():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(loss_weights(targets, 2), torch.tensor([1 / 3, 3.0]))


def old_average_precision(scores, wanted):
    """The sum of steps by hand; clips of the same score count together."""
    order = scores.argsort(descending=True, stable=True)
    scores, wanted = scores[order], wanted[order].double()
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[:-1] != scores[1:]
    taken, found = torch.arange(1, len(scores) + 1)[last], wanted.cumsum(0)[last]
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return ((found / taken) * gained).sum().item() / found[-1].item()


def old_row(given, wanted):
    """Clips, precision, recall and F1 of a class by hand."""
    right = (given & wanted).sum().item()
    given, clips = given.sum().item(), wanted.sum().item()
    precision = right / given if given else 0.0
    recall = right / clips if clips else 0.0
    return [clips, precision, recall, 2 * right / (given + clips) if right else 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_gives_the_values_by_hand(seed):
    generator = torch.Generator().manual_seed(seed)
    # In steps, so that many scores are equal. Class 3 never occurs, class 4 is never
    # predicted.
    scores = torch.rand(60, 6, generator=generator).mul(8).round() / 8
    scores[:, 4] = 0
    several = (torch.rand(60, 6, generator=generator) < 0.3).float()
    several[:, 3] = 0
    one = torch.tensor([0, 1, 2, 4, 5])[torch.randint(5, (60,), generator=generator)]

    rows = class_rows(scores, several, list("abcdef"))
    precisions = []
    for i, row in enumerate(rows):
        expected = old_row(scores[:, i] > 0.5, several[:, i] > 0.5)
        assert list(row.values())[1:-1] == expected
        if i != 3:
            precisions.append(old_average_precision(scores[:, i], several[:, i]))
            assert row["average_precision"] == pytest.approx(precisions[-1], rel=1e-12)
    metrics = multi_label_scores(scores, several)
    assert metrics["mAP"] == pytest.approx(np.mean(precisions), rel=1e-12)
    given, wanted = scores > 0.5, several > 0.5
    assert metrics["micro_f1"] == old_row(given, wanted)[-1]

    rows = class_rows(scores, one, list("abcdef"))
    expected = [old_row(scores.argmax(1) == i, one == i) for i in range(6)]
    assert [list(row.values())[1:] for row in rows] == expected
    expected = [row for row in expected if row[0]]
    metrics = accuracy_scores(scores, one)
    assert metrics["accuracy"] == (scores.argmax(1) == one).double().mean().item()
    assert metrics["balanced_accuracy"] == sum(row[2] for row in expected) / 5
    assert metrics["macro_f1"] == sum(row[3] for row in expected) / 5


def test_nothing_is_computed_twice(home, tmp_path, monkeypatch):
    """Each clip is read once, and the encoder that all folds share hashed once."""
    counts = {"read_audio": 0, "weights_key": 0, "build_classifier": 0}

    def counted(module, name):
        function = getattr(module, name)

        def call(*args):
            counts[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, call)

    counted(clip_batches, "read_audio")
    counted(folds, "weights_key")
    counted(folds, "build_classifier")
    run_here(home, tmp_path / "run", number_of_epochs=1)
    assert counts == {"read_audio": 36, "weights_key": 1, "build_classifier": 3}


CORPUS = '''
"""Beeps: two pitches, in three folds."""

from encodecmae_sb.data.clips import Clip

RATE = 8000
LAYOUT = "  FOLD/low_0.wav"


def find_clips(folder):
    clips = []
    for path in sorted(folder.glob("*/*_*.wav")):
        fold, labels = path.parent.name, (path.stem.split("_")[0],)
        clips.append(Clip(f"{fold}/{path.stem}", str(path), labels, fold))
    return clips
'''


@pytest.mark.parametrize("by_name", [True, False])
def test_a_corpus_is_one_file(by_name, tmp_path, monkeypatch):
    """A contributor's whole diff: one module, in the folder of corpora or elsewhere."""
    text = CORPUS
    if not by_name:
        text = text.replace('"_")[0],)', '"_")[0], "beep")') + "MULTI_LABEL = True\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/beeps.py").write_text(text)
    for fold in range(3):
        for i, hz in enumerate((300, 310, 2000, 2100)):
            path = tmp_path / f"data/{fold}/{'low' if hz < 1000 else 'high'}_{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wav = 0.3 * np.sin(2 * np.pi * hz * np.arange(RATE // 4) / RATE)
            soundfile.write(path, wav, RATE)
    corpus = tmp_path / "modules/beeps.py"
    if by_name:
        corpus = "beeps"
        places = [*corpora.__path__, str(tmp_path / "modules")]
        monkeypatch.setattr(corpora, "__path__", places)
    given = {"corpus": corpus, "data_folder": tmp_path / "data", "features": "logmel"}
    given |= {"output_folder": tmp_path / "run", "number_of_epochs": 2}
    given |= {"num_workers": 0}
    flags = [part for key, value in given.items() for part in (f"--{key}", value)]
    yaml = ROOT / "hparams/classify.yaml"
    run_recipe("classify", yaml, "--device", "cpu", *flags)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["folds"], metrics["clips"]) == (3, 12)
    assert ("accuracy" if by_name else "mAP") in metrics
    labels = load(tmp_path / "run/classifier").labels
    assert labels == (["high", "low"] if by_name else ["beep", "high", "low"])
    # Its rate is checked.
    soundfile.write(path, wav, 16000)
    with pytest.raises(SystemExit, match="has 16000 Hz, but corpus_rate=8000"):
        run_recipe("classify", yaml, *flags)


def test_an_unknown_corpus_names_the_known_ones(tmp_path):
    yaml = ROOT / "hparams/classify.yaml"
    given = ["--corpus", "esc51", "--output_folder", tmp_path]
    with pytest.raises(SystemExit, match="corpus=esc51: there are crema_d, esc50, "):
        run_recipe("classify", yaml, *given)


def keys_of(path):
    lines = path.read_text().splitlines()
    return [line.split(":")[0] for line in lines if line[:1].isalpha()]


def test_both_yamls_have_the_same_keys_and_each_is_read():
    keys = keys_of(ROOT / "hparams/classify.yaml")
    assert keys == keys_of(ROOT / "hparams/classify_mini.yaml")
    source = "".join(
        (ROOT / "encodecmae_sb" / name).read_text()
        for name in (
            *("pipelines/folds.py", "data/clip_data.py"),
            *("brains/classify.py", "brains/finetune.py"),
        )
    )
    source += (ROOT / "recipes/classify.py").read_text()
    for key in keys:
        assert f'"{key}"' in source or f"hparams.{key}" in source


def test_the_yaml_says_what_each_corpus_needs():
    """The options in its header are keys, and no corpus is left out."""
    path = ROOT / "hparams/classify.yaml"
    header = path.read_text().split("\nseed:")[0].replace("\\\n#", "")
    table = re.findall(r"(?m)^#   (\w+) *((?: +--.*)?)$", header)
    assert sorted([name for name, _ in table] + ["esc50"]) == corpus_names()
    keys = keys_of(path)
    for _, options in table:
        words = shlex.split(options)
        assert all(word in keys for word in (word[2:] for word in words[::2]))
