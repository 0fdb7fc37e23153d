"""A scheduler wants the machine back: save, end with a code for it, and go on later."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from classification import make_home
from classification import run_here as classify_here
from commands import ROOT, command, environment, execute, results, run_recipe
from recognition import export_tiny, link_speaker, write_manifest
from test_asr import command as asr_command
from test_brains import make_brain
from test_classify import assert_same
from test_scale import torchrun

from encodecmae_sb.brains import pretrain
from encodecmae_sb.brains.base import StepBrain
from encodecmae_sb.brains.finetune import FineTuneBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.speech import librispeech_set
from encodecmae_sb.utils import checkpointer
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import quit_on_user_errors
from encodecmae_sb.utils.preemption import (
    EXIT_CODE,
    Preempted,
    SignalWatch,
    note_end,
    note_end_in,
)

STEPS = 6


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    (corpus,) = prepare_corpora(speech_folder(), tmp_path_factory.mktemp("manifests"))
    return RandomCrops([corpus.train_csv], 0.5), FixedCrops([corpus.valid_csv], 2, 0.5)


def train(folder, crops):
    torch.manual_seed(0)
    options = {"training_steps": STEPS, "valid_interval": 4, "precision": "fp32"}
    brain = make_brain(folder, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "_UNIGRAM_CROPS", 8)
        brain.fit_crops(*crops)
    return brain.modules.model.state_dict(), brain.history.rows


@pytest.fixture(scope="module")
def whole(crops, tmp_path_factory):
    """Weights and measurements of a run that was left alone."""
    return train(tmp_path_factory.mktemp("whole"), crops)


def assert_equal(ours, theirs):
    assert ours[1] == theirs[1]
    for name, tensor in theirs[0].items():
        assert torch.equal(ours[0][name], tensor), name


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("save/*CKPT*"))


@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGUSR1, 0), (signal.SIGTERM, 4), (signal.SIGUSR1, STEPS - 1)],
)
def test_stopped_at_any_step_it_ends_the_same(whole, crops, tmp_path, number, at):
    """In the first step, in the first after a validation, and in the last."""
    fit_batch = StepBrain.fit_batch

    def signalled(brain, batches):
        if brain.optimizer_step == at:
            signal.raise_signal(number)
        return fit_batch(brain, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepBrain, "fit_batch", signalled)
        with pytest.raises(Preempted, match=str(EXIT_CODE)) as stop:
            train(tmp_path, crops)
    assert stop.value.code == EXIT_CODE
    name = signal.Signals(number).name
    assert f"{name} after optimizer step {at + 1};" in stop.value.message
    assert signal.getsignal(number) is signal.SIG_DFL  # as it was before
    assert_equal(train(tmp_path, crops), whole)


def test_a_signal_in_the_last_validation(whole, crops, tmp_path):
    evaluate = StepBrain.evaluate_batch

    def signalled(brain, *args, **kwargs):
        if brain.optimizer_step == STEPS:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(brain, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepBrain, "evaluate_batch", signalled)
        with pytest.raises(Preempted):
            train(tmp_path, crops)
    assert_equal(train(tmp_path, crops), whole)


def test_signals_in_the_middle_of_saving(whole, crops, tmp_path):
    """One stops the run, and saving it is not disturbed by three more."""
    write = checkpointer._write_contents

    def disturbed(folder):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        write(folder)
        signal.raise_signal(signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "_write_contents", disturbed)
        with pytest.raises(Preempted):
            train(tmp_path, crops)
    names = checkpoints(tmp_path / "run")
    assert names
    assert not any("unfinished" in name for name in names)
    assert_equal(train(tmp_path, crops), whole)


CORPUS = """
import os, signal, sys

RATE = 8000


def find_clips(folder):
    sys.stdout.write("looking")
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)  # as a pool ends its processes
    os.wait()
    assert not (folder / "ended").exists()
    os.kill(os.getpid(), signal.{name})
    print("unreachable")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_outside_the_training(tmp_path, name):
    """Here in a corpus of one's own, while it finds its clips."""
    corpus = tmp_path / "corpus.py"
    corpus.write_text(CORPUS.format(name=name))
    (tmp_path / "ended").write_text("failed\n")  # by a run before
    arguments = ["--corpus", corpus, "--data_folder", tmp_path]
    arguments += ["--output_folder", tmp_path, "--encoder_folder", tmp_path]
    recipe = [sys.executable, ROOT / "recipes/classify.py"]
    yaml = ROOT / "hparams/classify_mini.yaml"
    text = execute([*recipe, yaml, *arguments], tmp_path, EXIT_CODE)
    assert "looking" in text  # though it was not flushed
    assert text.count(f"Stopped by {name}.") == 1
    assert "unreachable" not in text
    assert (tmp_path / "ended").read_text() == "preempted\n"


