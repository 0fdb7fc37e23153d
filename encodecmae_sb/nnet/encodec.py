"""The neural codec whose codes are the targets: EnCodec, always frozen.

B items, N samples, T frames, Q codebooks.
Source: Défossez et al., High Fidelity Neural Audio Compression
(arXiv 2210.13438), through the authors' `encodec` package.
"""

import warnings

import torch
from encodec.model import EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer

from encodecmae_sb.utils.digests import weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.precision import exact_float32

from .targets import Targets

# Buffers that only the training of the codebooks needs.
TRAINING_STATE = ("inited", "cluster_size", "embed_avg")


class CodecError(UserError):
    """A codec that cannot be found, read or used."""


def build_encodec(n_filters=32, n_codebooks=32, codebook_size=1024):
    """An untrained EnCodec 24 kHz network, of any width.

    Arguments
    ---------
    n_filters : int
        Filters of the first convolution; 32 in the published codec.
    n_codebooks : int
        Residual codebooks; 32 in the published codec.
    codebook_size : int
        Entries per codebook.

    Returns
    -------
    encodec.EncodecModel
        With `encoder`, `quantizer` and `decoder`; hop 320 samples, D = 128.

    Example
    -------
    >>> net = build_encodec(n_filters=2, n_codebooks=8)
    >>> net.encoder(torch.zeros(1, 1, 640)).shape
    torch.Size([1, 128, 2])
    """
    with warnings.catch_warnings():
        # encodec uses torch's older weight normalisation. Its parameter names are
        # those of the published checkpoints.
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated")
        encoder = SEANetEncoder(n_filters=n_filters, causal=True)
        decoder = SEANetDecoder(n_filters=n_filters, causal=True)
    quantizer = ResidualVectorQuantizer(
        dimension=encoder.dimension, n_q=n_codebooks, bins=codebook_size
    )
    return EncodecModel(
        encoder,
        decoder,
        quantizer,
        target_bandwidths=[n_codebooks * 0.75],  # kbps
        sample_rate=SAMPLE_RATE,
        channels=1,
    )


