"""From frames to one decision a clip: pooling over time, and a head.

B clips of up to N samples or T frames, L layers, D channels.
"""

import torch
from torch import nn

from encodecmae_sb.utils.errors import UserError

from .front_ends import LogMel
from .lengths import absolute_lengths
from .level import at_reference, measure_levels
from .masking import frame_mask

POOLINGS = ("mean", "mean_std", "attentive")


class LogMelFrames(nn.Module):
    """The baseline: log-mel frames in the place of an encoder's.

    Arguments
    ---------
    front_end : LogMel, optional
        Default: that of the encoders trained here.

    Example
    -------
    >>> frames, num_frames = LogMelFrames().encode(
    ...     torch.zeros(2, 24000), torch.tensor([24000, 3200])
    ... )
    >>> frames.shape, num_frames
    (torch.Size([2, 75, 256]), tensor([75, 10]))
    """

    freeze = True

    def __init__(self, front_end=None):
        super().__init__()
        self.front_end = front_end or LogMel()

    @property
    def dim(self):
        """Width of the frames."""
        return self.front_end.dim

    def encode(self, wavs, num_samples):
        """Computes frames.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at the front end's rate in [-1, 1], shape [B, N].
        num_samples : torch.Tensor
            Samples of each item, int64, shape [B], on any device.

        Returns
        -------
        frames : torch.Tensor
            float32, shape [B, T, D].
        num_frames : torch.Tensor
            Frames of each item, int64, at least 1, shape [B].
        """
        num_samples = num_samples.to(wavs.device)
        frames = self.front_end(wavs * frame_mask(num_samples, wavs.shape[1]))
        return frames, self.front_end.num_frames(num_samples).clamp(min=1)


class EqualLevel(nn.Module):
    """A frozen lobe that hears all clips at one level.

    Arguments
    ---------
    lobe : torch.nn.Module
        With `encode`, see `LogMelFrames`.

    Example
    -------
    >>> lobe = EqualLevel(LogMelFrames())
    >>> wavs = torch.randn(1, 24000) * torch.tensor([[1.0], [0.1]])
    >>> loud, soft = lobe.encode(wavs, torch.tensor([24000, 24000]))[0]
    >>> bool((loud - soft).abs().max() < 1e-3)
    True
    """

    freeze = True

    def __init__(self, lobe):
        super().__init__()
        self.lobe = lobe

    @property
    def dim(self):
        """Width of the frames."""
        return self.lobe.dim

    def encode(self, wavs, num_samples):
        """As the lobe's, of clips at the level of `nnet.level.at_reference`."""
        levels = measure_levels(wavs, num_samples.tolist())
        return self.lobe.encode(at_reference(wavs, levels), num_samples)


class AttentivePooling(nn.Module):
    """Mean and standard deviation over time, each frame by a learnt weight.

    At first all frames have the same weight. Padding has no influence, unlike in
    SpeechBrain's module of this name, which normalises over the padded batch.

    Arguments
    ---------
    dim : int
        Width of the frames, D.
    hidden : int
        Width of the layer that computes the weights.

    Example
    -------
    >>> AttentivePooling(64)(torch.rand(2, 75, 64), torch.tensor([75, 40])).shape
    torch.Size([2, 128])
    """

    def __init__(self, dim, hidden=128):
        super().__init__()
        self.attention = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim)
        )
        nn.init.zeros_(self.attention[-1].weight)
        nn.init.zeros_(self.attention[-1].bias)

    def forward(self, frames, num_frames):
        """Pools frames [B, T, D] of which `num_frames` [B] are valid: [B, 2 D]."""
        valid = frame_mask(num_frames, frames.shape[1])[..., None]
        scores = self.attention(frames).masked_fill(~valid, -torch.inf)
        return _statistics(frames, scores.softmax(1) * valid)  # [B, 2 D]


def _statistics(frames, weights):
    """Mean and deviation along time, [..., T, D] -> [..., 2 D]."""
    mean = (weights * frames).sum(-2)
    variance = (weights * (frames - mean[..., None, :]).square()).sum(-2)
    return torch.cat([mean, variance.clamp(min=1e-8).sqrt()], dim=-1)


