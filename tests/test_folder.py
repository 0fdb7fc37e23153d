"""Exported folders: what is described, what is loaded again, and never half of it."""

import os
import sys
from pathlib import Path

import pytest
import torch
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb import lobes
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.inference import recogniser
from encodecmae_sb.inference.classifier import export_classifier
from encodecmae_sb.inference.recogniser import export_recogniser
from encodecmae_sb.lobes import AudioEncoder, CTCHead, EnCodecMAE, LogMel
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.describe import build_like, describe
from encodecmae_sb.pretrained.folder import (
    check_folder,
    export_encoder,
    load_encoder_folder,
)
from encodecmae_sb.utils import files
from encodecmae_sb.utils.errors import UserError

# A front end of a user's own, as a user would write it. Nothing else is needed.
OWN = '''
"""Loudness in a few windows."""

import torch


class Loudness(torch.nn.Module):
    needs_equal_lengths = False

    def __init__(self, dim, sample_rate=24000, hop_length=320, floors=(1e-3, 0.1)):
        super().__init__()
        self.dim = dim
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.floors = floors

    def num_frames(self, num_samples):
        return -(-num_samples // self.hop_length)

    def forward(self, wavs):
        wavs = torch.nn.functional.pad(wavs, (0, -wavs.shape[1] % self.hop_length))
        power = wavs.unflatten(1, (-1, self.hop_length)).square().mean(-1)
        values = [(power + floor).log() for floor in self.floors]
        return torch.stack(values * (self.dim // len(values)), -1)
'''


def small_encoder(front_end):
    """With a transformer whose layers have feed-forwards of their own."""
    transformer = lobes.ResiDualTransformer(16, 2, 2, 24, head_dim=5, shared_ffn=False)
    return AudioEncoder(front_end, transformer).eval()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user's own front end."""
    (tmp_path / "own_front_end.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_front_end")
    sys.modules.pop("own_front_end", None)


@torch.no_grad()
def comes_back(encoder, folder):
    """Exports an encoder, loads it in every way, and compares what it gives."""
    export_encoder(encoder, folder)
    wavs = 0.3 * torch.randn(2, 9000)
    want = encoder(wavs).last
    loaded = load_encoder_folder(folder)
    assert torch.equal(loaded(wavs).last, want)
    assert describe(loaded) == describe(encoder)
    assert torch.equal(EnCodecMAE(folder, input_sample_rate=24000)(wavs), want)
    interface = foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts={"device": "cpu"},
    )
    assert torch.equal(interface.encode_batch(wavs)[0], want)
    fresh = EnCodecMAE(folder, input_sample_rate=24000, pretrained=False)
    assert describe(fresh.encoder) == describe(encoder)
    assert not torch.equal(fresh(wavs), want)


def test_other_mel_settings(tmp_path):
    settings = {"n_mels": 40, "win_length": 600, "mean": -5.5, "std": 1e-05 + 4}
    front_end = LogMel(**settings)
    comes_back(small_encoder(front_end), tmp_path / "encoder")
    loaded = load_encoder_folder(tmp_path / "encoder").front_end
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_a_front_end_of_ones_own(own, tmp_path):
    comes_back(small_encoder(own.Loudness(4, floors=(1e-5, 0.5))), tmp_path / "encoder")
    text = (tmp_path / "encoder/hyperparams.yaml").read_text()
    assert "front_end: !new:own_front_end.Loudness" in text


def test_a_class_that_is_gone(own, tmp_path):
    export_encoder(small_encoder(own.Loudness(4)), tmp_path / "encoder")
    sys.modules.pop("own_front_end")
    (tmp_path / "own_front_end.py").unlink()
    with pytest.raises(UserError, match="own_front_end.*Python's path"):
        load_encoder_folder(tmp_path / "encoder")


class Forgetful(LogMel):
    """Does not store its argument."""

    def __init__(self, top_db=80.0):
        super().__init__()


class Hiding(LogMel):
    """Does not name its arguments."""

    def __init__(self, **settings):
        super().__init__(**settings)


class Odd(LogMel):
    """Its argument is no plain value."""

    def __init__(self, window=None):
        super().__init__()


def test_a_new_argument_is_not_lost(tmp_path):
    for kind, message in (
        (Forgetful, "Forgetful.*'top_db'.*self.top_db = top_db"),
        (Hiding, r"Hiding.*\*\*settings.*Name each"),
        (Odd, "Odd.*'window' is a Tensor"),
    ):
        with pytest.raises(UserError, match=message):
            export_encoder(small_encoder(kind()), tmp_path / "encoder")
    # A class that nothing could import.
    with pytest.raises(UserError, match="cannot be exported: nothing could import"):
        describe(type("Local", (LogMel,), {"__init__": lambda self: None})())
    assert not (tmp_path / "encoder").exists()


