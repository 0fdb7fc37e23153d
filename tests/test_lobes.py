"""The modules: features, transformer, masked model, codec, encoding in chunks."""

import shutil
import socket
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from encodec import EncodecModel
from safetensors.torch import load_file, save_file
from torch import nn

from encodecmae_sb.bundled import codec_file
from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    GapMasker,
    LogMel,
    MaskedCodecLoss,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet import loss as losses
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.encodec import CodecError
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.nnet.masking import FrameMask, frame_mask
from encodecmae_sb.utils.errors import UserError


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) - 0.5


def randomise(module, seed=0):
    """Gives every parameter a random value, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() < 2:
                change = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * change)
    return module.eval()


# Log-mel


def kaldi(wav):
    """The log-mel frames of Kaldi, [T, 256]."""
    return torchaudio.compliance.kaldi.fbank(
        wav[None],
        frame_length=26.56,
        frame_shift=13.28,
        num_mel_bins=256,
        htk_compat=False,
        use_energy=False,
        window_type="hanning",
        dither=0.0,
        sample_frequency=24000,
    )


def test_mel_equals_kaldi():
    wavs = noise(3, 24000) * torch.tensor([1.0, 0.1, 0.01])[:, None]
    front_end = LogMel(hop_length=318, centered=False)
    out = front_end(wavs)
    assert out.dtype == torch.float32
    for ours, wav in zip(out, wavs, strict=True):
        want = kaldi(wav)
        assert ours.shape == want.shape
        assert len(want) == front_end.num_frames(24000)
        assert (ours * 4.82 - 6.12 - want).abs().max() < 1e-3


def test_centred_mel_is_kaldi_with_zeros_around():
    wav = noise(16000)
    out = LogMel()(wav[None])[0]
    # Hop 320 and window 637: window t starts at sample 320 t + 160 - 318.
    padded = F.pad(wav, (158, 637))
    for t, frame in enumerate(out):
        (want,) = kaldi(padded[320 * t : 320 * t + 637])
        assert (frame * 4.82 - 6.12 - want).abs().max() < 1e-3


@pytest.fixture(scope="module")
def codec():
    return Codec("bundled")


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 5000, 24000, 31999, 32001])
def test_as_many_frames_as_codes(codec, samples):
    wav = noise(1, samples)
    frames = codec.encode(wav).shape[1]
    assert frames == -(-samples // 320)
    for front_end in (LogMel(), CodecLatents(n_filters=2)):
        assert front_end(wav).shape == (1, frames, front_end.dim)
        assert front_end.num_frames(samples) == frames
        assert front_end.num_frames(torch.tensor([samples])).tolist() == [frames]


@pytest.mark.parametrize("frame", [0, 7, 49])
def test_mel_frames_lie_where_the_codes_lie(frame):
    click = torch.zeros(1, 16000)
    click[0, 320 * frame + 160] = 1
    energy = LogMel()(click).exp().sum(-1)[0]
    assert energy.argmax() == frame
    assert (energy > energy[frame] / 2).sum() == 1


@pytest.mark.parametrize(
    "front_end", [LogMel(), LogMel(hop_length=318, centered=False)]
)
def test_mel_does_not_depend_on_padding(front_end):
    for samples in (640, 9000, 15999):
        wav = noise(1, samples)
        padded = front_end(F.pad(wav, (0, 16000 - samples)))
        alone = front_end(wav)
        assert torch.allclose(padded[:, : alone.shape[1]], alone, atol=1e-5)
        other = torch.cat([F.pad(wav, (0, 16000 - samples)), noise(1, 16000)])
        assert torch.allclose(front_end(other)[:1], padded, atol=1e-5)


def test_mel_is_the_same_under_autocast():
    front_end, wav = LogMel(), noise(1, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        out = front_end(wav)
    assert torch.equal(out, front_end(wav))


@pytest.mark.parametrize(
    ("front_end", "audio_rate", "message"),
    [
        (LogMel(hop_length=240), 24000, "every 240 samples at 24000 Hz, 100 for"),
        (LogMel(sample_rate=16000), 24000, "every 320 samples at 16000 Hz"),
        (LogMel(sample_rate=16000), 16000, "every 320 samples at 16000 Hz"),
        (LogMel(centered=False), 24000, "every 320 samples at 24000 Hz, 74 for"),
        (LogMel(hop_length=318, centered=False), 24000, "every 318 samples"),
        (LogMel(), 16000, "sample_rate=16000"),
        (CodecLatents(n_filters=2), 16000, "sample_rate=16000"),
    ],
)
def test_front_end_and_targets_on_different_grids(front_end, audio_rate, message):
    with pytest.raises(UserError, match=message) as caught:
        check_grid(front_end, audio_rate, target_rate=24000, target_hop=320)
    assert "every 320 samples at 24000 Hz, 75 for 24000" in str(caught.value)


def test_front_end_and_targets_on_the_same_grid():
    for front_end in (LogMel(), CodecLatents(n_filters=2)):
        check_grid(front_end, 24000, target_rate=24000, target_hop=320)


# Transformer


def by_the_formulas(net, x):
    """The ResiDual transformer for one item [T, D], written out."""

    def attention(layer, a):
        size = net.num_heads * net.head_dim
        q, k, v = (a @ w.T for w in layer.attention.qkv.weight.split(size))
        heads = []
        for head in range(net.num_heads):
            part = slice(head * net.head_dim, (head + 1) * net.head_dim)
            scores = q[:, part] @ k[:, part].T / net.head_dim**0.5
            heads.append(scores.softmax(-1) @ v[:, part])
        return torch.cat(heads, -1) @ layer.attention.out.weight.T

    a = r = x
    layers = []
    for i, layer in enumerate(net.layers):
        ffn = net.feed_forwards[i if len(net.feed_forwards) > 1 else 0]
        u = attention(layer, a)
        a = layer.norm1(a + u)
        r = r + u
        v = (a @ ffn[0].weight.T + ffn[0].bias).relu() @ ffn[2].weight.T + ffn[2].bias
        a = layer.norm2(a + v)
        r = r + v
        layers.append(a)
    return a + net.final_norm(r), layers


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("heads", "head_dim"), [(4, None), (3, 21)])
def test_residual_transformer(shared, heads, head_dim):
    net = ResiDualTransformer(64, 3, heads, 96, head_dim=head_dim, shared_ffn=shared)
    randomise(net)
    assert len(net.feed_forwards) == (1 if shared else 3)
    assert net.head_dim * heads == (64 if head_dim is None else 63)
    x = noise(2, 17, 64)
    out = net(x)
    for i in range(2):
        last, layers = by_the_formulas(net, x[i])
        assert torch.allclose(out.last[i], last, atol=1e-5)
        for ours, want in zip(out.layers, layers, strict=True):
            assert torch.allclose(ours[i], want, atol=1e-5)


@torch.no_grad()
def test_transformer_ignores_padding():
    net = randomise(ResiDualTransformer(64, 3, 4, 96))
    x = noise(3, 20, 64)
    lengths = torch.tensor([20, 13, 1])
    x = torch.cat([x, 100 * noise(3, 10, 64, seed=1)], 1)
    padded = net(x, frame_mask(lengths, 30))
    for i, length in enumerate(lengths.tolist()):
        alone = net(x[i : i + 1, :length])
        assert torch.allclose(padded.last[i, :length], alone.last[0], atol=1e-5)
        for ours, want in zip(padded.layers, alone.layers, strict=True):
            assert torch.allclose(ours[i, :length], want[0], atol=1e-5)
    unmasked = net(x)
    assert not torch.allclose(unmasked.last[:, 0], padded.last[:, 0], atol=1e-3)


def test_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="64.*12") as caught:
        ResiDualTransformer(64, 1, 12, 96)
    assert "head_dim" in str(caught.value)
    net = ResiDualTransformer(64, 1, 12, 96, head_dim=5)
    assert net(noise(1, 4, 64)).last.shape == (1, 4, 64)


# Masked model


class GivenFrames(nn.Module):
    """A front end that gives the frames it is given."""

    dim = 10

    def forward(self, frames):
        return frames


@pytest.fixture
def model():
    encoder = AudioEncoder(GivenFrames(), ResiDualTransformer(64, 2, 4, 96))
    model = MaskedCodecModel(encoder, ResiDualTransformer(32, 1, 4, 48), 3, 16)
    return randomise(model)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.82, 0.9])
@pytest.mark.parametrize("lengths", [[150, 150], [150, 70]])
def test_hidden_frames_are_never_seen(model, ratio, lengths):
    frames, lengths = noise(2, 150, 10), torch.tensor(lengths)
    masker = GapMasker(ratio)
    valid = frame_mask(lengths, 150)
    padded = not bool(valid.all())
    mask = masker(lengths, torch.tensor([1, 2]), 150, padded)  # as in training
    masked = mask.hidden
    logits = model(frames, mask)
    assert logits.shape == (2, 150, 3, 16)
    hidden = frames + 100 * (masked | ~valid)[..., None]
    changed = model(hidden, mask)
    assert torch.equal(logits[valid], changed[valid])
    # The same frames, if visible, do make a difference, to hidden frames, too.
    seen = model(frames + mask.visible[..., None], mask)
    assert not torch.allclose(logits[masked], seen[masked], atol=1e-3)
    # How many slots there are to spare does not matter.
    exact = model(frames, FrameMask.of(masked, lengths))
    assert torch.allclose(exact[valid], logits[valid], atol=1e-5)


@torch.no_grad()
def test_padded_items_are_as_if_alone(model):
    lengths = torch.tensor([150, 61, 33, 5])
    seeds = torch.arange(4)
    masker, frames = GapMasker(), noise(4, 150, 10)
    mask = masker(lengths, seeds, 150)
    logits = model(frames, mask)
    for i, length in enumerate(lengths.tolist()):
        hidden = FrameMask.of(mask.hidden[i : i + 1, :length])
        alone = model(frames[i : i + 1, :length], hidden)
        assert torch.allclose(logits[i, :length], alone[0], atol=1e-5)


@pytest.mark.parametrize(("codebooks", "share"), [(8, 0.9), (3, 0.6), (10, 0.9)])
def test_loss(codebooks, share):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 20, codebooks, 16, generator=generator)
    codes = torch.randint(16, (3, 20, codebooks), generator=generator)
    lengths = torch.tensor([20, 12, 1])
    mask = GapMasker(0.5, gap=3)(lengths, lengths, 20)
    valid = mask.valid
    logits[~valid] = 1e4 * torch.randn(logits[~valid].shape, generator=generator)
    codes[~valid] = 15

    # By hand: frames of all items together, in double precision.
    x = logits.double().numpy()
    peak = x.max(-1, keepdims=True)
    log_sum = np.log(np.exp(x - peak).sum(-1)) + peak[..., 0]
    ce = log_sum - np.take_along_axis(x, codes.numpy()[..., None], -1)[..., 0]
    right = x.argmax(-1) == codes.numpy()
    hidden, visible = mask.hidden.numpy(), mask.visible.numpy()
    weights = np.array(
        losses.CODEBOOK_WEIGHTS[:codebooks] if codebooks <= 8 else [0.1] * 10
    )
    weights = weights / weights.sum()
    masked_ce, visible_ce = ce[hidden].mean(0), ce[visible].mean(0)
    masked_loss, visible_loss = weights @ masked_ce, weights @ visible_ce

    loss_fn = MaskedCodecLoss(codebooks, share)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(logits, codes, mask)
    for ours, want in [
        (loss.masked_ce, masked_ce),
        (loss.visible_ce, visible_ce),
        (loss.masked_loss, masked_loss),
        (loss.visible_loss, visible_loss),
        (loss.masked_accuracy, right[hidden].mean(0)),
        (loss.loss, share * masked_loss + (1 - share) * visible_loss),
    ]:
        assert np.abs(ours.numpy() - want).max() < 1e-4


def test_loss_without_padding_is_the_same_as_with_none():
    logits, codes = noise(2, 10, 8, 16), torch.zeros(2, 10, 8).long()
    masked = torch.arange(10).expand(2, 10) < 4
    loss_fn = MaskedCodecLoss()
    none, given = (
        loss_fn(logits, codes, FrameMask.of(masked, frames))
        for frames in (None, torch.tensor([10, 10]))
    )
    assert torch.equal(none.loss, given.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 7 * 1024, 2**21])
def test_loss_in_blocks_is_that_of_the_whole(monkeypatch, dtype, block):
    monkeypatch.setitem(losses._BLOCK, "cpu", block)
    values = (3 * noise(2, 10, 3, 1024)).to(dtype)
    codes = (997 * torch.arange(60) % 1024).view(2, 10, 3)
    codes[:, ::3] = values[:, ::3].argmax(-1)
    masked = torch.arange(10).expand(2, 10) < 4
    ours, plain = (values.clone().requires_grad_() for _ in range(2))
    loss = MaskedCodecLoss(3)(ours, codes, FrameMask.of(masked))
    loss.loss.backward()
    assert torch.equal(loss.masked_accuracy, torch.full((3,), 0.5))
    ce = F.cross_entropy(plain.float().flatten(0, 2), codes.flatten(), reduction="none")
    ce = ce.view(codes.shape)
    assert torch.allclose(loss.masked_ce, ce[:, :4].mean((0, 1)), rtol=1e-6)
    share = torch.where(masked, 0.9 / 8, 0.1 / 12)[..., None]
    (MaskedCodecLoss(3).weights * share * ce).sum().backward()
    error = (ours.grad - plain.grad).float().abs().max()
    assert error <= torch.finfo(dtype).eps * plain.grad.abs().max()


# Codec


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


# Encoding in chunks


@pytest.fixture(scope="module", params=["mel", "latents"])
def encoder(request):
    torch.manual_seed(0)
    front_end = LogMel() if request.param == "mel" else CodecLatents(n_filters=2)
    return randomise(AudioEncoder(front_end, ResiDualTransformer(64, 2, 4, 96)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("samples", "cuts"),
    [
        (5000, [5000]),
        (320, [320]),
        (96000, [96000]),
        (98048, [96000]),  # a tail of 2048 samples is dropped
        (98049, [96000, 2049]),
        (192001, [96000, 96000]),
    ],
)
def test_chunks_by_hand(encoder, samples, cuts):
    wavs = noise(1, samples)
    (frames,) = encode_in_chunks(encoder, wavs)
    parts = wavs[:, : sum(cuts)].split(cuts, dim=1)
    want = torch.cat([encoder(part).last[0] for part in parts])
    assert frames.shape == want.shape
    assert (frames - want).abs().max() < 1e-4


@torch.no_grad()
def test_layers(encoder):
    wavs = noise(1, 8000)
    out = encoder(wavs)
    want = {
        "last": out.last[0],
        "last_no_norm": out.layers[-1][0],
        0: out.layers[0][0],
        1: out.last[0],
        "all": torch.stack([out.layers[0][0], out.last[0]]),
    }
    for layer, expected in want.items():
        (frames,) = encode_in_chunks(encoder, wavs, layer=layer)
        assert torch.allclose(frames, expected, atol=1e-5), layer


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 16])
def test_result_does_not_depend_on_the_batch(encoder, batch_size):
    lengths = [100000, 20000, 19900, 321, 96000]
    wavs = noise(5, 100000)  # what is beyond an item's length is not looked at
    together = encode_in_chunks(encoder, wavs, lengths, batch_size=batch_size)
    for wav, length, frames in zip(wavs, lengths, together, strict=True):
        (alone,) = encode_in_chunks(encoder, wav[None, :length])
        assert frames.shape == alone.shape
        assert (frames - alone).abs().max() < 1e-4


def test_item_that_is_too_short(encoder):
    with pytest.raises(ValueError, match="item 1 is 0 samples"):
        encode_in_chunks(encoder, torch.zeros(2, 5000), [5000, 0])


def test_item_shorter_than_a_window():
    front_end = LogMel(hop_length=318, centered=False)
    encoder = AudioEncoder(front_end, ResiDualTransformer(64, 1, 4, 96)).eval()
    assert encode_in_chunks(encoder, torch.zeros(1, 637))[0].shape == (1, 64)
    with pytest.raises(ValueError, match="item 0 is 636 samples"):
        encode_in_chunks(encoder, torch.zeros(1, 636))


@pytest.mark.parametrize("layer", ["first", 2, -1, None, 0.5])
def test_unknown_layer(encoder, layer):
    with pytest.raises(ValueError, match="last_no_norm.*0 to 1"):
        encode_in_chunks(encoder, torch.zeros(1, 5000), layer=layer)
