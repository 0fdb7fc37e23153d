"""What pretraining minimises.

Shapes: B items, T frames, Q codebooks, K classes per codebook. Where a step predicts
some of the codebooks only, all but the codes have their number in place of Q.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.values import are_weights

# Share of each of EnCodec's first 8 codebooks in the loss (arXiv 2309.07391).
CODEBOOK_WEIGHTS = (
    0.22407463,
    0.1759858,
    0.14499009,
    0.12150037,
    0.10315603,
    0.08831368,
    0.07608274,
    0.06589669,
)

# Logits are copied to float32 in blocks of this size: on a CPU as many as its caches
# hold, elsewhere enough to keep the device busy (256 MiB).
_BLOCK = {"cpu": 2**21}
_BLOCK_ELSEWHERE = 2**26


def default_weights(n_codebooks):
    """Weights of codebooks in the loss.

    Arguments
    ---------
    n_codebooks : int
        Q.

    Returns
    -------
    torch.Tensor
        Of 8 or fewer the paper's weights of the first Q, scaled to a sum of 1; of more
        the same weight for all; float32, shape [Q].

    Example
    -------
    >>> default_weights(2)
    tensor([0.5601, 0.4399])
    """
    weights = torch.tensor(CODEBOOK_WEIGHTS[:n_codebooks])
    if n_codebooks > len(CODEBOOK_WEIGHTS):
        weights = torch.ones(n_codebooks)
    if n_codebooks != len(CODEBOOK_WEIGHTS):
        weights = weights / weights.sum()
    return weights


@dataclass
class MaskedLoss:
    """The loss and its parts. All tensors stay on the device.

    Arguments
    ---------
    loss : torch.Tensor
        The loss to minimise, scalar.
    masked_loss, visible_loss : torch.Tensor
        Weighted cross-entropy on hidden and on visible frames, scalars.
    masked_ce, visible_ce : torch.Tensor
        Cross-entropy of each codebook, unweighted, in nats, shape [Q].
    masked_accuracy : torch.Tensor or None
        Share of hidden frames whose most probable code is right, shape [Q].
    ce : torch.Tensor
        Cross-entropy of every frame and codebook, in nats, shape [B, T, Q].
    right : torch.Tensor or None
        Whether its most probable code is right, bool, shape [B, T, Q].
    """

    loss: torch.Tensor
    masked_loss: torch.Tensor
    visible_loss: torch.Tensor
    masked_ce: torch.Tensor
    visible_ce: torch.Tensor
    masked_accuracy: torch.Tensor | None
    ce: torch.Tensor
    right: torch.Tensor | None


class MaskedCodecLoss(nn.Module):
    """Cross-entropy on hidden and, with less weight, on visible frames.

    Arguments
    ---------
    n_codebooks : int
        Codebooks, Q. Their weights are `default_weights`, or what `set_weights` says.
    masked_weight : float
        Weight of the hidden frames; the visible ones have the rest of 1.

    Example
    -------
    >>> from encodecmae_sb.nnet.masking import FrameMask
    >>> logits, codes = torch.zeros(2, 10, 8, 1024), torch.zeros(2, 10, 8).long()
    >>> mask = FrameMask.of(torch.arange(10).expand(2, 10) < 5)
    >>> loss = MaskedCodecLoss()(logits, codes, mask)
    >>> round(loss.masked_ce[0].item(), 3)  # log(1024)
    6.931
    """

    def __init__(self, n_codebooks=8, masked_weight=0.9):
        super().__init__()
        weights = default_weights(n_codebooks)
        self.register_buffer("weights", weights, persistent=False)
        self.masked_weight = masked_weight

    def set_weights(self, values):
        """Gives the codebooks other weights.

        Arguments
        ---------
        values : list of float
            Q numbers, none negative; they are scaled to a sum of 1.

        Raises
        ------
        UserError
            If they are something else.

        Example
        -------
        >>> loss_fn = MaskedCodecLoss(n_codebooks=2)
        >>> loss_fn.set_weights([3, 1])
        >>> loss_fn.weights
        tensor([0.7500, 0.2500])
        """
        count = len(self.weights)
        if not are_weights(values, count):
            raise UserError(
                f"codebook_weights={values}: give a list of {count} numbers, one for "
                "each of the codebooks, none negative and not all 0; or null."
            )
        weights = torch.tensor(values, dtype=torch.float64)
        self.weights.copy_(weights / weights.sum())

    def forward(self, logits, codes, mask, counts=None, drawn=None, with_accuracy=True):
        """Computes the loss, in float32 whatever autocast says.

        Arguments
        ---------
        logits : torch.Tensor
            Shape [B, T, Q, K].
        codes : torch.Tensor
            int64, shape [B, T, Q].
        mask : FrameMask
            Padding counts neither as hidden nor as visible.
        counts : torch.Tensor, optional
            Divisors of the sums over hidden and over visible frames, shape [2].
            Default: the numbers of such frames in the batch. Processes that share a
            step give the mean of their numbers. The mean of their losses is then the
            loss of all their frames together.
        drawn : DrawnCodebooks, optional
            The codebooks of the logits; default: all Q. The loss is then in the mean
            over draws that of all codebooks, and its gradient, too.
        with_accuracy : bool
            Whether to find the most probable codes, which takes a while on a CPU.

        Returns
        -------
        MaskedLoss
        """
        counts = mask.counts if counts is None else counts
        hidden, visible, weights = mask.hidden, mask.visible, self.weights
        if drawn is not None:
            codes = codes.index_select(-1, drawn.numbers)
            weights = weights.index_select(0, drawn.numbers) * drawn.factors
        with torch.autocast(logits.device.type, enabled=False):
            logits, flat = logits.flatten(0, 2), codes.flatten()
            ce = _CrossEntropy.apply(logits, flat).view(codes.shape)

            def mean(values, where, count):
                total = (values * where[..., None]).sum((0, 1))
                return total / count.clamp(min=torch.finfo(count.dtype).tiny)

            masked_ce = mean(ce, hidden, counts[0])
            visible_ce = mean(ce, visible, counts[1])
            masked_loss = (weights * masked_ce).sum()
            visible_loss = (weights * visible_ce).sum()
            share = self.masked_weight
            right = accuracy = None
            if with_accuracy:
                right = _most_probable(logits.detach()).eq(flat).view(codes.shape)
                accuracy = mean(right, hidden, hidden.sum().float())
            return MaskedLoss(
                loss=share * masked_loss + (1 - share) * visible_loss,
                masked_loss=masked_loss,
                visible_loss=visible_loss,
                masked_ce=masked_ce.detach(),
                visible_ce=visible_ce.detach(),
                masked_accuracy=accuracy,
                ce=ce.detach(),
                right=right,
            )


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy in float32, one block of rows after another.

    torch's own keeps float32 tables of all logits, of all log-probabilities, and of
    the gradients of both. This keeps none of them.
    """

    @staticmethod
    def forward(ctx, logits, codes):
        """Logits [N, K], codes [N] -> cross-entropy [N]."""
        ctx.save_for_backward(logits, codes)
        ctx.rows = _rows_at_once(logits)
        entropy = []
        for x, code in zip(logits.split(ctx.rows), codes.split(ctx.rows), strict=True):
            log_probs = x.float().log_softmax(-1)
            entropy.append(-log_probs.gather(1, code[:, None])[:, 0])
        return torch.cat(entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Gradient of each cross-entropy [N] -> of the logits [N, K]."""
        logits, codes = ctx.saved_tensors
        result = torch.empty_like(logits)
        blocks = (t.split(ctx.rows) for t in (logits, codes[:, None], grad[:, None]))
        for out, x, code, g in zip(result.split(ctx.rows), *blocks, strict=True):
            if x.dtype == torch.float32:
                torch.softmax(x, -1, out=out).mul_(g).scatter_add_(1, code, -g)
            else:
                out.copy_(x.float().softmax(-1).mul_(g).scatter_add_(1, code, -g))
        return result, None


def _most_probable(logits):
    """Logits [N, K] -> numbers of the largest, int64, [N]."""
    # In float32, because argmax is several times slower in bf16.
    return torch.cat(
        [x.float().argmax(-1) for x in logits.split(_rows_at_once(logits))]
    )


def _rows_at_once(logits):
    """Rows of logits [N, K] in a block."""
    if torch.compiler.is_compiling():
        # Use one block: the loop is unrolled, and each block is compiled again.
        return max(1, len(logits))
    block = _BLOCK.get(logits.device.type, _BLOCK_ELSEWHERE)
    return max(1, block // logits.shape[1])
