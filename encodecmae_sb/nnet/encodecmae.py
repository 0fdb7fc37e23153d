"""EnCodecMAE: the encoder, and the masked model that pretrains it.

    waveform -> [visible] -> front end -> projection -> positions -> transformer
             -> decoder projection -> zeros at hidden frames -> decoder -> codes

Shapes: B items, N samples, T frames, F channels of the front end, V most visible
frames of an item, D width of the encoder, Q codebooks.
"""

import torch.nn.functional as F
from torch import nn

from .masking import frame_mask
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

    def forward(self, wavs, num_frames=None, visible=None):
        """Encodes waveforms: all of their frames, or the visible ones.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at the front end's rate in [-1, 1], shape [B, N].
        num_frames : torch.Tensor, optional
            Valid frames of each item, int64, shape [B]; later ones are not attended
            to. None: all frames are valid.
        visible : VisibleFrames, optional
            The frames to encode, as in pretraining. The others are dropped: V frames
            are computed in place of T.

        Returns
        -------
        TransformerOutput
        """
        if visible is None:
            frames = self.front_end(wavs)
        elif getattr(self.front_end, "skips_hidden", False):
            frames = self.front_end(wavs, visible=visible)
        else:
            frames = visible.keep(self.front_end(wavs))
        return self.encode(frames, num_frames, visible)

    def encode(self, frames, num_frames=None, visible=None, num_layers=None):
        """Encodes what the front end has given.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [B, T, F]; with `visible` these frames alone, [B, V, F].
        num_frames, visible
            As for `forward`.
        num_layers : int, optional
            Layers to compute, from the first on; default: all.

        Returns
        -------
        TransformerOutput
        """
        x = self.projection(frames).float()
        attended = None
        if visible is not None:
            x = self.positions(x, visible.positions)  # [B, V, D]
            attended = visible.real if visible.padded else None
        else:
            x = self.positions(x)  # [B, T, D]
            if num_frames is not None:
                attended = frame_mask(num_frames, frames.shape[1])
        return self.transformer(x, attended, num_layers)


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
    >>> from encodecmae_sb.nnet.masking import FrameMask
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> model = MaskedCodecModel(encoder, ResiDualTransformer(64, 1, 4, 96))
    >>> hidden = torch.zeros(2, 75, dtype=torch.bool)
    >>> hidden[:, 10:47] = True
    >>> model(torch.zeros(2, 24000), FrameMask.of(hidden)).shape
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
        self.codebook_size = codebook_size

    def forward(self, wavs, mask, codebooks=None):
        """Predicts codes.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at the front end's rate in [-1, 1], shape [B, N].
        mask : FrameMask
            Of the T frames that the front end gives for N samples.
        codebooks : torch.Tensor, optional
            Numbers of those to predict, int64, shape [n]. Default: all Q.

        Returns
        -------
        torch.Tensor
            Logits, shape [B, T, Q, codebook_size], with n in place of Q if `codebooks`
            are given.
        """
        visible = mask.visible_frames()
        kept = self.encoder(wavs, visible=visible).last  # [B, V, D]
        kept = self.bridge(kept).float()  # the decoder projection
        full = visible.restore(kept, mask.hidden.shape[1])
        full = self.decoder(self.positions(full), mask.valid).last  # [B, T, width]
        if codebooks is None:
            return self.head(full).unflatten(-1, (self.n_codebooks, -1))
        # Only these rows are multiplied. Which ones is data: nothing is compiled again.
        weight, bias = (
            rows.unflatten(0, (self.n_codebooks, -1)).index_select(0, codebooks)
            for rows in (self.head.weight, self.head.bias)
        )
        logits = F.linear(full, weight.flatten(0, 1), bias.flatten())
        return logits.unflatten(-1, (len(codebooks), -1))
