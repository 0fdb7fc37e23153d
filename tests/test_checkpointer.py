"""Checkpoints exist whole or not at all, whatever happens while they are saved."""

import errno
import logging
import signal
import subprocess
import sys

import pytest
import torch

from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.identity import named

CHILD = """
import os, signal, sys
import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver
from speechbrain.utils.checkpoints import register_checkpoint_hooks
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer

@register_checkpoint_hooks
class Killer:
    deadly = False

    @mark_as_saver
    def save(self, path):
        with open(path, "wb") as file:
            file.write(b"half")
            file.flush()
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        pass

model, killer = torch.nn.Linear(2, 2), Killer()
torch.nn.init.constant_(model.weight, 1.0)
saver = AtomicCheckpointer(sys.argv[1], {"model": model, "killer": killer})
saver.save_checkpoint()
torch.nn.init.constant_(model.weight, 2.0)
killer.deadly = True
saver.save_checkpoint()
"""


@pytest.fixture
def model():
    return torch.nn.Linear(2, 2)


@pytest.fixture
def saver(tmp_path, model):
    return AtomicCheckpointer(tmp_path / "save", {"model": model})


def save(saver, model, value):
    torch.nn.init.constant_(model.weight, value)
    return saver.save_checkpoint(meta={"value": value})


def folders(saver):
    return {path.name for path in saver.checkpoints_dir.iterdir()}


def test_round_trip(saver, model):
    saved = save(saver, model, 1.0)
    assert saved.path.is_dir()
    assert all(path.exists() for path in saved.paramfiles.values())
    torch.nn.init.zeros_(model.weight)
    recovered = saver.recover_if_possible()
    assert recovered.path == saved.path
    assert recovered.meta["value"] == 1.0
    assert (model.weight == 1).all()


def test_nothing_to_recover(saver):
    assert saver.recover_if_possible() is None


def test_killed_while_saving(saver, model, caplog):
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(saver.checkpoints_dir)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(folders(saver)) == 2  # the good one and what was left
    with caplog.at_level(logging.WARNING):
        recovered = saver.recover_if_possible()
    assert (model.weight == 1).all()
    assert "killed" in caplog.text
    assert folders(saver) == {recovered.path.name}


def cut(checkpoint):
    file = checkpoint.paramfiles["model"]
    file.write_bytes(file.read_bytes()[:-1])


def drop_file(checkpoint):
    checkpoint.paramfiles["model"].unlink()


def drop_contents(checkpoint):
    (checkpoint.path / "contents.json").unlink()


def garble_contents(checkpoint):
    (checkpoint.path / "contents.json").write_bytes(b"\xff\xfe\x00")


def cut_meta(checkpoint):
    (checkpoint.path / "CKPT.yaml").write_text("")


@pytest.mark.parametrize(
    "damage", [cut, drop_file, drop_contents, garble_contents, cut_meta]
)
def test_damaged_checkpoint_is_passed_over(saver, model, caplog, damage):
    first, second = save(saver, model, 1.0), save(saver, model, 2.0)
    damage(second)
    with caplog.at_level(logging.WARNING):
        recovered = saver.recover_if_possible()
    assert recovered.path == first.path
    assert (model.weight == 1).all()
    assert str(second.path) in caplog.text
    assert "incomplete" in caplog.text


def test_checkpoint_of_another_size(saver, model, tmp_path):
    saved = save(saver, model, 1.0)
    larger = AtomicCheckpointer(tmp_path / "save", {"model": torch.nn.Linear(3, 2)})
    with pytest.raises(UserError, match="does not fit") as caught:
        larger.recover_if_possible()
    assert str(saved.path) in str(caught.value)


def disk_full(error):
    def write(obj, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_disk_full(saver, model, monkeypatch, error):
    saved = save(saver, model, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_full(error))
        with pytest.raises(UserError, match="could not be saved") as caught:
            save(saver, model, 2.0)
    assert str(saver.checkpoints_dir) in str(caught.value)
    assert folders(saver) == {saved.path.name}
    assert saver.recover_if_possible().path == saved.path
    assert (model.weight == 1).all()


def test_a_save_costs_the_same_however_many_came_before(saver, model, monkeypatch):
    criteria = []
    delete = AtomicCheckpointer.delete_checkpoints

    def counted(self, *args, importance_keys, **kwargs):
        criteria.append(len(importance_keys))
        return delete(self, *args, importance_keys=importance_keys, **kwargs)

    monkeypatch.setattr(AtomicCheckpointer, "delete_checkpoints", counted)
    for _ in range(4):
        saver.save_and_keep_only()
    assert criteria == [1, 1, 1, 1]


def test_checkpoints_of_another_training(saver, model, tmp_path):
    data = named("mine", "f00d")
    saver.identify({"lr": "1e-3", "data": data, "schedule": {"warmup": "0.1"}})
    save(saver, model, 1.0)

    def again(**identity):
        AtomicCheckpointer(saver.checkpoints_dir, {"model": model}).identify(identity)

    moved = named("/elsewhere/mine", "f00d")
    again(lr=0.001, data=moved, schedule={"warmup": 0.1}, newer=None)
    for changed, message in [
        ({"lr": 0.01}, "lr: 0.001 -> 0.01"),
        ({"data": named("mine", "beef")}, r"data: mine \(f00d\) -> mine \(beef\)"),
        ({"schedule": {"warmup": 0.2}}, "schedule: .*0.1.* -> .*0.2"),
        ({"newer": 5}, "newer: null -> 5"),
    ]:
        same = {"lr": 0.001, "data": data, "schedule": {"warmup": 0.1}}
        with pytest.raises(UserError, match=message) as caught:
            again(**{**same, **changed})
        assert str(caught.value).count("->") == 2  # one key, and the heading
        assert "--output_folder" in str(caught.value)
    (saver.checkpoints_dir / "identity.json").unlink()
    with pytest.raises(UserError, match="no readable identity.json"):
        again(lr=0.001)


def test_keeps_only_as_many_as_asked(saver, model):
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        saver.save_and_keep_only(meta={"value": value}, num_to_keep=2)
    kept = saver.list_checkpoints()
    assert sorted(checkpoint.meta["value"] for checkpoint in kept) == [2.0, 3.0]
    saver.recover_if_possible()
    assert (model.weight == 3).all()
