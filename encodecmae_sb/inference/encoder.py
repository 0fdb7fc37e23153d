"""Pretrained interfaces, reached through SpeechBrain's `foreign_class`."""

import contextlib
from pathlib import Path

import torch
from speechbrain.inference.interfaces import Pretrained

from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    stream_audio,
)
from encodecmae_sb.nnet.chunks import (
    CHUNK,
    check_layer,
    encode_in_chunks,
    is_dropped,
    normalises,
    num_joined_frames,
    pad_items,
)
from encodecmae_sb.nnet.lengths import absolute_lengths
from encodecmae_sb.nnet.level import block_sums, level_of
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.signal import resample


def read_file(path, sample_rate):
    """Reads a file of any rate, mono or not (channels are averaged).

    Arguments
    ---------
    path : str or Path
        WAV, FLAC, OGG or MP3.
    sample_rate : int
        Of the result, in Hz.

    Returns
    -------
    torch.Tensor
        Shape [N].

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UserError
        If it cannot be read.
    """
    with _says_which_file(path):
        return read_audio(path, sample_rate)


@contextlib.contextmanager
def _says_which_file(path):
    """Turns an `UnusableAudio` into an error that names the file."""
    try:
        yield
    except UnusableAudio as error:
        if not Path(path).exists():
            raise FileNotFoundError(f"No such audio file: {path}") from error
        raise UserError(f"{path}: {error}") from error


def check_batch(wavs, wav_lens, sample_rate, target_rate):
    """Checks a padded batch of waveforms and brings it to a rate.

    Arguments
    ---------
    wavs : torch.Tensor
        Mono samples in [-1, 1], shape [B, N].
    wav_lens : torch.Tensor or None
        Lengths relative to N, shape [B]; None: all 1.
    sample_rate : int or None
        Rate of `wavs`; None: the target rate.
    target_rate : int
        Rate of the result, in Hz.

    Returns
    -------
    wavs : torch.Tensor
        Shape [B, N'].
    lengths : list of int
        Samples of each item.

    Raises
    ------
    UserError
        If shapes or values are off.
    """
    if wavs.dim() != 2:
        raise UserError(f"wavs: [batch, samples] expected, not {list(wavs.shape)}")
    if not torch.isfinite(wavs).all():
        raise UserError("wavs hold non-finite samples (NaN or Inf)")
    if wav_lens is None:
        wav_lens = torch.ones(len(wavs))
    # Not (any outside): that would let NaN pass.
    inside = bool(((wav_lens > 0) & (wav_lens <= 1)).all())
    if len(wavs) == 0 or len(wav_lens) != len(wavs) or not inside:
        raise UserError(
            f"wav_lens={wav_lens.tolist()}: one number in (0, 1] is needed for "
            f"each of the {len(wavs)} items."
        )
    lengths = absolute_lengths(wav_lens.cpu().double(), wavs.shape[1]).tolist()
    if min(lengths) < 1:
        raise UserError(
            f"wav_lens={wav_lens.tolist()}: an item has no samples. They are relative "
            f"to the {wavs.shape[1]} samples of the batch."
        )
    if sample_rate is not None and sample_rate != target_rate:
        # Item by item, so that the padding does not leak into the last samples.
        items = [
            resample(wav[:length], sample_rate, target_rate)
            for wav, length in zip(wavs, lengths, strict=True)
        ]
        lengths = [len(item) for item in items]
        wavs = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
    return wavs, lengths


