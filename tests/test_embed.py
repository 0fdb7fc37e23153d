"""Features of many files: recipes/embed.py."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, execute
from encoders import load
from recordings import RATE, write
from recordings import uniform as noise

from encodecmae_sb.pipelines import embed as pipeline


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
