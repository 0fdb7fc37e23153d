"""Targets: what hidden frames are predicted to be.

B items, N samples, T frames, Q codebooks.
"""

import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

from .chunks import frame_middle


class Label(NamedTuple):
    """What targets are called, and what tells them apart.

    Arguments
    ---------
    kind : str
        "codec" or "targets".
    name : str
        What the user calls them.
    fingerprint : str
        Of their content: other targets, another fingerprint.

    Example
    -------
    >>> str(Label("codec", "bundled", "0")), str(Label("targets", "MelTargets", "0"))
    ('codec bundled', 'MelTargets')
    """

    kind: str
    name: str
    fingerprint: str

    def __str__(self):
        return self.name if self.kind == Targets.kind else f"{self.kind} {self.name}"


class Targets(nn.Module):
    """What hidden frames are predicted to be: Q integers for each frame of a waveform.

    A yaml names a subclass with its arguments, `targets: !name:my_module.MyTargets`.
    The recipe builds it, computes codes with it, or stores them. A subclass sets
    `n_codebooks` and `codebook_size` and defines `encode` and `fingerprint`.

    Code t describes the samples [t * hop_length, (t + 1) * hop_length). The module
    stays in eval mode whatever `train()` of an enclosing module is called with.

    Arguments
    ---------
    n_codebooks : int
        Codes per frame, Q.
    codebook_size : int
        Codes are below it; at most 65536.
    name : str, optional
        For labels; default: the name of the class.

    Example
    -------
    >>> class Loudness(Targets):
    ...     def __init__(self):
    ...         super().__init__(n_codebooks=1, codebook_size=8)
    ...     def encode(self, wavs, lengths=None):
    ...         frames = wavs.unfold(1, self.hop_length, self.hop_length)
    ...         return (8 * frames.abs().amax(-1)).long().clamp(max=7)[..., None]
    ...     def fingerprint(self):
    ...         return "peaks in 8 steps"
    >>> Loudness().encode(torch.rand(2, 24000)).shape
    torch.Size([2, 75, 1])
    >>> identify(Loudness)
    Label(kind='targets', name='Loudness', fingerprint='peaks in 8 steps')
    """

    kind = "targets"
    sample_rate = SAMPLE_RATE
    hop_length = HOP
    # How a long file is cut before it is encoded, in samples: the length of a chunk,
    # how much audio before a chunk is encoded with it, and how long a tail after
    # whole chunks may be and still be dropped.
    chunk_samples = 60 * SAMPLE_RATE
    context_samples = 0
    shortest_tail = HOP - 1

    def __init__(self, n_codebooks, codebook_size, name=None):
        super().__init__()
        self.n_codebooks = n_codebooks
        self.codebook_size = codebook_size
        self.name = name or type(self).__name__

    def encode(self, wavs, lengths=None):
        """Computes codes.

        Several threads may call it at once: it must not change the object, nor draw
        from a global generator.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples at `sample_rate` in [-1, 1], shape [B, N].
        lengths : torch.Tensor, optional
            Samples of each item, int64, shape [B]; default: N. Codes after an item's
            end are ignored.

        Returns
        -------
        torch.Tensor
            int64 in [0, codebook_size), shape [B, ceil(N / hop_length), Q].
        """
        raise NotImplementedError

    def fingerprint(self):
        """A short text that changes whenever the codes change.

        Every argument of the constructor that has an effect on codes belongs in it.
        """
        raise NotImplementedError

    @property
    def label(self):
        """`Label` of these targets."""
        return Label(self.kind, self.name, self.fingerprint())

    @classmethod
    def label_of(cls, *args, **kwargs):
        """`Label` of what these arguments build.

        A class that knows it without building, or loading, overrides this.
        """
        return cls(*args, **kwargs).label

    @classmethod
    def n_codebooks_of(cls, *args, **kwargs):
        """Q of what these arguments build; overridden as `label_of` is."""
        return cls(*args, **kwargs).n_codebooks

    @classmethod
    def weights_of(cls, *args, **kwargs):
        """Share of each codebook in the loss, for what these arguments build.

        Returns
        -------
        list of float or None
            Q numbers, whose sum does not matter; None: those of `MaskedCodecLoss`.
        """
        return None

    @classmethod
    def licence_of(cls, *args, **kwargs):
        """The licence that a model has from what these arguments build.

        Returns
        -------
        encodecmae_sb.pretrained.licence.Licence or None
            None if there is none to go on.
        """
        return None

    def train(self, mode=True):
        """Stays in eval mode; `mode` is ignored on purpose."""
        return super().train(False)


