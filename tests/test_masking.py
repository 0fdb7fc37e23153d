"""Masks: their counts, their gaps, where they fall, and what moves with them."""

from fractions import Fraction

import pytest
import torch

from encodecmae_sb.nnet.masking import FrameMask, GapMasker, frame_mask


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
    masked = GapMasker()(lengths, some_seeds(400, batch_seed), 400).hidden
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
    masked = GapMasker(ratio)(lengths, some_seeds(400), 400).hidden
    assert masked.sum(1).tolist() == floor_share(ratio, lengths)
    assert not (masked & ~frame_mask(lengths, 400)).any()


@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.57, 0.82])
def test_max_visible_is_the_number_of_visible_frames(ratio):
    masker = GapMasker(ratio)
    for length in range(1, 401):
        one = torch.tensor([length])
        mask = masker(one, some_seeds(1), length, padded=False)
        assert mask.max_visible == int(mask.visible.sum())


@pytest.mark.parametrize("padded", [True, False])
def test_each_frame_is_hidden_or_visible_or_padding(padded):
    lengths = torch.tensor([60, 33, 1]) if padded else torch.tensor([60, 60, 60])
    mask = GapMasker()(lengths, some_seeds(3), 60, padded=padded)
    valid = frame_mask(lengths, 60)
    assert torch.equal(mask.hidden.int() + mask.visible.int(), valid.int())
    assert mask.counts.tolist() == [int(mask.hidden.sum()), int(mask.visible.sum())]
    if padded:
        assert torch.equal(mask.valid, valid)
    else:
        assert mask.valid is None  # attention runs without a mask
    assert mask.max_visible == 30 == int(mask.visible.sum(1).max())


@pytest.mark.parametrize("gap", [1, 4, 50])
def test_other_gaps(gap):
    masked = GapMasker(0.5, gap)(torch.full((50,), 300), some_seeds(50), 300).hidden
    assert (masked.sum(1) == 150).all()
    for mask in masked:
        assert sum(run != gap for run in runs(mask)) <= 1


@pytest.mark.parametrize("length", range(1, 32))
def test_short_items(length):
    masked = GapMasker()(torch.full((20,), length), some_seeds(20), length).hidden
    assert (masked.sum(1) == length // 2).all()


@pytest.mark.parametrize(("length", "seeds"), [(300, "random"), (137, "consecutive")])
def test_interior_frames_are_equally_likely(length, seeds):
    count = 20000
    seeds = some_seeds(count) if seeds == "random" else torch.arange(count)
    hits = torch.zeros(length)
    for part in seeds.split(4000):
        hits += GapMasker()(torch.full((len(part),), length), part, length).hidden.sum(
            0
        )
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
    together = masker(lengths, seeds, 400).hidden
    torch.manual_seed(1)
    for i in range(4):
        length = int(lengths[i])
        alone = masker(lengths[i : i + 1], seeds[i : i + 1], length).hidden
        assert torch.equal(alone[0], together[i, :length])
    backwards = masker(lengths.flip(0), seeds.flip(0), 350).hidden.flip(0)
    assert torch.equal(backwards, together[:, :350])
    same = torch.full((3,), 300)
    other = masker(same, some_seeds(3), 300).hidden
    assert not torch.equal(other[0], other[1])
    assert not torch.equal(other[1], other[2])


def test_an_item_without_frames_hides_nothing():
    masked = GapMasker()(torch.tensor([0, 20]), some_seeds(2), 20).hidden
    assert masked.sum(1).tolist() == [0, 10]


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_ratio(ratio):
    with pytest.raises(ValueError, match="ratio"):
        GapMasker(ratio=ratio)


def test_wrong_gap():
    with pytest.raises(ValueError, match="gap=0"):
        GapMasker(gap=0)


@pytest.mark.parametrize("spare", [0, 7])
def test_keep_and_restore(spare):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(5, 60, 3, generator=generator)
    lengths = torch.tensor([60, 45, 33, 8, 1])
    mask = GapMasker()(lengths, some_seeds(5), 60)
    mask = mask._replace(max_visible=mask.max_visible + spare)
    at = mask.visible_frames()
    kept = at.keep(frames)
    assert kept.shape == (5, 30 + spare, 3)
    assert at.real.sum(1).tolist() == mask.visible.sum(1).tolist()
    for i in range(5):
        # In order of time, and each frame the one it is said to be.
        expected = mask.visible[i].nonzero()[:, 0].tolist()
        assert at.positions[i, at.real[i]].tolist() == expected
        assert torch.equal(kept[i, at.real[i]], frames[i, mask.visible[i]])
    # What is in the slots to spare must not come back.
    kept[~at.real] = 1e6
    back = at.restore(kept, 60)
    assert torch.equal(back, frames * mask.visible[..., None])


def test_a_mask_of_given_frames():
    hidden = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = FrameMask.of(hidden, torch.tensor([20, 7, 0]))
    assert not mask.hidden[2].any()
    assert not mask.visible[1, 7:].any()
    assert mask.max_visible == int((~hidden[0]).sum())


def test_unlike_numbers_of_hidden_frames_are_padding_to_attention():
    hidden = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    mask = FrameMask.of(hidden)
    assert mask.max_visible == 3
    assert mask.valid.all()
    at = mask.visible_frames()
    assert at.padded
    assert at.real.tolist() == [[True, True, False], [True, True, True]]


def test_a_masker_knows_its_counts_before_it_draws():
    lengths = torch.tensor([60, 33, 1, 0])
    masker = GapMasker(0.3)
    counts = masker(lengths, some_seeds(4), 60).counts
    assert torch.equal(masker.counts(lengths), counts)
