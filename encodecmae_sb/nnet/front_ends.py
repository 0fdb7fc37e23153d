"""Front ends: from a waveform to the frames that the encoder sees.

Shapes: B items, N samples, T frames, W samples per window, F channels.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.precision import exact_float32

from .encodec import build_encodec, freeze
from .level import at_reference, check_normalise

# Channels of EnCodec before quantisation, whatever its width.
_LATENT_DIM = 128


class LogMel(nn.Module):
    """Kaldi's log-mel filterbank, for a whole batch at once, on its device.

    Frames equal those of `torchaudio.compliance.kaldi.fbank` (Hann window, no
    dither, DC removal, pre-emphasis 0.97, FFT 1024) and are then normalised.
    Autocast and TF32 have no effect on them.

    A waveform of N samples gives, with hop H and window W,

    * centred (models trained here): ceil(N / H) frames; frame t is centred on the
      samples [t * H, (t + 1) * H) that code frame t describes, the waveform being
      continued with zeros at both ends::

          samples   |0        H|         2H|         3H|
          window 0 [ . .  x  . . ]
          window 1             [ . .  x  . . ]

    * not centred (published models, hop 318): 1 + (N - W) // H frames, Kaldi's
      snipped edges, the first window starting at sample 0.

    Arguments
    ---------
    n_mels : int
        Mel bins from 20 Hz to the Nyquist frequency.
    hop_length : int
        Samples from frame to frame.
    win_length : int
        Samples per window (637 = 26.56 ms).
    sample_rate : int
        In Hz.
    centered : bool
        See above.
    mean, std : float
        Of the logarithm of the energies, for the normalisation.
    normalise : str, optional
        "level": each recording is brought to one level first, so its frames do not
        depend on how loud it was recorded; `encodecmae_sb.nnet.level` says how. None:
        frames show the level.

    Raises
    ------
    UserError
        If there is no such normalisation.

    Example
    -------
    >>> LogMel()(torch.zeros(2, 96000)).shape
    torch.Size([2, 300, 256])
    >>> LogMel(hop_length=318, centered=False).num_frames(96000)
    300
    >>> wavs, front_end = torch.randn(1, 9000), LogMel(normalise="level")
    >>> torch.allclose(front_end(wavs), front_end(0.01 * wavs), atol=1e-3)
    True
    """

    needs_equal_lengths = False
    skips_hidden = True  # `forward` takes `visible`

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # A `forward` of its own may not take it, unless the class says so.
        if "forward" in vars(cls) and "skips_hidden" not in vars(cls):
            cls.skips_hidden = False

    def __init__(
        self,
        n_mels=256,
        hop_length=HOP,
        win_length=637,
        sample_rate=SAMPLE_RATE,
        centered=True,
        mean=-6.12,
        std=4.82,
        normalise=None,
    ):
        super().__init__()
        self.dim = self.n_mels = n_mels
        self.hop_length = hop_length
        self.win_length = win_length
        self.sample_rate = sample_rate
        self.centered = centered
        self.mean = mean
        self.std = std
        self.normalise = check_normalise(normalise)
        self.n_fft = 2 ** math.ceil(math.log2(win_length))
        banks, _ = torchaudio.compliance.kaldi.get_mel_banks(
            n_mels, self.n_fft, sample_rate, 20.0, 0.0, 100.0, -500.0, 1.0
        )
        # Kaldi leaves out the Nyquist bin.
        self.register_buffer("banks", F.pad(banks, (0, 1)).T, persistent=False)
        window = torch.hann_window(win_length, periodic=False)
        self.register_buffer("window", window, persistent=False)

    def num_frames(self, num_samples):
        """Frames that a waveform gives.

        Arguments
        ---------
        num_samples : int or torch.Tensor of int
            Length in samples.

        Returns
        -------
        int or torch.Tensor of int
        """
        if self.centered:
            # No negative dividend: ONNX rounds quotients of shapes towards 0.
            return (num_samples + self.hop_length - 1) // self.hop_length
        return (num_samples - self.win_length) // self.hop_length + 1

    def forward(self, wavs, levels=None, visible=None):
        """Normalised log-mel energies.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples in [-1, 1], shape [B, N].
        levels : torch.Tensor, optional
            With `normalise`: of the recordings that these are pieces of, shape [B].
            Default: each item is a whole recording, with zeros after its end.
        visible : VisibleFrames, optional
            The frames to compute, V of an item. Default: all.

        Returns
        -------
        torch.Tensor
            float32, shape [B, T, n_mels]; with `visible` [B, V, n_mels].
        """
        with torch.autocast(wavs.device.type, enabled=False):
            # In near silence, single precision would make an error of 1e-4 and more in
            # the logarithm, and a different one on every machine.
            wavs = wavs.to(torch.float32 if wavs.is_mps else torch.float64)
            if self.normalise:
                wavs = at_reference(wavs, levels)
            if self.centered:
                left = (self.win_length - self.hop_length) // 2
                span = (self.num_frames(wavs.shape[1]) - 1) * self.hop_length
                right = max(span + self.win_length - left - wavs.shape[1], 0)
                wavs = F.pad(wavs, (left, right))
            frames = wavs.unfold(1, self.win_length, self.hop_length)  # [B, T, W]
            if visible is not None:
                frames = visible.keep(frames)
            frames = frames - frames.mean(-1, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            # In place: on a CPU new memory takes as long as what is computed.
            frames = frames.sub_(previous.mul_(0.97)).mul_(self.window)
            spectrum = torch.fft.rfft(frames, self.n_fft)
            power = spectrum.real.square().add_(spectrum.imag.square())
            if power.is_cpu:
                power = power.float()  # exact enough: all terms are positive
            # On other devices the product stays in float64, because TF32 never affects
            # float64. (TF32 cannot be turned off in here: this may be compiled.)
            energies = (power @ self.banks.to(power.dtype)).float()
            energies = energies.clamp(min=torch.finfo(torch.float32).eps)
            return (energies.log() - self.mean) / self.std


def check_grid(front_end, audio_rate, target_rate, target_hop, exact=True):
    """Checks that input frame t and target t describe the same audio.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    audio_rate : int
        Rate of the waveforms that it is given, in Hz.
    target_rate : int
        Rate at which targets are counted, in Hz.
    target_hop : int
        Samples from target to target.
    exact : bool
        False allows frames that are nearly as long as targets, as in published
        weights: 4 s have as many frames as targets.

    Raises
    ------
    UserError
        If they do not. The message names both grids.

    Example
    -------
    >>> check_grid(LogMel(), 24000, target_rate=24000, target_hop=320)
    """
    rates = {front_end.sample_rate, audio_rate, target_rate}
    # There must be as many frames as targets: some front ends drop a last frame that
    # is not full.
    same = front_end.hop_length == target_hop and front_end.num_frames(target_hop) == 1
    seconds = 4 * target_rate
    near = not exact and front_end.num_frames(seconds) == seconds // target_hop
    if len(rates) == 1 and (same or near):
        return
    raise UserError(
        "Input frames and targets are not of the same audio.\n"
        f"  front end: a frame every {front_end.hop_length} samples at "
        f"{front_end.sample_rate} Hz, {front_end.num_frames(target_rate)} for "
        f"{target_rate} samples\n"
        f"  targets:   one every {target_hop} samples at {target_rate} Hz, "
        f"{-(-target_rate // target_hop)} for {target_rate} samples\n"
        f"  audio:     sample_rate={audio_rate}\n"
        f"Give front_end in the yaml hop_length: {target_hop}, sample_rate: "
        f"{target_rate} and centered: True, and the yaml sample_rate: {target_rate}."
    )


class CodecLatents(nn.Module):
    """EnCodec's encoder without quantisation, frozen: the input of the "ec-ec" models.

    Arguments
    ---------
    codec : FrozenCodec, optional
        Whose encoder to use. None: `use` gives it one later.
    n_filters : int, optional
        Builds an encoder of this width instead, whose weights are then loaded.
    normalise : str, optional
        As for `LogMel`.

    Raises
    ------
    UserError
        If there is no such normalisation.

    Example
    -------
    >>> from encodecmae_sb.lobes import Codec
    >>> CodecLatents(Codec("bundled"))(torch.zeros(2, 3000)).shape
    torch.Size([2, 10, 128])
    """

    # EnCodec mirrors the end of a signal. So the last, partial frame of an item depends
    # on where the item ends.
    needs_equal_lengths = True
    # For `pretrained.describe`: the weights of the codec are loaded.
    not_described = ("codec",)

    def __init__(self, codec=None, n_filters=None, normalise=None):
        super().__init__()
        self.normalise = check_normalise(normalise)
        self.dim = _LATENT_DIM
        self.hop_length = HOP
        self.sample_rate = SAMPLE_RATE
        self.encoder = self.n_filters = None
        if codec is not None:
            self.use(codec)
        elif n_filters is not None:
            self._use(build_encodec(n_filters, 1))

    def use(self, codec):
        """Takes the encoder of a codec, of any width.

        Arguments
        ---------
        codec : FrozenCodec
        """
        self._use(codec.net)

    def _use(self, net):
        self.encoder = freeze(net.encoder)
        self.n_filters = self.encoder.n_filters
        self.train(False)

    def train(self, mode=True):
        """Stays in eval mode; `mode` is ignored on purpose."""
        return super().train(False)

    def stay_uncompiled(self):
        """Keeps this module out of the graph when a module around it is compiled.

        Its LSTM and its weight normalisation would break the graph many times.
        """
        # Not as a decorator: this makes torch import its compiler, for seconds.
        self.forward = torch.compiler.disable(self.forward)

    def num_frames(self, num_samples):
        """Frames that a waveform gives: ceil(num_samples / 320)."""
        return -(-num_samples // self.hop_length)

    @torch.no_grad()
    def forward(self, wavs, levels=None):
        """Latents.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples in [-1, 1], shape [B, N].
        levels : torch.Tensor, optional
            As for `LogMel`.

        Returns
        -------
        torch.Tensor
            float32, shape [B, ceil(N / 320), 128].

        Raises
        ------
        UserError
            If it has no codec yet.
        """
        if self.encoder is None:
            raise UserError(
                "CodecLatents has no codec yet: give it one with use(codec), or build "
                "it with CodecLatents(codec)."
            )
        if self.normalise:
            wavs = at_reference(wavs, levels)
        with exact_float32(wavs.device.type):
            return self.encoder(wavs.float().unsqueeze(1)).transpose(1, 2)
