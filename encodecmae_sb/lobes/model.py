"""The encoder, and the masked model that pretrains it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .masking import keep_visible, restore_positions
from .transformer import SinusoidalPositions

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


def _linear(in_features, out_features):
    """A linear layer initialised as in the paper."""
    linear = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class AudioEncoder(nn.Module):
    """What remains of pretraining: front end, projection, positions, transformer.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
        Waveform [B, N] -> frames [B, T, F].
    transformer : ResiDualTransformer
        [B, T, D] -> [B, T, D].

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> encoder(torch.zeros(2, 24000)).last.shape
    torch.Size([2, 75, 64])
    """

    def __init__(self, front_end, transformer):
        super().__init__()
        self.front_end = front_end
        self.projection = _linear(front_end.dim, transformer.dim)
        self.positions = SinusoidalPositions(transformer.dim)
        self.transformer = transformer

    @property
    def dim(self):
        """Width of the features, D."""
        return self.transformer.dim

    @property
    def num_layers(self):
        """Number of transformer layers."""
        return len(self.transformer.layers)

    def embed(self, wavs):
        """Frames before the transformer, with their positions, [B, T, D]."""
        return self.positions(self.projection(self.front_end(wavs)).float())

    def forward(self, wavs, num_frames=None):
        """Encodes everything, nothing masked.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at 24 kHz in [-1, 1], shape [B, N].
        num_frames : torch.Tensor, optional
            Valid frames of each item, shape [B]; later ones are not attended to.
            None: all frames are valid.

        Returns
        -------
        TransformerOutput
        """
        frames = self.embed(wavs)
        valid = None
        if num_frames is not None:
            valid = frame_mask(num_frames, frames.shape[1])
        return self.transformer(frames, valid)


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


class MaskedCodecModel(nn.Module):
    """EnCodecMAE: encode the visible frames, predict the codes of all.

    Arguments
    ---------
    encoder : AudioEncoder
        Sees only the visible frames.
    decoder : ResiDualTransformer
        Sees all positions, hidden ones as zeros.
    n_codebooks : int
        Targets per frame, Q.
    codebook_size : int
        Classes per target.

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> model = MaskedCodecModel(encoder, ResiDualTransformer(64, 1, 4, 96))
    >>> masked = torch.zeros(2, 75, dtype=torch.bool)
    >>> masked[:, 10:47] = True
    >>> model(torch.zeros(2, 24000), masked).shape
    torch.Size([2, 75, 8, 1024])
    """

    def __init__(self, encoder, decoder, n_codebooks=8, codebook_size=1024):
        super().__init__()
        self.encoder = encoder
        self.bridge = _linear(encoder.dim, decoder.dim)
        self.positions = SinusoidalPositions(decoder.dim)
        self.decoder = decoder
        self.head = _linear(decoder.dim, n_codebooks * codebook_size)
        self.n_codebooks = n_codebooks

    def forward(self, wavs, masked, valid=None, max_visible=None):
        """Predicts codes.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at 24 kHz in [-1, 1], shape [B, N].
        masked : torch.Tensor
            True at hidden frames, bool, shape [B, T].
        valid : torch.Tensor, optional
            False at padding, bool, shape [B, T]; None: no padding, and the same
            number of hidden frames in every item.
        max_visible : int, optional
            Largest number of visible frames of an item. Giving it saves asking
            the device.

        Returns
        -------
        torch.Tensor
            Logits, shape [B, T, Q, codebook_size].
        """
        visible = ~masked if valid is None else ~masked & valid
        if max_visible is None:
            max_visible = int(visible.sum(1).max())
        frames = self.encoder.embed(wavs)
        kept, positions, kept_valid = keep_visible(frames, visible, max_visible)
        attended = None if valid is None else kept_valid
        kept = self.encoder.transformer(kept, attended).last  # [B, Tv, D]
        full = restore_positions(
            self.bridge(kept).float(), positions, kept_valid, frames.shape[1]
        )
        full = self.decoder(self.positions(full), valid).last  # [B, T, D]
        return self.head(full).unflatten(-1, (self.n_codebooks, -1))


@dataclass
class MaskedLoss:
    """The loss and what it is made of; all tensors stay on the device.

    Arguments
    ---------
    loss : torch.Tensor
        What is minimised, scalar.
    masked_loss, visible_loss : torch.Tensor
        Weighted cross-entropy on hidden and on visible frames, scalars.
    masked_ce, visible_ce : torch.Tensor
        Cross-entropy of each codebook, unweighted, in nats, shape [Q].
    masked_accuracy : torch.Tensor
        Share of hidden frames whose most probable code is right, shape [Q].
    """

    loss: torch.Tensor
    masked_loss: torch.Tensor
    visible_loss: torch.Tensor
    masked_ce: torch.Tensor
    visible_ce: torch.Tensor
    masked_accuracy: torch.Tensor


class MaskedCodecLoss(nn.Module):
    """Cross-entropy on hidden and, with less weight, on visible frames.

    Arguments
    ---------
    n_codebooks : int
        Codebooks, Q; with 8 or fewer the paper's weights of the first Q, scaled to
        a sum of 1, with more the same weight for all.
    masked_weight : float
        Weight of the hidden frames; the visible ones have the rest of 1.

    Example
    -------
    >>> logits, codes = torch.zeros(2, 10, 8, 1024), torch.zeros(2, 10, 8).long()
    >>> masked = torch.arange(10).expand(2, 10) < 5
    >>> loss = MaskedCodecLoss()(logits, codes, masked)
    >>> round(loss.masked_ce[0].item(), 3)  # log(1024)
    6.931
    """

    def __init__(self, n_codebooks=8, masked_weight=0.9):
        super().__init__()
        weights = torch.tensor(CODEBOOK_WEIGHTS[:n_codebooks])
        if n_codebooks > len(CODEBOOK_WEIGHTS):
            weights = torch.ones(n_codebooks)
        if n_codebooks != len(CODEBOOK_WEIGHTS):
            weights = weights / weights.sum()
        self.register_buffer("weights", weights, persistent=False)
        self.masked_weight = masked_weight

    @staticmethod
    def count(masked, valid=None):
        """Numbers of hidden and of visible frames of a batch, float32, shape [2].

        Arguments
        ---------
        masked, valid : torch.Tensor
            As for `forward`.

        Returns
        -------
        torch.Tensor
        """
        hidden, visible = _split(masked, valid)
        return torch.stack([hidden.sum(), visible.sum()]).float()

    def forward(self, logits, codes, masked, valid=None, counts=None):
        """Computes the loss, in float32 whatever autocast says.

        Arguments
        ---------
        logits : torch.Tensor
            Shape [B, T, Q, K].
        codes : torch.Tensor
            int64, shape [B, T, Q].
        masked : torch.Tensor
            True at hidden frames, bool, shape [B, T].
        valid : torch.Tensor, optional
            False at padding, which counts neither as hidden nor as visible.
        counts : torch.Tensor, optional
            What the sums over hidden and over visible frames are divided by, shape
            [2]; default: the numbers of such frames in the batch. Processes that
            share a step give the mean of theirs: the mean of their losses is then
            that of all their frames together.

        Returns
        -------
        MaskedLoss
        """
        counts = self.count(masked, valid) if counts is None else counts
        hidden, visible = _split(masked, valid)
        with torch.autocast(logits.device.type, enabled=False):
            # One copy in float32 for both: in bf16 argmax is several times slower.
            logits = logits.flatten(0, 2).float()
            ce = F.cross_entropy(logits, codes.flatten(), reduction="none")
            ce = ce.view(codes.shape)
            right = logits.detach().argmax(-1).view(codes.shape) == codes

            def mean(values, where, count):
                total = (values * where[..., None]).sum((0, 1))
                return total / count.clamp(min=torch.finfo(count.dtype).tiny)

            masked_ce = mean(ce, hidden, counts[0])
            visible_ce = mean(ce, visible, counts[1])
            masked_loss = (self.weights * masked_ce).sum()
            visible_loss = (self.weights * visible_ce).sum()
            share = self.masked_weight
            return MaskedLoss(
                loss=share * masked_loss + (1 - share) * visible_loss,
                masked_loss=masked_loss,
                visible_loss=visible_loss,
                masked_ce=masked_ce.detach(),
                visible_ce=visible_ce.detach(),
                masked_accuracy=mean(right, hidden, hidden.sum().float()),
            )


def _split(masked, valid):
    """Which frames are hidden and which visible, both bool, [B, T]."""
    if valid is None:
        return masked, ~masked
    return masked & valid, ~masked & valid
