"""Front ends: from a waveform to the frames that the encoder sees."""

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import exact_float32

from .encodec import build_encodec, freeze


class LogMel(nn.Module):
    """Kaldi's log-mel filterbank, for a whole batch at once, on its device.

    Frames equal those of `torchaudio.compliance.kaldi.fbank` (Hann window, no
    dither, DC removal, pre-emphasis 0.97, FFT 1024) and are then normalised.
    Neither autocast nor TF32 reaches in here.

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

    Example
    -------
    >>> LogMel()(torch.zeros(2, 96000)).shape
    torch.Size([2, 300, 256])
    >>> LogMel(hop_length=318, centered=False).num_frames(96000)
    300
    """

    needs_equal_lengths = False

    def __init__(
        self,
        n_mels=256,
        hop_length=320,
        win_length=637,
        sample_rate=24000,
        centered=True,
        mean=-6.12,
        std=4.82,
    ):
        super().__init__()
        self.dim = self.n_mels = n_mels
        self.hop_length = hop_length
        self.win_length = win_length
        self.sample_rate = sample_rate
        self.centered = centered
        self.mean = mean
        self.std = std
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
            return -(-num_samples // self.hop_length)
        return (num_samples - self.win_length) // self.hop_length + 1

    def forward(self, wavs):
        """Normalised log-mel energies.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples in [-1, 1], shape [B, N].

        Returns
        -------
        torch.Tensor
            float32, shape [B, T, n_mels].
        """
        with torch.autocast(wavs.device.type, enabled=False):
            # Where there is next to no sound, single precision leaves an error of
            # 1e-4 and more in the logarithm, another on every machine.
            wavs = wavs.to(torch.float32 if wavs.is_mps else torch.float64)
            if self.centered:
                left = (self.win_length - self.hop_length) // 2
                span = (self.num_frames(wavs.shape[1]) - 1) * self.hop_length
                right = max(span + self.win_length - left - wavs.shape[1], 0)
                wavs = F.pad(wavs, (left, right))
            frames = wavs.unfold(1, self.win_length, self.hop_length)  # [B, T, W]
            frames = frames - frames.mean(-1, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = (frames - 0.97 * previous) * self.window
            spectrum = torch.fft.rfft(frames, self.n_fft)
            power = spectrum.real.square() + spectrum.imag.square()
            if power.is_cpu:
                power = power.float()  # sums of positive terms lose nothing
            # On other devices the product stays in float64, which TF32 never
            # affects. (Turning TF32 off here would not work: this may be compiled.)
            energies = (power @ self.banks.to(power.dtype)).float()
            energies = energies.clamp(min=torch.finfo(torch.float32).eps)
            return (energies.log() - self.mean) / self.std


def check_grid(front_end, audio_rate, target_rate, target_hop):
    """Makes sure that input frame t and target t are of the same audio.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    audio_rate : int
        Rate of the waveforms that it is given, in Hz.
    target_rate : int
        Rate at which targets are counted, in Hz.
    target_hop : int
        Samples from target to target.

    Raises
    ------
    UserError
        If they are not: it names both grids.

    Example
    -------
    >>> check_grid(LogMel(), 24000, target_rate=24000, target_hop=320)
    """
    rates = {front_end.sample_rate, audio_rate, target_rate}
    hops = {front_end.hop_length, target_hop}
    # As many frames as targets, too: not every front end fills up the last one.
    if len(rates) == len(hops) == front_end.num_frames(target_hop) == 1:
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
    """EnCodec's encoder before quantisation, frozen: the "ec-ec" models' input.

    Arguments
    ---------
    codec : Codec, optional
        Whose encoder to use; without it the weights are to be loaded.
    n_filters : int
        Width of the encoder where no codec is given.

    Example
    -------
    >>> from encodecmae_sb.lobes import Codec
    >>> CodecLatents(Codec("bundled"))(torch.zeros(2, 3000)).shape
    torch.Size([2, 10, 128])
    """

    # EnCodec mirrors the end of a signal, so that the last, partial frame of an
    # item depends on where the item ends.
    needs_equal_lengths = True
    # For `pretrained.describe`: the weights of the codec are loaded.
    not_described = ("codec",)

    def __init__(self, codec=None, n_filters=32):
        super().__init__()
        self._use(build_encodec(n_filters, 1) if codec is None else codec.net)
        self.hop_length = 320
        self.sample_rate = 24000

    def use(self, codec):
        """Takes over the encoder of a codec, whatever its width.

        Arguments
        ---------
        codec : Codec
        """
        self._use(codec.net)

    def _use(self, net):
        self.encoder = freeze(net.encoder)
        self.n_filters = self.encoder.n_filters
        self.dim = self.encoder.dimension
        self.train(False)

    def train(self, mode=True):
        """Stays in eval mode; `mode` is ignored on purpose."""
        return super().train(False)

    def stay_uncompiled(self):
        """Keeps this out of the graph when a module around it is compiled.

        Its LSTM and its weight normalisation would cut that graph to pieces.
        """
        # Not at the class: with this, torch imports its compiler, which takes seconds.
        self.forward = torch.compiler.disable(self.forward)

    def num_frames(self, num_samples):
        """Frames that a waveform gives: ceil(num_samples / 320)."""
        return -(-num_samples // self.hop_length)

    @torch.no_grad()
    def forward(self, wavs):
        """Latents.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples in [-1, 1], shape [B, N].

        Returns
        -------
        torch.Tensor
            float32, shape [B, ceil(N / 320), 128].
        """
        with exact_float32(wavs.device.type):
            return self.encoder(wavs.float().unsqueeze(1)).transpose(1, 2)
