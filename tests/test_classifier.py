"""Classifiers: pooling, and the folder that is exported."""

from types import SimpleNamespace

import pytest
import soundfile
import torch
from classification import classifiers, load, tiny_encoder
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.commands.classify import describe
from encodecmae_sb.inference.classifier import decide, export_classifier
from encodecmae_sb.lobes import LogMel
from encodecmae_sb.nnet.pooling import POOLINGS, ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.errors import UserError


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("front_end", [{}, {"hop_length": 318, "centered": False}])
@pytest.mark.parametrize("layer", ["last", "all"])
def test_padding_changes_nothing(pooling, front_end, layer):
    classifier = classifiers(pooling, tiny_encoder(**front_end), layer)
    lengths = [110000, 96000, 40000, 96321]  # chunks of 96000
    wavs = torch.randn(4, 110000)
    lens = torch.tensor(lengths) / 110000
    with torch.no_grad():
        together = classifier(wavs, lens)
        for i, length in enumerate(lengths):
            alone = classifier(wavs[i : i + 1, :length])
            assert (together[i] - alone[0]).abs().max() < 1e-3
            counts = classifier.summarise(wavs[i : i + 1, :length])[1]
            frames = classifier.lobe(wavs[i : i + 1, :length])
            assert counts.item() == frames.shape[-2]


def test_log_mel_statistics():
    lobe = LogMelFrames()
    head = ClipHead(256, 2, pooling="mean_std")
    wav = torch.randn(1, 24000)
    summary, _ = ClipClassifier(lobe, head).summarise(wav)
    frames = LogMel()(wav)[0]
    expected = torch.cat([frames.mean(0), frames.std(0, correction=0)])
    # (Deviations of 0 are given as 1e-4.)
    assert torch.allclose(summary[0, 0], expected, atol=2e-4)


def test_two_models_side_by_side_from_elsewhere(tmp_path, monkeypatch):
    audio = tmp_path / "a.wav"
    noise = torch.rand(20000) - 0.5
    soundfile.write(audio, noise.numpy(), 16000, subtype="FLOAT")
    for name, pooling in (("one", "mean"), ("two", "attentive")):
        model = classifiers(pooling, tiny_encoder())
        labels = [f"{name}{i}" for i in range(4)] + ["yes"]
        export_classifier(model, labels, tmp_path / name)
    export_encoder(tiny_encoder(), tmp_path / "encoder")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    encoder = foreign_class(
        source=str(tmp_path / "encoder"),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    assert one.labels[0] == "one0"
    assert two.labels[0] == "two0"
    assert one.labels[4] == "yes"
    first, second = one.classify_file(audio)[0], two.classify_file(audio)[0]
    assert not torch.allclose(first, second)
    assert encoder.encode_file(audio).shape[1] == 32
    wavs = torch.zeros(2, 40000)
    wavs[0, :20000] = noise
    batch = two.classify_batch(wavs, torch.tensor([0.5, 1.0]), sample_rate=16000)
    assert (batch[0][0] - second[0]).abs().max() < 1e-3
    for bad in (torch.zeros(3), torch.full((1, 9000), torch.nan)):
        with pytest.raises(UserError):
            one.classify_batch(bad)
    with pytest.raises(FileNotFoundError):
        one.classify_file("none.wav")
    weights = tmp_path / "one/classifier.ckpt"
    weights.write_bytes((tmp_path / "two/classifier.ckpt").read_bytes())
    with pytest.raises(UserError, match="does not fit"):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    ("shares", "multi_label", "top", "line"),
    [
        ([0.2, 0.7, 0.1], False, 2, "x.wav\tb\tb 0.700\ta 0.200"),
        ([0.6, 0.7, 0.1], True, 0, "x.wav\tb; a\tb 0.700\ta 0.600\tc 0.100"),
        ([0.1, 0.2, 0.3], True, 1, "x.wav\t-\tc 0.300"),
    ],
)
def test_the_line_of_a_file(shares, multi_label, top, line):
    """What the command prints, with one label, several and none."""
    labels = ["a", "b", "c"]
    decided = decide(torch.tensor([shares]), labels, multi_label)
    stub = SimpleNamespace(labels=labels, classify_file=lambda path: decided)
    assert describe(stub, "x.wav", top) == line
