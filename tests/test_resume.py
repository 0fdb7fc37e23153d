"""What a run that is stopped and started again guarantees.

docs/resume.md lists each guarantee with its test; test_docs.py checks the list.
"""

import collections
import contextlib
import json
import random
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import soundfile
import torch
from commands import command, execute
from stored_codes import Killed
from test_brains import make_brain
from test_scale import torchrun

from encodecmae_sb.brains import pretrain
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.utils.progress import open_bar

CROPS = 8  # per optimizer step


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """A corpus whose files are mostly shorter than a crop, of all lengths."""
    folder = tmp_path_factory.mktemp("resume") / "noises"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        noise = 0.1 * rng.standard_normal(int(rng.integers(800, 14000)))
        soundfile.write(folder / f"{i}.wav", noise, 24000)
    return folder


@pytest.fixture(scope="module")
def crops(noises, tmp_path_factory):
    (corpus,) = prepare_corpora(noises, tmp_path_factory.mktemp("manifests"))
    return RandomCrops([corpus.train_csv], 0.5), FixedCrops([corpus.valid_csv], 2, 0.5)


@dataclass
class Log:
    """The crops and the loss of each step, as they were trained on."""

    seeds: dict = field(default_factory=dict)
    losses: dict = field(default_factory=dict)


def train(folder, crops, log, kill_at=None, **options):
    """Trains in `folder` until it is finished or killed, and keeps a log."""
    torch.manual_seed(0)  # of the model's first weights
    options = {"codebooks_per_step": 2, "ckpt_interval_minutes": 0, **options}
    brain = make_brain(folder, precision="fp32", **options)
    brain.ckpt_interval_steps = 1
    fit_batch = brain.fit_batch

    def logged(batches):
        step = brain.optimizer_step
        if step == kill_at:
            raise Killed
        loss = fit_batch(batches)
        assert step not in log.seeds, "a step was done twice"
        log.seeds[step] = [seed for b in batches for seed in b.seeds.tolist()]
        log.losses[step] = float(loss)
        return loss

    brain.fit_batch = logged
    brain.fit_crops(*crops)
    return brain


