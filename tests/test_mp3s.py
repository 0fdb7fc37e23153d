"""The lobe in MP3S, SpeechBrain's benchmark, whose code is not part of this package.

    MP3S_FOLDER=/path/to/benchmarks/benchmarks/MP3S pytest tests/test_mp3s.py

Each task runs as its own script with its own yaml, in which only the block that
docs/mp3s.md shows is replaced.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchaudio
from commands import ROOT, environment
from recognition import export_tiny
from recordings import noise, write
from test_docs import fenced

from encodecmae_sb.data.manifest import prepare_split
from encodecmae_sb.lobes import EnCodecMAE

FOLDER = os.environ.get("MP3S_FOLDER")
RATE = 16000
# All 28 characters of LibriSpeech: the yaml declares their number.
TEXT = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG'S BACK"
PAGE = ROOT / "docs/mp3s.md"

needs_mp3s = pytest.mark.skipif(not FOLDER, reason="MP3S_FOLDER is not set")


def block():
    """The lines of the page that replace those of the benchmark."""
    text = PAGE.read_text(encoding="utf-8")
    (found,) = [
        code
        for language, code in fenced(text)
        if language == "yaml" and code.startswith("weighted_ssl_model:")
    ]
    return found


def adapted(task, folder, more=""):
    """The yaml of a task with our block; returns its path."""
    text = Path(FOLDER, task, "hparams/ssl.yaml").read_text()
    text, count = re.subn(
        r"weighted_ssl_model: .*\n(?: +.*\n)+", block(), text, count=1
    )
    assert count == 1
    path = folder / "ssl.yaml"
    path.write_text(more + text)
    return path


def run(task, yaml, output, **options):
    """Runs the script of a task to its end; returns its log."""
    script = Path(FOLDER, task, "train.py").resolve()
    flags = [str(x) for key, value in options.items() for x in (f"--{key}", value)]
    flags += ["--output_folder", str(output), "--device", "cpu", "--noprogressbar"]
    done = subprocess.run(
        [sys.executable, str(script), str(yaml), *flags],
        capture_output=True,
        text=True,
        cwd=yaml.parent,
        timeout=300,
        env=environment(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return (output / "train_log.txt").read_text()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("mp3s") / "encoder")


def test_the_lobe_is_what_mp3s_calls(encoder):
    """Called without lengths, and with the weights under the name MP3S looks for."""
    lobe = EnCodecMAE(encoder, layer="weighted", output_norm=True)
    wavs = torch.rand(2, RATE)
    frames = lobe(wavs)
    assert frames.shape == (2, 75, lobe.dim)  # wav2vec 2.0 has 50 frames a second
    assert lobe.weights is lobe.layer_weights
    layers = EnCodecMAE(encoder, output_all_hiddens=True, output_norm=True)(wavs)
    assert layers.shape == (len(lobe.weights), 2, 75, lobe.dim)
    torch.testing.assert_close(frames, layers.mean(0))  # at first all weigh the same
    with torch.no_grad():
        lobe.weights[0] = 100
    torch.testing.assert_close(lobe(wavs), layers[0])
    with pytest.raises(AttributeError, match="weights"):
        _ = EnCodecMAE(encoder).weights


def trained_weights(output):
    """The weights of the layers in the last checkpoint."""
    (saved,) = output.glob("save/CKPT*/ssl_model.ckpt")
    return torch.load(saved)["layer_weights"]


@needs_mp3s
def test_librispeech(encoder, tmp_path):
    """Four parts of two utterances each; training, greedy and beam search."""
    data, output = tmp_path / "LibriSpeech", tmp_path / "out"
    parts = ("train-clean-100", "dev-clean", "test-clean", "test-other")
    for part in parts:
        chapter = data / part / "1/2"
        names = [f"1-2-000{i}" for i in range(2)]
        for i, name in enumerate(names):
            write(chapter / f"{name}.flac", noise(1.2 + 0.3 * i, RATE, seed=i), RATE)
        lines = "".join(f"{name} {TEXT}\n" for name in names)
        (chapter / "1-2.trans.txt").write_text(lines)
    options = {}
    try:
        torchaudio.load(chapter / "1-2-0000.flac")
    except ImportError:  # TorchCodec is needed; so the page says
        options["skip_prep"] = True
        output.mkdir()
        for part in parts:
            path, _ = prepare_split(data / part, tmp_path, 0)
            Path(path).rename(output / f"{part}.csv")
    log = run(
        "LibriSpeech/LSTM",
        adapted("LibriSpeech/LSTM", tmp_path),
        output,
        data_folder=data,
        ssl_hub=encoder,
        encoder_dim=32,
        number_of_epochs=1,
        **options,
    )
    assert "valid loss" in log
    assert log.count("test WER") == 2
    for part in parts[2:]:
        assert TEXT.split()[-1] in (output / f"wer_{part}.txt").read_text()
    assert trained_weights(output).any()  # they were 0


@needs_mp3s
def test_iemocap(encoder, tmp_path):
    """The manifests are there, because their script asks for all 5531 utterances."""
    data, output = tmp_path / "IEMOCAP", tmp_path / "out"
    output.mkdir()
    emotions = ("neu", "hap", "sad", "ang")
    for number, part in enumerate(("train", "valid", "test"), 1):
        items = {}
        for i, emotion in enumerate(emotions):
            name = f"Ses0{number}F_impro01_F00{i}"
            wav = data / f"Session{number}/sentences/wav/{name[:-5]}/{name}.wav"
            write(wav, noise(0.5 + 0.1 * i, RATE, seed=i), RATE)
            relative = f"{{data_root}}/{wav.relative_to(data)}"
            items[name] = {"wav": relative, "length": 0.5 + 0.1 * i, "emo": emotion}
        (output / f"{part}.json").write_text(json.dumps(items))
    log = run(
        "IEMOCAP/linear",
        adapted("IEMOCAP/linear", tmp_path, more="skip_prep: False\n"),
        output,
        data_folder=data,
        ssl_hub=encoder,
        encoder_dim=32,
        number_of_epochs=2,
    )
    assert log.count("valid error_rate") == 2
    assert "test error_rate" in log
    assert trained_weights(output).any()
