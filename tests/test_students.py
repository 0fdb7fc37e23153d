"""Teachers, and how a student starts."""

import shutil

import numpy as np
import pytest
import torch
from teachers import PUBLISHED, make_encoder

from encodecmae_sb.data.crops import CropCollator
from encodecmae_sb.lobes import LogMel
from encodecmae_sb.nnet.targets import on_frames_of
from encodecmae_sb.pipelines.students import load_teacher, start_student
from encodecmae_sb.utils.errors import UserError


@pytest.mark.parametrize("seconds", [0.5, 4.0, 9.0])
def test_frames_of_a_student_as_published_get_the_nearest_target(seconds):
    """There are as many frames as targets, and each has the target of its window."""
    frames = int(75 * seconds)
    batch = CropCollator()(
        [
            {
                "wav": torch.rand(320 * frames),
                "targets": torch.arange(frames),
                "seed": 0,
                "corpus": 0,
                "unusable": [],
            }
        ]
    )
    front_end = LogMel(**PUBLISHED)
    wavs, targets = on_frames_of(front_end, batch.wavs, batch.targets)
    assert front_end(wavs).shape[1] == targets.shape[1] == frames
    middles = 318 * np.arange(frames) + 318
    wanted = np.abs(middles[:, None] - (320 * np.arange(frames) + 159.5)).argmin(1)
    assert targets[0, :, 0].tolist() == wanted.tolist()
    whole = 318 * (frames - 1) + 637
    assert torch.equal(wavs[:, : 320 * frames], batch.wavs[:, :whole])
    same = on_frames_of(LogMel(), batch.wavs, batch.targets)
    assert same[0] is batch.wavs
    assert same[1] is batch.targets


def test_a_student_goes_on_from_a_teacher_of_its_kind():
    teacher, student = make_encoder(seed=1), make_encoder(seed=2)
    before = student.projection.weight.clone()
    assert not start_student(student, teacher, "fresh")
    assert torch.equal(student.projection.weight, before)
    assert start_student(student, teacher, "auto")
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name])
    larger = make_encoder(dim=32)
    assert not start_student(larger, teacher, "auto")
    with pytest.raises(UserError, match="--student fresh"):
        start_student(larger, teacher, "teacher")
    with pytest.raises(UserError, match="auto, teacher, fresh"):
        start_student(student, teacher, "large")
    published = make_encoder(**PUBLISHED)
    assert not start_student(student, published, "auto")
    assert student.front_end.hop_length == 320
    assert start_student(student, published, "teacher")
    assert (student.front_end.hop_length, student.front_end.centered) == (318, False)
    assert start_student(make_encoder(**PUBLISHED), published, "auto")
    with pytest.raises(UserError, match="every 240 samples"):
        start_student(make_encoder(hop_length=240), teacher, "fresh")


def test_teachers_that_are_none(teacher_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such encoder folder"):
        load_teacher(tmp_path / "none", "last_no_norm")
    with pytest.raises(UserError, match="not an exported folder"):
        load_teacher(tmp_path, "last_no_norm")
    for layer, message in [
        ("last_norm", "last_no_norm"),
        ("all", "one layer"),
        (2, "0"),
    ]:
        with pytest.raises(UserError, match=message):
            load_teacher(teacher_folder, layer)
    folder = tmp_path / "encoder"
    shutil.copytree(teacher_folder, folder)
    yaml = folder / "hyperparams.yaml"
    good = yaml.read_text()
    yaml.write_text(good.replace("        ffn_dim: 32\n", ""))
    with pytest.raises(UserError, match="cannot be built"):
        load_teacher(folder, "last_no_norm")
    yaml.write_text("format: 2\nencoder: !new:torch.nn.Linear [2, 2]\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "encoder.ckpt")
    with pytest.raises(UserError, match="holds a Linear"):
        load_teacher(folder, "last_no_norm")
