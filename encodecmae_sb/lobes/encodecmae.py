"""The trained encoder as a lobe that stands where a recipe has `wav2vec2:`."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.errors import UserError
from encodecmae_sb.resampling import resample, resampling_ratio

from .model import frame_mask
from .pieces import check_layer, select_layer

WEIGHTED = "weighted"


class EnCodecMAE(nn.Module):
    """A pretrained EnCodecMAE encoder for SpeechBrain recipes.

    Takes the place of `wav2vec2` in SpeechBrain's own: waveform and relative lengths
    in, frames out. Features of an item do not depend on the batch it comes in:
    whatever stands after its end is ignored.

    Arguments
    ---------
    source : str, Path or AudioEncoder
        A folder that a recipe exported; the name of published weights, such as
        `mel256-ec-base_st`, fetched once and kept by huggingface_hub; or an encoder
        that is there already.
    freeze : bool
        Keep the encoder as it is: no gradients, eval mode whatever `train()` of an
        enclosing module is called with. The layer weights below stay trainable.
    freeze_feature_extractor : bool
        With `freeze=False`: train the transformer only, not the projection of its
        input and the scale of its positions. (The front ends themselves have nothing
        to train: log-mel has no parameters, codec latents are always frozen.)
    output_all_hiddens : bool
        Give the outputs of all layers, [layers, B, T, D].
    input_sample_rate : int
        Rate of the waveforms, in Hz; they are resampled inside to the encoder's.
    layer : int or str
        `"last"`, `"last_no_norm"` (the last layer without the final norm), a number
        counted from 0, or `"weighted"`: a sum with learnt weights, the softmax of
        `layer_weights`.
    output_norm : bool
        Normalise each frame to mean 0 and variance 1 over its channels.
    piece_seconds : float, optional
        Utterances longer than this are encoded in pieces of this length that do not
        see each other; 4 s is what pretraining has seen, `None` means whole. Kept to
        whole frames.
    pretrained : bool
        False draws new weights for the same architecture, in an encoder of its own:
        the baseline that shows what pretraining is worth. A codec inside, which
        pretraining does not train, stays what it is.

    Raises
    ------
    FileNotFoundError
        If there is no such folder and no such name.
    ValueError
        If it is no encoder folder, the weights cannot be fetched, or an option has
        no meaning.

    Example
    -------
    >>> from encodecmae_sb.export import export_encoder
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> transformer = ResiDualTransformer(64, 2, 4, 96)
    >>> export_encoder(AudioEncoder(LogMel(), transformer), folder)
    >>> lobe = EnCodecMAE(folder, input_sample_rate=16000)
    >>> wavs, wav_lens = torch.rand(2, 16000), torch.tensor([1.0, 0.5])
    >>> lobe(wavs, wav_lens).shape
    torch.Size([2, 75, 64])
    >>> EnCodecMAE(folder, output_all_hiddens=True)(wavs, wav_lens).shape
    torch.Size([2, 2, 75, 64])
    """

    def __init__(
        self,
        source,
        freeze=True,
        freeze_feature_extractor=False,
        output_all_hiddens=False,
        input_sample_rate=16000,
        layer="last",
        output_norm=False,
        piece_seconds=4.0,
        pretrained=True,
    ):
        super().__init__()
        # Here, because that module is itself made of lobes.
        from encodecmae_sb.published import load_encoder_source

        self.encoder = load_encoder_source(source, pretrained)
        self.input_sample_rate = input_sample_rate
        self.output_all_hiddens = output_all_hiddens
        self.layer = layer
        self.output_norm = output_norm
        self.freeze = freeze
        front_end = self.encoder.front_end
        if not isinstance(input_sample_rate, int) or input_sample_rate < 1000:
            raise UserError(
                f"input_sample_rate={input_sample_rate!r}: give the rate of the "
                "waveforms in Hz, a whole number such as 16000."
            )
        self.piece_seconds = piece_seconds
        self.piece = None
        if piece_seconds is not None:
            frames = round(piece_seconds * front_end.sample_rate / 320)
            if frames < 10:
                raise UserError(
                    f"piece_seconds={piece_seconds}: at least 0.14 s, or null to "
                    "encode utterances whole."
                )
            self.piece = 320 * frames
        if layer != WEIGHTED:
            check_layer(self.encoder, layer)
        elif not output_all_hiddens:
            self.layer_weights = nn.Parameter(torch.zeros(self.encoder.num_layers))

        frozen = []
        if freeze:
            frozen = [self.encoder]
        elif freeze_feature_extractor:
            frozen = [self.encoder.projection, self.encoder.positions]
        for module in frozen:
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def dim(self):
        """Width of the features, D."""
        return self.encoder.dim

    def num_frames(self, num_samples):
        """Frames that waveforms give.

        Arguments
        ---------
        num_samples : torch.Tensor
            Lengths at `input_sample_rate`, int64, any shape.

        Returns
        -------
        torch.Tensor
            int64, at least 1, of the same shape.
        """
        front_end = self.encoder.front_end
        samples = self._resampled(num_samples)
        if self.piece is None:
            return front_end.num_frames(samples).clamp(min=1)
        whole = samples // self.piece
        rest = front_end.num_frames(samples % self.piece).clamp(min=0)
        return (whole * front_end.num_frames(self.piece) + rest).clamp(min=1)

    def frame_lens(self, wav_lens, num_samples):
        """Relative lengths of the output, exact to the frame.

        Relative lengths of a waveform stand for whole frames of the output only up to
        rounding, which depends on the batch.

        Arguments
        ---------
        wav_lens : torch.Tensor
            Lengths relative to `num_samples`, shape [B].
        num_samples : int
            Length of the waveforms, N.

        Returns
        -------
        torch.Tensor
            Lengths relative to T, shape [B].
        """
        lengths = (wav_lens * num_samples).round().long()
        return self.num_frames(lengths) / self.num_frames(torch.tensor(num_samples))

    def _resampled(self, num_samples):
        """Samples at the encoder's rate."""
        rate = self.encoder.front_end.sample_rate
        orig, new = resampling_ratio(self.input_sample_rate, rate)
        return -(-num_samples * new // orig)

    def train(self, mode=True):
        """As usual, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def forward(self, wavs, wav_lens=None):
        """Encodes.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples in [-1, 1] at `input_sample_rate`, shape [B, N].
        wav_lens : torch.Tensor, optional
            Lengths relative to N, shape [B]; default: all 1.

        Returns
        -------
        torch.Tensor
            float32, shape [B, T, D], about 75 frames a second; with
            `output_all_hiddens` [layers, B, T, D]. Frames after an item's end hold
            no information.
        """
        with torch.no_grad() if self.freeze else contextlib.nullcontext():
            output = self._encode(wavs.float(), wav_lens)
        if self.output_norm:
            output = F.layer_norm(output, output.shape[-1:])
        if self.layer == WEIGHTED and not self.output_all_hiddens:
            weights = self.layer_weights.softmax(0)
            output = (weights[:, None, None, None] * output).sum(0)
        return output

    def _encode(self, wavs, wav_lens):
        """The layer or layers asked for, float32, [B, T, D] or [layers, B, T, D]."""
        front_end = self.encoder.front_end
        rate = front_end.sample_rate
        original_samples = wavs.shape[1]
        lengths = None
        if wav_lens is not None:
            lengths = (wav_lens * wavs.shape[1]).round().long()  # [B], samples
            wavs = wavs * frame_mask(lengths, wavs.shape[1])
        with torch.autocast(wavs.device.type, enabled=False):
            # In double precision: the noise of single would be all that there is in
            # the bands above the input's, and another for every shape of batch.
            precise = wavs if wavs.is_mps else wavs.double()
            resampled = resample(precise, self.input_sample_rate, rate).float()
        if lengths is not None:
            # The filter rings on after the end of an item.
            lengths = self._resampled(lengths)
            resampled = resampled * frame_mask(lengths, resampled.shape[1])

        # Whole frames: what a codec's encoder gives for a partial one depends on
        # where the waveform ends.
        batch, samples = resampled.shape
        piece = samples + -samples % 320
        if self.piece is not None:
            piece = min(piece, self.piece)
        num_pieces = -(-samples // piece)
        wavs = F.pad(resampled, (0, num_pieces * piece - samples))
        wavs = wavs.view(batch * num_pieces, piece)

        num_frames = None
        if lengths is not None or num_pieces > 1:
            if lengths is None:
                lengths = torch.full([batch], samples, device=wavs.device)
            starts = piece * torch.arange(num_pieces, device=wavs.device)
            inside = (lengths[:, None] - starts).clamp(0, piece)  # [B, pieces]
            # A piece of padding attends to its first frame: something must be there.
            num_frames = front_end.num_frames(inside).clamp(min=1).flatten()
        layer = self.layer
        if self.output_all_hiddens or layer == WEIGHTED:
            layer = "all"
        output = select_layer(self.encoder(wavs, num_frames), layer).float()
        per_piece, dim = output.shape[-2:]
        output = output.reshape(*output.shape[:-3], batch, num_pieces * per_piece, dim)
        total = self.num_frames(torch.tensor(original_samples))
        return output[..., : int(total), :]
