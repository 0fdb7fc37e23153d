"""One rule for cutting audio into chunks, whichever way it comes in."""

import pytest
import soundfile
import torch
from random_values import noise, randomise
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb import hear, xares
from encodecmae_sb.inference.classifier import export_classifier
from encodecmae_sb.lobes import (
    AudioEncoder,
    CodecLatents,
    EnCodecMAE,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.chunks import CHUNK, SHORTEST_TAIL, encode_in_chunks
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead

RATE = 24000
# Within a chunk, whole chunks, tails that are dropped and tails that are not.
LENGTHS = [
    5000,
    CHUNK,
    CHUNK + 1000,
    CHUNK + SHORTEST_TAIL,
    CHUNK + SHORTEST_TAIL + 1,
    2 * CHUNK + 40800,
]


@pytest.fixture(scope="module")
def ways(encoder_folder):
    """Every way from samples at 24 kHz to features, by its name."""
    interface = foreign_class(
        source=str(encoder_folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts={"device": "cpu"},
    )
    lobe = EnCodecMAE(encoder_folder, input_sample_rate=RATE)
    model = hear.load_model(encoder_folder)
    scored = xares.XaresEncoder(encoder_folder)

    def file(wav, path):
        soundfile.write(path, wav.numpy(), RATE, subtype="FLOAT")
        return path

    def padded(wav, _):
        # In a batch of a longer item, and what follows is anything but silence.
        samples = CHUNK * (len(wav) // CHUNK + 1) + 3000
        batch = torch.randn(2, samples)
        batch[0, : len(wav)] = wav
        frames = lobe(batch, torch.tensor([len(wav) / samples, 1.0]))[0]
        return frames[: int(lobe.num_frames(torch.tensor(len(wav))))]

    return lobe, {
        "chunks": lambda wav, _: encode_in_chunks(lobe.encoder, wav[None])[0],
        "lobe": lambda wav, _: lobe(wav[None])[0],
        "lobe, lengths": lambda wav, _: lobe(wav[None], torch.ones(1))[0],
        "lobe, padded": padded,
        "batch": lambda wav, _: interface.encode_batch(wav[None])[0][0],
        "file": lambda wav, path: interface.encode_file(file(wav, path)),
        "stream": lambda wav, path: torch.cat(
            list(interface.encode_stream(file(wav, path), batch_size=1))
        ),
        "HEAR": lambda wav, _: hear.encode_sounds(model.encoder, wav[None], RATE)[0],
        "X-ARES": lambda wav, _: scored(wav)[0],
    }


@torch.no_grad()
@pytest.mark.parametrize("samples", LENGTHS)
def test_every_way_gives_the_same_frames(ways, samples, tmp_path):
    lobe, ways = ways
    wav = 0.3 * torch.randn(samples)
    want = ways["chunks"](wav, None)
    for name, way in ways.items():
        frames = way(wav, tmp_path / "a.wav")
        assert frames.shape == want.shape, name
        assert (frames - want).abs().max() < 1e-4, name
    assert int(lobe.num_frames(torch.tensor(samples))) == len(want)
    # Classification and probe.
    classifier = ClipClassifier(lobe, ClipHead(lobe.dim, 2))
    for lengths in (None, torch.tensor([samples])):
        summary, num_frames = classifier.summarise(wav[None], lengths)
        assert num_frames.tolist() == [len(want)]
        assert (summary[0, 0] - want.mean(0)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 319, 320, 321, 636, 637, 5001])
def test_no_lengths_are_lengths_of_one(ways, samples):
    lobe, ways = ways
    wavs = 0.3 * torch.randn(2, samples)
    frames = lobe(wavs)
    assert torch.isfinite(frames).all()
    assert frames.shape[1] == lobe.num_frames(torch.tensor(samples)) >= 1
    assert torch.equal(frames, lobe(wavs, torch.ones(2)))
    # HEAR does not refuse short sounds either.
    assert (frames[0] - ways["HEAR"](wavs[0], None)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("rate", [16000, 24000])
def test_short_items_in_the_lobe(encoder_folder, rate):
    lobe = EnCodecMAE(encoder_folder, input_sample_rate=rate)
    samples = 2000
    wavs = 0.3 * torch.randn(4, samples)
    lengths = [1, 200, 321, samples]
    together = lobe(wavs, torch.tensor(lengths) / samples)
    assert together.shape[1] == lobe.num_frames(torch.tensor(samples))
    for frames, wav, length in zip(together, wavs, lengths, strict=True):
        (alone,) = lobe(wav[None, :length])
        assert len(alone) == lobe.num_frames(torch.tensor(length))
        assert (frames[: len(alone)] - alone).abs().max() < 1e-4
    # No length at all, as augmentation may leave it.
    nothing = lobe(wavs, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert torch.isfinite(nothing).all()


def test_the_way_of_counting_is_exported(encoder_folder, tmp_path):
    lobe = EnCodecMAE(encoder_folder, input_sample_rate=RATE, whole_codec_frames=True)
    model = ClipClassifier(lobe, ClipHead(lobe.dim, 2)).eval()
    export_classifier(model, ["a", "b"], tmp_path)
    loaded = foreign_class(
        source=str(tmp_path),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEClassifier",
        run_opts={"device": "cpu"},
    ).mods.classifier.lobe
    wavs = 0.3 * torch.randn(1, 5000)  # 15.6 codec frames
    assert loaded(wavs).shape[1] == 15
    assert torch.equal(loaded(wavs), lobe(wavs))


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
