"""Tiny encoders and sounds, and the probing recipe on them."""

import contextlib
import io
import json

import numpy as np
import soundfile
import torch
from classification import write_rows
from commands import ROOT, run_recipe

from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.pretrained.folder import export_encoder

RATE = 8000
HEADER = ("ID", "wav", "label", "fold")
QUICK = {"hidden_layers": "[0, 1]", "lrs": "[0.02]", "number_of_epochs": 15}
QUICK |= {"hidden_size": 16, "batch_size": 6, "repeats": 2, "num_workers": 0}
QUICK |= {"probes": "[mlp]"}


def make_home(folder):
    """Makes a tiny encoder for each of 3 folds, and two kinds of sounds."""
    for fold in range(3):
        torch.manual_seed(fold)
        encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 2, 2, 64))
        export_encoder(encoder.eval(), folder / f"{fold}/encoder")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        label = ("tone", "noise")[i % 2]
        wav = 0.1 * rng.standard_normal(2000)
        if label == "tone":
            hz = rng.uniform(200, 300)
            wav = 0.3 * np.sin(2 * np.pi * hz * np.arange(2000) / RATE)
        soundfile.write(folder / f"{i}.wav", wav, RATE)
        rows.append((f"{i}", f"{folder}/{i}.wav", label, f"{i // 8}"))
    write_rows(folder / "clips.csv", rows, HEADER)
    return folder


def run(home, output, **options):
    given = {
        "encoders": f"[logmel, random, '{home}/{{fold}}/encoder']",
        "csv": home / "clips.csv",
        "output_folder": output,
        **QUICK,
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    yaml = ROOT / "hparams/probe_mini.yaml"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_recipe("probe", yaml, "--device", "cpu", "--noprogressbar", *flags)
    return said.getvalue()


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())
