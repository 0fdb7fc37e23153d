"""The masked codec loss, beside its formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_values import noise

from encodecmae_sb.lobes import GapMasker, MaskedCodecLoss
from encodecmae_sb.nnet import loss as losses
from encodecmae_sb.nnet.masking import FrameMask


@pytest.mark.parametrize(("codebooks", "share"), [(8, 0.9), (3, 0.6), (10, 0.9)])
def test_loss(codebooks, share):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 20, codebooks, 16, generator=generator)
    codes = torch.randint(16, (3, 20, codebooks), generator=generator)
    lengths = torch.tensor([20, 12, 1])
    mask = GapMasker(0.5, gap=3)(lengths, lengths, 20)
    valid = mask.valid
    logits[~valid] = 1e4 * torch.randn(logits[~valid].shape, generator=generator)
    codes[~valid] = 15

    # By hand: frames of all items together, in double precision.
    x = logits.double().numpy()
    peak = x.max(-1, keepdims=True)
    log_sum = np.log(np.exp(x - peak).sum(-1)) + peak[..., 0]
    ce = log_sum - np.take_along_axis(x, codes.numpy()[..., None], -1)[..., 0]
    right = x.argmax(-1) == codes.numpy()
    hidden, visible = mask.hidden.numpy(), mask.visible.numpy()
    weights = np.array(
        losses.CODEBOOK_WEIGHTS[:codebooks] if codebooks <= 8 else [0.1] * 10
    )
    weights = weights / weights.sum()
    masked_ce, visible_ce = ce[hidden].mean(0), ce[visible].mean(0)
    masked_loss, visible_loss = weights @ masked_ce, weights @ visible_ce

    loss_fn = MaskedCodecLoss(codebooks, share)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(logits, codes, mask)
    for ours, want in [
        (loss.masked_ce, masked_ce),
        (loss.visible_ce, visible_ce),
        (loss.masked_loss, masked_loss),
        (loss.visible_loss, visible_loss),
        (loss.masked_accuracy, right[hidden].mean(0)),
        (loss.loss, share * masked_loss + (1 - share) * visible_loss),
    ]:
        assert np.abs(ours.numpy() - want).max() < 1e-4


def test_loss_without_padding_is_the_same_as_with_none():
    logits, codes = noise(2, 10, 8, 16), torch.zeros(2, 10, 8).long()
    masked = torch.arange(10).expand(2, 10) < 4
    loss_fn = MaskedCodecLoss()
    none, given = (
        loss_fn(logits, codes, FrameMask.of(masked, frames))
        for frames in (None, torch.tensor([10, 10]))
    )
    assert torch.equal(none.loss, given.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 7 * 1024, 2**21])
def test_loss_in_blocks_is_that_of_the_whole(monkeypatch, dtype, block):
    monkeypatch.setitem(losses._BLOCK, "cpu", block)
    values = (3 * noise(2, 10, 3, 1024)).to(dtype)
    codes = (997 * torch.arange(60) % 1024).view(2, 10, 3)
    codes[:, ::3] = values[:, ::3].argmax(-1)
    masked = torch.arange(10).expand(2, 10) < 4
    ours, plain = (values.clone().requires_grad_() for _ in range(2))
    loss = MaskedCodecLoss(3)(ours, codes, FrameMask.of(masked))
    loss.loss.backward()
    assert torch.equal(loss.masked_accuracy, torch.full((3,), 0.5))
    ce = F.cross_entropy(plain.float().flatten(0, 2), codes.flatten(), reduction="none")
    ce = ce.view(codes.shape)
    assert torch.allclose(loss.masked_ce, ce[:, :4].mean((0, 1)), rtol=1e-6)
    share = torch.where(masked, 0.9 / 8, 0.1 / 12)[..., None]
    (MaskedCodecLoss(3).weights * share * ce).sum().backward()
    error = (ours.grad - plain.grad).float().abs().max()
    assert error <= torch.finfo(dtype).eps * plain.grad.abs().max()
