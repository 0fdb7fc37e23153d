"""Codec files: how they are read safely, written, fetched and told apart."""

import contextlib
import hashlib
import json
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import torch
from encodec.model import ROOT_URL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from encodecmae_sb.bundled import codec_file
from encodecmae_sb.nnet.encodec import (
    TRAINING_STATE,
    CodecError,
    network_from_weights,
)
from encodecmae_sb.utils.files import is_out_of_space, whole_file
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

OFFICIAL = "encodec_24khz"
BUNDLED = "bundled"
_OFFICIAL_FILE = "encodec_24khz-d7cc33bc.th"
_CONNECT_SECONDS = 20


def load_network(source):
    """The network of a codec.

    Arguments
    ---------
    source : str
        As for `encodecmae_sb.lobes.Codec`.

    Returns
    -------
    encodec.EncodecModel

    Raises
    ------
    CodecError
        If there is no such codec, or it cannot be fetched, read or used.
    """
    if source == OFFICIAL:
        weights = _fetch_official()
    else:
        weights = _read_checkpoint(_find(source))
    return network_from_weights(weights, source)


def save_codec(net, path, metadata=None, dtype=torch.float16):
    """Writes a trained network as a safetensors file that `Codec` reads.

    Weights are rounded to 16-bit floats, which halves the file. The running averages
    that only the training of the codebooks needs are left out.

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
        if not name.endswith(TRAINING_STATE)
    }
    header = {"sample_rate": str(SAMPLE_RATE), "hop_length": str(HOP)}
    with whole_file(path) as scratch:
        save_file(weights, str(scratch), metadata={**(metadata or {}), **header})


def checksum(source):
    """Tells codecs apart without building them, or fetching the official one.

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


def demonstration_codec(hparams, given):
    """The codec of a demonstration, as overrides of a yaml.

    Arguments
    ---------
    hparams : dict
        Values of the yaml's keys.
    given : collection of str
        The keys that the user gave.

    Returns
    -------
    dict
        The bundled codec if there is no data folder and no codec was chosen.

    Example
    -------
    >>> demonstration_codec({"data_folder": None, "codec": "encodec_24khz"}, [])
    {'codec': 'bundled'}
    """
    chosen = "codec" in given or hparams.get("codec") != OFFICIAL
    return {} if chosen or hparams.get("data_folder") else {"codec": BUNDLED}


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
        rate = metadata.get("sample_rate", str(SAMPLE_RATE))
        if rate != str(SAMPLE_RATE):
            raise CodecError(
                f"codec={path} works at {rate} Hz; {SAMPLE_RATE} Hz is needed."
            )
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


def official_file():
    """Where torch's cache has the official weights, if they were ever fetched.

    Example
    -------
    >>> official_file().name
    'encodec_24khz-d7cc33bc.th'
    """
    return Path(torch.hub.get_dir()) / "checkpoints" / _OFFICIAL_FILE


def _fetch_official():
    """Reads the official weights from torch's cache; fetches them if need be."""
    cached = official_file()
    if not cached.exists():
        with _as_unreachable():
            check_reachable(ROOT_URL)
            # A process that starts at the same time must not read half a file.
            with whole_file(cached) as scratch:
                url = ROOT_URL + _OFFICIAL_FILE
                torch.hub.download_url_to_file(
                    url, str(scratch), hash_prefix=checksum(OFFICIAL)
                )
    return _read_checkpoint(cached)


def check_reachable(url):
    """Raises within seconds where a download would hang.

    Arguments
    ---------
    url : str
        An address on the host in question.

    Raises
    ------
    OSError
        If the host takes no connection.
    """
    if urllib.request.getproxies():  # connections go to the proxy instead
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

    # In a thread, because a name look-up has no time limit of its own.
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
