"""The ResiDual transformer (arXiv 2304.14802).

Shapes: B items, T frames, D width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from encodecmae_sb.utils.errors import UserError

# Attention computes a table of all pairs of frames. Up to this many frames the table
# is small (6 MB for an item with 12 heads in bf16), so it may be stored.
_FEW_FRAMES = 512


@dataclass
class TransformerOutput:
    """What a `ResiDualTransformer` gives.

    Arguments
    ---------
    last : torch.Tensor or None
        Output, the sum of the post-normalised stream and the normalised residual
        stream of the last layer, shape [B, T, D]; None if that was not computed.
    layers : list of torch.Tensor
        Post-normalised stream after each layer, each [B, T, D]; the last of them
        is the last layer's activation without the final norm.
    """

    last: torch.Tensor
    layers: list


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases.

    Arguments
    ---------
    dim : int
        Width of the input, D.
    num_heads : int
        Number of heads.
    head_dim : int
        Width of a head; the attention is num_heads * head_dim wide inside.

    Example
    -------
    >>> SelfAttention(64, 3, 21)(torch.zeros(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(self, dim, num_heads, head_dim):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=False)
        for part in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, x, valid=None):
        """Attends.

        Arguments
        ---------
        x : torch.Tensor
            Shape [B, T, D].
        valid : torch.Tensor, optional
            False at padding, which is not attended to, bool, shape [B, T].

        Returns
        -------
        torch.Tensor
            Shape [B, T, D].
        """
        batch, frames, _ = x.shape
        qkv = self.qkv(x).view(batch, frames, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, B, heads, T, head_dim]
        mask = None if valid is None else valid[:, None, None, :]
        if qkv.is_cpu and qkv.dtype == torch.bfloat16 and frames <= _FEW_FRAMES:
            x = _attend_plainly(qkv, mask)
        else:
            x = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        return self.out(x.transpose(1, 2).flatten(2))


def _attend_plainly(qkv, mask):
    """Attention as two matrix products.

    In bf16 on a CPU with AVX-512 this is 2.6 times (300 frames) to 4 times (150 frames)
    as fast as torch's `scaled_dot_product_attention`, forward and backward. In float32
    torch's is faster.
    """
    _, batch, heads, frames, head_dim = qkv.shape
    q, k, v = qkv.flatten(1, 2)  # one copy; each [B * heads, T, head_dim]
    scores = (q * head_dim**-0.5) @ k.mT
    scores = scores.view(batch, heads, frames, frames)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1, dtype=scores.dtype)
    return probabilities @ v.view(batch, heads, frames, head_dim)


class FeedForward(nn.Sequential):
    """Linear, ReLU, linear.

    Arguments
    ---------
    dim : int
        Width of input and output.
    ffn_dim : int
        Width inside.
    """

    def __init__(self, dim, ffn_dim):
        super().__init__(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))
        for linear in (self[0], self[2]):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


class ResiDualLayer(nn.Module):
    """One layer on two streams, post-normalised `a` and raw residual `r`.

    Arguments
    ---------
    dim, num_heads, head_dim : int
        See `SelfAttention`.
    """

    def __init__(self, dim, num_heads, head_dim):
        super().__init__()
        self.attention = SelfAttention(dim, num_heads, head_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, a, r, feed_forward, valid=None):
        """Both streams after the layer, each [B, T, D]."""
        # Cast once, here: otherwise each of the two sums below would make a copy on a
        # CPU. And the gradients of both are added in the precision of the streams.
        u = self.attention(a, valid).to(a.dtype)
        a = self.norm1(a + u)
        r = r + u
        v = feed_forward(a).to(a.dtype)
        a = self.norm2(a + v)
        r = r + v
        return a, r


class ResiDualTransformer(nn.Module):
    """A stack of ResiDual layers.

    Arguments
    ---------
    dim : int
        Width D.
    num_layers : int
        Number of layers.
    num_heads : int
        Heads per layer.
    ffn_dim : int
        Width of the feed-forward.
    head_dim : int, optional
        Width of a head; needed where `dim` is not divisible by `num_heads` (the
        published large model: 1024 // 12 = 85).
    shared_ffn : bool
        Whether all layers share one feed-forward, as in the published models.
    activation_checkpointing : bool
        Whether training stores only the inputs of the layers, and computes each layer
        a second time for its gradient: less memory, more time, the same gradients.

    Raises
    ------
    UserError
        If `dim` is not divisible by `num_heads` and no `head_dim` is given.

    Example
    -------
    >>> net = ResiDualTransformer(dim=64, num_layers=3, num_heads=4, ffn_dim=96)
    >>> out = net(torch.zeros(2, 10, 64))
    >>> out.last.shape, len(out.layers)
    (torch.Size([2, 10, 64]), 3)
    """

    # For `pretrained.describe`: how it is trained.
    not_described = ("activation_checkpointing",)

    def __init__(
        self,
        dim,
        num_layers,
        num_heads,
        ffn_dim,
        head_dim=None,
        shared_ffn=True,
        activation_checkpointing=False,
    ):
        super().__init__()
        if head_dim is None:
            if dim % num_heads:
                raise UserError(
                    f"dim={dim} is not divisible by num_heads={num_heads}: change "
                    f"one of them, or give head_dim (e.g. {dim // num_heads})."
                )
            head_dim = dim // num_heads
        self.dim = dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.head_dim = head_dim
        self.shared_ffn = shared_ffn
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            ResiDualLayer(dim, num_heads, head_dim) for _ in range(num_layers)
        )
        self.feed_forwards = nn.ModuleList(
            FeedForward(dim, ffn_dim) for _ in range(1 if shared_ffn else num_layers)
        )
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, x, valid=None, num_layers=None):
        """Transforms.

        Arguments
        ---------
        x : torch.Tensor
            Shape [B, T, D].
        valid : torch.Tensor, optional
            False at padding, bool, shape [B, T]. None: nothing is padding, and
            attention runs without a mask.
        num_layers : int, optional
            Layers to compute, from the first on; default: all.

        Returns
        -------
        TransformerOutput
        """
        a = r = x
        layers = []
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            feed_forward = self.feed_forwards[0 if self.shared_ffn else i]
            if again:
                # A layer has no randomness, so there is no generator to restore.
                a, r = checkpoint(
                    layer,
                    *(a, r, feed_forward, valid),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                a, r = layer(a, r, feed_forward, valid)
            layers.append(a)
            if len(layers) == num_layers:
                break
        last = None
        if len(layers) == len(self.layers):
            last = a + self.final_norm(r)
        return TransformerOutput(last, layers)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoids (sin on even, cos on odd channels) times a learnt scalar.

    Arguments
    ---------
    dim : int
        Width D, even.

    Example
    -------
    >>> SinusoidalPositions(8)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x, positions=None):
        """Adds positions to frames [B, T, D].

        Arguments
        ---------
        x : torch.Tensor
            Shape [B, T, D].
        positions : torch.Tensor, optional
            Of each frame, int64, shape [B, T]; default: 0, 1, ...

        Returns
        -------
        torch.Tensor
            Shape [B, T, D].
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        angles = positions.float()[..., None] * self.frequencies
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return x + self.scale * table
