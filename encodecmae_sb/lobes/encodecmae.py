"""The trained encoder as a lobe, used where a SpeechBrain recipe has `wav2vec2:`."""

import contextlib
import logging

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.nnet.chunks import (
    check_layer,
    encode_in_chunks,
    num_joined_frames,
    pad_items,
    shortest_item,
    unused_modules,
)
from encodecmae_sb.nnet.heads import sum_layers
from encodecmae_sb.nnet.lengths import absolute_lengths
from encodecmae_sb.nnet.masking import frame_mask
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP
from encodecmae_sb.utils.signal import resample, resampling_ratio

WEIGHTED = "weighted"
# Training passes after which weights of a sum that are still 0 have no optimizer.
_PASSES = 1000

logger = logging.getLogger(__name__)


class EnCodecMAE(nn.Module):
    """A pretrained EnCodecMAE encoder for SpeechBrain recipes.

    Replaces `wav2vec2` in SpeechBrain's recipes: waveforms and relative lengths in,
    frames out. Features of an item do not depend on its batch: samples after its end
    are ignored. The features are those of the interfaces; see the rule at the top of
    `encodecmae_sb.nnet.chunks`. There is one difference: the lobe adds silence to an
    item that is shorter than a frame, where the interfaces refuse it.

    Arguments
    ---------
    source : str, Path or AudioEncoder
        A folder that a recipe exported; the name of published weights, such as
        `mel256-ec-base_st`, or `user/name` or `user/name@revision` on the Hugging Face
        hub, fetched once and kept by huggingface_hub; or an `AudioEncoder`.
    freeze : bool
        Keep the encoder as it is: no gradients, and always eval mode, even after
        `train()` of an enclosing module. The layer weights below stay trainable.
        Without `freeze`, only modules that the output depends on are trained: with an
        inner layer, the layers after it are not.
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
        `layer_weights`. These are parameters of the lobe. They learn only if an
        optimizer has them: in `asr_ctc.py` one has, in SpeechBrain's own recipes none
        has if the lobe is frozen. There use `output_all_hiddens` and a `LayerSum`.
    output_norm : bool
        Normalise each frame to mean 0 and variance 1 over its channels.
    chunk_seconds : float, optional
        Utterances longer than this are encoded in chunks of this length that do not
        see each other; 4 s is what pretraining has seen, `None` means whole. Kept to
        whole frames. After whole chunks a tail of 2048 samples or fewer (85 ms) is
        dropped.
    pretrained : bool
        False builds a new encoder of the same architecture with random weights: a
        baseline that shows what pretraining is worth. A codec inside keeps its
        weights, because pretraining does not train it.
    whole_codec_frames : bool
        Give an item `samples // 320` frames, as published encoders do in padded
        batches. By default an item has all frames that the front end gives for it
        alone, as published encoders do with whole files.

    Raises
    ------
    FileNotFoundError
        If there is no such folder and no such name.
    UserError
        If it is no encoder folder, the weights cannot be fetched, or an option has
        no meaning.

    Example
    -------
    >>> from encodecmae_sb.pretrained.folder import export_encoder
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

    # For `pretrained.describe`: how it is trained, and what its weights start from.
    not_described = ("freeze", "freeze_feature_extractor", "pretrained")

    def __init__(
        self,
        source,
        freeze=True,
        freeze_feature_extractor=False,
        output_all_hiddens=False,
        input_sample_rate=16000,
        layer="last",
        output_norm=False,
        chunk_seconds=4.0,
        pretrained=True,
        whole_codec_frames=False,
    ):
        super().__init__()
        self.encoder = load_encoder_source(source, pretrained)
        self.input_sample_rate = input_sample_rate
        self.output_all_hiddens = output_all_hiddens
        self.layer = layer
        self.output_norm = output_norm
        self.freeze = freeze
        self.whole_codec_frames = whole_codec_frames
        front_end = self.encoder.front_end
        if not isinstance(input_sample_rate, int) or input_sample_rate < 1000:
            raise UserError(
                f"input_sample_rate={input_sample_rate!r}: give the rate of the "
                "waveforms in Hz, a whole number such as 16000."
            )
        self.chunk_seconds = chunk_seconds
        self.chunk = None
        if chunk_seconds is not None:
            frames = round(chunk_seconds * front_end.sample_rate / HOP)
            if frames < 10:
                raise UserError(
                    f"chunk_seconds={chunk_seconds}: at least 0.14 s, or null to "
                    "encode utterances whole."
                )
            self.chunk = HOP * frames
        if layer != WEIGHTED:
            check_layer(self.encoder, layer)
        elif not output_all_hiddens:
            self.layer_weights = nn.Parameter(torch.zeros(self.encoder.num_layers))
        self._passes = 0
        self.computed = "all" if output_all_hiddens or layer == WEIGHTED else layer

        # With several processes, each waits for gradients of all that is trained.
        frozen = unused_modules(self.encoder, self.computed)
        if freeze:
            frozen = [self.encoder]
        elif freeze_feature_extractor:
            frozen += [self.encoder.projection, self.encoder.positions]
        for module in frozen:
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def source(self):
        """The encoder, from which a lobe like this one can be made."""
        return self.encoder

    @property
    def weights(self):
        """The `layer_weights`, under the name that SpeechBrain's MP3S asks for."""
        return self.layer_weights

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
        counts = [self._num_frames(n) for n in num_samples.flatten().cpu().tolist()]
        counts = torch.tensor(counts, dtype=torch.int64, device=num_samples.device)
        return counts.view_as(num_samples)

    def _num_frames(self, num_samples):
        """`num_frames` of one length, an int."""
        front_end = self.encoder.front_end
        samples = max(self._resampled(num_samples), self._shortest_item())
        return num_joined_frames(
            front_end, samples, self.chunk, self.whole_codec_frames
        )

    def _shortest_item(self):
        return shortest_item(self.encoder.front_end, self.whole_codec_frames)

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
        num_samples = None
        if wav_lens is not None:
            num_samples = absolute_lengths(wav_lens, wavs.shape[1])
        return self.encode(wavs, num_samples)[0]

    def encode(self, wavs, num_samples=None):
        """Encodes, with lengths as counts.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples in [-1, 1] at `input_sample_rate`, shape [B, N].
        num_samples : torch.Tensor, optional
            Samples of each item, int64, shape [B], on any device; default: N.

        Returns
        -------
        frames : torch.Tensor
            As `forward`.
        num_frames : torch.Tensor
            Frames of each item, int64, shape [B].
        """
        if num_samples is None:
            num_samples = torch.full((len(wavs),), wavs.shape[1])
        with contextlib.nullcontext() if self._learns() else torch.no_grad():
            frames = self._encode(wavs.float(), num_samples)
        if self.output_norm:
            frames = F.layer_norm(frames, frames.shape[-1:])
        if self.layer == WEIGHTED and not self.output_all_hiddens:
            frames = sum_layers(frames, self.layer_weights)
            self._warn_if_nothing_learns()
        return frames, self.num_frames(num_samples).to(frames.device)

    def _learns(self):
        """Whether gradients are wanted; in a frozen encoder only adapters may learn."""
        parameters = self.encoder.parameters()
        return not self.freeze or any(p.requires_grad for p in parameters)

    def _warn_if_nothing_learns(self):
        if not (self.training and torch.is_grad_enabled()):
            return
        self._passes += 1
        if self._passes == _PASSES and not self.layer_weights.any():
            logger.warning(
                "layer: weighted has not learnt anything in %d passes: no optimizer "
                "has the lobe's layer_weights. Use output_all_hiddens: True and "
                "encodecmae_sb.lobes.LayerSum in a module that is trained.",
                _PASSES,
            )

    def _encode(self, wavs, lengths):
        """The layer or layers asked for, float32, [B, T, D] or [layers, B, T, D]."""
        samples = wavs.shape[1]
        num_frames = self._num_frames(samples)
        wavs = wavs * frame_mask(lengths.to(wavs.device), samples)
        rate = self.encoder.front_end.sample_rate
        if self.input_sample_rate != rate:
            wavs, lengths = self._resample(wavs, rate), self._resampled(lengths)
            # The filter rings on after the end of an item.
            wavs = wavs * frame_mask(lengths.to(wavs.device), wavs.shape[1])

        shortest = self._shortest_item()
        # (torchaudio works out the length of long audio to a sample or two.)
        needed = max(shortest, self._resampled(samples))
        items = encode_in_chunks(
            self.encoder,
            F.pad(wavs, (0, max(0, needed - wavs.shape[1]))),
            lengths.cpu().clamp(min=shortest).tolist(),
            self.computed,
            batch_size=None,
            chunk=self.chunk,
            whole_codec_frames=self.whole_codec_frames,
        )
        return pad_items(items, num_frames).float()

    def _resample(self, wavs, rate):
        with torch.autocast(wavs.device.type, enabled=False):
            # Use double precision: in bands above those of the input there is only
            # rounding noise, and that of single precision differs with the batch.
            precise = wavs if wavs.is_mps else wavs.double()
            return resample(precise, self.input_sample_rate, rate).float()
