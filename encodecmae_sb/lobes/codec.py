"""The neural codec whose codes are the targets: EnCodec, always frozen.

Source: Défossez et al., High Fidelity Neural Audio Compression
(arXiv 2210.13438), through the authors' `encodec` package.
"""

import contextlib
import hashlib
import json
import socket
import threading
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import torch
from encodec.model import ROOT_URL, EncodecModel
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from encodecmae_sb.bundled import codec_file
from encodecmae_sb.errors import UserError
from encodecmae_sb.files import is_out_of_space, whole_file
from encodecmae_sb.precision import exact_float32

OFFICIAL = "encodec_24khz"
BUNDLED = "bundled"
_OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"
_SAMPLE_RATE = 24000
_HOP = 320
_CONNECT_SECONDS = 20


class CodecError(UserError):
    """A codec that cannot be had or cannot serve."""


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
        # encodec uses torch's older weight normalisation, on purpose: its
        # parameter names are those of the published checkpoints.
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
        sample_rate=_SAMPLE_RATE,
        channels=1,
    )


def freeze(net):
    """Turns parameters into buffers, in place: nothing is left to train."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            module.register_buffer(name, parameter.detach())
    return net


class Codec(nn.Module):
    """A frozen EnCodec: waveform to codes and latents, codes to waveform.

    It stays in eval mode and without gradients whatever `train()` or
    `requires_grad_()` of an enclosing module is called with: a codebook that
    moved would move the targets. It computes in float32 whatever autocast says and
    whether or not TF32 is allowed.

    Arguments
    ---------
    source : str
        `encodec_24khz`: the official weights, fetched once and cached by torch
        (CC BY-NC 4.0); `bundled`: the small codec in this package; else the path
        of a checkpoint: `.safetensors` as `save_codec` writes it, or a torch
        state dict with EnCodec's names (such as `encodec_24khz-d7cc33bc.th`).
    n_codebooks : int
        How many of the residual codebooks to use.

    Raises
    ------
    CodecError
        If the source is unknown, unreachable, unreadable, not a 24 kHz mono
        EnCodec, or has fewer codebooks than asked for.

    Example
    -------
    >>> codec = Codec("bundled")
    >>> codes = codec.encode(torch.rand(2, 24000) - 0.5)
    >>> codes.shape
    torch.Size([2, 75, 8])
    >>> codec.decode(codes).shape
    torch.Size([2, 24000])
    >>> codec.latents(torch.zeros(2, 24000)).shape
    torch.Size([2, 75, 128])
    >>> codec.train().training
    False
    """

    def __init__(self, source=OFFICIAL, n_codebooks=8):
        super().__init__()
        self._wrap(_load(str(source)), str(source), n_codebooks)

    @classmethod
    def from_network(cls, net, source="given network", n_codebooks=8):
        """A frozen codec around a network in memory, such as a trained one.

        Arguments
        ---------
        net : encodec.EncodecModel
            Becomes frozen, in place.
        source : str
            Named in errors.
        n_codebooks : int
            How many of the residual codebooks to use.

        Returns
        -------
        Codec
        """
        codec = cls.__new__(cls)
        nn.Module.__init__(codec)
        codec._wrap(net, source, n_codebooks)
        return codec

    def _wrap(self, net, source, n_codebooks):
        self.source = source
        self.net = freeze(net)
        self.train(False)
        self.sample_rate = _SAMPLE_RATE
        self.hop_length = _HOP
        self.dim = self.net.encoder.dimension
        self.codebook_size = self.net.quantizer.bins
        available = self.net.quantizer.n_q
        if not 1 <= n_codebooks <= available:
            raise CodecError(
                f"n_codebooks={n_codebooks}, but the codec {self.source} has "
                f"{available}: give a number from 1 to {available}."
            )
        self.n_codebooks = n_codebooks

    def train(self, mode=True):
        """Stays in eval mode; `mode` is ignored on purpose."""
        return super().train(False)

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
    def encode(self, wavs):
        """Discrete codes.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples at 24 kHz in [-1, 1], shape [B, N].

        Returns
        -------
        torch.Tensor
            int64 in [0, codebook_size), shape [B, ceil(N / 320), n_codebooks].
        """
        latents = self.latents(wavs).transpose(1, 2)
        with exact_float32(wavs.device.type):
            codes = self.net.quantizer.vq.encode(latents, n_q=self.n_codebooks)
        return codes.permute(1, 2, 0)

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
                "inside published EnCodecMAE weights do: it can encode, not decode. "
                f"To decode use {OFFICIAL}, {BUNDLED} or a checkpoint with a decoder."
            )
        with exact_float32(codes.device.type):
            latents = self.net.quantizer.vq.decode(codes.long().permute(2, 0, 1))
            return self.net.decoder(latents).squeeze(1)


def save_codec(net, path, metadata=None, dtype=torch.float16):
    """Writes a trained network as a safetensors file that `Codec` reads.

    Weights are rounded to 16-bit floats, which halves the file; what is only
    needed to train the codebooks (their running averages) is left out.

    Arguments
    ---------
    net : encodec.EncodecModel
        As built by `build_encodec`; its decoder may be None.
    path : str or Path
        The file to write.
    metadata : dict of str to str, optional
        Notes kept in the file's header.
    dtype : torch.dtype
        Of the weights; `torch.float32` keeps the codes exactly as they are.
    """
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in net.state_dict().items()
        if not name.endswith(_TRAINING_STATE)
    }
    header = {"sample_rate": str(_SAMPLE_RATE), "hop_length": str(_HOP)}
    save_file(weights, str(path), metadata={**(metadata or {}), **header})


_TRAINING_STATE = ("inited", "cluster_size", "embed_avg")


def checksum(source):
    """What tells codecs apart without building them, or fetching the official one.

    Arguments
    ---------
    source : str
        As for `Codec`.

    Returns
    -------
    str
        The first 8 hexadecimal digits of the SHA-256 of the codec's file, as in the
        name of the official one.

    Raises
    ------
    CodecError
        If there is no such codec.

    Example
    -------
    >>> checksum("encodec_24khz")
    'd7cc33bc'
    """
    if source == OFFICIAL:
        return _OFFICIAL_FILE.split("-")[1].split(".")[0]
    return hashlib.sha256(_find(source).read_bytes()).hexdigest()[:8]


def _load(source):
    if source == OFFICIAL:
        weights = _fetch_official()
    else:
        weights = _read_checkpoint(_find(source))
    return network_from_weights(weights, source)


def _find(source):
    """The file of a codec that is not the official one."""
    if source == BUNDLED:
        return codec_file()
    if Path(source).expanduser().is_file():
        return Path(source).expanduser()
    raise CodecError(
        f"codec={source}: no such file. Allowed: {OFFICIAL} (the official "
        f"weights), {BUNDLED} (shipped with this package), or the path of a "
        "checkpoint (.safetensors, .th, .pt)."
    )


def network_from_weights(weights, source="given weights"):
    """An EnCodec network around a state dict, its sizes read off the shapes.

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
        net.decoder = None  # rather than a random one
    expected = net.state_dict()
    optional = {name for name in expected if name.endswith(_TRAINING_STATE)}
    missing = expected.keys() - weights.keys() - optional
    unknown = weights.keys() - expected.keys()
    wrong = [
        f"{name}: {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    if missing or unknown or wrong:
        raise CodecError(
            f"codec={source} does not have EnCodec 24 kHz's layout (hop 320, "
            f"128 channels): missing {sorted(missing)[:3]}, unknown "
            f"{sorted(unknown)[:3]}, of another size {wrong[:3]}."
        )
    net.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    return net


def _read_checkpoint(path):
    if not path.exists():
        raise CodecError(
            f"{path} is missing: the installed package is incomplete. Install it "
            "again, or train a codec: "
            "python recipes/train_codec.py hparams/codec_mini.yaml"
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, json.JSONDecodeError) as error:
            raise CodecError(f"codec={path} cannot be read: {error}") from error
        rate = metadata.get("sample_rate", str(_SAMPLE_RATE))
        if rate != str(_SAMPLE_RATE):
            raise CodecError(f"codec={path} works at {rate} Hz; 24000 Hz is needed.")
        return weights
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, IndexError, ... for junk
        why = str(error).partition("\n")[0] or type(error).__name__
        raise CodecError(
            f"codec={path} is not a file of plain tensors (only those are read, "
            f"weights_only=True): {why}"
        ) from error
    if not isinstance(weights, dict):
        raise CodecError(f"codec={path} holds a {type(weights)}, not a state dict.")
    return weights.get("best_state", weights)


def _fetch_official():
    """Reads the official weights from torch's cache, where they may be fetched to."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _OFFICIAL_FILE
    if not cached.exists():
        with _as_unreachable():
            check_reachable(ROOT_URL)
            # Processes that start together do not read each other's half.
            with whole_file(cached) as scratch:
                url = ROOT_URL + _OFFICIAL_FILE
                torch.hub.download_url_to_file(
                    url, str(scratch), hash_prefix=checksum(OFFICIAL)
                )
    return _read_checkpoint(cached)


def check_reachable(url):
    """Fails within seconds where a download would hang.

    Arguments
    ---------
    url : str
        An address on the host in question.

    Raises
    ------
    OSError
        If the host takes no connection.
    """
    if urllib.request.getproxies():  # the proxy answers for the host
        return
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    outcome = [f"no answer from {host} within {_CONNECT_SECONDS} s"]

    def connect():
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
            outcome[0] = None
        except OSError as error:
            outcome[0] = f"no connection to {host}: {error}"

    # A thread, since a name look-up has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if outcome[0]:
        raise OSError(outcome[0])


@contextlib.contextmanager
def _as_unreachable():
    try:
        yield
    except (OSError, RuntimeError) as error:
        if is_out_of_space(error):
            raise
        raise CodecError(
            f"EnCodec's official weights could not be fetched from {ROOT_URL}"
            f"{_OFFICIAL_FILE}: {error}. Either use the codec shipped with this "
            "package, --codec bundled, or give a checkpoint file, --codec FILE. "
            "They are different targets: results are not comparable."
        ) from error
