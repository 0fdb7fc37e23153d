"""Which frames are hidden: gaps drawn for a whole batch at once, on its device.

The draw is a pure function of a seed per item. It depends on no generator, no
device, no other item of the batch and no number of processes.
"""

from fractions import Fraction

import torch
from torch import nn

from encodecmae_sb.utils.errors import UserError


class GapMasker(nn.Module):
    """Hides a share of the frames of each item, in gaps of fixed length.

    Of L frames exactly floor(ratio * L) are hidden: gaps of `gap` frames, one of
    which is shorter where the numbers ask for it, at least one visible frame
    between any two. The start of a gap is equally likely everywhere, so every
    frame that is at least `gap` - 1 frames from both ends is hidden with the same
    probability (and frames nearer to an end with a lower one, for no gap reaches
    beyond it).

    How: the gaps are laid out at random on a circle of C = L - gap + 1 frames and
    the circle is turned at random; a gap that begins at position p < C then
    covers [p, p + gap) of the line of L frames, and never leaves it::

        circle   |------C------|
        line     |------C------|gap-1|
        gap                  [=====]

    Too short an item, or too high a ratio, leaves no room for that; its gaps are
    then laid out on the line itself, and may touch.

    Arguments
    ---------
    ratio : float
        Share of hidden frames, in (0, 1).
    gap : int
        Frames per gap (15 = 200 ms).

    Example
    -------
    >>> masker = GapMasker(ratio=0.5, gap=15)
    >>> masked = masker(torch.tensor([300, 101]), torch.tensor([1, 2]), 300)
    >>> masked.shape, masked.sum(1)
    (torch.Size([2, 300]), tensor([150,  50]))
    """

    def __init__(self, ratio=0.5, gap=15):
        super().__init__()
        if not 0 < ratio < 1:
            raise UserError(f"mask ratio={ratio} is not between 0 and 1")
        if gap < 1:
            raise UserError(f"mask gap={gap}: at least 1 frame is needed")
        self.ratio = ratio
        self.gap = gap
        # Whole numbers: 0.29 * 100 must not round to below 29 in single precision,
        # and not every device has double.
        self.share = Fraction(ratio).limit_denominator(10**9).as_integer_ratio()

    def max_visible(self, num_frames):
        """Visible frames of a whole item of so many frames: a batch's most."""
        return num_frames - self.num_hidden(num_frames)

    def num_hidden(self, num_frames):
        """Hidden frames of an item of so many: an integer, or a tensor of them."""
        part, whole = self.share
        return num_frames * part // whole

    @torch.no_grad()
    def forward(self, lengths, seeds, num_frames):
        """Draws masks.

        Arguments
        ---------
        lengths : torch.Tensor
            Frames of each item, int64, shape [B], at most `num_frames`.
        seeds : torch.Tensor
            A seed per item, int64, shape [B].
        num_frames : int
            Frames of the padded batch, T.

        Returns
        -------
        torch.Tensor
            True where hidden, bool, shape [B, T]. Padding is never hidden.
        """
        lengths = lengths[:, None]
        hidden = self.num_hidden(lengths)
        gap = hidden.clamp(min=1, max=self.gap)
        gaps = (hidden + gap - 1) // gap
        # On the circle each gap is followed by one visible frame.
        circle = lengths - gap + 1
        roomy = circle - hidden >= gaps
        circle = torch.where(roomy, circle, lengths).clamp(min=1)  # L may be 0
        after = roomy.long()
        spare = circle - hidden - gaps * after

        # Tokens in random order: each is a gap (with the frame after it) or one
        # spare visible frame. `rank` tells gaps from frames, and one gap, the
        # shorter, from the others.
        token = torch.arange(num_frames, device=lengths.device)[None]
        keys = _hash(seeds[:, None], token + 1)
        keys = torch.where(token < gaps + spare, keys, torch.iinfo(torch.int64).max)
        rank = keys.argsort(dim=1).argsort(dim=1)
        is_gap = rank < gaps
        shorter = hidden - gap * (gaps - 1)
        gap_length = torch.where(rank == 0, shorter, gap)
        size = torch.where(is_gap, gap_length + after, 1)
        size = torch.where(token < gaps + spare, size, 0)
        start = size.cumsum(1) - size

        turn = _hash(seeds[:, None], torch.zeros_like(token[:, :1])) % circle
        start = torch.where(roomy, (start + turn) % circle, start)

        # +1 where a gap begins, -1 after its end; tokens that are no gap add 0.
        steps = torch.zeros(
            len(lengths), num_frames + 1, dtype=torch.int64, device=lengths.device
        )
        steps.scatter_add_(1, (start * is_gap), is_gap.long())
        end = (start + gap_length) * is_gap
        steps.scatter_add_(1, end, -is_gap.long())
        return steps.cumsum(1)[:, :num_frames] > 0


def _hash(seeds, counter):
    """Non-negative pseudo-random int64 from pairs (splitmix64's finaliser)."""
    x = seeds + counter * -7046029254386353131  # 2^64 / golden ratio
    # torch's >> keeps the sign, hence the masks.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return x & 0x7FFFFFFFFFFFFFFF


def keep_visible(frames, visible, max_visible):
    """Moves the visible frames of each item to the front and drops the rest.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [B, T, D].
    visible : torch.Tensor
        True where a frame is real and not hidden, bool, shape [B, T].
    max_visible : int
        Largest number of visible frames of an item, known without asking the
        device, so that shapes are fixed.

    Returns
    -------
    kept : torch.Tensor
        Shape [B, max_visible, D], in order of time.
    positions : torch.Tensor
        True positions of the kept frames, int64, shape [B, max_visible].
    valid : torch.Tensor
        False where an item has fewer visible frames, bool, [B, max_visible].

    Example
    -------
    >>> frames = torch.arange(4.0).view(1, 4, 1)
    >>> visible = torch.tensor([[False, True, False, True]])
    >>> kept, positions, valid = keep_visible(frames, visible, 2)
    >>> kept.flatten(), positions
    (tensor([1., 3.]), tensor([[1, 3]]))
    """
    order = visible.int().argsort(dim=1, descending=True, stable=True)
    positions = order[:, :max_visible]
    valid = visible.gather(1, positions)
    index = positions[..., None].expand(-1, -1, frames.shape[2])
    return frames.gather(1, index), positions, valid


def restore_positions(kept, positions, valid, num_frames):
    """Puts kept frames back to their true positions, zeros elsewhere.

    Arguments
    ---------
    kept, positions, valid : torch.Tensor
        As `keep_visible` gives them.
    num_frames : int
        T.

    Returns
    -------
    torch.Tensor
        Shape [B, T, D].
    """
    full = kept.new_zeros(kept.shape[0], num_frames, kept.shape[2])
    index = positions[..., None].expand_as(kept)
    return full.scatter(1, index, kept * valid[..., None])