class EnCodecMAEEncoder(Pretrained):
    """Features of an EnCodecMAE encoder, about 75 a second.

    Audio longer than 4 s is encoded in chunks of 4 s, as in pretraining. Of
    SpeechBrain's run options `device` and `precision` (fp32, bf16, fp16) count here;
    features are float32 in any case.

    Example
    -------
    >>> from speechbrain.inference.interfaces import foreign_class
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.pretrained.folder import export_encoder
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> transformer = ResiDualTransformer(64, 2, 4, 96)
    >>> export_encoder(AudioEncoder(LogMel(), transformer), folder)
    >>> encoder = foreign_class(
    ...     source=str(folder),
    ...     pymodule_file="custom_interface.py",
    ...     classname="EnCodecMAEEncoder",
    ... )
    >>> path = sorted(speech_folder().rglob("*.flac"))[0]
    >>> encoder.encode_file(path).shape[1]
    64
    >>> frames = sum(len(chunk) for chunk in encoder.encode_stream(path))
    >>> [frames, 64] == encoder.output_shape(path)
    True
    >>> features, lengths = encoder.encode_batch(
    ...     torch.zeros(2, 24000), torch.tensor([1.0, 0.5])
    ... )
    >>> features.shape, lengths
    (torch.Size([2, 75, 64]), tensor([75, 38]))
    """

    MODULES_NEEDED = ["encoder"]

    @property
    def sample_rate(self):
        """Rate that `encode_batch` expects, in Hz."""
        return self.mods.encoder.front_end.sample_rate

    def encode_file(self, path, layer="last"):
        """Encodes an audio file of any rate, mono or not (channels are averaged).

        The file is read in parts while it is encoded: an hour of audio takes little
        more memory than its features. If the features do not fit into memory, use
        `encode_stream`.

        Arguments
        ---------
        path : str or Path
            WAV, FLAC, OGG or MP3.
        layer : int or str
            `"last"`, `"last_no_norm"` (the last layer without the final norm), the
            number of a layer counted from 0, or `"all"`.

        Returns
        -------
        torch.Tensor
            Shape [T, D], with `"all"` [layers, T, D].

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        UserError
            If it cannot be read or is shorter than a frame.
        """
        shape = self.output_shape(path, layer)
        features = torch.empty(shape, device=self.device)
        done = 0
        for chunk in self._stream(path, layer):
            features[..., done : done + chunk.shape[-2], :] = chunk
            done += chunk.shape[-2]
        return features

    def encode_stream(self, path, layer="last", batch_size=8):
        """Encodes an audio file part by part; memory does not grow with its length.

        Arguments
        ---------
        path : str or Path
            WAV, FLAC, OGG or MP3, of any length, rate and number of channels.
        layer : int or str
            As for `encode_file`.
        batch_size : int
            Number of chunks of 4 s in a part, which are encoded at once. A GPU is
            faster with more. Memory grows with it (base model on a CPU: about 30 MB
            for each chunk, 75 MB with codec latents as input).

        Yields
        ------
        torch.Tensor
            The next features, shape [t, D], with `"all"` [layers, t, D]. Joined
            along t they are what `encode_file` gives.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        UserError
            If it is shorter than a frame, or when a part cannot be read.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: at least 1 is needed.")
        self.output_shape(path, layer)  # raises if the file cannot be used
        yield from self._stream(path, layer, batch_size)

    def _stream(self, path, layer, batch_size=8):
        """`encode_stream` of a file that was checked."""
        parts = stream_audio(path, self.sample_rate, batch_size * CHUNK)
        with _says_which_file(path):
            levels = self._levels(path)
            for number, wav in enumerate(parts):
                if is_dropped(len(wav), number * batch_size):
                    return  # this part is nothing but a short tail
                yield self._encode(wav[None], None, layer, batch_size, levels)[0]

    def _levels(self, path):
        """The level of a file, [1], which is read for it; None if it is not needed."""
        if not normalises(self.mods.encoder.front_end):
            return None
        parts = stream_audio(path, self.sample_rate, CHUNK)
        return level_of(sum(block_sums(part[None]) for part in parts))

    def output_shape(self, path, layer="last"):
        """Shape of a file's features, from its header alone.

        Arguments
        ---------
        path : str or Path
        layer : int or str
            As for `encode_file`.

        Returns
        -------
        list of int
            [T, D], with `"all"` [layers, T, D].

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        UserError
            If it cannot be read, is truncated, or is shorter than a frame, or if
            `layer` is unknown.
        """
        encoder = self.mods.encoder
        check_layer(encoder, layer)
        with _says_which_file(path):
            # NaN and Inf are found later, when the samples are read.
            info = inspect_audio(path, min_seconds=0, check_values=False)
        samples = info.samples_at(self.sample_rate)
        frames = num_joined_frames(encoder.front_end, samples)
        if frames < 1:
            raise UserError(
                f"{path} is {1000 * info.duration:.1f} ms long, which is less than a "
                "frame of the encoder's front end"
            )
        shape = [frames, encoder.dim]
        return [encoder.num_layers, *shape] if layer == "all" else shape

    def encode_batch(self, wavs, wav_lens=None, layer="last", sample_rate=None):
        """Encodes a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples in [-1, 1], shape [B, N].
        wav_lens : torch.Tensor, optional
            Lengths relative to N, shape [B]; default: all 1.
        layer : int or str
            As for `encode_file`.
        sample_rate : int, optional
            Rate of `wavs`; default: the encoder's own, 24 000 Hz.

        Returns
        -------
        features : torch.Tensor
            Shape [B, T, D], with `"all"` [layers, B, T, D]; zeros after the end of
            an item.
        lengths : torch.Tensor
            Frames of each item, int64, shape [B].

        Raises
        ------
        UserError
            If an item is shorter than a frame, or shapes or values are off.
        """
        wavs, lengths = check_batch(wavs, wav_lens, sample_rate, self.sample_rate)
        items = self._encode(wavs, lengths, layer)
        frames = torch.tensor([item.shape[-2] for item in items])
        return pad_items(items, int(frames.max())), frames

    def forward(self, wavs, wav_lens=None):
        """Same as `encode_batch`."""
        return self.encode_batch(wavs, wav_lens)

    @torch.no_grad()
    def _encode(self, wavs, lengths, layer, batch_size=16, levels=None):
        with self.inference_ctx:
            items = encode_in_chunks(
                self.mods.encoder, wavs, lengths, layer, batch_size, levels=levels
            )
        return [item.float() for item in items]
