"""What the tests of classification share."""

import contextlib
import csv
import io
import json
import sys

import numpy as np
import soundfile
import torch
from commands import ROOT, execute, run_recipe
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.lobes import AudioEncoder, EnCodecMAE, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.licence import ENCODEC

RATE = 8000


def tiny_encoder(**front_end):
    torch.manual_seed(0)
    return AudioEncoder(LogMel(**front_end), ResiDualTransformer(32, 2, 2, 64)).eval()


def classifiers(pooling, encoder, layer="last"):
    lobe = EnCodecMAE(
        encoder, input_sample_rate=24000, output_all_hiddens=layer == "all"
    )
    head = ClipHead(lobe.dim, 5, 2 if layer == "all" else 1, pooling, 8)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return ClipClassifier(lobe, head).eval()


def make_home(folder):
    """Fills a folder with a tiny encoder and three kinds of short sounds in 3 folds."""
    export_encoder(tiny_encoder(), folder / "encoder", licence=ENCODEC)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(36):
        label = ("low", "high", "noise")[i % 3]
        seconds = rng.uniform(0.15, 0.4)
        time_axis = np.arange(int(seconds * RATE)) / RATE
        if label == "noise":
            wav = 0.1 * rng.standard_normal(len(time_axis))
        else:
            hz = rng.uniform(200, 300) if label == "low" else rng.uniform(2000, 3000)
            wav = 0.3 * np.sin(2 * np.pi * hz * time_axis)
        soundfile.write(folder / f"{i}.wav", wav, RATE)
        rows.append((f"{i}", f"{folder}/{i}.wav", f"{seconds}", label, f"{i // 12}"))
    write_rows(folder / "clips.csv", rows)
    return folder


def write_rows(path, rows, header=("ID", "wav", "duration", "label", "fold")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def command(home, output, **options):
    given = {
        "encoder_folder": home / "encoder",
        "csv": home / "clips.csv",
        "number_of_epochs": 6,
        "batch_size": 6,
        "lr": 0.02,
        "num_workers": 0,
        "output_folder": output,
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    yaml = ROOT / "hparams/classify_mini.yaml"
    start = [sys.executable, str(ROOT / "recipes/classify.py"), str(yaml)]
    return [*start, "--device", "cpu", *flags]


def run(home, output, expect=0, **options):
    return execute(command(home, output, **options), home, expect)


def run_here(home, output, **options):
    """The same in this process, which saves the time of starting another."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_recipe("classify", *command(home, output, **options)[2:])
    return said.getvalue()


def load(folder):
    return foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEClassifier",
    )


def results(output):
    """What two runs must agree on, bit for bit."""
    weights = torch.load(output / "classifier/classifier.ckpt", weights_only=True)
    metrics = json.loads((output / "metrics.json").read_text())
    return weights, metrics, (output / "predictions.csv").read_text()


def keys_of(path):
    lines = path.read_text().splitlines()
    return [line.split(":")[0] for line in lines if line[:1].isalpha()]