def test_all_that_is_exported_can_be_described(encoder_folder):
    encoder = load_encoder_folder(encoder_folder)
    lobe = EnCodecMAE(encoder, layer=1, chunk_seconds=None, whole_codec_frames=True)
    head = ClipHead(32, 5, pooling="attentive", hidden_size=8, dropout=0.1)
    for module in (
        encoder,
        lobe,
        CTCHead(32, 9, 7, 1, False, 2, 0.3),
        lobes.LayerSum(3),
        ClipClassifier(lobe, head),
        ClipClassifier(LogMelFrames(LogMel(n_mels=20)), ClipHead(20, 5)),
    ):
        text = describe(module)
        copy = build_like(module)
        assert describe(copy) == text
        assert {n: x.shape for n, x in copy.state_dict().items()} == {
            n: x.shape for n, x in module.state_dict().items()
        }
    # How a module is trained is no part of what it is.
    transformer = {"dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 8}
    one = lobes.ResiDualTransformer(**transformer)
    other = lobes.ResiDualTransformer(**transformer, activation_checkpointing=True)
    assert describe(one) == describe(other)


def test_labels_stay_what_they_are(tmp_path):
    labels = [
        "yes",
        "No",
        "7",
        "1e3",
        "1e-05",
        "null",
        "~",
        "é 🎵",
        'a: "b"',
        "<x>",
        " ",
    ]
    labels += ["!ref <x>", "x\ny", "0x1F", "1_000", "12:30", "- a", "#"]
    model = ClipClassifier(LogMelFrames(), ClipHead(256, len(labels)))
    export_classifier(model, labels, tmp_path)
    loaded = foreign_class(
        source=str(tmp_path),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEClassifier",
    )
    assert loaded.labels == labels


def test_a_language_model_goes_with_the_recogniser(tmp_path, monkeypatch):
    (tmp_path / "words.arpa").write_text("stands for a KenLM model")
    tokens = Tokens.of_characters(["AB"])
    lobe = EnCodecMAE(small_encoder(LogMel()), input_sample_rate=24000)
    parts = lobe, CTCHead(16, len(tokens), 4), tokens, {"beam_size": 4}
    folder = tmp_path / "asr"
    export_recogniser(*parts, folder, "", {}, str(tmp_path / "words.arpa"))
    (tmp_path / "words.arpa").unlink()
    asked = []
    monkeypatch.setattr(recogniser, "build_searcher", lambda *args: asked.append(args))
    monkeypatch.setattr(recogniser, "search", lambda *args: [""])
    foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    ).transcribe_batch(torch.zeros(1, 9000))
    ((loaded, settings, path),) = asked
    assert loaded.labels == tokens.labels
    assert settings == {"beam_size": 4}
    assert Path(path).read_text() == "stands for a KenLM model"


class Full(OSError):
    """Stands for a disk that is full, or the end of the process."""


def fail(*args, **kwargs):
    raise Full


def test_an_old_folder_stays_until_a_new_one_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "encoder"
    old = small_encoder(LogMel())
    export_encoder(old, folder)
    (folder / "codec.safetensors").write_text("of an import")
    names = set(os.listdir(folder))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        with pytest.raises(Full):
            export_encoder(small_encoder(LogMel(n_mels=40)), folder)
    assert set(os.listdir(folder)) == names
    assert describe(load_encoder_folder(folder)) == describe(old)
    export_encoder(small_encoder(LogMel(n_mels=40)), folder)
    assert set(os.listdir(folder)) == names
    assert load_encoder_folder(folder).front_end.n_mels == 40


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_half_a_folder_is_none(tmp_path, monkeypatch, done):
    folder = tmp_path / "encoder"
    export_encoder(small_encoder(LogMel()), folder)
    replace, renamed = os.replace, []

    def fail_later(source, target):
        if len(renamed) == done:
            raise Full
        renamed.append(target.name)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_later)
    with pytest.raises(Full):
        export_encoder(small_encoder(LogMel(n_mels=40)), folder)
    assert "hyperparams.yaml" not in renamed
    with pytest.raises(UserError, match="is not an exported folder"):
        check_folder(folder)
    monkeypatch.setattr(files.os, "replace", replace)
    export_encoder(small_encoder(LogMel(n_mels=40)), folder)
    assert load_encoder_folder(folder).front_end.n_mels == 40


def test_folders_of_another_kind(tmp_path):
    export_encoder(small_encoder(LogMel()), tmp_path / "encoder")
    model = ClipClassifier(LogMelFrames(), ClipHead(256, 2))
    export_classifier(model, ["a", "b"], tmp_path / "classifier")
    check_folder(tmp_path / "encoder")
    check_folder(tmp_path / "classifier", "classifier")
    with pytest.raises(UserError, match="another kind of model: classifier.*pretrain"):
        check_folder(tmp_path / "classifier")
    with pytest.raises(UserError, match="another kind of model: encoder.*asr_ctc"):
        check_folder(tmp_path / "encoder", "recogniser")
    with pytest.raises(FileNotFoundError, match="No such recogniser folder"):
        check_folder(tmp_path / "none", "recogniser")