def freeze(net):
    """Turns parameters into buffers, in place, so that nothing can be trained."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            module.register_buffer(name, parameter.detach())
    return net


class FrozenCodec(Targets):
    """A frozen EnCodec: waveform to codes and latents, codes to waveform.

    It stays in eval mode and without gradients, whatever `train()` or
    `requires_grad_()` of an enclosing module is called with, because a codebook that
    moves would move the targets. It computes in float32, whatever autocast says and
    whether or not TF32 is allowed.

    Arguments
    ---------
    net : encodec.EncodecModel
        Becomes frozen, in place.
    source : str
        Named in errors and labels.
    n_codebooks : int
        How many of the residual codebooks to use, Q.

    Raises
    ------
    CodecError
        If the codec has fewer codebooks than asked for.

    Example
    -------
    >>> codec = FrozenCodec(build_encodec(n_filters=2))
    >>> codec.encode(torch.rand(2, 24000) - 0.5).shape
    torch.Size([2, 75, 8])
    """

    kind = "codec"
    # A long file is encoded minute by minute, each with the 4 s before it. EnCodec's
    # convolutions see less than that; its LSTM in theory sees everything. With the
    # bundled codec, of 90 000 codes of a recording of 3 minutes 320 differed from the
    # whole's with 0.5 s before each chunk, 173 with 1 s, 1 with 2 s, none with 4 s.
    context_samples = 4 * SAMPLE_RATE

    def __init__(self, net, source="given network", n_codebooks=8):
        super().__init__(n_codebooks, net.quantizer.bins, source)
        self.source = source
        self.net = freeze(net)
        self.train(False)
        self.dim = net.encoder.dimension
        available = net.quantizer.n_q
        if not 1 <= n_codebooks <= available:
            raise CodecError(
                f"n_codebooks={n_codebooks}, but the codec {source} has {available}: "
                f"give a number from 1 to {available}."
            )

    def fingerprint(self):
        """A digest of the weights."""
        return weights_key(self)[:8]

    @torch.no_grad()
    def latents(self, wavs):
        """Output of EnCodec's encoder, before quantisation.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples at 24 kHz in [-1, 1], shape [B, N].

        Returns
        -------
        torch.Tensor
            float32, shape [B, ceil(N / 320), 128].
        """
        with exact_float32(wavs.device.type):
            return self.net.encoder(wavs.float().unsqueeze(1)).transpose(1, 2)

    @torch.no_grad()
    def encode(self, wavs, lengths=None):
        """Discrete codes; `lengths` do not matter to them. See `Targets.encode`."""
        latents = self.latents(wavs).transpose(1, 2)
        with exact_float32(wavs.device.type):
            codes = self.net.quantizer.vq.encode(latents, n_q=self.n_codebooks)
        return codes.permute(1, 2, 0)

    def gains(self, wavs):
        """What to multiply decoded audio by, so that it is as loud as what was encoded.

        Arguments
        ---------
        wavs : torch.Tensor
            What was encoded, shape [B, N].

        Returns
        -------
        torch.Tensor
            Shape [B]; 1 unless audio is normalised before it is encoded.
        """
        return torch.ones(len(wavs), device=wavs.device)

    @torch.no_grad()
    def decode(self, codes):
        """Waveform from codes.

        Arguments
        ---------
        codes : torch.Tensor
            Integers, shape [B, T, q] with q at most the codec's codebooks.

        Returns
        -------
        torch.Tensor
            float32 samples at 24 kHz, shape [B, 320 * T].

        Raises
        ------
        CodecError
            If the codec came without its decoder.
        """
        if self.net.decoder is None:
            raise CodecError(
                f"The codec {self.source} came without its decoder, as the codecs "
                "inside published EnCodecMAE weights do. It can encode, but not "
                "decode. To decode give encodec_24khz, bundled or a checkpoint with a "
                "decoder."
            )
        with exact_float32(codes.device.type):
            latents = self.net.quantizer.vq.decode(codes.long().permute(2, 0, 1))
            return self.net.decoder(latents).squeeze(1)


def network_from_weights(weights, source="given weights"):
    """An EnCodec network with given weights; their shapes give its sizes.

    Arguments
    ---------
    weights : dict of str to torch.Tensor
        EnCodec's state dict. The `decoder` may be missing as a whole, and so may
        the codebooks' training state.
    source : str
        Named in errors.

    Returns
    -------
    encodec.EncodecModel
        With `decoder` None where the weights have none.

    Raises
    ------
    CodecError
        If the weights are not those of a 24 kHz mono EnCodec.
    """
    first = weights.get("encoder.model.0.conv.conv.weight_v")
    codebook = weights.get("quantizer.vq.layers.0._codebook.embed")
    if first is None or codebook is None:
        raise CodecError(
            f"codec={source} is not an EnCodec 24 kHz mono checkpoint: it lacks "
            "encoder.model.0.conv.conv.weight_v or "
            "quantizer.vq.layers.0._codebook.embed. (The 48 kHz codec is laid out "
            "otherwise and cannot be used: targets are defined at 24 kHz, mono.)"
        )
    if first.dim() != 3 or first.shape[1] != 1:
        raise CodecError(
            f"codec={source} takes {first.shape[1]} audio channels; a mono codec "
            "is needed."
        )
    bins = codebook.shape[0]
    if bins & (bins - 1):
        raise CodecError(
            f"codec={source} has {bins} entries per codebook; a power of 2 is needed."
        )
    layers = {
        int(name.split(".")[3])
        for name in weights
        if name.startswith("quantizer.vq.layers.")
    }
    net = build_encodec(first.shape[0], len(layers), codebook.shape[0])
    if not any(name.startswith("decoder.") for name in weights):
        net.decoder = None  # a random one would be worse than none
    expected = net.state_dict()
    optional = {name for name in expected if name.endswith(TRAINING_STATE)}
    missing = expected.keys() - weights.keys() - optional
    unknown = weights.keys() - expected.keys()
    wrong = [
        f"{name}: {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    if missing or unknown or wrong:
        raise CodecError(
            f"codec={source} does not have EnCodec 24 kHz's layout (hop {HOP}, "
            f"128 channels): missing {sorted(missing)[:3]}, unknown "
            f"{sorted(unknown)[:3]}, of another size {wrong[:3]}."
        )
    net.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    return net