@pytest.mark.parametrize("error", [None, UserError("a"), RuntimeError("b")])
def test_an_error_is_not_taken_for_a_signal(tmp_path, error):
    """torchrun sends SIGTERM to the others when one of its processes fails."""
    with contextlib.suppress(SystemExit, RuntimeError), quit_on_user_errors():
        note_end_in(tmp_path)
        if error is not None:
            raise error
    note_end("preempted")
    word = "failed" if error else "preempted"
    assert (tmp_path / "ended").read_text() == f"{word}\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_another_thread_leaves_signals_alone():
    import threading

    found = []

    def look():
        with SignalWatch():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_the_whole_process_group_gets_it(tmp_path):
    """As a scheduler sends it: to the workers of the loader, too; twice.

    `--ckpt_interval_steps` takes the place of the yaml's minutes.
    """
    options = {"num_workers": 2, "ckpt_interval_steps": 1}
    arguments = command(tmp_path / "run", **options)
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, start_new_session=True, env=environment()
        )
        try:
            while not (tmp_path / "run/save").is_dir() or not checkpoints(
                tmp_path / "run"
            ):
                assert process.poll() is None
                time.sleep(0.02)
            for number in (signal.SIGUSR1, signal.SIGTERM):
                os.killpg(process.pid, number)
            code = process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        log.seek(0)
        text = log.read()
    assert code == EXIT_CODE, text
    assert "after optimizer step" in text
    assert "The same command goes on from there." in text
    assert "Traceback" not in text
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as that process had
    run_recipe("pretrain", *arguments[2:])
    run_recipe("pretrain", *command(tmp_path / "whole")[2:])
    torch.set_num_threads(threads)
    assert results(tmp_path / "run") == results(tmp_path / "whole")


ONE_OF_TWO = """
import os, runpy, signal, sys
from encodecmae_sb.brains.base import StepBrain

before = StepBrain.fit_batch
def signalled(brain, batches):
    if brain.optimizer_step == 2 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGUSR1)
    return before(brain, batches)
StepBrain.fit_batch = signalled
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_processes_stop_after_the_same_step(tmp_path):
    """Though only one of them got the signal."""
    script = tmp_path / "signalled.py"
    script.write_text(ONE_OF_TWO)
    options = {"launcher": (*torchrun(2), str(script)), "batch_size": 2}
    arguments = command(tmp_path / "run", **options, distributed_backend="gloo")
    text = execute(arguments, tmp_path, expect=1)  # torchrun's own code
    assert "Stopped by SIGUSR1 after optimizer step 3;" in text
    assert "Stopped by another process after optimizer step 3;" in text
    assert f"exitcode  : {EXIT_CODE} " in text
    assert (tmp_path / "run/ended").read_text() == "preempted\n"
    assert len(checkpoints(tmp_path / "run")) == 1


def signalled_at(step, number=signal.SIGTERM):
    """A patch: `FineTuneBrain` gets a signal in an optimizer step."""
    patch, end = pytest.MonkeyPatch(), FineTuneBrain.on_fit_batch_end

    def signalled(brain, batch, outputs, loss, should_step):
        if brain.optimizer_step == step:
            signal.raise_signal(number)
        end(brain, batch, outputs, loss, should_step)

    patch.setattr(FineTuneBrain, "on_fit_batch_end", signalled)
    return patch


def test_classification(tmp_path):
    home = make_home(tmp_path)
    options = {"freeze": False, "lr_encoder": 0.001, "freeze_steps": 2}
    options |= {"number_of_epochs": 2, "log_to": "file", "log_interval": 1}
    classify_here(home, tmp_path / "whole", **options)
    patch = signalled_at(3)
    with pytest.raises(SystemExit) as stop:
        classify_here(home, tmp_path / "run", **options)
    patch.undo()
    assert stop.value.code == EXIT_CODE
    classify_here(home, tmp_path / "run", **options)
    assert_same(tmp_path / "run", tmp_path / "whole")
    lines = (tmp_path / "run/log/0/log.txt").read_text().splitlines()
    steps = [line.split(" - ")[0] for line in lines if "step_loss" in line]
    assert steps == [f"step: {step}" for step in range(1, len(steps) + 1)]
    assert len(steps) > 3
    for name in ("grad_norm", "lr", "lr_encoder", "audio_per_second", "skipped"):
        assert f"train {name}: " in lines[0]


def test_recognition(tmp_path):
    encoder = export_tiny(tmp_path / "encoder")
    (tmp_path / "corpus").mkdir()
    corpus = link_speaker(tmp_path / "corpus")
    rows = librispeech_set(corpus, ["small"], tmp_path).rows[:8]
    rows = [{key: row[key] for key in ("ID", "duration", "wav", "wrd")} for row in rows]
    few = write_manifest(tmp_path / "few.csv", rows)
    options = {f"{part}_csv": few for part in ("train", "valid", "test")}
    options |= {"log_to": "file", "log_interval": 1, "number_of_epochs": 1}
    options |= {"grad_accumulation_factor": 2}

    def here(name):
        words = asr_command(tmp_path / name, encoder, corpus, **options)
        run_recipe("asr_ctc", *words[2:])
        return [
            (tmp_path / name / file).read_bytes()
            for file in ("metrics.json", "asr/lobe.ckpt", "asr/head.ckpt")
        ]

    whole = here("whole")
    patch = signalled_at(1)
    with pytest.raises(SystemExit) as stop:
        here("run")
    patch.undo()
    assert stop.value.code == EXIT_CODE
    assert here("run") == whole
    lines = (tmp_path / "run/log/log.txt").read_text().splitlines()
    for name in ("step_loss", "grad_norm", "lr", "audio_per_second"):
        assert f"train {name}: " in lines[0]