class ClipHead(nn.Module):
    """Pools frames over time and classifies the result.

    There are two steps, `summarise` and `forward`. The first has no parameters to
    learn, so its result can be computed once and stored. With "mean" and "mean_std" it
    is all of the pooling.

    Arguments
    ---------
    dim : int
        Width of the frames, D.
    num_classes : int
    num_layers : int
        Layers whose frames are given, L. With more than one: their sum with learnt
        weights, the softmax of `layer_weights`.
    pooling : str
        "mean" over time; "mean_std": mean and standard deviation; "attentive": both
        with learnt weights of the frames.
    hidden_size : int, optional
        Width of a hidden layer (an MLP); default: none (linear).
    dropout : float
        Of the hidden layer's output.

    Raises
    ------
    UserError
        If there is no such pooling.

    Example
    -------
    >>> head = ClipHead(64, num_classes=10, num_layers=4, pooling="mean_std")
    >>> frames, num_frames = torch.rand(4, 2, 75, 64), torch.tensor([75, 40])
    >>> summary = head.summarise(frames, num_frames)
    >>> head.eval()(summary, num_frames).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        dim,
        num_classes,
        num_layers=1,
        pooling="mean",
        hidden_size=None,
        dropout=0.0,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling}: allowed are {', '.join(POOLINGS)}.")
        self.dim = dim
        self.num_classes = num_classes
        self.num_layers = num_layers
        self.pooling = pooling
        self.hidden_size = hidden_size
        self.dropout = dropout
        if num_layers > 1:
            self.layer_weights = nn.Parameter(torch.zeros(num_layers))
        if pooling == "attentive":
            self.attentive = AttentivePooling(dim)
        width = dim if pooling == "mean" else 2 * dim
        # The scales of features differ by orders of magnitude. Without this, a linear
        # layer would have to be trained for long.
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.output = nn.Sequential()
        if hidden_size:
            self.output.append(nn.Linear(width, hidden_size))
            self.output.append(nn.ReLU())
            self.output.append(nn.Dropout(dropout))
            width = hidden_size
        self.output.append(nn.Linear(width, num_classes))

    @property
    def keeps_frames(self):
        """Whether a summary still has frames."""
        return self.pooling == "attentive"

    def summarise(self, frames, num_frames):
        """Does the part of pooling that has nothing to learn.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [L, B, T, D].
        num_frames : torch.Tensor
            Valid frames of each clip, int64, shape [B].

        Returns
        -------
        torch.Tensor
            Shape [B, T, L, D] for attentive pooling, else [B, L, D] or [B, L, 2 D].
        """
        if self.keeps_frames:
            return frames.permute(1, 2, 0, 3)
        valid = frame_mask(num_frames, frames.shape[2])[..., None]  # [B, T, 1]
        weights = valid / num_frames[:, None, None]
        if self.pooling == "mean":
            pooled = (frames * weights).sum(2)  # [L, B, D]
        else:
            pooled = _statistics(frames, weights)  # [L, B, 2 D]
        return pooled.transpose(0, 1)

    def forward(self, summary, num_frames=None):
        """Classifies.

        Arguments
        ---------
        summary : torch.Tensor
            From `summarise`.
        num_frames : torch.Tensor, optional
            Valid frames, int64, shape [B]; needed for attentive pooling.

        Returns
        -------
        torch.Tensor
            Logits, shape [B, classes].
        """
        if self.num_layers > 1:
            weights = self.layer_weights.softmax(0)
            x = (weights[:, None] * summary).sum(-2)
        else:
            x = summary.squeeze(-2)
        if self.keeps_frames:
            x = self.attentive(x, num_frames)
        return self.output(self.norm(x))


class ClipClassifier(nn.Module):
    """Waveforms in, a logit for each class out.

    The decision about a clip does not depend on what it is padded to.

    Arguments
    ---------
    lobe : EnCodecMAE or LogMelFrames
        Waveform [B, N] at 24 kHz -> frames [B, T, D] or [L, B, T, D].
    head : ClipHead

    Example
    -------
    >>> lobe = LogMelFrames()
    >>> classifier = ClipClassifier(lobe, ClipHead(lobe.dim, 10)).eval()
    >>> classifier(torch.rand(2, 24000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 10])
    """

    def __init__(self, lobe, head):
        super().__init__()
        self.lobe = lobe
        self.head = head

    def summarise(self, wavs, lengths=None):
        """Computes what the head starts from.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at 24 kHz in [-1, 1], shape [B, N].
        lengths : torch.Tensor, optional
            Samples of each clip, int64, shape [B]; default: all N. On the CPU they save
            a copy from the device: the lobe counts frames there.

        Returns
        -------
        summary : torch.Tensor
            See `ClipHead.summarise`.
        num_frames : torch.Tensor
            Of each clip, int64, shape [B].
        """
        if lengths is None:
            lengths = torch.full((len(wavs),), wavs.shape[1])
        frames, num_frames = self.lobe.encode(wavs, lengths)
        if frames.dim() == 3:
            frames = frames[None]  # [L, B, T, D]
        return self.head.summarise(frames, num_frames), num_frames

    def forward(self, wavs, wav_lens=None):
        """Classifies.

        Arguments
        ---------
        wavs : torch.Tensor
            Samples at 24 kHz in [-1, 1], shape [B, N].
        wav_lens : torch.Tensor, optional
            Lengths relative to N, shape [B]; default: all 1.

        Returns
        -------
        torch.Tensor
            Logits, shape [B, classes].
        """
        lengths = None
        if wav_lens is not None:
            lengths = absolute_lengths(wav_lens, wavs.shape[1])
        return self.head(*self.summarise(wavs, lengths))


def probabilities(logits, multi_label):
    """Logits -> probabilities, float32, [B, classes]."""
    logits = logits.float()
    return logits.sigmoid() if multi_label else logits.softmax(-1)
