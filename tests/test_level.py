"""Frames that do not depend on the level of a recording, whichever way it comes in."""

import pytest
import soundfile
import torch
import torch.nn.functional as F
from encoders import load
from random_values import noise, randomise

from encodecmae_sb import hear
from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    EnCodecMAE,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.chunks import CHUNK, encode_in_chunks
from encodecmae_sb.nnet.level import FLOOR, REFERENCE, at_reference, measure_levels
from encodecmae_sb.pipelines.deploy import measure_agreement
from encodecmae_sb.pipelines.students import start_student
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.pretrained.graphs import WholeEncoder
from encodecmae_sb.pretrained.licence import targets_licence
from encodecmae_sb.utils.errors import UserError

RATE = 24000


def make(kind="mel", **options):
    torch.manual_seed(0)
    options = {"normalise": "level", **options}
    if kind == "mel":
        front_end = LogMel(**options)
    else:
        front_end = CodecLatents(n_filters=2, **options)
    return randomise(AudioEncoder(front_end, ResiDualTransformer(16, 2, 2, 24)))


@pytest.fixture(scope="module", params=["mel", "latents"])
def encoder(request):
    return make(request.param)


def uneven(samples):
    """A recording of many levels, pauses among them."""
    envelope = torch.rand(-(-samples // 3000)).pow(4).repeat_interleave(3000)
    envelope[envelope < 0.01] = 0
    return 0.3 * torch.randn(samples) * envelope[:samples]


def test_gains_of_20_db(encoder):
    wavs = torch.stack([uneven(RATE) for _ in range(4)])
    want = encoder.front_end(wavs)
    scale = want.abs().max().clamp(min=1)
    for gain in (0.1, 0.5, 10.0):
        assert (encoder.front_end(gain * wavs) - want).abs().max() < 1e-3 * scale
    plain = make("mel", normalise=None).front_end
    assert (plain(0.1 * wavs) - plain(wavs)).abs().max() > 0.5


def test_level_of_an_item_is_its_own():
    """It depends neither on padding nor on the other items, nor on how it is cut."""
    front_end = LogMel(normalise="level")
    wavs = [uneven(n) for n in (24000, 23999, 5000, 321)]
    batch = torch.nn.utils.rnn.pad_sequence([*wavs, noise(30000)], batch_first=True)
    assert not torch.equal(batch[0], batch[1])
    for wav, padded in zip(wavs, front_end(batch), strict=False):
        (alone,) = front_end(wav[None])
        torch.testing.assert_close(padded[: len(alone)], alone, rtol=0, atol=1e-4)
    levels = measure_levels(batch)
    front = front_end(batch[:, :6400], levels)
    torch.testing.assert_close(front[:, :18], front_end(batch)[:, :18])
    # Pauses count for little, zeros for nothing, and a constant is no sound.
    (wav,) = noise(1, RATE)
    level = measure_levels(wav[None])
    for other in (F.pad(wav, (3200, 9999)), torch.cat([wav, 1e-3 * wav]), wav + 0.5):
        assert (measure_levels(other[None]) / level - 1).abs() < 0.01


def test_silence_stays_silent():
    front_end = LogMel(normalise="level")
    silence = front_end(torch.zeros(1, 8000))
    assert torch.equal(silence, LogMel()(torch.zeros(1, 8000)))
    assert measure_levels(torch.zeros(1, 8000)) == FLOOR
    faint = 0.01 * FLOOR * noise(1, 8000)
    assert measure_levels(at_reference(faint)) < 0.1 * REFERENCE
    assert front_end(faint).mean() < front_end(noise(1, 8000)).mean() - 1


@torch.no_grad()
def test_chunks_have_the_level_of_the_whole(encoder):
    """A soft second chunk stays soft."""
    wav = noise(1, 2 * CHUNK + 30000)
    wav[:, CHUNK : 2 * CHUNK] *= 0.01
    (frames,) = encode_in_chunks(encoder, wav)
    levels = measure_levels(wav)
    pieces = wav.split(CHUNK, dim=1)
    want = [encoder.encode(encoder.front_end(p, levels)).last[0] for p in pieces]
    torch.testing.assert_close(frames, torch.cat(want), rtol=0, atol=1e-4)
    alone = encoder(pieces[1]).last[0]
    assert (frames[300:600] - alone).abs().max() > 1e-3
    # In a batch with others, and garbage after the end.
    batch = torch.cat([F.pad(wav, (0, 500)), noise(1, wav.shape[1] + 500)])
    batch[0, -500:] = float("nan")
    both = encode_in_chunks(encoder, batch, [wav.shape[1], 50000])
    torch.testing.assert_close(both[0], frames, rtol=0, atol=1e-4)


@torch.no_grad()
def test_every_way_has_the_same_frames(encoder, tmp_path):
    """Exported and loaded: file, stream, batch, lobe and HEAR, softer or louder."""
    folder = tmp_path / "encoder"
    export_encoder(encoder, folder)
    assert "normalise: level" in (folder / "hyperparams.yaml").read_text()
    loaded = load_encoder_folder(folder).eval()
    assert loaded.front_end.normalise == "level"
    wav = uneven(2 * CHUNK + 31000)
    wav[:CHUNK] *= 0.02
    (want,) = encode_in_chunks(loaded, wav[None])
    interface = load(folder)
    lobe = EnCodecMAE(folder, input_sample_rate=RATE)
    for gain in (1.0, 0.1):
        path = tmp_path / f"{gain}.wav"
        soundfile.write(path, (gain * wav).numpy(), RATE, subtype="FLOAT")
        padded = F.pad(gain * wav, (0, CHUNK), value=0.7)
        batch, lengths = torch.stack([padded, noise(len(padded))]), [len(wav), 9000]
        share = torch.tensor(lengths) / len(padded)
        ways = {
            "file": interface.encode_file(path),
            "stream": torch.cat(list(interface.encode_stream(path, batch_size=1))),
            "batch": interface.encode_batch(batch, share)[0][0],
            "lobe": lobe(batch, share)[0],
            "HEAR": hear.encode_sounds(loaded, gain * wav[None], RATE)[0],
        }
        for name, frames in ways.items():
            assert len(frames) >= len(want), name
            difference = frames[: len(want)] - want
            assert difference.abs().max() < 2e-3 * want.abs().max(), (name, gain)


@torch.no_grad()
def test_whole_items_of_a_graph():
    """In batches with sound after their ends; test_onnx.py has the graph itself."""
    encoder = make()
    found = measure_agreement(WholeEncoder(encoder), encoder)
    assert found.batches > 5
    assert found.largest < 1e-4


def test_codes_that_do_not_depend_on_the_level():
    codec, plain = Codec("bundled", 4, "level"), Codec("bundled", 4)
    wavs = torch.stack([uneven(RATE), F.pad(uneven(9600), (0, RATE - 9600))])
    want = codec.encode(wavs)
    for gain in (0.125, 8.0):  # powers of 2: exact
        assert torch.equal(codec.encode(gain * wavs), want)
        assert not torch.equal(plain.encode(gain * wavs), plain.encode(wavs))
    assert torch.equal(want, plain.encode(at_reference(wavs)))
    (alone,) = codec.encode(wavs[1:, :9600])
    assert torch.equal(alone[:20], want[1, :20])
    # What is decoded is made as loud as the recording.
    soft = 0.01 * wavs[:1]
    decoded = codec.decode(codec.encode(soft)) * codec.gains(soft)[:, None]
    ratio = measure_levels(decoded[:, :RATE]) / measure_levels(soft)
    assert 0.3 < ratio.item() < 3
    assert torch.equal(plain.gains(wavs), torch.ones(2))
    # Stored codes and checkpoints of the one are not taken for those of the other.
    assert codec.label.fingerprint == f"{plain.label.fingerprint}-level"
    assert Codec.label_of("bundled", 4, "level") == codec.label
    assert Codec.licence_of("encodec_24khz", normalise="level") is not None
    assert targets_licence(codec.label) is None


def test_a_student_and_its_teacher_agree():
    """A student is not given a front end that its yaml did not ask for."""
    teacher, student = make(), make(normalise=None)
    assert not start_student(student, teacher, "auto")
    with pytest.raises(UserError, match="normalise: null(.|\n)*normalise: level"):
        start_student(student, teacher, "teacher")
    assert student.front_end.normalise is None
    assert start_student(make(), teacher, "auto")
    with pytest.raises(UserError, match="with normalise=level, and was given"):
        start_student(make("latents", normalise=None), make("latents"), "auto")


@pytest.mark.parametrize("wrong", ["mean", "Level", True, 1])
def test_no_such_normalisation(wrong):
    for made in (LogMel, CodecLatents, Codec):
        with pytest.raises(UserError, match="allowed are level .* and null"):
            made(normalise=wrong)
