"""Long files and many of them: streamed reading, bounded memory, recipes/embed.py."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import execute
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    resample,
    stream_audio,
)
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.chunks import CHUNK, SHORTEST_TAIL, encode_in_chunks
from encodecmae_sb.pipelines import embed as pipeline
from encodecmae_sb.pretrained.folder import export_encoder

ROOT = Path(__file__).parent.parent
RATE = 24000


def noise(samples, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def write(path, samples, rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)
    return path


def load(folder, **run_opts):
    return foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts={"device": "cpu", **run_opts},
    )


@pytest.fixture(scope="module")
def interface(encoder_folder):
    """An encoder with each of the front ends."""
    return load(encoder_folder)


@pytest.fixture(scope="module")
def mel_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mel") / "encoder"
    export_encoder(AudioEncoder(LogMel(), ResiDualTransformer(16, 2, 2, 24)), folder)
    return folder


# Reading


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44099, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretches_are_the_whole_file_resampled(tmp_path, rate, channels):
    samples = noise(2 * rate + 1, channels, seed=rate)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = resample(torch.from_numpy(samples.mean(1)), rate, RATE)
    for length in (7001, 30000, 10**6):
        parts = list(stream_audio(path, RATE, length))
        assert {len(part) for part in parts[:-1]} <= {length}
        assert 0 < len(parts[-1]) <= length
        joined = torch.cat(parts)
        assert joined.dtype == torch.float32
        assert len(joined) == inspect_audio(path).samples_at(RATE)
        # torchaudio works lengths out in single precision.
        assert 0 <= len(joined) - len(whole) <= 1
        assert (joined[: len(whole)] - whole).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_stretches_of_a_compressed_file(tmp_path, name):
    if name.endswith("mp3") and "MP3" not in soundfile.available_formats():
        pytest.skip("libsndfile without MP3")
    path = write(tmp_path / name, noise(3 * 16000), 16000)
    joined = torch.cat(list(stream_audio(path, RATE, 10000)))
    assert (joined - read_audio(path, RATE)).abs().max() < 1e-5


def test_what_stands_before_a_bad_place_is_read(tmp_path):
    samples = noise(3 * RATE)
    samples[2 * RATE + 5] = np.nan
    path = write(tmp_path / "nan.wav", samples, subtype="FLOAT")
    stretches = stream_audio(path, RATE, RATE)
    assert len(next(stretches)) == len(next(stretches)) == RATE
    with pytest.raises(UnusableAudio, match="non-finite"):
        next(stretches)
    path = write(tmp_path / "cut.flac", noise(3 * RATE))
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(UnusableAudio, match="truncated|unreadable"):
        list(stream_audio(path, RATE, RATE))


# Encoding


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


# recipes/embed.py


@pytest.fixture
def embed(mel_folder, capsys, monkeypatch):
    """Embeds in this process: what was done, and all that was printed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(*audio, **options):
        embedding = pipeline.embed(mel_folder, audio, **options)
        print(embedding.summary(options.get("output_folder")))
        said = capsys.readouterr()
        return embedding, said.out + said.err

    run.encoder = load(mel_folder)
    return run


@pytest.fixture
def corpus(tmp_path):
    """A folder with usable and unusable audio: its path."""
    folder = tmp_path / "corpus"
    write(folder / "a.wav", noise(70 * RATE))
    write(folder / "deep/er/b.FLAC", noise(9000, 2), 16000)
    write(folder / "deep/c.wav", noise(3000))
    write(folder / "deep/c.flac", noise(4000))
    (folder / "deep/text.wav").write_text("no audio")
    bad = noise(3 * RATE)
    bad[-5] = np.inf
    write(folder / "inf.wav", bad, subtype="FLOAT")
    return folder


def arrays(folder):
    return {str(p.relative_to(folder)): p for p in folder.rglob("*.npy")}


def test_a_folder_is_laid_out_alike(embed, corpus, tmp_path):
    out = tmp_path / "out"
    _, text = embed(corpus, output_folder=out)
    assert "Embedded: 4 of 6 files, 71 s of audio" in text
    assert "times real time" in text
    assert "Left out: 2" in text
    for name, reason in [("text.wav", "unreadable"), ("inf.wav", "non-finite")]:
        (line,) = [line for line in text.splitlines() if f"{name}: " in line]
        assert reason in line
    names = {
        "a.npy": "a.wav",
        "deep/er/b.npy": "deep/er/b.FLAC",
        "deep/c.wav.npy": "deep/c.wav",
        "deep/c.flac.npy": "deep/c.flac",
    }
    assert set(arrays(out)) == set(names)
    assert len(list(out.rglob("*"))) == 7  # with features.json and two folders
    for name, path in arrays(out).items():
        stored = np.load(path)
        assert stored.dtype == np.float32
        want = embed.encoder.encode_file(corpus / names[name])
        assert np.array_equal(stored, want.numpy())


