"""The codec recipe as a user runs it."""

import json
import sys

from commands import ROOT, execute

from encodecmae_sb.lobes import Codec


def test_a_codec_is_trained_measured_and_usable(tmp_path):
    output = tmp_path / "codec"
    options = {
        "n_filters": 2,
        "n_codebooks": 2,
        "codebook_size": 16,
        "training_steps": 6,
        "quantize_from": 3,
        "valid_interval": 3,
        "batch_size": 4,
        "crop_seconds": 0.25,
        "valid_items": 2,
        "num_workers": 0,
        "output_folder": output,
    }
    flags = [
        str(part) for key, value in options.items() for part in (f"--{key}", value)
    ]
    recipe = [ROOT / "recipes/train_codec.py", ROOT / "hparams/codec_mini.yaml"]
    text = execute([sys.executable, *recipe, "--device", "cpu", *flags], tmp_path)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["mel_ratio"] > 0
    assert 1 <= metrics["perplexity_2"] <= 16
    assert "mel_ratio" in text
    assert len(list(output.glob("listen_*.wav"))) == 4
    assert Codec(output / "codec.safetensors", n_codebooks=2).codebook_size == 16


def test_codebooks_that_would_never_start(tmp_path):
    recipe = [ROOT / "recipes/train_codec.py", ROOT / "hparams/codec_mini.yaml"]
    flags = ["--training_steps", "22000", "--output_folder", tmp_path / "codec"]
    text = execute([sys.executable, *recipe, *flags], tmp_path, expect=1)
    assert "quantize_from=22000, training_steps=22000" in text
