"""The encoder on files: chunks, layers, errors, bounded memory."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch
from encoders import load
from recordings import RATE, write
from recordings import uniform as noise

from encodecmae_sb.inference.encoder import check_batch
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.chunks import CHUNK, SHORTEST_TAIL, encode_in_chunks
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def interface(encoder_folder):
    """An encoder with each of the front ends."""
    return load(encoder_folder)


@torch.no_grad()
@pytest.mark.parametrize(
    "samples",
    [
        5000,
        CHUNK + SHORTEST_TAIL,
        2 * CHUNK,
        2 * CHUNK + SHORTEST_TAIL,  # a tail that is dropped, alone in its stretch
        2 * CHUNK + SHORTEST_TAIL + 1,
        3 * CHUNK + 777,
        5 * CHUNK + 7777,
    ],
)
def test_stream_and_file_are_the_encoder_on_chunks(interface, tmp_path, samples):
    wav = noise(samples, seed=samples)
    path = write(tmp_path / "a.wav", wav, subtype="FLOAT")
    (want,) = encode_in_chunks(interface.mods.encoder, torch.from_numpy(wav.T))
    # One stretch, so the very same batch.
    assert torch.equal(interface.encode_file(path), want)
    chunks = list(interface.encode_stream(path, batch_size=2))
    assert len(chunks) == -(-len(want) // 600)
    assert (torch.cat(chunks) - want).abs().max() < 1e-4
    assert interface.output_shape(path) == list(want.shape)


@torch.no_grad()
def test_all_layers_of_a_file_of_several_stretches(mel_folder, tmp_path):
    interface = load(mel_folder)
    wav = noise(17 * CHUNK + 30000)
    path = write(tmp_path / "a.wav", wav, subtype="FLOAT")
    (want,) = encode_in_chunks(
        interface.mods.encoder, torch.from_numpy(wav.T), layer="all"
    )
    features = interface.encode_file(path, layer="all")
    assert features.shape == want.shape == (2, 17 * 300 + 94, 16)
    assert (features - want).abs().max() < 1e-4
    assert interface.output_shape(path, "all") == list(want.shape)
    assert (interface.encode_file(path, layer=0) - want[0]).abs().max() < 1e-4


def test_precision_is_that_of_the_run_options(mel_folder, tmp_path):
    path = write(tmp_path / "a.wav", noise(RATE))
    plain = load(mel_folder).encode_file(path)
    rounded = load(mel_folder, precision="bf16").encode_file(path)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).norm() < 0.02 * plain.norm()
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_wrong_is_said_before_any_work(mel_folder, tmp_path):
    interface = load(mel_folder)
    good = write(tmp_path / "good.wav", noise(RATE))
    cut = write(tmp_path / "cut.wav", noise(RATE))
    cut.write_bytes(cut.read_bytes()[:-1000])
    empty = write(tmp_path / "empty.wav", np.zeros(0))
    for path, options, kind, message in [
        (tmp_path / "none.wav", {}, FileNotFoundError, "No such audio file"),
        (cut, {}, ValueError, r"cut\.wav: truncated: 1000 bytes"),
        (empty, {}, ValueError, "no samples"),
        (good, {"layer": 2}, ValueError, "0 to 1"),
        (good, {"batch_size": 0}, ValueError, "batch_size=0"),
    ]:
        with pytest.raises(kind, match=message):
            next(interface.encode_stream(path, **options))
        if "batch_size" not in options:
            with pytest.raises(kind, match=message):
                interface.encode_file(path, **options)


def test_shorter_than_a_frame(tmp_path):
    front_end = LogMel(hop_length=318, centered=False)
    encoder = AudioEncoder(front_end, ResiDualTransformer(16, 1, 2, 24))
    export_encoder(encoder, tmp_path / "encoder")
    path = write(tmp_path / "a.wav", noise(636))
    with pytest.raises(ValueError, match=r"a\.wav is 26\.5 ms long"):
        load(tmp_path / "encoder").encode_file(path)


# Memory. Few and wide frames: their features weigh as much as they would at full
# rate, and take little time to compute.
MEMORY = """
    import json, resource, sys
    import numpy as np, soundfile, torch
    from speechbrain.inference.interfaces import foreign_class
    from encodecmae_sb.data.audio import read_audio

    folder, *files = sys.argv[1:]
    encoder = foreign_class(
        source=folder,
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts={"device": "cpu"},
    )
    peaks = []
    for path in files:
        features = encoder.encode_file(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks.append(peak * (1 if sys.platform == "darwin" else 1024))
    off = 0
    for chunk in (0, 7, 8, 517, 899):
        # A chunk's own samples: half a sample is safe from rounding.
        wav = read_audio(path, 24000, 4 * chunk + 0.5 / 8000, 4)
        alone, _ = encoder.encode_batch(wav[None])
        mine = features[40 * chunk : 40 * (chunk + 1)]
        off = max(off, (alone[0] - mine).abs().max().item())
    said = {"peaks": peaks, "shape": list(features.shape), "off": off}
    print(json.dumps(said))
"""


def test_an_hour_in_little_memory(tmp_path):
    encoder = AudioEncoder(LogMel(hop_length=2400), ResiDualTransformer(1024, 1, 8, 64))
    export_encoder(encoder, tmp_path / "encoder")
    minute = (10000 * noise(60 * 8000)).astype(np.int16)
    files = []
    for minutes in (1, 60):
        files.append(tmp_path / f"{minutes}.wav")
        with soundfile.SoundFile(files[-1], "w", 8000, 1) as file:
            for i in range(minutes):
                file.write(np.roll(minute, 977 * i))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path / "encoder", *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["shape"] == [36000, 1024]
    assert said["off"] < 1e-4
    # 148 MB; the samples alone would be 346 MB, at 24 kHz.
    result = 36000 * 1024 * 4
    minute, hour = said["peaks"]
    assert hour - minute - result < 120e6


@pytest.mark.parametrize(
    ("shape", "wav_lens", "message"),
    [
        ((2, 2400), [1.0, float("nan")], "in \\(0, 1\\]"),
        ((2, 2400), [1.0, 0.0], "in \\(0, 1\\]"),
        ((2, 2400), [1.0], "each of the 2 items"),
        ((2, 2400), [1.0, 1e-5], "has no samples"),
        ((0, 2400), [], "each of the 0 items"),
    ],
)
def test_lengths_that_mean_nothing(shape, wav_lens, message):
    with pytest.raises(UserError, match=message):
        check_batch(torch.zeros(shape), torch.tensor(wav_lens), None, 24000)
