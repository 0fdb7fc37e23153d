"""Which frames are hidden: gaps drawn for a whole batch at once, on its device.

The draw is a pure function of a seed per item. It depends on no generator, no
device, no other item of the batch and no number of processes.

Shapes: B items, T frames, V most visible frames of an item, D channels.
"""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn

from encodecmae_sb.utils.errors import UserError

from .draws import hash_seeds


def frame_mask(num_frames, max_frames):
    """True at the first `num_frames` [B] of each item, bool, [B, max_frames].

    Example
    -------
    >>> frame_mask(torch.tensor([1, 3]), 3).int()
    tensor([[1, 0, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    time = torch.arange(max_frames, device=num_frames.device)
    return time[None] < num_frames[:, None]


class VisibleFrames(NamedTuple):
    """Where the visible frames of each item are; see `FrameMask.visible_frames`.

    Arguments
    ---------
    positions : torch.Tensor
        In order of time, int64, shape [B, V].
    real : torch.Tensor
        False where an item has fewer visible frames than V, bool, shape [B, V].
    padded : bool
        Whether there may be such places.
    """

    positions: torch.Tensor
    real: torch.Tensor
    padded: bool

    def keep(self, frames):
        """The visible ones of frames [B, T, D], shape [B, V, D]."""
        index = self.positions[..., None].expand(-1, -1, frames.shape[2])
        return frames.gather(1, index)

    def restore(self, kept, num_frames):
        """Kept frames [B, V, D] at their true positions, zeros elsewhere, [B, T, D]."""
        full = kept.new_zeros(kept.shape[0], num_frames, kept.shape[2])
        index = self.positions[..., None].expand_as(kept)
        return full.scatter(1, index, kept * self.real[..., None])


class FrameMask(NamedTuple):
    """What is hidden, visible and padding in a batch: each frame is one of the three.

    A masker makes it; model, loss and metrics read it.

    Arguments
    ---------
    hidden, visible : torch.Tensor
        Bool, shape [B, T].
    valid : torch.Tensor or None
        False at padding, bool, shape [B, T]; None: there is no padding, and every
        item has `max_visible` visible frames.
    max_visible : int
        No item has more visible frames. Known without asking the device, so that
        shapes are fixed.

    Example
    -------
    >>> mask = FrameMask.of(torch.tensor([[False, True, False, True]]))
    >>> mask.visible.int(), mask.max_visible
    (tensor([[1, 0, 1, 0]], dtype=torch.int32), 2)
    >>> mask.visible_frames().positions
    tensor([[0, 2]])
    """

    hidden: torch.Tensor
    visible: torch.Tensor
    valid: torch.Tensor | None
    max_visible: int

    @classmethod
    def of(cls, hidden, num_frames=None, max_visible=None):
        """A mask from hidden frames.

        Arguments
        ---------
        hidden : torch.Tensor
            Bool, shape [B, T]. Padding counts as padding even where it is True.
        num_frames : torch.Tensor, optional
            Frames of each item, int64, shape [B]; default: all are T long.
        max_visible : int, optional
            Default: it is counted, for which the device is asked.

        Returns
        -------
        FrameMask
        """
        valid, visible = None, ~hidden
        if num_frames is not None:
            valid = frame_mask(num_frames, hidden.shape[1])
            hidden, visible = hidden & valid, visible & valid
        if max_visible is None:
            counts = visible.sum(1)
            max_visible = int(counts.max())
            if valid is None and int(counts.min()) < max_visible:
                valid = torch.ones_like(hidden)
        return cls(hidden, visible, valid, max_visible)

    @property
    def frames(self):
        """True at all frames that are not padding, bool, shape [B, T]."""
        return self.hidden | self.visible

    @property
    def counts(self):
        """Numbers of hidden and of visible frames of the batch, float32, shape [2]."""
        return torch.stack([self.hidden.sum(), self.visible.sum()]).float()

    def visible_frames(self):
        """Where the visible frames of each item are.

        Returns
        -------
        VisibleFrames
        """
        order = self.visible.int().argsort(dim=1, descending=True, stable=True)
        positions = order[:, : self.max_visible]
        real = self.visible.gather(1, positions)
        return VisibleFrames(positions, real, padded=self.valid is not None)


class GapMasker(nn.Module):
    """Hides a share of the frames of each item, in gaps of fixed length.

    Of L frames exactly floor(ratio * L) are hidden, in gaps of `gap` frames. If
    floor(ratio * L) is no multiple of `gap`, one gap is shorter. Between two gaps there
    is at least one visible frame. A gap starts everywhere with the same probability.
    So every frame that is at least `gap` - 1 frames from both ends is hidden with the
    same probability. Frames nearer to an end are hidden less often, because no gap
    reaches beyond the end.

    How: the gaps are laid out at random on a circle of C = L - gap + 1 frames. Then
    the circle is turned at random. A gap that begins at position p < C of the circle
    covers [p, p + gap) of the line of L frames, and never leaves it::

        circle   |------C------|
        line     |------C------|gap-1|
        gap                  [=====]

    If an item is too short for that, or the ratio too high, the gaps are laid out on
    the line itself, and may touch.

    Arguments
    ---------
    ratio : float
        Share of hidden frames, in (0, 1).
    gap : int
        Frames per gap (15 = 200 ms).

    Example
    -------
    >>> masker = GapMasker(ratio=0.5, gap=15)
    >>> mask = masker(torch.tensor([300, 101]), torch.tensor([1, 2]), 300)
    >>> mask.hidden.shape, mask.hidden.sum(1), mask.visible.sum(1)
    (torch.Size([2, 300]), tensor([150,  50]), tensor([150,  51]))
    """

    def __init__(self, ratio=0.5, gap=15):
        super().__init__()
        if not 0 < ratio < 1:
            raise UserError(f"mask ratio={ratio} is not between 0 and 1")
        if gap < 1:
            raise UserError(f"mask gap={gap}: at least 1 frame is needed")
        self.ratio = ratio
        self.gap = gap
        # As whole numbers: in single precision 0.29 * 100 is less than 29, and not
        # every device has double precision.
        self.share = Fraction(ratio).limit_denominator(10**9).as_integer_ratio()

    def num_hidden(self, num_frames):
        """How many of so many frames are hidden: for an int or for a tensor."""
        part, whole = self.share
        return num_frames * part // whole

    def counts(self, num_frames):
        """How many frames of a batch are hidden, and how many are visible.

        Known before any mask is drawn: the loss of a step is divided by these.

        Arguments
        ---------
        num_frames : torch.Tensor
            Frames of each item, int64, shape [B].

        Returns
        -------
        torch.Tensor
            float32, shape [2].
        """
        hidden = self.num_hidden(num_frames)
        return torch.stack([hidden.sum(), (num_frames - hidden).sum()]).float()

    @torch.no_grad()
    def forward(self, num_frames, seeds, max_frames, padded=True):
        """Draws a mask.

        Arguments
        ---------
        num_frames : torch.Tensor
            Frames of each item, int64, shape [B], at most `max_frames`.
        seeds : torch.Tensor
            A seed per item, int64, shape [B].
        max_frames : int
            Frames of the padded batch, T.
        padded : bool
            False where all items have `max_frames` frames: attention then runs
            without a mask.

        Returns
        -------
        FrameMask
        """
        hidden = self._draw(num_frames[:, None], seeds, max_frames)
        max_visible = max_frames - self.num_hidden(max_frames)
        return FrameMask.of(hidden, num_frames if padded else None, max_visible)

    def _draw(self, lengths, seeds, num_frames):
        """Hidden frames of items of so many frames [B, 1], bool, [B, T]."""
        hidden = self.num_hidden(lengths)
        gap = hidden.clamp(min=1, max=self.gap)
        gaps = (hidden + gap - 1) // gap
        # On the circle one visible frame follows each gap.
        circle = lengths - gap + 1
        roomy = circle - hidden >= gaps
        circle = torch.where(roomy, circle, lengths).clamp(min=1)  # L may be 0
        after = roomy.long()
        spare = circle - hidden - gaps * after

        # Tokens in random order. Each is a gap with the frame after it, or one spare
        # visible frame. `rank` says which tokens are gaps: those below `gaps`. The one
        # with rank 0 is the shorter gap.
        token = torch.arange(num_frames, device=lengths.device)[None]
        keys = hash_seeds(seeds[:, None], token + 1)
        keys = torch.where(token < gaps + spare, keys, torch.iinfo(torch.int64).max)
        rank = keys.argsort(dim=1).argsort(dim=1)
        is_gap = rank < gaps
        shorter = hidden - gap * (gaps - 1)
        gap_length = torch.where(rank == 0, shorter, gap)
        size = torch.where(is_gap, gap_length + after, 1)
        size = torch.where(token < gaps + spare, size, 0)
        start = size.cumsum(1) - size

        turn = hash_seeds(seeds[:, None], torch.zeros_like(token[:, :1])) % circle
        start = torch.where(roomy, (start + turn) % circle, start)

        # +1 where a gap begins, -1 after its end. Other tokens add 0.
        steps = torch.zeros(
            len(lengths), num_frames + 1, dtype=torch.int64, device=lengths.device
        )
        steps.scatter_add_(1, (start * is_gap), is_gap.long())
        end = (start + gap_length) * is_gap
        steps.scatter_add_(1, end, -is_gap.long())
        return steps.cumsum(1)[:, :num_frames] > 0
