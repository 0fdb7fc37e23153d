"""Pretrainings are compared: the same time for each, linear probes, one table."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT, run_recipe
from recordings import RATE, noise, write

from encodecmae_sb.evaluation.simple_probes import linear_probe
from encodecmae_sb.pipelines import compare_pretraining
from encodecmae_sb.pipelines.compare_pretraining import PretrainingComparison
from encodecmae_sb.utils.errors import UserError

SMALL = (
    "--dim 16 --ffn_dim 32 --num_layers 1 --num_heads 2 --codec bundled --batch_size 2 "
    "--crop_seconds 0.5 --valid_items 4 --training_steps 2 --num_workers 0"
)
YAML = ROOT / "hparams/mini.yaml"
VARIANTS = [
    {"as it is": f"{YAML} {SMALL}"},
    {"gaps": f"{YAML} {SMALL} --mask_gap 5"},
]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Trains in this process, on two files; gives the commands."""
    for number in range(2):
        write(tmp_path / f"audio/{number}.wav", noise(1, RATE, seed=number))
    commands = []

    class Ended:
        returncode = 0

    def run(command, **_):
        assert command[:2] == [sys.executable, str(ROOT / "recipes/pretrain.py")]
        commands.append(command)
        run_recipe("pretrain", *command[2:], "--data_folder", tmp_path / "audio")
        return Ended

    monkeypatch.setattr(compare_pretraining.subprocess, "run", run)
    return commands


def compare(output, **options):
    """Runs the recipe; gives its results."""
    options = {
        "variants": json.dumps(VARIANTS),
        "seeds": "[1, 2]",
        "minutes": "null",
        "strengths": "[0.001, 0.1]",
        **options,
    }
    hparams = ROOT / "hparams/compare_pretraining.yaml"
    given = {"num_workers": 0, **options, "output_folder": output}
    words = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    run_recipe("compare_pretraining", hparams, *words)
    return json.loads((output / "results.json").read_text())


def settings(folder, *variants):
    """Of a comparison that is not run."""
    return {
        **{"output_folder": folder, "save_folder": folder / "save"},
        **{"variants": list(variants), "seeds": [1], "tasks": [{"a": {}}]},
        **{"minutes": 2, "trial_steps": 10},
    }


@pytest.fixture
def tasks(tmp_path):
    """Loud and soft noise in three folds, as a task that log-mel frames solve."""
    lines = ["ID,wav,label,fold"]
    for fold in "abc":
        for number in range(4):
            name = f"{fold}{number}"
            loud = number % 2
            samples = (0.01, 1.0)[loud] * noise(0.3, RATE, seed=ord(fold) + number)
            write(tmp_path / f"{name}.wav", samples)
            lines.append(f"{name},{name}.wav,{loud},{fold}")
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    return f"[noise: {{csv: {tmp_path}/clips.csv}}]"


def test_two_variants(tmp_path, trained, tasks):
    output = tmp_path / "out"
    first = compare(output, tasks=tasks, seeds="[1]", variants=json.dumps(VARIANTS[:1]))
    assert list(first["noise"]) == ["logmel", "random", "as it is"]
    found = compare(output, tasks=tasks, seeds="[1, 2]")["noise"]
    assert list(found) == ["logmel", "random", "as it is", "gaps"]
    seeds = [command[command.index("--seed") + 1] for command in trained]
    assert seeds == ["1", "1", "1", "2", "2"]
    assert ["--mask_gap" in c for c in trained] == [False, False, True, False, True]
    for name, row in found.items():
        assert np.shape(row["accuracy"]) == (3, 1 if name == "logmel" else 2)
        assert row["low"] <= row["mean"] <= row["high"], name
        assert row["clips_heard"] == 0
    assert found["logmel"]["mean"] == 1
    # The encoder of the first comparison is still the one that is judged.
    for row, before in zip(
        found["as it is"]["accuracy"],
        first["noise"]["as it is"]["accuracy"],
        strict=True,
    ):
        assert row[:1] == before
    table = (output / "table.md").read_text()
    assert f"| gaps | {found['gaps']['mean']:.3f} |" in table
    assert (output / "noise.png").is_file()
    other = [{"gaps": f"{YAML} {SMALL} --mask_gap 6"}]
    with pytest.raises(SystemExit, match="Give the variant another name"):
        compare(output, tasks=tasks, variants=json.dumps(other))


