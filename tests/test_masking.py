"""Masks: their counts, their gaps, where they fall, and what moves with them."""

from fractions import Fraction

import pytest
import torch

from encodecmae_sb.nnet.encodecmae import frame_mask
from encodecmae_sb.nnet.masking import GapMasker, keep_visible, restore_positions


def some_seeds(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator)


def runs(mask):
    """Lengths of the runs of True."""
    lengths, current = [], 0
    for hidden in [*mask.tolist(), False]:
        if hidden:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


def floor_share(ratio, lengths):
    exact = Fraction(str(ratio))
    return [int(exact * length) for length in lengths.tolist()]


@pytest.mark.parametrize("batch_seed", [0, 1, 2])
def test_exact_count_and_whole_gaps_in_a_mixed_batch(batch_seed):
    lengths = torch.randperm(400, generator=torch.Generator().manual_seed(batch_seed))
    lengths = lengths + 1
    masked = GapMasker()(lengths, some_seeds(400, batch_seed), 400)
    assert masked.dtype == torch.bool
    assert masked.sum(1).tolist() == floor_share(0.5, lengths)
    assert not (masked & ~frame_mask(lengths, 400)).any()
    for length, mask in zip(lengths.tolist(), masked, strict=True):
        if length >= 32:
            odd = [run for run in runs(mask) if run != 15]
            assert len(odd) <= 1, (length, odd)
            assert all(run < 15 for run in odd), (length, odd)


@pytest.mark.parametrize("ratio", [0.29, 0.3, 0.57, 0.75, 0.82, 0.9])
def test_exact_count_at_other_ratios(ratio):
    lengths = torch.arange(1, 401)
    masked = GapMasker(ratio)(lengths, some_seeds(400), 400)
    assert masked.sum(1).tolist() == floor_share(ratio, lengths)
    assert not (masked & ~frame_mask(lengths, 400)).any()


@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.57, 0.82])
def test_max_visible_is_the_number_of_visible_frames(ratio):
    lengths = torch.arange(1, 401)
    masker = GapMasker(ratio)
    visible = lengths - masker(lengths, some_seeds(400), 400).sum(1)
    assert [masker.max_visible(n) for n in lengths.tolist()] == visible.tolist()


@pytest.mark.parametrize("gap", [1, 4, 50])
def test_other_gaps(gap):
    masked = GapMasker(0.5, gap)(torch.full((50,), 300), some_seeds(50), 300)
    assert (masked.sum(1) == 150).all()
    for mask in masked:
        assert sum(run != gap for run in runs(mask)) <= 1


@pytest.mark.parametrize("length", range(1, 32))
def test_short_items(length):
    masked = GapMasker()(torch.full((20,), length), some_seeds(20), length)
    assert (masked.sum(1) == length // 2).all()


@pytest.mark.parametrize(("length", "seeds"), [(300, "random"), (137, "consecutive")])
def test_interior_frames_are_equally_likely(length, seeds):
    count = 20000
    seeds = some_seeds(count) if seeds == "random" else torch.arange(count)
    hits = torch.zeros(length)
    for part in seeds.split(4000):
        hits += GapMasker()(torch.full((len(part),), length), part, length).sum(0)
    # Starts of gaps are uniform over the length - 14 places there are.
    share = (length // 2) / (length - 14)
    sigma = (share * (1 - share) / count) ** 0.5
    interior = hits[14 : length - 14] / count
    assert len(interior) == length - 28
    assert (interior - share).abs().max() < 5 * sigma
    # The ends are hidden less often, for no gap reaches beyond them.
    assert hits[0] / count < share / 5
    assert hits[-1] / count < share / 5


def test_mask_depends_on_nothing_but_length_and_seed():
    lengths = torch.tensor([7, 300, 41, 137])
    seeds = some_seeds(4)
    masker = GapMasker()
    together = masker(lengths, seeds, 400)
    torch.manual_seed(1)
    for i in range(4):
        length = int(lengths[i])
        alone = masker(lengths[i : i + 1], seeds[i : i + 1], length)
        assert torch.equal(alone[0], together[i, :length])
    backwards = masker(lengths.flip(0), seeds.flip(0), 350).flip(0)
    assert torch.equal(backwards, together[:, :350])
    same = torch.full((3,), 300)
    other = masker(same, some_seeds(3), 300)
    assert not torch.equal(other[0], other[1])
    assert not torch.equal(other[1], other[2])


def test_an_item_without_frames_hides_nothing():
    masked = GapMasker()(torch.tensor([0, 20]), some_seeds(2), 20)
    assert masked.sum(1).tolist() == [0, 10]


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_ratio(ratio):
    with pytest.raises(ValueError, match="ratio"):
        GapMasker(ratio=ratio)


def test_wrong_gap():
    with pytest.raises(ValueError, match="gap=0"):
        GapMasker(gap=0)


def test_keep_and_restore():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(5, 60, 3, generator=generator)
    lengths = torch.tensor([60, 45, 33, 8, 1])
    masked = GapMasker()(lengths, some_seeds(5), 60)
    visible = ~masked & frame_mask(lengths, 60)
    slots = int(visible.sum(1).max())
    kept, positions, valid = keep_visible(frames, visible, slots)
    assert kept.shape == (5, slots, 3)
    assert valid.sum(1).tolist() == visible.sum(1).tolist()
    for i in range(5):
        # In order of time, and each frame the one it is said to be.
        assert positions[i, valid[i]].tolist() == visible[i].nonzero()[:, 0].tolist()
        assert torch.equal(kept[i, valid[i]], frames[i, visible[i]])
    # What is in the slots to spare must not come back.
    kept[~valid] = 1e6
    back = restore_positions(kept, positions, valid, 60)
    assert torch.equal(back, frames * visible[..., None])
