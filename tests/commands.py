"""Command lines of the recipes, and what runs them in this process or in another."""

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

from preloaded import run_preloaded

ROOT = Path(__file__).resolve().parents[1]

# mini.yaml, made smaller still.
TINY = {
    "dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "batch_size": 4,
    "crop_seconds": 0.5,
    "valid_items": 4,
    "training_steps": 12,
    "valid_interval": 4,
    "num_workers": 0,
    "altered_copies": 0,
    "store_targets": False,  # for the whole demonstration it would take seconds
}


def run_recipe(name, *arguments):
    """Runs `python recipes/NAME.py ARGUMENT ...` in this process.

    That saves the seconds of its imports. A recipe that ends with a message raises
    SystemExit with that message.
    """
    script = str(ROOT / f"recipes/{name}.py")
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]):
        runpy.run_path(script, run_name="__main__")


def flags(output, **options):
    """Options of a tiny training run, as words of a command line; not those of None."""
    given = {**TINY, **options, "device": "cpu", "output_folder": output}
    pairs = ((f"--{key}", value) for key, value in given.items() if value is not None)
    return [str(part) for pair in pairs for part in pair]


def command(output, yaml="mini", launcher=(sys.executable,), **options):
    """The command line of a tiny pretraining, as a list."""
    recipe = [str(ROOT / "recipes/pretrain.py"), str(ROOT / f"hparams/{yaml}.yaml")]
    return [*launcher, *recipe, *flags(output, **options)]


def run(output, yaml="mini", expect=0, cwd=None, **options):
    """Pretrains to the end and returns what it printed."""
    return execute(command(output, yaml, **options), cwd or output.parent, expect)


def execute(arguments, cwd, expect=0, **more):
    """Runs a command line and returns what it printed, errors last."""
    python, script, *rest = map(str, arguments)
    if python == sys.executable and Path(script).parent == ROOT / "recipes":
        code, text = run_preloaded(script, rest, cwd, environment(**more), timeout=120)
    else:
        done = subprocess.run(
            [python, script, *rest],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=120,
            env=environment(**more),
        )
        code, text = done.returncode, done.stdout + done.stderr
    assert code == expect, text[-3000:]
    return text


def environment(**more):
    # One thread, so that sums are taken in the same order on every machine.
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def results(output):
    """What two runs must agree on, bit for bit."""
    weights = hashlib.sha256((output / "encoder/encoder.ckpt").read_bytes())
    return weights.hexdigest(), json.loads((output / "metrics.json").read_text())


def import_command(*arguments, expect=0, **more):
    """Runs import_published.py and returns what it printed, errors last."""
    recipe = [sys.executable, ROOT / "recipes/import_published.py"]
    return execute([*recipe, *arguments], ROOT, expect, **more)
