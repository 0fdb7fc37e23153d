"""Likely changes, each as small as a contributor would make it.

A new target is in test_targets.py, a new front end in test_folder.py, a new corpus in
test_own_corpus.py.
"""

import json
import sys

import torch
from commands import ROOT, TINY, environment, execute, flags, results
from killed import run_killed

from encodecmae_sb.nnet.masking import GapMasker

AUGMENTATION = '''
import torch


class Noise:
    """Adds noise; which, follows from the seed of each item alone."""

    def __init__(self, level):
        self.level = level

    def __call__(self, wavs, lengths, seeds):
        noise = torch.zeros_like(wavs)
        for row, length, seed in zip(noise, lengths.tolist(), seeds.tolist()):
            generator = torch.Generator().manual_seed(seed)
            row[:length] = torch.randn(length, generator=generator)
        return wavs + self.level * noise
'''


def run(folder, yaml, **options):
    """Runs the recipe on a yaml of the user's own; returns its metrics."""
    import subprocess

    (folder / "mine.yaml").write_text(yaml)
    given = {**TINY, "training_steps": 6, "valid_interval": 3, **options}
    given["output_folder"] = folder / "run"
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/pretrain.py", folder / "mine.yaml", *flags],
        env=environment(PYTHONPATH=f"{folder}:{ROOT}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run/metrics.json").read_text())


def changed(key, value):
    """mini.yaml with another line for a key."""
    lines = (ROOT / "hparams/mini.yaml").read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith(f"{key}:")]
    lines[number] = f"{key}: {value}"
    return "\n".join(lines)


def test_an_input_augmentation(tmp_path):
    """One class and a yaml line."""
    figures = []
    for level in (0.0, 0.1):
        folder = tmp_path / str(level)
        folder.mkdir()
        (folder / "mine.py").write_text(AUGMENTATION)
        yaml = changed("input_augment", f"!new:mine.Noise\n    level: {level}")
        figures.append(run(folder, yaml))
    plain = tmp_path / "plain"
    plain.mkdir()
    figures.append(run(plain, changed("input_augment", "null")))
    silent, noisy, none = figures
    assert silent == none
    assert noisy["train_loss"] != none["train_loss"]
    # Targets were taken from the clean audio.
    assert noisy["unigram_ce_1"] == none["unigram_ce_1"]


def test_a_run_on_altered_input_goes_on_exactly(tmp_path):
    """Killed and started again, with the package's augmentation and at one level."""
    yaml = tmp_path / "mine.yaml"
    augment = "!new:encodecmae_sb.lobes.InputAugment\n    background_seconds: 3"
    yaml.write_text(changed("input_augment", augment))

    def arguments(name, **more):
        options = flags(tmp_path / name, training_steps=6, **more)
        recipe = [sys.executable, ROOT / "recipes/pretrain.py", yaml]
        return [*recipe, *options, "--normalise", "level"]

    execute(arguments("whole"), tmp_path)
    often = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    run_killed(arguments("killed", **often), 3, cwd=tmp_path, env=environment())
    yaml.write_text(yaml.read_text().replace("seconds: 3", "seconds: 2"))
    said = execute(arguments("killed", **often), tmp_path, expect=1)
    assert "input_augment_content" in said
    yaml.write_text(yaml.read_text().replace("seconds: 2", "seconds: 3"))
    execute(arguments("killed", **often), tmp_path)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    exported = (tmp_path / "whole/encoder/hyperparams.yaml").read_text()
    assert "normalise: level" in exported


def test_a_train_logger(tmp_path):
    """A yaml line, with a logger of SpeechBrain's."""
    logger = "!new:speechbrain.utils.train_logger.FileTrainLogger"
    file = tmp_path / "log.txt"
    metrics = run(tmp_path, changed("train_logger", f"{logger}\n    save_file: {file}"))
    first, last = file.read_text().splitlines()
    assert first.startswith("step: 3 - train loss:")
    assert last.startswith("step: 6 - train loss:")
    assert f"valid masked_ce_1: {metrics['masked_ce_1']:.2f}" in last


class EverySecond(GapMasker):
    """Hides every second frame."""

    def _draw(self, lengths, seeds, num_frames):
        hidden = torch.arange(num_frames, device=lengths.device) % 2 == 1
        return hidden & (torch.arange(num_frames, device=lengths.device) < lengths)


def test_another_mask():
    """Model, loss and metrics take what the masker says."""
    mask = EverySecond()(torch.tensor([6, 3]), torch.tensor([0, 0]), 6)
    assert mask.hidden.int().tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert mask.visible.int().tolist() == [[1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]]
