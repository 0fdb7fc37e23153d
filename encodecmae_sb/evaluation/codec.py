"""How well a codec reconstructs, and how evenly it uses its codes."""

import torch

from encodecmae_sb.nnet.codec_training import LogMelDistance
from encodecmae_sb.utils.grid import HOP


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
    distances = [LogMelDistance(power=power).to(device) for power in (1, 2)]
    num_codebooks = net.quantizer.n_q
    totals = torch.zeros(2, 2)
    counts = torch.zeros(num_codebooks, net.quantizer.bins)
    for batch in loader:
        for wav, length in zip(batch.wavs, batch.lengths.tolist(), strict=True):
            length -= length % HOP  # whole frames
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
            for total, measure in zip(totals, distances, strict=True):
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
