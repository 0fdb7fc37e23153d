"""The folds of a classification: weights, encoders, and what they share."""

import shutil

import pytest
import torch
from classification import make_home, results, run_here

from encodecmae_sb.data import clip_batches
from encodecmae_sb.pipelines import folds
from encodecmae_sb.pipelines.folds import loss_weights


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny encoder and three kinds of short sounds in 3 folds."""
    return make_home(tmp_path_factory.mktemp("classify"))


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


def test_weights_make_up_for_rare_classes():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(loss_weights(targets, 2), torch.tensor([1 / 3, 3.0]))


def test_nothing_is_computed_twice(home, tmp_path, monkeypatch):
    """Each clip is read once, and the encoder that all folds share hashed once."""
    counts = {"read_audio": 0, "module_key": 0, "build_classifier": 0}

    def counted(module, name):
        function = getattr(module, name)

        def call(*args):
            counts[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, call)

    counted(clip_batches, "read_audio")
    counted(folds, "module_key")
    counted(folds, "build_classifier")
    run_here(home, tmp_path / "run", number_of_epochs=1)
    assert counts == {"read_audio": 36, "module_key": 1, "build_classifier": 3}
