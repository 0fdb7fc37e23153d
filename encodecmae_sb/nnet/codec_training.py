"""Parts of training a codec with EnCodec's interface, from scratch.

Three things matter; without each of them training was seen to fail. SEANet needs an
initialisation that keeps the variance of the signal. The error of the waveform must be
relative to the item's own energy: loud items dominate an absolute error, and the net
never learns the phase. And the codebooks must start as k-means centroids of the latents
of an autoencoder that already works: quantised from the first step, every codebook
collapses to one entry.

Shapes: B items, N samples, T frames, D channels of the latents, M vectors.
"""

import math
import warnings

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE


def init_seanet_(net):
    """Initialises EnCodec so that a signal passes through at its own level.

    Kaiming-normal weights for a linear gain of 1, zero biases, and the
    magnitudes of the weight normalisation set to match.

    Arguments
    ---------
    net : encodec.EncodecModel
        Changed in place.
    """
    for module in net.modules():
        if not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            continue
        direction = module.weight_v
        # Each output of a transposed convolution sums kernel / stride taps.
        fan_in = direction[0].numel()
        if isinstance(module, nn.ConvTranspose1d):
            taps = module.kernel_size[0] / module.stride[0]
            fan_in = module.in_channels * taps
        nn.init.normal_(direction, std=1 / math.sqrt(fan_in))
        with torch.no_grad():
            norm = direction.flatten(1).norm(dim=1)
            module.weight_g.copy_(norm.view_as(module.weight_g))
        nn.init.zeros_(module.bias)


@torch.no_grad()
def order_latents_(net, latents, whiten=0.2, num_slow=6, slow_gain=3.0):
    """Changes the basis of the latents, so that the first codebook codes what lasts.

    An autoencoder leaves most of the latents' variance in a few directions that
    change from frame to frame. Codebooks started there spend all their entries on
    them, and the codes of hidden frames cannot be predicted from their neighbours.
    This function makes the variances more equal and magnifies the directions that
    vary slowest (largest covariance between frames 3 to 8 apart). The map is linear
    and invertible. The encoder's last convolution absorbs it, and the decoder's first
    absorbs its inverse: the autoencoder computes the same as before.

    Arguments
    ---------
    net : encodec.EncodecModel
        Changed in place.
    latents : torch.Tensor
        Of training audio, shape [B, T, D].
    whiten : float
        0 keeps the variances, 0.5 makes them equal.
    num_slow : int
        Number of directions to magnify.
    slow_gain : float
        By how much.

    Returns
    -------
    torch.Tensor
        The latents in the new basis, shape [B, T, D].
    """
    mean = latents.mean((0, 1))
    centred = latents - mean
    frames = centred.flatten(0, 1)
    variance, axes = torch.linalg.eigh(frames.T @ frames / len(frames))
    variance = variance.clamp(min=1e-6 * variance.max())
    basis = axes * variance**-whiten
    even = centred @ basis
    lagged = sum(
        (even[:, :-lag].flatten(0, 1).T @ even[:, lag:].flatten(0, 1)) / len(frames)
        for lag in (3, 5, 8)
    )
    _, directions = torch.linalg.eigh(lagged + lagged.T)
    slow = directions[:, -num_slow:]
    basis = basis @ (torch.eye(len(basis)).to(basis) + (slow_gain - 1) * slow @ slow.T)
    inverse = torch.linalg.inv(basis)

    last, first = net.encoder.model[-1].conv.conv, net.decoder.model[0].conv.conv
    weight = _weight(last)
    last.bias.copy_((last.bias - mean) @ basis)
    _set_weight(last, torch.einsum("de,dik->eik", basis, weight))
    weight = _weight(first)
    first.bias.add_(torch.einsum("odk,d->o", weight, mean))
    _set_weight(first, torch.einsum("ed,odk->oek", inverse, weight))
    return centred @ basis


def _weight(conv):
    """The weight that a weight-normalised convolution computes with."""
    direction = conv.weight_v
    norm = direction.flatten(1).norm(dim=1).view_as(conv.weight_g)
    return conv.weight_g * direction / norm


def _set_weight(conv, weight):
    conv.weight_v.copy_(weight)
    conv.weight_g.copy_(weight.flatten(1).norm(dim=1).view_as(conv.weight_g))