def test_what_is_there_is_left_alone(embed, corpus, tmp_path):
    out = tmp_path / "out"
    embed(corpus, output_folder=out)
    (out / "deep/er/b.npy").unlink()
    (out / "a.npy").write_text("kept")
    _, text = embed(corpus, output_folder=out)
    assert "Embedded: 1 of 6 files" in text
    assert "There already: 3" in text
    assert "--overwrite" in text
    assert (out / "a.npy").read_text() == "kept"
    assert len(np.load(out / "deep/er/b.npy")) == 43
    # Nothing usable is left: what is there still counts.
    embedding, _ = embed(corpus, output_folder=out)
    assert (embedding.num_done, embedding.num_kept) == (0, 4)
    _, text = embed(corpus, output_folder=out, overwrite=True)
    assert "Embedded: 4 of 6 files" in text
    assert np.load(out / "a.npy").shape == (5250, 16)


def test_features_made_otherwise_are_not_mixed(embed, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    audio = corpus / "deep/c.wav"
    embed(audio, output_folder=out, layer=0)
    for other in [{}, {"layer": "all"}, {"layer": 0, "precision": "bf16"}]:
        with pytest.raises(ValueError, match="made otherwise.*--overwrite"):
            embed(audio, output_folder=out, **other)
    _, text = embed(audio, output_folder=out, layer="all", overwrite=True)
    assert f"{out}/c.npy, 2 x 10 x 16" in text
    want = embed.encoder.encode_file(audio, "all")
    assert np.array_equal(np.load(out / "c.npy"), want.numpy())
    assert json.loads((out / "features.json").read_text())["layer"] == "all"


def test_all_layers_are_written_a_stretch_at_a_time(embed, corpus, tmp_path):
    out = tmp_path / "out"
    embed(corpus / "a.wav", output_folder=out, layer="all", batch_size=3)
    want = embed.encoder.encode_file(corpus / "a.wav", "all").numpy()
    assert np.abs(np.load(out / "a.npy") - want).max() < 1e-4


def test_features_do_not_wait_for_the_disk(embed, corpus, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    embed(corpus / "a.wav", output_folder=tmp_path / "out")
    assert (tmp_path / "out" / "a.npy").exists()
    assert len(synced) == 1  # of features.json


def test_a_file_has_its_name_when_it_is_whole(embed, corpus, monkeypatch):
    interface = type(embed.encoder)
    original = interface.encode_stream

    def stops(self, path, *options):
        yield next(original(self, path, *options))
        raise KeyboardInterrupt

    audio = corpus / "a.wav"
    monkeypatch.setattr(interface, "encode_stream", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(audio)
    assert not [path for path in corpus.iterdir() if path.name.startswith("a.npy")]
    monkeypatch.undo()
    _, text = embed(audio)
    assert f"{corpus}/a.npy, 5250 x 16" in text
    assert not (corpus / "features.json").exists()


def test_two_runs_on_one_output_folder(tmp_path):
    path, rows = tmp_path / "a.npy", noise(6, 3)
    with pipeline.new_array(path, rows.shape) as first:
        first(rows[:4])
        with pipeline.new_array(path, rows.shape) as second:
            second(rows[:2])
            first(rows[4:])
            second(rows[2:4])
            second(rows[4:])
        assert np.array_equal(np.load(path), rows)
    assert np.array_equal(np.load(path), rows)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_usable(embed, mel_folder, corpus, tmp_path):
    bad = [corpus / "inf.wav", corpus / "deep/text.wav", "none.wav"]
    command = [sys.executable, ROOT / "recipes/embed.py", mel_folder, *bad]
    text = execute([*command, "--device", "cpu"], tmp_path, expect=1)
    assert "No such audio file: none.wav" in text
    assert "Left out: 3" in text
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="No audio"):
        embed(tmp_path / "nothing")


def test_a_disk_that_is_full_ends_the_run(embed, corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ValueError, match="cannot be written.*No space left"):
        embed(corpus)
    assert not arrays(corpus)
    with pytest.raises(ValueError, match="output_folder.*No space left"):
        embed(corpus, output_folder=tmp_path / "out")


def test_two_files_for_one_place(embed, tmp_path):
    paths = [write(tmp_path / f"{i}/a.wav", noise(4000)) for i in range(2)]
    with pytest.raises(ValueError, match=r"would both become .*a.*\.npy"):
        embed(*paths, output_folder=tmp_path / "out")
    # In the folder they have in common they differ; and each is taken once.
    _, text = embed(tmp_path, *paths)
    assert "Embedded: 2 of 2 files" in text


def test_a_device_that_is_not_there(embed, corpus):
    with pytest.raises(ValueError, match="--device nonsense: "):
        embed(corpus, device="nonsense")
