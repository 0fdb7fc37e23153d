"""Rebuilds the reference models whose outputs are stored in tests/reference.

The weights follow a rule instead of being stored: a tensor's values are drawn
from a generator seeded by its name.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference"


def fill(name, shape):
    """The float32 tensor that the rule gives for a name and a shape."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    x = rng.standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "inited":
        x = np.ones(shape)
    elif leaf == "cluster_size":
        x = 1 + np.abs(x)
    elif leaf in ("embed", "embed_avg"):
        pass
    elif leaf in ("weight_g", "scale"):
        x = 1 + 0.1 * x
    elif len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif leaf == "weight":
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32).reshape(shape))


def published_checkpoint(name):
    """A checkpoint in the published layout, for `tiny_mel` or `tiny_ec`."""
    description = json.loads((REFERENCE / f"{name}.json").read_text())
    tensors = {
        key: fill(entry["fill_name"], entry["shape"])
        for key, entry in description["state_dict"].items()
    }
    config = description["config"]
    return {
        "imports": "",
        "config": f"NUM_ENCODER_HEADS = {config['heads']}\n"
        f"NUM_DECODER_HEADS = {config['dec_heads']}\n",
        "state_dict": tensors,
    }


def reference_arrays(name):
    """The stored outputs, as a dict of NumPy arrays."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return dict(file)


def self_trained():
    """A self-trained checkpoint: one target, no codec."""
    checkpoint = published_checkpoint("tiny_mel")
    checkpoint["state_dict"] = {
        name: tensor[:1024] if name.startswith("head.layer") else tensor
        for name, tensor in checkpoint["state_dict"].items()
        if not name.startswith("target_encoder")
    }
    return checkpoint


def wave(pcm16):
    """Samples in [-1, 1] from 16-bit integers."""
    return torch.from_numpy(pcm16.astype(np.float32) / 32768)
