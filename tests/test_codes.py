"""Stored codes: what they are and what is refused."""

import json
import os
import shutil
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, execute
from stored_codes import (  # noqa: F401
    Killed,
    bundled_codec,
    extract,
    extracted_codes,
    few_crops_compared,
    own_codes,
    some_speech,
)

from encodecmae_sb.bundled import codec_file
from encodecmae_sb.data import stored as targets
from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.codes import CodesInfo, CodesPart, StoredCodes, prepare_codes
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.stored import RowFile
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pipelines import extract as pipeline
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import tf32_allowed

pytestmark = pytest.mark.usefixtures("few_compared")


def codes_of(stored):
    """Codes of each file, by name."""
    return {
        path.rpartition("/")[2]: np.array(
            stored.parts[entry.part][entry.offset : entry.offset + entry.frames]
        )
        for path, entry in stored.entries.items()
    }


def same(left, right):
    """Whether two dicts of arrays are equal, bit for bit."""
    assert left.keys() == right.keys()
    return all(np.array_equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------- what is stored


def test_codes_are_those_of_whole_files(corpus, tmp_path, codec, monkeypatch):
    """For files of any rate and length, encoded in chunks or whole."""
    folder = tmp_path / "audio"
    shutil.copytree(corpus, folder)
    speech = [read_audio(path, 24000) for path in sorted(folder.rglob("*.flac"))]
    joined = torch.cat(speech)[: 14 * 24000 + 100].numpy()
    soundfile.write(folder / "train/long.wav", joined, 24000, "FLOAT")
    stereo = np.stack([joined[:90001]] * 2, axis=1)
    soundfile.write(folder / "train/stereo.wav", stereo, 44100)
    for samples in (320, 640, 1000, 2239, 2240, 3000):  # next to no frames
        wav = joined[9000 : 9000 + samples]
        soundfile.write(folder / f"train/short{samples}.wav", wav, 24000, "FLOAT")
    monkeypatch.setattr(Codec, "chunk_samples", 3 * 24000)
    monkeypatch.setattr(Codec, "context_samples", 2 * 24000)
    codes = codes_of(extract(tmp_path / "codes", folder))
    assert len(codes) == 13 + 8
    for path in folder.rglob("*.*"):
        wav = read_audio(path, 24000)
        expected = codec.encode(wav[None])[0, : len(wav) // 320].numpy()
        assert codes[path.name].shape == expected.shape
        # Rounding may turn a tie; with context, an LSTM may remember.
        assert (codes[path.name] == expected).mean() > 0.998
    assert codes["long.wav"].dtype == np.uint16
    assert isinstance(StoredCodes(tmp_path / "codes").parts[0], np.memmap)


def test_killed_it_goes_on(corpus, extracted, tmp_path, monkeypatch):
    whole, folder = codes_of(StoredCodes(extracted)), tmp_path / "codes"
    append, calls = RowFile.append, [0, 0]

    def killed(rows, items):
        calls[0] += 1
        if calls[0] == 3:  # the files are noted, their codes are not
            raise Killed
        append(rows, items)

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "append", killed)
        with pytest.raises(Killed):
            extract(folder, corpus)
    stored = StoredCodes(folder)
    there = codes_of(stored)
    assert 0 < len(there) < len(whole)

    encode = Codec.encode

    def counted(codec, wavs, lengths):
        calls[1] += len(wavs)
        return encode(codec, wavs, lengths)

    monkeypatch.setattr(Codec, "encode", counted)
    monkeypatch.setattr(pipeline, "compare_crops", lambda *args: None)
    assert same(codes_of(extract(folder, corpus)), whole)
    assert calls[1] == len(whole) - len(there)
    extract(folder, corpus)  # nothing is left
    assert calls[1] == len(whole) - len(there)
    assert len(list(folder.glob("part-*.files"))) == 2


def test_of_a_part_cut_anywhere_whole_files_are_left(tmp_path):
    codes = {f"/{i}.wav": np.full((i + 1, 2), i) for i in range(4)}
    prepare_codes(tmp_path, CodesInfo("codec", "bundled", "0" * 8, 2, 1024))
    part = CodesPart(tmp_path, 2)
    for path, values in codes.items():
        part.append([(path, (0, 0), "")], [values])
    names = [f"part-00000.{name}" for name in ("files", "codes", "codes.counts")]
    files, rows, counts = (tmp_path / name for name in names)
    # Lines come first and numbers of rows last, whenever the kill comes.
    written = [file.read_bytes() for file in (files, rows, counts)]
    for left in range(0, len(written[2]) + 1, 3):
        counts.write_bytes(written[2][:left])
        stored = StoredCodes(tmp_path)
        assert list(stored.entries) == list(codes)[: left // 8]
    for left in range(len(written[1]) + 1):  # a power cut
        rows.write_bytes(written[1][:left])
        for path, entry in StoredCodes(tmp_path).entries.items():
            assert 4 * (entry.offset + entry.frames) <= left
            assert entry.frames == len(codes[path])


def test_only_what_changed_is_encoded_again(mine):
    corpus, folder = mine
    before = codes_of(StoredCodes(folder))
    paths = sorted(corpus.rglob("*.flac"))
    soundfile.write(paths[0], 0.1 * np.sin(np.arange(30000) / 9), 16000)
    soundfile.write(corpus / "train/new.wav", np.zeros(24000), 24000)
    os.remove(paths[1])
    stored = extract(folder, corpus)
    with open(sorted(folder.glob("part-*.files"))[-1]) as file:
        again = {json.loads(line)[0] for line in file}
    assert again == {str(paths[0]), str(corpus / "train/new.wav")}
    after = codes_of(stored)
    assert len(after.pop("new.wav")) == 75
    assert len(after[paths[0].name]) == 30000 * 3 // 2 // 320
    for codes in (before, after):
        codes.pop(paths[0].name)
    assert same(before, after)


def test_the_number_of_threads_does_not_matter(
    corpus, extracted, tmp_path, monkeypatch
):
    # A switch of the process, which the codec turns off meanwhile.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before, found, seen = torch.get_num_threads(), [], []
    original = pipeline.encode

    def encode(*args, **kwargs):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, "encode", encode)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(codes_of(extract(tmp_path / str(threads), corpus)))
            assert torch.get_num_threads() == threads
            assert tf32_allowed()["conv"]
        finally:
            torch.set_num_threads(before)
    assert same(*found)
    assert same(found[0], codes_of(StoredCodes(extracted)))
    assert {threads for _, threads in seen} == {1}
    assert len({thread for thread, _ in seen}) > 2


def test_after_an_error_threads_and_precision_are_as_before(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(CodesPart, "append", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError) as kept:
                extract(tmp_path, corpus)
        assert torch.get_num_threads() == 3
        assert tf32_allowed()["conv"]
        assert kept.traceback  # which holds the frames of the call
    finally:
        torch.set_num_threads(before)


def test_two_processes_give_the_codes_of_one(corpus, extracted, tmp_path):
    folder = tmp_path / "codes"
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    text = execute(
        [sys.executable, "-m", *launcher, ROOT / "recipes/extract_codes.py", folder]
        + ["--data_folder", corpus, "--codec", "bundled", "--num_workers", "1"]
        + ["--batch_seconds", "8", "--device", "cpu"],
        tmp_path,
    )
    assert "process 1 of 2" in text
    assert text.count("Codes of 13 files") == 1
    assert "1 s crops: all frames" in text
    assert len(list(folder.glob("part-*.files"))) == 2
    assert same(codes_of(StoredCodes(folder)), codes_of(StoredCodes(extracted)))


def test_files_that_cannot_be_read(corpus, extracted, tmp_path, monkeypatch):
    bad = sorted((corpus / "train").glob("*.flac"))[0]
    read = targets.read_audio

    def broken(path, rate, start, seconds):
        if str(path) == str(bad) and start > 0.7:
            raise UnusableAudio("unreadable: a bad block")
        return read(path, rate, start, seconds)

    monkeypatch.setattr(Codec, "chunk_samples", 24000)
    monkeypatch.setattr(Codec, "context_samples", 1600)
    whole = codes_of(extract(tmp_path / "whole", corpus))
    folder = tmp_path / "codes"
    with monkeypatch.context() as patch:
        patch.setattr(targets, "read_audio", broken)
        with pytest.raises(SystemExit, match="max_unusable=0.05"):
            extract(folder, corpus)
        stored = extract(folder, corpus, "--max_unusable", 0.1)
    # What stands before the bad block is there.
    assert np.array_equal(codes_of(stored)[bad.name], whole[bad.name][:75])
    assert "a bad block" in (folder / "unusable_files.csv").read_text()
    assert same(codes_of(extract(folder, corpus)), whole)
    assert bad.name not in (folder / "unusable_files.csv").read_text()


def test_out_of_memory_names_the_option(corpus, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Codec, "encode", full)
    with pytest.raises(SystemExit, match="lower --batch_seconds"):
        extract(tmp_path, corpus)


def test_crops_bring_the_codes_of_their_frames(corpus, extracted, tmp_path, codec):
    (prepared,) = prepare_corpora(corpus, tmp_path)
    stored = StoredCodes(extracted)
    (files,) = stored.of_manifests([prepared.train_csv], 8, "")
    crops = RandomCrops([prepared.train_csv], 0.8, targets=[files])
    items = [crops[draw] for draw in range(16)]
    batch = CropCollator()(items)
    assert batch.targets.shape == (16, 60, 8)
    agree = codec.encode(batch.wavs) == batch.targets
    # A crop's codes lack what comes before it, the first ones most.
    assert agree[:, 20:, 0].double().mean() > 0.9
    assert agree[:, 20:].double().mean() > 0.7
    assert agree[:, :10].double().mean() < agree[:, 20:].double().mean()
    # One frame further, next to nothing agrees.
    shifted = batch.targets[:, 1:] == codec.encode(batch.wavs)[:, :-1]
    assert shifted[:, 20:, 0].double().mean() < 0.5
    # Fewer codebooks are the first of them.
    (few,) = stored.of_manifests([prepared.train_csv], 3, "")
    crop = RandomCrops([prepared.train_csv], 0.8, targets=[few])[0]
    assert torch.equal(crop["targets"], items[0]["targets"][:, :3])
    # A file taken whole agrees from its first frame on.
    (whole,) = FixedCrops([prepared.train_csv], 1, 100.0, targets=[files])
    agree = codec.encode(whole["wav"][None])[0] == whole["targets"]
    assert agree.double().mean() > 0.998


# ---------------------------------------------------------------- what is refused


def test_codes_that_are_none_or_of_another_kind(corpus, extracted, tmp_path):
    shutil.copy(codec_file(), tmp_path / "same.safetensors")
    data = codec_file().read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    extract(extracted, corpus, "--codec", tmp_path / "same.safetensors")
    for options, message in [
        (("--codec", other), "Give another folder"),
        (("--n_codebooks", 4), "Give another folder"),
        (("--n_codebooks", 9), "1 to 8"),
        (("--batch_seconds", 0), "positive"),
        (("--device", "abacus"), "abacus"),
    ]:
        with pytest.raises(SystemExit, match=message):
            extract(extracted, corpus, *options)
    with pytest.raises(UserError, match="no folder of codes"):
        StoredCodes(tmp_path)
    (tmp_path / "codes.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="another version"):
        StoredCodes(tmp_path)
    (tmp_path / "codes.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        StoredCodes(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="Cannot write"):
        extract(tmp_path / "file", corpus)
