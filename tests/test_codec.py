"""The codec: its codes, and the files it is loaded from."""

import shutil
import socket
import warnings

import pytest
import torch
from encodec import EncodecModel
from random_values import noise
from safetensors.torch import load_file, save_file
from torch import nn

from encodecmae_sb.bundled import codec_file
from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.encodec import CodecError


@pytest.fixture(scope="module")
def codec():
    return Codec("bundled")


@pytest.fixture(scope="module")
def official():
    """EnCodec as its authors build it, with random weights and codebooks."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = EncodecModel.encodec_model_24khz(pretrained=False)
    with torch.no_grad():
        latents = net.eval().encoder(noise(1, 1, 24000))[0]
    for i, layer in enumerate(net.quantizer.vq.layers):
        embed = latents.std(1) * torch.randn(1024, 128)
        layer._codebook.embed.copy_(embed + (latents.mean(1) if i == 0 else 0))
        layer._codebook.inited.fill_(1)
    return net


@pytest.fixture(scope="module")
def official_file(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "encodec.th"
    torch.save(official.state_dict(), path)
    return path


@torch.no_grad()
def test_codes_are_those_of_encodec(official, official_file):
    wavs = noise(2, 7777)
    for kbps, n_codebooks in [(6.0, 8), (1.5, 2), (24.0, 32)]:
        codec = Codec(official_file, n_codebooks=n_codebooks)
        official.set_target_bandwidth(kbps)
        ((want, _),) = official.encode(wavs[:, None])
        codes = codec.encode(wavs)
        assert codes.dtype == torch.int64
        assert codes.shape == (2, 25, n_codebooks)
        assert torch.equal(codes, want.transpose(1, 2))
        assert want.unique().numel() > 10
        decoded = official.decode([(want, None)])[:, 0]
        assert torch.allclose(codec.decode(codes), decoded, atol=1e-6)


def test_decode_takes_fewer_codebooks(codec):
    codes = codec.encode(noise(2, 3200))
    full, half = codec.decode(codes), codec.decode(codes[..., :4])
    assert full.shape == half.shape == (2, 3200)
    assert full.dtype == torch.float32
    assert not torch.allclose(full, half, atol=1e-4)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("enclosed", [False, True])
@pytest.mark.parametrize("kind", ["codec", "latents"])
def test_codec_stays_frozen(kind, enclosed):
    frozen = Codec("bundled")
    if kind == "latents":
        frozen = CodecLatents(frozen)
    assert not any(part.training for part in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    module = nn.Sequential(frozen, nn.Linear(2, 2)) if enclosed else frozen
    before = state(frozen)
    module.train()
    module.requires_grad_(True)
    wavs = noise(4, 8000)
    assert not any(part.training for part in frozen.modules())
    if kind == "codec":
        assert torch.equal(frozen.encode(wavs), frozen.encode(wavs))
        out = frozen.latents(wavs)
    else:
        out = frozen(wavs)
    assert not out.requires_grad
    after = state(frozen)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_codec_computes_in_single_precision(codec):
    wavs = noise(1, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        latents, codes = codec.latents(wavs), codec.encode(wavs)
        decoded = codec.decode(codes)
    assert latents.dtype == decoded.dtype == torch.float32
    assert torch.equal(latents, codec.latents(wavs))
    assert torch.equal(codes, codec.encode(wavs))
    assert torch.equal(decoded, codec.decode(codes))


@pytest.mark.parametrize("n_codebooks", [0, -1, 33])
def test_wrong_number_of_codebooks(n_codebooks):
    available = Codec("bundled").net.quantizer.n_q
    with pytest.raises(CodecError, match=f"n_codebooks={n_codebooks}.*{available}"):
        Codec("bundled", n_codebooks)


@pytest.mark.parametrize("source", ["encodec_32khz", "/nowhere/codec.th"])
def test_unknown_codec(source):
    with pytest.raises(CodecError, match=f"{source}.*encodec_24khz.*bundled"):
        Codec(source)


def test_48_khz_codec(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = EncodecModel.encodec_model_48khz(pretrained=False).state_dict()
    torch.save(weights, tmp_path / "48.th")
    with pytest.raises(CodecError, match=r"48\.th.*24 kHz mono"):
        Codec(tmp_path / "48.th")


FIRST = "encoder.model.0.conv.conv.weight_v"


def stereo(weights):
    weights[FIRST] = weights[FIRST].repeat(1, 2, 1)


def without_a_layer(weights):
    del weights["encoder.model.3.conv.conv.bias"]


def with_an_unknown(weights):
    weights["surprise"] = torch.zeros(1)


def narrow(weights):
    name = "encoder.model.15.conv.conv.bias"
    weights[name] = weights[name][:64].clone()


def odd_codebooks(weights):
    for name in weights:
        if name.endswith("embed"):
            weights[name] = weights[name][:1000].clone()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (stereo, "2 audio channels"),
        (without_a_layer, "missing.*encoder.model.3"),
        (with_an_unknown, "unknown.*surprise"),
        (narrow, r"\(64,\) instead of \(128,\)"),
        (odd_codebooks, "1000"),
    ],
)
def test_codec_of_another_layout(tmp_path, spoil, words):
    weights = load_file(codec_file())
    spoil(weights)
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(CodecError, match=f"(?s)odd.safetensors.*{words}"):
        Codec(tmp_path / "odd.safetensors")


def test_codec_of_another_rate(tmp_path):
    path = tmp_path / "fast.safetensors"
    save_file(load_file(codec_file()), path, metadata={"sample_rate": "32000"})
    with pytest.raises(CodecError, match="32000 Hz"):
        Codec(path)


@pytest.mark.parametrize("keep", [0, 4, 100, 10000])
def test_truncated_codec_files(tmp_path, official_file, keep):
    for source, name in [(codec_file(), "a.safetensors"), (official_file, "a.th")]:
        path = tmp_path / name
        with open(source, "rb") as file:
            path.write_bytes(file.read(keep))
        with pytest.raises(CodecError, match=name):
            Codec(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.th", "a.pt"])
@pytest.mark.parametrize("content", [b"hello world\n" * 50, bytes(range(256)) * 9])
def test_files_that_are_no_codec(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CodecError, match=name):
        Codec(tmp_path / name)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without network and with an empty cache of torch's."""

    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_official_codec_without_network(offline):
    with pytest.raises(CodecError, match="(?s)--codec bundled.*--codec FILE"):
        Codec("encodec_24khz")
    assert not offline.exists() or not list(offline.iterdir())


def test_official_codec_from_the_cache(offline, official, official_file):
    offline.mkdir(parents=True)
    shutil.copy(official_file, offline / "encodec_24khz-d7cc33bc.th")
    codec = Codec("encodec_24khz")
    for name, value in official.state_dict().items():
        assert torch.equal(codec.net.state_dict()[name], value), name