def test_other_shares_of_a_step_draw_the_same_crops(crops, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_UNIGRAM_CROPS", 8)
    steps = 16
    expected = Log()
    whole = {"batch_size": CROPS, "training_steps": steps, "valid_interval": 6}
    brain = train(tmp_path / "whole", crops, expected, **whole)
    end = torch.cat([p.detach().flatten() for p in brain.modules.model.parameters()])
    log, rng = Log(), random.Random(0)
    batch_sizes, intervals = [1, 8, 4, 2], [1, 100, 5, 7]
    kills = sorted(rng.sample(range(1, steps), 3))
    for kill_at, batch_size, interval in zip(
        [*kills, None], batch_sizes, intervals, strict=True
    ):
        shares = {
            "batch_size": batch_size,
            "grad_accumulation_factor": CROPS // batch_size,
            "training_steps": steps,
            "valid_interval": interval,
        }
        with contextlib.nullcontext() if kill_at is None else pytest.raises(Killed):
            brain = train(tmp_path / "shared", crops, log, kill_at, **shares)
    assert brain.optimizer_step == steps
    assert brain.codebook_sampler.count == 2  # drawn in each step
    assert log.seeds == expected.seeds
    for step, loss in log.losses.items():
        assert loss == pytest.approx(expected.losses[step], rel=1e-5)
    assert brain.history.rows[-1]["step"] == steps
    assert all(row["train_loss"] > 0 for row in brain.history.rows)
    ours = [p.detach().flatten() for p in brain.modules.model.parameters()]
    assert (torch.cat(ours) - end).norm() < 1e-3 * end.norm()


def test_a_finished_run_can_be_made_longer(crops, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_UNIGRAM_CROPS", 8)
    options = {"batch_size": CROPS, "valid_interval": 4}
    log = Log()
    train(tmp_path, crops, log, training_steps=6, **options)
    again = train(tmp_path, crops, log, training_steps=6, **options)
    assert [row["step"] for row in again.history.rows] == [4, 6]
    longer = train(tmp_path, crops, log, training_steps=9, **options)
    assert [row["step"] for row in longer.history.rows] == [4, 6, 8, 9]
    assert sorted(log.seeds) == list(range(9))


SEEDS = """
import os, runpy, sys
from encodecmae_sb.brains.pretrain import PretrainBrain

start = PretrainBrain.on_fit_batch_start

def logged(self, batches, should_step):
    name = f"{self.hparams.output_folder}.{os.environ.get('RANK', 0)}.log"
    with open(name, "a") as file:
        seeds = [seed for batch in batches for seed in batch.seeds.tolist()]
        print(self.optimizer_step, *seeds, file=file)
    start(self, batches, should_step)

PretrainBrain.on_fit_batch_start = logged
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def losses(output):
    """The training loss of each step of a run that validated after each."""
    newest = max(output.glob("save/CKPT*"), key=lambda path: path.stat().st_mtime_ns)
    rows = json.loads((newest / "history.ckpt").read_text())
    return [row["train_loss"] for row in rows]


def test_one_process_two_and_one_again(noises, tmp_path):
    script = tmp_path / "seeds.py"
    script.write_text(SEEDS)
    options = {
        "data_folder": noises,
        "codec": "bundled",
        "precision": "fp32",
        "valid_items": 1,
        "valid_interval": 1,
        "lr": 0.003,
        "crops_per_step": 4,
        "codebooks_per_step": 2,
        "store_targets": "auto",
        "altered_copies": 1,
    }

    def train(name, steps, batch_size, launcher=(sys.executable,)):
        more = {"training_steps": steps, "batch_size": batch_size}
        # base.yaml: its learning rate does not depend on where the run is to end.
        arguments = command(
            tmp_path / name, "base", (*launcher, str(script)), **options, **more
        )
        execute([*arguments, "--distributed_backend", "gloo"], tmp_path)

    def drawn(name):
        seeds = collections.defaultdict(list)
        for path in tmp_path.glob(f"{name}.*.log"):
            for line in path.read_text().splitlines():
                step, *more = map(int, line.split())
                seeds[step] += more
        return {step: sorted(seeds[step]) for step in sorted(seeds)}

    def copies(name):
        paths = sorted(tmp_path.glob(f"{name}/save/altered/*/1/*.flac"))
        return [(path.name, path.read_bytes()) for path in paths]

    train("whole", 12, batch_size=4)
    train("two", 1, batch_size=1, launcher=torchrun(2))
    assert copies("two") == copies("whole") != []
    train("shared", 3, batch_size=2)
    train("shared", 8, batch_size=1, launcher=torchrun(2))
    train("shared", 12, batch_size=1)
    assert list(drawn("whole")) == list(range(12))
    assert drawn("shared") == drawn("whole")
    assert copies("shared") == copies("whole")
    ours, theirs = losses(tmp_path / "shared"), losses(tmp_path / "whole")
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert theirs[-1] < theirs[0] - 0.02  # not the same for want of learning


@pytest.mark.parametrize("n_codebooks", [8, 1], ids=["pretraining", "self-training"])
def test_a_step_has_one_gradient_however_it_is_shared(tmp_path, n_codebooks):
    generator = torch.Generator().manual_seed(0)
    items = []
    for i in range(32):
        frames = int(torch.randint(1, 40, (), generator=generator))
        codes = torch.randint(1024, (frames, n_codebooks), generator=generator)
        wav = torch.rand(320 * frames, generator=generator) - 0.5
        item = {"wav": wav, "seed": i, "corpus": 0, "unusable": [], "targets": codes}
        items.append(item)

    def gradient(batch_size):
        torch.manual_seed(0)
        brain = make_brain(
            tmp_path / str(batch_size), precision="fp32", n_codebooks=n_codebooks
        )
        brain.init_optimizers()
        brain.on_stage_start(pretrain.Stage.TRAIN)
        brain.optimizers_step = lambda: None
        collate = CropCollator()
        starts = range(0, len(items), batch_size)
        loss = brain.fit_batch([collate(items[i : i + batch_size]) for i in starts])
        grads = [p.grad.flatten() for p in brain.modules.model.parameters()]
        return float(loss), torch.cat(grads)

    loss, whole = gradient(32)
    for batch_size in (8, 4):
        other, shared = gradient(batch_size)
        assert other == pytest.approx(loss, rel=1e-5)
        assert (shared - whole).norm() < 1e-5 * whole.norm()


def test_fewer_steps_than_were_made(crops, tmp_path):
    """The command of a shorter training, given after a longer one, trains nothing."""
    few = {"batch_size": CROPS, "valid_interval": 2}
    longer = train(tmp_path, crops, Log(), training_steps=4, **few)
    log = Log()
    brain = train(tmp_path, crops, log, training_steps=2, **few)
    assert not log.seeds
    assert brain.optimizer_step == longer.optimizer_step == 4
    with open_bar(2, initial=4) as bar:  # its bar is full
        assert bar.total == 4
