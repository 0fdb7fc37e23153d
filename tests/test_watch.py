"""What can be seen of a run while it runs."""

import math
import time

import classification
import pytest
import torch
from commands import ROOT, run_recipe
from speechbrain.utils.train_logger import TensorboardLogger
from test_brains import make_brain

from encodecmae_sb.brains import pretrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.utils import loggers
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    (corpus,) = prepare_corpora(speech_folder(), tmp_path_factory.mktemp("manifests"))
    return RandomCrops([corpus.train_csv], 0.5), FixedCrops([corpus.valid_csv], 2, 0.5)


@pytest.fixture(autouse=True)
def few_unigrams(monkeypatch):
    monkeypatch.setattr(pretrain, "_UNIGRAM_CROPS", 8)


def train(folder, crops, **options):
    """Trains and returns the loss of each step and the norm of its gradients."""
    torch.manual_seed(0)
    brain = make_brain(folder, precision="fp32", valid_interval=3, **options)
    losses, norms = [], []
    fit_batch, add_norm = brain.fit_batch, brain.steps.add_norm

    def logged(batches):
        losses.append(fit_batch(batches))
        return losses[-1]

    def add(norm):
        norms.append(norm)
        add_norm(norm)

    brain.fit_batch, brain.steps.add_norm = logged, add
    brain.fit_crops(*crops)
    return [float(x) for x in losses], [float(x) for x in norms]


def events(folder):
    """Steps and values by tag, of all event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.glob("events*")):
        reader = EventAccumulator(str(path))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found.setdefault(tag, []).extend(
                (event.step, event.value) for event in reader.Scalars(tag)
            )
    return found


def test_tensorboard_has_steps_and_goes_on_after_a_resume(crops, tmp_path):
    pytest.importorskip("tensorboard")
    options = {"log_to": "tensorboard", "log_interval": 1}
    losses, norms = train(tmp_path, crops, training_steps=3, **options)
    more = train(tmp_path, crops, training_steps=6, **options)
    losses, norms = losses + more[0], norms + more[1]
    found = events(tmp_path / "run/log/tensorboard")
    steps = list(range(1, 7))
    for tag, values in (("step_loss/train", losses), ("grad_norm/train", norms)):
        assert [step for step, _ in found[tag]] == steps
        assert [value for _, value in found[tag]] == pytest.approx(values)
    assert [step for step, _ in found["lr/train"]] == steps
    assert len({value for _, value in found["lr/train"]}) > 3  # it has a schedule
    assert all(value > 0 for _, value in found["audio_per_second/train"])
    assert {value for _, value in found["skipped/train"]} == {0.0}
    for tag in ("loss/train", "loss/valid", "masked_ce_1/valid"):
        assert [step for step, _ in found[tag]] == [3, 6], tag
    assert found["loss/train"][0][1] == pytest.approx(sum(losses[:3]) / 3)


def test_a_logger_of_the_yaml_counts_optimizer_steps(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorboardLogger(str(tmp_path))
    loggers.log_row(logger, {"step": 40, "epoch": 2, "train_loss": 3.0, "cer": 9.0})
    loggers.close_logger(logger)
    found = events(tmp_path)
    assert found == {
        "epoch": [(40, 2.0)],
        "loss/train": [(40, 3.0)],
        "cer/valid": [(40, 9.0)],
    }


def test_a_line_is_the_mean_of_its_steps(crops, tmp_path):
    losses, _ = train(tmp_path, crops, training_steps=6, log_to="file", log_interval=2)
    lines = (tmp_path / "run/log/log.txt").read_text().splitlines()
    starts = [line.split(" - ")[0] for line in lines]
    # After step 3 and step 6 there was a validation.
    assert starts == [f"step: {step}" for step in (2, 3, 4, 6, 6)]
    for line, at in ((0, 0), (2, 2), (3, 4)):
        mean = (losses[at] + losses[at + 1]) / 2
        assert f"train step_loss: {mean:.4f}," in lines[line]
    assert "train grad_norm: " in lines[0]
    assert "train lr: " in lines[0]


def test_watching_changes_nothing(crops, tmp_path):
    plain, _ = train(tmp_path / "plain", crops, training_steps=3)
    options = {"log_to": "file", "log_interval": 1}
    assert train(tmp_path / "watched", crops, training_steps=3, **options)[0] == plain


def test_steps_that_were_skipped(crops, tmp_path, monkeypatch):
    brain = make_brain(tmp_path, log_to="file", log_interval=4, training_steps=4)
    objectives = brain.compute_objectives

    def broken(outputs, batch, stage):
        loss = objectives(outputs, batch, stage)
        return loss * math.nan if brain.optimizer_step == 1 else loss

    monkeypatch.setattr(brain, "compute_objectives", broken)
    brain.fit_crops(*crops)
    line = (tmp_path / "run/log/log.txt").read_text().splitlines()[0]
    assert "train skipped: 2.5000e-01" in line
    assert "nan" not in line


def test_weights_and_biases_offline(crops, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    losses, _ = train(tmp_path, crops, training_steps=2, log_to="wandb", log_interval=1)
    identity = (tmp_path / "run/log/wandb_id.txt").read_text()
    (path,) = tmp_path.glob(f"run/log/wandb/offline-run-*/run-{identity}.wandb")
    deadline = time.monotonic() + 60
    # Another process writes the file, in its own time.
    while b"masked_ce_1" not in (content := path.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for name in (b"step_loss", b"grad_norm", b"audio_per_second", b"masked_ce_1"):
        assert name in content
    for loss in losses:
        assert str(loss)[:6].encode() in content


WANDB = """
train_logger: !new:speechbrain.utils.train_logger.WandBLogger
    initializer: !name:wandb.init
        mode: offline
        dir: !ref <output_folder>
"""


def test_folds_share_the_logger_of_the_yaml(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    home, yaml = classification.make_home(tmp_path), tmp_path / "logged.yaml"
    yaml.write_text((ROOT / "hparams/classify_mini.yaml").read_text() + WANDB)
    options = {"number_of_epochs": 2, "log_interval": 1000}
    words = classification.command(home, tmp_path / "run", **options)
    run_recipe("classify", yaml, *words[3:])
    assert wandb.run.step == 3 * 2  # a row for each epoch of each fold
    assert wandb.run.summary["train"]["epoch"] == 2
    wandb.finish()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--log_to", "wandb"], "WANDB_API_KEY"),
        (["--log_to", "tensorbord"], "allowed are file, tensorboard, wandb"),
        (["--log_to", "[file, csv]"], "allowed are file, tensorboard, wandb"),
    ],
)
def test_what_cannot_be_logged_is_said_first(options, says, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    import wandb

    wandb.teardown()  # it keeps settings of the test before
    output = tmp_path / "run"
    with pytest.raises(SystemExit, match=says):
        run_recipe(
            *("pretrain", "hparams/mini.yaml", "--output_folder", output, *options)
        )
    assert not output.exists()


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"encodecmae_sb\[tensorboard\]"):
        loggers.check_loggers("tensorboard")
    loggers.check_loggers("file")


@pytest.mark.parametrize("interval", [0, "often"])
def test_an_interval_that_is_none(tmp_path, interval):
    with pytest.raises(UserError, match="log_interval"):
        make_brain(tmp_path, log_interval=interval)