def check_named(named):
    """Refuses what a yaml names if it cannot serve as targets.

    Arguments
    ---------
    named : functools.partial or type
        What `!name:` gives.

    Returns
    -------
    type
        The class.

    Raises
    ------
    UserError
        If it is an object, has another grid than this package, or other arguments.
    """
    if isinstance(named, nn.Module):
        raise UserError(
            f"targets: {type(named).__name__} is built by the yaml. Name the class "
            "instead, with !name: in place of !new:."
        )
    kind = getattr(named, "func", named)  # with arguments, or without
    if (kind.sample_rate, kind.hop_length) != (SAMPLE_RATE, HOP):
        raise UserError(
            f"targets: {kind.__name__} has a target every {kind.hop_length} samples at "
            f"{kind.sample_rate} Hz. Crops, stored codes and masks are counted every "
            f"{HOP} samples at {SAMPLE_RATE} Hz: give it these."
        )
    try:
        args, keywords = _arguments(named)
        inspect.signature(kind).bind(*args, **keywords)
    except TypeError as error:
        # An override of a mapping would be merged into the one that the yaml has.
        raise UserError(
            f"targets: {kind.__name__}: {error}. It takes {inspect.signature(kind)}. "
            "On a command line give arguments as a list: --targets "
            f"'!name:{kind.__module__}.{kind.__name__} [ARGUMENT, ...]'"
        ) from error
    return kind


def _arguments(named):
    return getattr(named, "args", ()), getattr(named, "keywords", {})


def build(named):
    """The targets that a yaml names, in eval mode and with nothing to train.

    Arguments
    ---------
    named : functools.partial or type
        What `!name:` gives.

    Returns
    -------
    Targets
    """
    check_named(named)
    return named().requires_grad_(False).eval()


def identify(named):
    """`Label` of the targets that a yaml names, without loading where possible.

    Arguments
    ---------
    named : functools.partial or type
        What `!name:` gives: a subclass of `Targets`, with arguments or without.

    Returns
    -------
    Label
    """
    return _call(named, "label_of")


def n_codebooks_of(named):
    """Q of the targets that a yaml names, an int, without loading where possible."""
    return _call(named, "n_codebooks_of")


def weights_of(named):
    """Shares of the codebooks in the loss, or None; see `Targets.weights_of`."""
    return _call(named, "weights_of")


def licence_of(named):
    """The licence that a model has from targets, or None; see `Targets.licence_of`."""
    return _call(named, "licence_of")


def _call(named, method):
    """Calls a class method with the arguments that a yaml names."""
    args, keywords = _arguments(named)
    return getattr(check_named(named), method)(*args, **keywords)


def target_middles(num_targets):
    """Middles of targets, in samples as `frame_middle` counts them, [num_targets]."""
    return HOP / 2 + HOP * torch.arange(num_targets, dtype=torch.float64)


def nearest_places(wanted, there):
    """For each place in `wanted` the index of the nearest place in `there`."""
    return (wanted[:, None] - there).abs().argmin(1)


def on_frames_of(front_end, wavs, codes):
    """Makes a front end give a frame for each target, and gives each frame its target.

    Where frames are as far apart as targets, nothing changes. A front end as in
    published weights has 318 samples from frame to frame, and targets have 320. Each
    frame then gets the target whose middle is nearest to its own. The waveform is cut,
    or continued with zeros, to as many frames as there are targets.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    wavs : torch.Tensor
        Shape [B, 320 T].
    codes : torch.Tensor
        Shape [B, T, Q].

    Returns
    -------
    wavs : torch.Tensor
        Shape [B, N].
    codes : torch.Tensor
        Shape [B, T, Q].

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> front_end = LogMel(hop_length=318, centered=False)
    >>> codes = torch.arange(75)[None, :, None]
    >>> wavs, codes = on_frames_of(front_end, torch.zeros(1, 24000), codes)
    >>> front_end(wavs).shape[1], codes.shape[1]
    (75, 75)
    """
    if front_end.hop_length == HOP:
        return wavs, codes
    frames = codes.shape[1]
    samples = (frames - 1) * front_end.hop_length + front_end.win_length
    wavs = F.pad(wavs, (0, samples - wavs.shape[1]))
    steps = torch.arange(frames, dtype=torch.float64)
    middles = frame_middle(front_end) + front_end.hop_length * steps
    index = nearest_places(middles, target_middles(frames))
    return wavs, codes[:, index.to(codes.device, non_blocking=True)]