def test_clips_that_were_heard_in_pretraining(tmp_path):
    """Their number stands beside what they were judged by."""
    files = [write(tmp_path / f"{i}.wav", noise(0.1, RATE)) for i in range(3)]
    save = tmp_path / "runs/a/1/save"
    save.mkdir(parents=True)
    lines = [f"{i},{path}" for i, path in enumerate(files[:2])]
    (save / "audio_train.csv").write_text("\n".join(["ID,wav", *lines]) + "\n")
    comparison = PretrainingComparison(settings(tmp_path, {"a": str(YAML)}), {}, None)
    clips = [SimpleNamespace(wav=str(path)) for path in files]
    comparison.data["task"] = SimpleNamespace(clips=clips)
    assert comparison.heard("task", "a") == 2


def test_steps_that_fit_into_the_time(tmp_path, monkeypatch):
    """A trial of 10 steps takes 11 s, one of 40 steps 26 s: half a second a step."""
    times = iter([100.0, 111.0, 200.0, 226.0])
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(compare_pretraining, "time", clock)
    hparams = settings(tmp_path, *VARIANTS)
    comparison = PretrainingComparison(hparams, {}, None)
    asked = []
    monkeypatch.setattr(
        comparison,
        "_pretrain",
        lambda name, folder, options: asked.append(options["training_steps"]),
    )
    assert comparison.steps_of("gaps") == 240
    assert asked == [10, 40]
    hparams["minutes"] = 1  # a step is timed once
    assert comparison.steps_of("gaps") == 120
    assert asked == [10, 40]
    times = iter([100.0, 111.0, 200.0, 210.0])
    with pytest.raises(UserError, match="Give more --trial_steps"):
        comparison.steps_of("as it is")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": "[a: nothing.yaml]"}, "a begins with no yaml file: nothing.yaml"),
        ({"variants": "[random: hparams/mini.yaml]"}, "random is taken"),
        ({"variants": f"[a: {YAML} --seed 3]"}, "a has --seed"),
        ({"variants": "hparams/mini.yaml"}, "variants=hparams/mini.yaml: give a list"),
        ({"seeds": "3"}, "seeds=3: give a list"),
        ({"minutes": "0"}, "minutes=0"),
        ({"tasks": "[sounds: {folder: here}]"}, "sounds has folder; known are"),
    ],
)
def test_what_cannot_be_compared(tmp_path, trained, options, message):
    with pytest.raises(SystemExit, match=message):
        compare(tmp_path, **options)
    assert not trained


def test_the_strength_is_chosen_on_training_clips():
    """Only the small difference of two channels tells the classes apart."""
    rng = np.random.default_rng(0)
    targets = np.arange(400) % 2
    common = rng.normal(size=400)
    vectors = np.stack([common, common + 0.05 * targets], 1)
    vectors += 0.005 * rng.normal(size=(400, 2))
    groups = np.array(list("abcd")).repeat(100)
    strong = linear_probe(vectors, targets, groups, "a", (1e-4,))
    assert strong["accuracy"] < 0.8
    row = linear_probe(vectors, targets, groups, "a", (1e-4, 100.0))
    assert row["choice"] == 100.0
    assert row["accuracy"] > 0.95
    # The test clips have no part in the choice.
    flipped = np.where(groups == "a", 1 - targets, targets)
    other = linear_probe(vectors, flipped, groups, "a", (1e-4, 100.0))
    assert other["choice"] == 100.0
    assert other["accuracy"] == pytest.approx(1 - row["accuracy"])
