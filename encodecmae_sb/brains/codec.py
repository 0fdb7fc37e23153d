"""Training a codec with EnCodec's interface, from scratch.

Three things matter, each seen to fail otherwise. SEANet needs an initialisation
that keeps the variance of the signal. The error of the waveform must be relative to
the item's own energy: an absolute error is ruled by the loudest items, and the net
never learns the phase. And the codebooks must start as k-means centroids of the
latents of an autoencoder that already works; quantised from the first step, every
codebook collapses to one entry.
"""

import math
import warnings

import torch
import torch.nn.functional as F
import torchaudio
from speechbrain import Stage
from torch import nn

from encodecmae_sb.data.crops import CropCollator

from .base import ResumableBrain, StepBrain


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
    """Changes the basis of the latents, so that the first codebook sees what lasts.

    An autoencoder leaves most of the latents' variance in a few directions that
    change from frame to frame. Codebooks started there spend all their entries on
    them, and codes of hidden frames cannot be told from their neighbours. Here
    variances are evened out, and the directions that vary slowest (largest
    covariance between frames 3 to 8 apart) are magnified. The map is linear and
    invertible, and is absorbed by the encoder's last convolution and, inverted, by
    the decoder's first: the autoencoder computes the same as before.

    Arguments
    ---------
    net : encodec.EncodecModel
        Changed in place.
    latents : torch.Tensor
        Of training audio, shape [B, T, D].
    whiten : float
        0 leaves variances as they are, 0.5 makes them equal.
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
        Smallest magnitude before the logarithm.

    Example
    -------
    >>> wavs = torch.rand(2, 4800)
    >>> LogMelDistance()(wavs, wavs).item()
    0.0
    """

    def __init__(
        self, n_ffts=(512, 1024, 2048), n_mels=64, sample_rate=24000, floor=1e-4
    ):
        super().__init__()
        self.floor = floor
        self.spectrograms = nn.ModuleList()
        with warnings.catch_warnings():
            # Short windows leave a few of the lowest mel filters empty; they
            # are equal in both spectrograms.
            warnings.filterwarnings("ignore", message="At least one mel")
            for n_fft in n_ffts:
                self.spectrograms.append(
                    torchaudio.transforms.MelSpectrogram(
                        sample_rate,
                        n_fft,
                        hop_length=n_fft // 4,
                        n_mels=n_mels,
                        power=1,
                    )
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
    """Asks of the latents that a linear map reads the smooth spectral envelope.

    A codec trained to reconstruct alone has no reason to keep apart what lasts
    (which sound this is) from what changes from frame to frame (the phase). With
    this term what lasts lies in a linear subspace, which `order_latents_` finds and
    the first codebook then codes. It is to this codec what the distillation of a
    semantic teacher is to SpeechTokenizer (arXiv 2308.16692), without a teacher.

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

    def __init__(self, dim=128, n_mels=64, smooth=9, sample_rate=24000, hop_length=320):
        super().__init__()
        self.smooth = smooth
        self.read_out = nn.Linear(dim, n_mels)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel")
            self.spectrogram = torchaudio.transforms.MelSpectrogram(
                sample_rate, 2048, hop_length=hop_length, n_mels=n_mels, power=1
            )

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
    saved and used as EnCodec's own. (The package's training step draws a dead
    entry anew and then overwrites it with its old running average in the same
    step; and with 1024 entries and small batches nearly all count as dead.)

    Arguments
    ---------
    quantizer : encodec.quantization.ResidualVectorQuantizer
        Whose codebooks to train.
    decay : float
        Of the running averages, per step.
    dead_below : float
        Entries used less often than this per step are drawn anew.
    """

    def __init__(self, quantizer, decay=0.99, dead_below=0.02):
        self.codebooks = [layer._codebook for layer in quantizer.vq.layers]
        self.decay = decay
        self.dead_below = dead_below

    @torch.no_grad()
    def start(self, latents, generator, iterations=20):
        """Starts every codebook at the k-means centroids of what is left to it.

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

    @staticmethod
    def quantize(quantizer, latents):
        """Quantises through all codebooks.

        Arguments
        ---------
        quantizer : encodec.quantization.ResidualVectorQuantizer
        latents : torch.Tensor
            Shape [B, D, T].

        Returns
        -------
        torch.Tensor
            Shape [B, D, T].
        """
        with torch.no_grad():
            return quantizer.vq.decode(quantizer.vq.encode(latents))

    def _assign(self, book, vectors):
        codes = book.quantize(vectors)
        counts = torch.bincount(codes, minlength=len(book.embed)).to(vectors)
        sums = torch.zeros_like(book.embed).index_add_(0, codes, vectors)
        return sums, counts

    def _share(self, num_vectors):
        """Scales counts over many batches to those of one step."""
        return len(self.codebooks[0].embed) / num_vectors


class CodecBrain(StepBrain):
    """Trains an EnCodec-shaped network to reconstruct.

    Modules: `codec_net`, `mel_distance`, `envelope`. Reads from the yaml, besides
    `StepBrain`'s: `quantize_from` (the step at which the codebooks start),
    `wave_weight`, `mel_weight`, `envelope_weight`, `order_latents`, `lr_schedule`.
    """

    reported = ("train_loss", "mel_ratio", "perplexity_min")

    def on_fit_start(self):
        """Prepares the codebooks' training."""
        self.codebooks = ResidualCodebooks(self.modules.codec_net.quantizer)
        super().on_fit_start()

    def shares(self):
        """Batches as they are: in each crops are mixed and codebooks learnt."""
        batch_size = self.hparams.batch_size
        return {**ResumableBrain.shares(self), "batch_size": batch_size}

    @property
    def net(self):
        """The network, without the wrapper of distributed training."""
        net = self.modules.codec_net
        return getattr(net, "module", net)

    def quantizing(self, stage):
        """Whether the codebooks have started: they do with the step that follows."""
        last = self.hparams.quantize_from - (stage == Stage.TRAIN)
        return self.optimizer_step > last

    def on_fit_batch_start(self, batches, should_step):
        """Starts the codebooks when their time has come."""
        super().on_fit_batch_start(batches, should_step)
        start, end = 0, self.hparams.quantize_from
        if self.quantizing(Stage.TRAIN):
            start, end = end, self.hparams.training_steps
        progress = (self.optimizer_step - start) / (end - start)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(progress)
        if self.optimizer_step == self.hparams.quantize_from:
            self.start_codebooks()

    @torch.no_grad()
    def start_codebooks(self):
        """k-means on the latents of fresh draws of training audio."""
        crops, collate = self.train_crops, self.collate
        latents, wanted = [], 20 * self.net.quantizer.bins
        draw = 0
        self.net.eval()
        while sum(part[..., 0].numel() for part in latents) < wanted:
            batch = collate([crops[draw + i] for i in range(self.hparams.batch_size)])
            draw += self.hparams.batch_size
            wavs = vary(batch.to(self.device))
            latents.append(self.net.encoder(wavs.unsqueeze(1)).transpose(1, 2))
        self.net.train()
        latents = self.hparams.order_latents(self.net, torch.cat(latents))
        # What the optimizer remembers of the two layers is in the old basis.
        for layer in (self.net.encoder.model[-1], self.net.decoder.model[0]):
            for parameter in layer.parameters():
                self.optimizer.state.pop(parameter, None)
        generator = torch.Generator().manual_seed(self.hparams.seed)
        self.codebooks.start(latents.flatten(0, 1), generator)

    def fit_crops(self, train_crops, valid_crops):
        """Trains to `training_steps`; see `StepBrain`."""
        self.train_crops, self.collate = train_crops, CropCollator()
        super().fit_crops(train_crops, valid_crops)

    def compute_forward(self, batch, stage):
        """Reconstructs.

        Returns
        -------
        wavs, reconstruction : torch.Tensor
            Samples, shape [B, N].
        latents : torch.Tensor
            What the encoder gave, shape [B, D, T].
        """
        batch = batch.to(self.device)
        training = stage == Stage.TRAIN
        wavs = vary(batch) if training else batch.wavs
        # Freeze the encoder once the codebooks have started; otherwise its codes become
        # unpredictable from neighbouring frames.
        with torch.set_grad_enabled(training and not self.quantizing(stage)):
            latents = self.net.encoder(wavs.unsqueeze(1)).float()
        decoded = latents
        if self.quantizing(stage):
            with torch.autocast(self.device_type, enabled=False):
                if training:
                    frames = latents.detach().transpose(1, 2).flatten(0, 1)
                    seed = self.hparams.seed + self.optimizer_step
                    generator = torch.Generator().manual_seed(seed)
                    self.codebooks.update(frames, generator)
                decoded = ResidualCodebooks.quantize(self.net.quantizer, latents)
        reconstruction = self.net.decoder(decoded).squeeze(1).float()
        return wavs, reconstruction[:, : wavs.shape[1]], latents

    def compute_objectives(self, predictions, batch, stage):
        """Relative error of the waveform, multi-scale log-mel L1, and envelope."""
        wavs, reconstruction, latents = predictions
        with torch.autocast(self.device_type, enabled=False):
            wave = relative_error(wavs, reconstruction)
            mel = self.hparams.mel_distance(wavs, reconstruction)
            loss = self.hparams.wave_weight * wave + self.hparams.mel_weight * mel
            if not self.quantizing(stage):
                envelope = self.modules.envelope(wavs, latents)
                loss = loss + self.hparams.envelope_weight * envelope
        self.shown = {"wave": wave.item(), "mel": mel.item()}
        return loss

    def _fit_valid(self, valid_set, epoch, enable):
        self.measured = codec_report(
            self.net, valid_set, self.device, self.quantizing(Stage.VALID)
        )
        super()._fit_valid(valid_set, epoch, enable)

    def validation_row(self, stage_loss):
        """The figures of `codec_report`."""
        return {"valid_loss": stage_loss, **self.measured}


def vary(batch):
    """Varies levels and mixes, so that a small corpus covers more of the world.

    Every item gets a random peak from -36 to 0 dB and a random sign; one in
    three is mixed with its neighbour. Everything follows from the items' seeds.

    Arguments
    ---------
    batch : CropBatch

    Returns
    -------
    torch.Tensor
        Samples, shape [B, N].
    """
    device = batch.wavs.device
    draws = [
        torch.rand(4, generator=torch.Generator().manual_seed(seed))
        for seed in batch.seeds.tolist()
    ]
    level, sign, mixed, share = torch.stack(draws, 1).to(device)[..., None]

    def at_peak(wavs, peak):
        return wavs * peak / wavs.abs().amax(1, keepdim=True).clamp(min=1e-5)

    wavs = at_peak(batch.wavs, 1.0)
    wavs = torch.where(mixed < 1 / 3, wavs + share * wavs.roll(1, 0), wavs)
    wavs = at_peak(wavs, 10 ** (-36 * level**1.5 / 20))
    return torch.where(sign < 0.5, -wavs, wavs)


@torch.no_grad()
def codec_report(net, loader, device="cpu", quantized=True):
    """Measures a codec as a listener and as a target would.

    Arguments
    ---------
    net : encodec.EncodecModel
        The network.
    loader : iterable of CropBatch
        Audio it was not trained on; each item is brought to peak 0.7.
    device : str
        Where the network is.
    quantized : bool
        Whether to go through the codebooks.

    Returns
    -------
    dict of str to float
        `mel_ratio`: L1 between log-mel spectrograms (64 bins, FFT 512, 1024,
        2048, hop a quarter, floor 1e-4) of audio and reconstruction, divided by
        that of the best constant spectrum (the median of each bin of each item);
        `mel_ratio_power`: the same ratio with power instead of magnitude;
        `perplexity_q` for q = 1, 2, ...: exp of the entropy of the use of each
        codebook, and the smallest, `perplexity_min`.
    """
    training = net.training
    net.eval()
    distance = LogMelDistance().to(device)
    # Power is magnitude squared, bin by bin of the FFT, so it is computed anew.
    power = LogMelDistance().to(device)
    for spectrogram in power.spectrograms:
        spectrogram.spectrogram.power = 2
    num_codebooks = net.quantizer.n_q
    totals = torch.zeros(2, 2)
    counts = torch.zeros(num_codebooks, net.quantizer.bins)
    for batch in loader:
        for wav, length in zip(batch.wavs, batch.lengths.tolist(), strict=True):
            length -= length % 320  # whole frames
            wav = wav[None, :length].to(device)
            if length < 2048 or wav.abs().max() == 0:
                continue
            wav = 0.7 * wav / wav.abs().max()
            latents = net.encoder(wav.unsqueeze(1))
            if quantized:
                codes = net.quantizer.vq.encode(latents)
                latents = net.quantizer.vq.decode(codes)
                for q, row in enumerate(codes[:, 0].cpu()):
                    counts[q] += torch.bincount(row, minlength=counts.shape[1])
            other = net.decoder(latents).squeeze(1)[:, :length]
            for total, measure in zip(totals, (distance, power), strict=True):
                pairs = zip(measure.log_mels(wav), measure.log_mels(other), strict=True)
                for real, made in pairs:
                    constant = real.median(dim=-1, keepdim=True).values
                    total[0] += (real - made).abs().mean().item() * length
                    total[1] += (real - constant).abs().mean().item() * length
    net.train(training)
    report = {
        "mel_ratio": (totals[0, 0] / totals[0, 1]).item(),
        "mel_ratio_power": (totals[1, 0] / totals[1, 1]).item(),
    }
    if quantized:
        used = counts / counts.sum(1, keepdim=True)
        perplexity = torch.special.entr(used).sum(1).exp().tolist()
        report.update({f"perplexity_{q + 1}": p for q, p in enumerate(perplexity)})
        report["perplexity_min"] = min(perplexity)
    return report
