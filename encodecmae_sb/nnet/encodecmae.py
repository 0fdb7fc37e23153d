"""The encoder, and the masked model that pretrains it."""

import torch
from torch import nn

from .masking import keep_visible, restore_positions
from .transformer import SinusoidalPositions


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
        return self._embed(self.front_end(wavs))

    def _embed(self, frames):
        return self.positions(self.projection(frames).float())

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
        return self.encode(self.front_end(wavs), num_frames)

    def encode(self, frames, num_frames=None, num_layers=None):
        """Encodes what the front end has given.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [B, T, F].
        num_frames : torch.Tensor, optional
            As for `forward`.
        num_layers : int, optional
            Layers to compute, from the first on; default: all.

        Returns
        -------
        TransformerOutput
        """
        valid = None
        if num_frames is not None:
            valid = frame_mask(num_frames, frames.shape[1])
        return self.transformer(self._embed(frames), valid, num_layers)


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
