"""The masked model: hidden frames and padding are never seen."""

import pytest
import torch
from random_values import noise, randomise
from torch import nn

from encodecmae_sb.lobes import (
    AudioEncoder,
    GapMasker,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.masking import FrameMask, frame_mask


class GivenFrames(nn.Module):
    """A front end that gives the frames it is given."""

    dim = 10

    def forward(self, frames):
        return frames


@pytest.fixture
def model():
    encoder = AudioEncoder(GivenFrames(), ResiDualTransformer(64, 2, 4, 96))
    model = MaskedCodecModel(encoder, ResiDualTransformer(32, 1, 4, 48), 3, 16)
    return randomise(model)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.82, 0.9])
@pytest.mark.parametrize("lengths", [[150, 150], [150, 70]])
def test_hidden_frames_are_never_seen(model, ratio, lengths):
    frames, lengths = noise(2, 150, 10), torch.tensor(lengths)
    masker = GapMasker(ratio)
    valid = frame_mask(lengths, 150)
    padded = not bool(valid.all())
    mask = masker(lengths, torch.tensor([1, 2]), 150, padded)  # as in training
    masked = mask.hidden
    logits = model(frames, mask)
    assert logits.shape == (2, 150, 3, 16)
    hidden = frames + 100 * (masked | ~valid)[..., None]
    changed = model(hidden, mask)
    assert torch.equal(logits[valid], changed[valid])
    # The same frames, if visible, do make a difference, to hidden frames, too.
    seen = model(frames + mask.visible[..., None], mask)
    assert not torch.allclose(logits[masked], seen[masked], atol=1e-3)
    # How many slots there are to spare does not matter.
    exact = model(frames, FrameMask.of(masked, lengths))
    assert torch.allclose(exact[valid], logits[valid], atol=1e-5)


@torch.no_grad()
def test_padded_items_are_as_if_alone(model):
    lengths = torch.tensor([150, 61, 33, 5])
    seeds = torch.arange(4)
    masker, frames = GapMasker(), noise(4, 150, 10)
    mask = masker(lengths, seeds, 150)
    logits = model(frames, mask)
    for i, length in enumerate(lengths.tolist()):
        hidden = FrameMask.of(mask.hidden[i : i + 1, :length])
        alone = model(frames[i : i + 1, :length], hidden)
        assert torch.allclose(logits[i, :length], alone[0], atol=1e-5)