def _mel_spectrogram(sample_rate, n_fft, hop_length, n_mels, power=1):
    with warnings.catch_warnings():
        # Short windows leave a few of the lowest mel filters empty. That does no harm:
        # these bins are equal in all spectrograms.
        warnings.filterwarnings("ignore", message="At least one mel")
        return torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft, hop_length=hop_length, n_mels=n_mels, power=power
        )


class LogMelDistance(nn.Module):
    """L1 distance between log-mel spectrograms at several resolutions.

    Arguments
    ---------
    n_ffts : tuple of int
        FFT sizes in samples; the hop is a quarter.
    n_mels : int
        Mel bins.
    sample_rate : int
        In Hz.
    floor : float
        Smallest value before the logarithm.
    power : int
        1 for magnitudes, 2 for power.

    Example
    -------
    >>> wavs = torch.rand(2, 4800)
    >>> LogMelDistance()(wavs, wavs).item()
    0.0
    """

    def __init__(
        self,
        n_ffts=(512, 1024, 2048),
        n_mels=64,
        sample_rate=SAMPLE_RATE,
        floor=1e-4,
        power=1,
    ):
        super().__init__()
        self.floor = floor
        self.spectrograms = nn.ModuleList(
            _mel_spectrogram(sample_rate, n_fft, n_fft // 4, n_mels, power)
            for n_fft in n_ffts
        )

    def log_mels(self, wavs):
        """Log-mel spectrograms [B, n_mels, frames], one per resolution."""
        return [torch.log(s(wavs).clamp(min=self.floor)) for s in self.spectrograms]

    def forward(self, wavs, others):
        """Mean distance over all resolutions, in nats.

        Arguments
        ---------
        wavs, others : torch.Tensor
            Samples, shape [B, N].

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        pairs = zip(self.log_mels(wavs), self.log_mels(others), strict=True)
        return sum(F.l1_loss(a, b) for a, b in pairs) / len(self.spectrograms)


def relative_error(wavs, others):
    """Energy of the difference over the energy of the original, mean over items.

    Arguments
    ---------
    wavs, others : torch.Tensor
        Original and reconstruction, shape [B, N].

    Returns
    -------
    torch.Tensor
        Scalar: 0 is perfect, 1 is as good as silence.

    Example
    -------
    >>> wavs = torch.rand(2, 100)
    >>> relative_error(wavs, 0 * wavs).item()
    1.0
    """
    error = (others - wavs).square().mean(1)
    return (error / wavs.square().mean(1).clamp(min=1e-8)).mean()


class SmoothEnvelope(nn.Module):
    """Error of a linear map that reads the smooth spectral envelope off the latents.

    A codec that is only trained to reconstruct has no reason to separate what lasts
    (which sound this is) from what changes from frame to frame (the phase). With
    this loss, what lasts lies in a linear subspace. `order_latents_` finds it, and
    the first codebook codes it. SpeechTokenizer (arXiv 2308.16692) reaches the same
    by distilling a semantic teacher; here no teacher is needed.

    Arguments
    ---------
    dim : int
        Channels of the latents.
    n_mels : int
        Bins of the envelope.
    smooth : int
        Frames to average over.
    sample_rate : int
        In Hz.
    hop_length : int
        Samples per frame of the latents.

    Example
    -------
    >>> SmoothEnvelope()(torch.rand(2, 12800), torch.zeros(2, 128, 40)).shape
    torch.Size([])
    """

    def __init__(
        self, dim=128, n_mels=64, smooth=9, sample_rate=SAMPLE_RATE, hop_length=HOP
    ):
        super().__init__()
        self.smooth = smooth
        self.read_out = nn.Linear(dim, n_mels)
        self.spectrogram = _mel_spectrogram(sample_rate, 2048, hop_length, n_mels)

    def forward(self, wavs, latents):
        """Mean squared error of the envelope read off the latents, in nats².

        Arguments
        ---------
        wavs : torch.Tensor
            Samples, shape [B, N].
        latents : torch.Tensor
            Shape [B, D, T].

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        envelope = torch.log(self.spectrogram(wavs).clamp(min=1e-3))
        envelope = F.avg_pool1d(
            envelope, self.smooth, 1, self.smooth // 2, count_include_pad=False
        )
        read = self.read_out(latents.transpose(1, 2)).transpose(1, 2)
        return F.mse_loss(read, envelope[..., : read.shape[-1]])


class ResidualCodebooks:
    """Learns the codebooks of a residual quantiser by running averages.

    Works on the buffers of the encodec package's quantiser, so that they are
    saved and used as EnCodec's own. The package's own training step is not used: it
    replaces a dead entry and, in the same step, overwrites it with the old running
    average; and with 1024 entries and small batches nearly all entries count as dead.

    Arguments
    ---------
    quantizer : encodec.quantization.ResidualVectorQuantizer
        Whose codebooks to train.
    decay : float
        Of the running averages, per step.
    dead_below : float
        Entries used less often than this per step are replaced.
    """

    def __init__(self, quantizer, decay=0.99, dead_below=0.02):
        self.quantizer = quantizer
        self.codebooks = [layer._codebook for layer in quantizer.vq.layers]
        self.decay = decay
        self.dead_below = dead_below

    @torch.no_grad()
    def start(self, latents, generator, iterations=20):
        """Sets every codebook to the k-means centroids of the residual before it.

        Arguments
        ---------
        latents : torch.Tensor
            Many latents, shape [M, D]; M at least the codebook size.
        generator : torch.Generator
            Draws the first centroids.
        iterations : int
            Of k-means.
        """
        residual = latents
        for book in self.codebooks:
            size = book.embed.shape[0]
            chosen = torch.randperm(len(residual), generator=generator)[:size]
            book.embed.copy_(residual[chosen.to(residual.device)])
            for _ in range(iterations):
                sums, counts = self._assign(book, residual)
                used = counts > 0
                book.embed[used] = sums[used] / counts[used, None]
            book.cluster_size.copy_(counts * self._share(len(residual)))
            book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
            residual = residual - book.dequantize(book.quantize(residual))

    @torch.no_grad()
    def update(self, latents, generator):
        """Moves the codebooks towards a batch.

        Arguments
        ---------
        latents : torch.Tensor
            Shape [M, D].
        generator : torch.Generator
            Draws replacements of dead entries.
        """
        residual = latents
        for book in self.codebooks:
            sums, counts = self._assign(book, residual)
            book.cluster_size.lerp_(counts, 1 - self.decay)
            book.embed_avg.lerp_(sums, 1 - self.decay)
            dead = book.cluster_size < self.dead_below
            draw = torch.randint(len(residual), dead.shape, generator=generator)
            fresh = residual[draw.to(residual.device)]
            book.embed_avg[dead] = fresh[dead]
            book.cluster_size[dead] = 1.0
            book.embed.copy_(book.embed_avg / book.cluster_size[:, None])
            residual = residual - book.dequantize(book.quantize(residual))

    @torch.no_grad()
    def quantize(self, latents):
        """Quantises through all codebooks.

        Arguments
        ---------
        latents : torch.Tensor
            Shape [B, D, T].

        Returns
        -------
        torch.Tensor
            Shape [B, D, T].
        """
        return self.quantizer.vq.decode(self.quantizer.vq.encode(latents))

    def _assign(self, book, vectors):
        codes = book.quantize(vectors)
        counts = torch.bincount(codes, minlength=len(book.embed)).to(vectors)
        sums = torch.zeros_like(book.embed).index_add_(0, codes, vectors)
        return sums, counts

    def _share(self, num_vectors):
        """Scales counts over many batches to those of one step."""
        return len(self.codebooks[0].embed) / num_vectors


def vary(wavs, seeds):
    """Varies levels and mixes items, to augment a small corpus.

    Every item gets a random peak from -36 to 0 dB and a random sign; one in
    three is mixed with its neighbour. Everything follows from the items' seeds.

    Arguments
    ---------
    wavs : torch.Tensor
        Samples, shape [B, N].
    seeds : torch.Tensor
        int64, shape [B].

    Returns
    -------
    torch.Tensor
        Samples, shape [B, N].

    Example
    -------
    >>> vary(torch.rand(2, 100), torch.tensor([1, 2])).shape
    torch.Size([2, 100])
    """
    draws = [
        torch.rand(4, generator=torch.Generator().manual_seed(seed))
        for seed in seeds.tolist()
    ]
    level, sign, mixed, share = torch.stack(draws, 1).to(wavs.device)[..., None]

    wavs = _at_peak(wavs, 1.0)
    wavs = torch.where(mixed < 1 / 3, wavs + share * wavs.roll(1, 0), wavs)
    wavs = _at_peak(wavs, 10 ** (-36 * level**1.5 / 20))
    return torch.where(sign < 0.5, -wavs, wavs)


def _at_peak(wavs, peak):
    return wavs * peak / wavs.abs().amax(1, keepdim=True).clamp(min=1e-5)
