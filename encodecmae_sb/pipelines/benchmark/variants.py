"""The settings that are compared with steps as configured.

Each change is a function of the brain that returns a context manager: within it, steps
run with the change. `SETTINGS` names the combinations.
"""

import contextlib
import functools
import random
from unittest.mock import patch

import torch
from speechbrain.utils.autocast import TorchAutocast
from torch import nn

from encodecmae_sb.lobes import InputAugment
from encodecmae_sb.nnet import transformer
from encodecmae_sb.nnet.masking import FrameMask


def in_float32(brain):
    """Turns autocast off."""
    context = TorchAutocast(device_type=brain.device_type, dtype=torch.float32)
    return patch.object(brain, "training_ctx", context)


@contextlib.contextmanager
def checkpointed(brain):
    """Runs steps with activation checkpointing."""
    model = brain.hparams.model
    with (
        patch.object(model.encoder.transformer, "activation_checkpointing", True),
        patch.object(model.decoder, "activation_checkpointing", True),
    ):
        yield


def compiled(brain):
    """Uses the modules as `--compile` makes them."""
    return patch.dict(brain.modules, brain.compiled_modules)


def augmented(brain):
    """Alters what the model hears."""
    augment = _input_augment()
    return patch.object(brain.hparams, "input_augment", augment, create=True)


@functools.cache
def _input_augment():
    return InputAugment()


@contextlib.contextmanager
def unfused(brain):
    """A baseline: the same optimizer, with a pass over the memory per operation."""
    optimizer = brain.unfused_optimizer
    with (
        patch.object(brain, "optimizer", optimizer),
        patch.dict(brain.optimizers_dict, opt_class=optimizer),
    ):
        yield


def torch_attention(brain):
    """Uses torch's own attention kernel also on a CPU in bf16."""
    return patch.object(transformer, "_FEW_FRAMES", 0)


def dense_attention(brain):
    """A baseline: every layer adds a mask of every pair of frames, head by head."""
    return patch.object(transformer.SelfAttention, "forward", _dense_attention)


def _dense_attention(self, x, valid=None):
    batch, frames, _ = x.shape
    qkv = self.qkv(x).view(batch, frames, 3, self.num_heads, self.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each [B * H, T, head_dim]
    if valid is None:
        valid = torch.ones(batch, frames, dtype=torch.bool, device=x.device)
    allowed = valid[:, None, None, :].expand(-1, self.num_heads, frames, -1)
    mask = torch.zeros(batch * self.num_heads, frames, frames, device=x.device)
    mask = mask.masked_fill(~allowed.flatten(0, 1), -1e9)
    scores = q @ k.transpose(1, 2) / self.head_dim**0.5 + mask
    x = scores.softmax(-1).to(v.dtype) @ v
    x = x.view(batch, self.num_heads, frames, self.head_dim)
    return self.out(x.transpose(1, 2).flatten(2))


def loop_masking(brain):
    """A baseline: masks drawn by `LoopMasker`."""
    return patch.dict(brain.modules, masker=LoopMasker(brain.modules["masker"]))


class LoopMasker(nn.Module):
    """A baseline: hides frames in gaps, item by item and gap by gap in Python.

    Arguments
    ---------
    masker : GapMasker
        Whose ratio and gap are used.

    Example
    -------
    >>> from encodecmae_sb.lobes import GapMasker
    >>> masker = LoopMasker(GapMasker(0.5, 15))
    >>> masker(torch.tensor([300, 100]), torch.tensor([1, 2]), 300).hidden.sum(1)
    tensor([150,  50])
    """

    def __init__(self, masker):
        super().__init__()
        self.ratio, self.gap = masker.ratio, masker.gap
        self.num_hidden, self.counts = masker.num_hidden, masker.counts

    def forward(self, lengths, seeds, num_frames, padded=True):
        """As `GapMasker`, but other gaps."""
        masks = []
        for length, seed in zip(lengths.tolist(), seeds.tolist(), strict=True):
            rng = random.Random(seed)
            wanted = self.num_hidden(length)
            mask, hidden = [False] * num_frames, 0
            while hidden < wanted:
                start = rng.randrange(length)
                for frame in range(start, min(start + self.gap, length)):
                    if not mask[frame] and hidden < wanted:
                        mask[frame] = True
                        hidden += 1
            masks.append(mask)
        hidden = torch.tensor(masks, device=lengths.device)
        max_visible = num_frames - self.num_hidden(num_frames)
        return FrameMask.of(hidden, lengths if padded else None, max_visible)


# Changes, whether the codec runs in the step, and a description.
SETTINGS = {
    "float32": ([in_float32], False, "no bf16"),
    "codec": ([], True, "the codec in the step, no stored codes"),
    "plain": (
        [in_float32, unfused],
        True,
        "float32, the codec in the step, AdamW not fused",
    ),
    "published": (
        [in_float32, unfused, dense_attention, loop_masking],
        True,
        "plain, with dense attention masks and Python-loop masking",
    ),
    "dense_mask": ([dense_attention], False, "dense attention masks"),
    "loop_masking": ([loop_masking], False, "masks drawn in Python loops"),
    "torch_attention": ([torch_attention], False, "torch's attention in bf16"),
    "unfused": ([unfused], False, "AdamW not fused"),
    "checkpointing": ([checkpointed], False, "activation checkpointing"),
    "augmented": ([augmented], False, "input_augment: InputAugment"),
    "compiled": ([compiled], False, "torch.compile"),
}
