"""Audio files, manifests, crops: what is usable, what is drawn, what is reported."""

import csv
import errno
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

import encodecmae_sb.data.crops as crops_module
from encodecmae_sb.data.audio import (
    UnusableAudio,
    inspect_audio,
    read_audio,
    resample,
    resampling_ratio,
)
from encodecmae_sb.data.crops import CropCollator, DrawSampler, RandomCrops
from encodecmae_sb.data.manifest import check_folders, prepare_corpora, read_manifest
from encodecmae_sb.data.shards.reading import ShardCrops
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.utils.errors import UserError

RATES = [8000, 16000, 22050, 24000, 44099, 44100, 48000]


def noise(seconds, rate, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (round(seconds * rate), channels)
    return rng.uniform(-0.5, 0.5, shape).astype(np.float32)


def write(path, samples, rate=24000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)
    return path


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


needs_mp3 = pytest.mark.skipif(
    "MP3" not in soundfile.available_formats(), reason="libsndfile without MP3"
)


# Usable and unusable files


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_usable_wav(tmp_path, rate, channels):
    path = write(tmp_path / "a.wav", noise(0.5, rate, channels), rate)
    info = inspect_audio(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.num_samples == round(0.5 * rate)
    assert info.duration == pytest.approx(0.5, abs=1 / rate)


@pytest.mark.parametrize(
    "name", ["a.flac", "a.ogg", "A.WAV", pytest.param("a.mp3", marks=needs_mp3)]
)
def test_usable_formats(tmp_path, name):
    path = write(tmp_path / name, noise(1, 44100, 2), 44100)
    info = inspect_audio(path)
    assert (info.sample_rate, info.channels) == (44100, 2)
    assert info.duration == pytest.approx(1, abs=0.06)


def test_silence_is_usable(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(24000))
    assert inspect_audio(path).num_samples == 24000


def make_bad(folder):
    """One file of each unusable kind: path -> a word of its reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio\n" * 100)
    cut(write(folder / "cut.wav", noise(1, 24000)))
    cut(write(folder / "cut.flac", noise(1, 24000)))
    write(folder / "nothing.wav", np.zeros(0))
    for name, value in [("nan", np.nan), ("inf", np.inf)]:
        samples = noise(1, 24000)
        samples[12345] = value
        write(folder / f"{name}.wav", samples, subtype="FLOAT")
    write(folder / "short.wav", np.zeros(319))
    return {
        "empty.wav": "empty file",
        "text.wav": "unreadable",
        "cut.wav": "truncated",
        "cut.flac": "unreadable|truncated",
        "nothing.wav": "no samples",
        "nan.wav": "non-finite",
        "inf.wav": "non-finite",
        "short.wav": "too short: 13.3 ms",
    }


@needs_mp3
def test_truncated_mp3(tmp_path):
    with pytest.raises(UnusableAudio, match="truncated|unreadable"):
        inspect_audio(cut(write(tmp_path / "a.mp3", noise(1, 24000))))


def test_a_frame_is_long_enough(tmp_path):
    assert inspect_audio(write(tmp_path / "a.wav", np.zeros(320))).num_samples == 320


# Manifests


@pytest.fixture
def corpus_folder(tmp_path):
    folder = tmp_path / "audio"
    for i, rate in enumerate(RATES):
        write(folder / f"{rate}.wav", noise(0.3, rate, 1 + i % 2), rate)
    write(folder / "nested" / "deep" / "b.FLAC", noise(0.3, 16000), 16000)
    write(folder / "silence.ogg", np.zeros(24000))
    (folder / "notes.txt").write_text("not audio, and not meant to be\n")
    return folder


def both(corpus):
    return read_manifest(corpus.train_csv) + read_manifest(corpus.valid_csv)


def test_manifest_of_a_mixed_folder(tmp_path, corpus_folder):
    reasons = make_bad(corpus_folder / "bad")
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save", max_unusable=0.5)
    assert corpus.num_files == len(RATES) + 2 + len(reasons)
    assert len(corpus.unusable) == len(reasons)
    for path, reason in corpus.unusable:
        expected = reasons.pop(os.path.basename(path)).split("|")
        assert any(word in reason for word in expected), (path, reason)
    rows = both(corpus)
    assert len(rows) == len(RATES) + 2
    assert len({row["ID"] for row in rows}) == len(rows)
    for row in rows:
        info = soundfile.info(row["wav"])
        assert int(row["num_samples"]) == info.frames
        assert int(row["sample_rate"]) == info.samplerate
        assert float(row["duration"]) == pytest.approx(info.duration, abs=1e-5)
    assert read_manifest(corpus.valid_csv)
    # A second run finds the same without looking again.
    assert prepare_corpora(corpus_folder, tmp_path / "save", 0.5) == [corpus]


def test_too_many_unusable_files(tmp_path, corpus_folder):
    make_bad(corpus_folder / "bad")
    with pytest.raises(UserError, match=r"8 of 17 .*47\.1%") as caught:
        prepare_corpora(corpus_folder, tmp_path / "save", max_unusable=0.4)
    assert "--max_unusable" in str(caught.value)
    assert "empty.wav: empty file" in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*--data_folder"):
        prepare_corpora(tmp_path / "nowhere", tmp_path / "save")


def test_folder_without_audio(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"No audio.*\.wav, \.flac"):
        prepare_corpora(tmp_path / "audio", tmp_path / "save")


def refuse(monkeypatch, folder, *error):
    """Makes a folder unreadable, even for root."""
    scandir = os.scandir

    def scan(path="."):
        if os.fspath(path) == str(folder):
            raise OSError(*(error or (errno.EACCES, "Permission denied")))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_an_unreadable_folder_is_not_passed_over(tmp_path, monkeypatch, corpus_folder):
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save")
    before = both(corpus)
    deep = corpus_folder / "nested" / "deep"
    with monkeypatch.context() as patch:
        refuse(patch, deep)
        with pytest.raises(UserError, match="nested/deep.*Permission denied") as caught:
            prepare_corpora(corpus_folder, tmp_path / "save")
        # A disk may fail for a while: what is there is not lost.
        assert both(corpus) == before
    assert str(caught.value).endswith("Make it readable, or move it out of the folder.")
    with monkeypatch.context() as patch:
        refuse(patch, corpus_folder, errno.EIO, "Input/output error")
        with pytest.raises(UserError, match="Input/output error"):
            prepare_corpora(corpus_folder, tmp_path / "save")
    assert prepare_corpora(corpus_folder, tmp_path / "save") == [corpus]


def test_a_link_that_leads_nowhere_is_named(tmp_path, corpus_folder, caplog):
    for name in ("gone", "lost.wav"):
        (corpus_folder / name).symlink_to(tmp_path / "elsewhere")
    for name in ("itself", "itself.wav"):
        (corpus_folder / name).symlink_to(name)
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save", max_unusable=0.5)
    bad = [str(corpus_folder / name) for name in ("itself.wav", "lost.wav")]
    assert [path for path, _ in corpus.unusable] == bad
    (record,) = [r for r in caplog.records if "leads nowhere" in r.getMessage()]
    links = [str(corpus_folder / name) for name in ("gone", "itself")]
    assert record.getMessage().startswith(tuple(links))
    assert "and 1 more" in record.getMessage()


def test_lost_and_found_does_not_stop_a_run(tmp_path, monkeypatch, corpus_folder):
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save")
    lost = corpus_folder / "nested" / "lost+found"
    lost.mkdir()
    refuse(monkeypatch, lost)
    assert prepare_corpora(corpus_folder, tmp_path / "save") == [corpus]


def test_single_file(tmp_path):
    write(tmp_path / "audio" / "a.wav", noise(1, 24000))
    with pytest.raises(UserError, match="at least 2"):
        prepare_corpora(tmp_path / "audio", tmp_path / "save")


def test_manifest_is_rebuilt_only_when_something_changed(tmp_path, corpus_folder):
    save = tmp_path / "save"

    def prepare():
        """The corpus, and whether it was built again."""
        for path in save.glob("*.csv"):
            os.utime(path, (1, 1))
        (corpus,) = prepare_corpora(corpus_folder, save)
        times = {os.stat(p).st_mtime for p in (corpus.train_csv, corpus.valid_csv)}
        return corpus, times != {1}

    assert prepare()[1]
    assert not prepare()[1]
    write(corpus_folder / "new.wav", noise(0.4, 24000))
    corpus, built = prepare()
    assert built
    assert len(both(corpus)) == len(RATES) + 3
    assert not prepare()[1]
    write(corpus_folder / "new.wav", noise(0.7, 24000))
    corpus, built = prepare()
    assert built
    (row,) = [row for row in both(corpus) if row["ID"] == "new"]
    assert float(row["duration"]) == pytest.approx(0.7)
    (corpus_folder / "new.wav").unlink()
    corpus, built = prepare()
    assert built
    assert len(both(corpus)) == len(RATES) + 2


def test_librispeech_layout(tmp_path):
    folder = tmp_path / "LibriSpeech"
    speakers = {
        "train-clean-100": (19, 26),
        "dev-clean": (84, 174),
        "test-clean": (61,),
    }
    for part in speakers:
        for speaker in speakers[part]:
            chapter = folder / part / str(speaker) / "7"
            for i in range(2):
                write(chapter / f"{speaker}-7-000{i}.flac", noise(0.2, 16000), 16000)
            lines = [f"{speaker}-7-000{i} HELLO {part} {i}\n" for i in range(2)]
            (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    for path, part in [
        (corpus.train_csv, "train-clean-100"),
        (corpus.valid_csv, "dev-clean"),
    ]:
        dataset = DynamicItemDataset.from_csv(path)
        dataset.set_output_keys(["id", "wav", "duration", "spk_id", "wrd"])
        assert len(dataset) == 4
        for item in dataset:
            assert item["id"].startswith(part)
            assert os.path.exists(item["wav"])
            assert item["duration"] == pytest.approx(0.2)
            assert int(item["spk_id"]) in speakers[part]
            assert item["wrd"] == f"HELLO {part} {item['id'][-1]}"


def in_parts(folder, *parts):
    """Thirty files in each part of a folder, enough for some to be held out."""
    for part in parts:
        for i in range(30):
            write(folder / part / f"{i}.wav", np.zeros(320))
    return folder


def tops(csv_file):
    """The parts that the files of a manifest lie in."""
    return {row["ID"].split("/")[0] for row in read_manifest(csv_file)}


@pytest.mark.parametrize(
    ("parts", "train", "valid"),
    [
        ("train val test", "train", "val"),
        ("train validation eval", "train", "validation"),
        ("Train-clean-100 Dev-clean", "Train-clean-100", "Dev-clean"),
        ("train2017 val2017 test2017", "train2017", "val2017"),
        # Without a part to validate on, but never from what is there for the test.
        ("train-clean-100 test-clean", "train-clean-100", "train-clean-100"),
        ("train eval", "train", "train"),
        ("dev-clean test-clean test-other", "dev-clean", "dev-clean"),
        ("music test", "music", "music"),
        # Names of sounds, not of parts.
        ("train valves", "train valves", "train valves"),
    ],
)
def test_parts_of_a_folder(tmp_path, parts, train, valid):
    folder = in_parts(tmp_path / "audio", *parts.split())
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    assert tops(corpus.train_csv) == set(train.split())
    assert tops(corpus.valid_csv) <= set(valid.split())


def folders_of(corpus):
    return {row["ID"].rpartition("/")[0] for row in both(corpus)}


@pytest.mark.parametrize(
    ("parts", "used", "warned"),
    [
        (
            "LibriSpeech/train-clean-100 LibriSpeech/dev-clean LibriSpeech/test-clean",
            "LibriSpeech/train-clean-100 LibriSpeech/dev-clean",
            "for the test: LibriSpeech/test-clean",
        ),
        ("train/en train/en/test/x dev", "train/en dev", "for the test: train/en/test"),
        ("train dev test/a", "train dev", ""),
        # Once what is there for the test is gone, there is no part to validate on.
        ("train/a dev/test", "train/a", "one file in 20 .*for the test: dev/test"),
    ],
)
def test_test_parts_below_the_first_level(tmp_path, caplog, parts, used, warned):
    folder = in_parts(tmp_path / "audio", *parts.split())
    for name in used.split():  # a file may be called so
        write(folder / name / "test.wav", np.zeros(320))
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    assert folders_of(corpus) == set(used.split())
    assert len(both(corpus)) == 31 * len(used.split())
    assert read_manifest(corpus.valid_csv)
    said = [r.getMessage() for r in caplog.records if "for the test" in r.getMessage()]
    assert len(said) == bool(warned)
    assert re.search(f"{warned}$", "".join(said))


def test_nothing_but_test_parts(tmp_path):
    folder = in_parts(tmp_path / "audio", "test-clean", "test-other")
    with pytest.raises(UserError, match=r"test-clean, test-other.*--data_folder"):
        prepare_corpora(folder, tmp_path / "save")
    # The folder itself may be named as the one to train on.
    (corpus,) = prepare_corpora(folder / "test-clean", tmp_path / "save")
    assert len(both(corpus)) == 30


def test_a_manifest_killed_while_it_is_rewritten_is_built_again(
    tmp_path, corpus_folder, monkeypatch
):
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save")
    before = both(corpus)
    write(corpus_folder / "new.wav", noise(0.4, 24000))
    original, calls = os.replace, []

    def stops(*paths):
        calls.append(paths)
        if len(calls) == 2:  # one of the two manifests is the new one
            raise KeyboardInterrupt
        original(*paths)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpora(corpus_folder, tmp_path / "save")
    monkeypatch.undo()
    (corpus_folder / "new.wav").unlink()
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save")
    assert both(corpus) == before


def test_a_damaged_state_is_built_again(tmp_path, corpus_folder):
    (corpus,) = prepare_corpora(corpus_folder, tmp_path / "save")
    for text in ("", "[1]", '{"fingerprint"'):
        (tmp_path / "save/audio.json").write_text(text)
        assert prepare_corpora(corpus_folder, tmp_path / "save") == [corpus]


def test_transcripts_of_a_linked_part(tmp_path):
    elsewhere = tmp_path / "disk" / "1" / "7"
    for i in range(3):
        write(elsewhere / f"1-7-000{i}.flac", noise(0.2, 16000), 16000)
    lines = "".join(f"1-7-000{i} HELLO\n" for i in range(3))
    (elsewhere / "1-7.trans.txt").write_text(lines)
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "train-clean-100").symlink_to(tmp_path / "disk")
    (corpus,) = prepare_corpora(tmp_path / "LibriSpeech", tmp_path / "save")
    assert [row.get("wrd") for row in both(corpus)] == ["HELLO"] * 3


def test_files_that_differ_in_extension_only(tmp_path):
    folder = tmp_path / "audio"
    for name in ("a.wav", "a.flac", "b.wav", "c.wav"):
        write(folder / name, noise(0.2, 24000))
    (corpus,) = prepare_corpora(folder, tmp_path / "save")
    loaded = [
        DynamicItemDataset.from_csv(path)
        for path in (corpus.train_csv, corpus.valid_csv)
    ]
    assert sum(map(len, loaded)) == 4


def test_file_name_that_is_not_unicode(tmp_path):
    folder = tmp_path / "audio"
    for name in ("a.wav", "b.wav", "c.wav"):
        write(folder / name, noise(0.2, 24000))
    try:
        os.rename(folder / "c.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (corpus,) = prepare_corpora(folder, tmp_path / "save", max_unusable=0.5)
    assert len(both(corpus)) + len(corpus.unusable) == 3


def two_files(folder):
    write(folder / "a.wav", noise(0.2, 24000))
    write(folder / "b.wav", noise(0.2, 24000))
    return folder


def test_folders_of_the_same_name(tmp_path):
    folders = [two_files(tmp_path / part / "audio") for part in "abc"]
    corpora = prepare_corpora(folders, tmp_path / "save")
    assert corpora[0].name == "audio"
    assert len({corpus.name for corpus in corpora}) == 3
    for corpus, folder in zip(corpora, folders, strict=True):
        assert len(both(corpus)) == 2
        assert all(row["wav"].startswith(str(folder)) for row in both(corpus))


def test_a_folder_named_like_a_numbered_one(tmp_path):
    names = ["one/audio_2", "one/audio", "two/audio"]
    folders = [two_files(tmp_path / name) for name in names]

    def give_up(*_):
        raise TimeoutError("prepare_corpora does not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    try:
        corpora = prepare_corpora(folders, tmp_path / "save")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert len({corpus.name for corpus in corpora}) == 3


# Reading


@pytest.mark.parametrize("rate", RATES)
def test_part_equals_the_same_part_of_the_whole(tmp_path, rate):
    samples = noise(3, rate, seed=rate)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = resample(torch.from_numpy(samples[:, 0]), rate, 24000)
    assert torch.allclose(read_audio(path, 24000), whole, atol=1e-4)
    orig, new = resampling_ratio(rate, 24000)
    rng = np.random.default_rng(rate)
    for start in [0, 1e-4, 2.5, *rng.uniform(0, 2.4, 12)]:
        first = int(start * rate / orig) * new  # rounded down to a block
        assert 0 <= start * 24000 - first < 24000 * 0.042 + 1
        part = read_audio(path, 24000, start, 0.5)
        assert part.dtype == torch.float32
        assert len(part) == 12000
        assert (part - whole[first : first + 12000]).abs().max() < 1e-4
    rest = read_audio(path, 24000, 2.0)
    assert torch.allclose(rest, whole[-len(rest) :], atol=1e-4)
    assert abs(len(rest) - 24000) <= new


@pytest.mark.parametrize(
    "name", ["a.flac", "a.ogg", pytest.param("a.mp3", marks=needs_mp3)]
)
def test_part_of_a_compressed_file(tmp_path, name):
    path = write(tmp_path / name, noise(3, 16000), 16000)
    whole = read_audio(path, 24000)
    for start in np.random.default_rng(0).uniform(0, 2.4, 5):
        first = int(start * 8000) * 3
        part = read_audio(path, 24000, start, 0.5)
        assert (part - whole[first : first + 12000]).abs().max() < 1e-4


def test_low_frequencies_survive_resampling(tmp_path):
    time = np.arange(3 * 44099) / 44099
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 44099)
    heard = read_audio(path, 24000, seconds=2).numpy()
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    assert np.abs(heard - want)[100:].max() < 0.01


def test_stereo_is_averaged(tmp_path):
    samples = noise(1, 24000, channels=2)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert np.allclose(read_audio(path, 24000), samples.mean(1), atol=1e-6)


def test_a_long_file_is_never_read_whole(tmp_path, monkeypatch):
    rate = 8000
    path = write(tmp_path / "long.wav", np.zeros(600 * rate), rate)
    read = []
    original = soundfile.SoundFile.read

    def spy(self, *args, **kwargs):
        samples = original(self, *args, **kwargs)
        read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    inspect_audio(path)
    assert len(read_audio(path, 24000, 300, 4)) == 96000
    assert read
    assert sum(read) < 5 * rate


@pytest.mark.parametrize("rate", [8000, 24000])
@pytest.mark.parametrize("start", [1.0, 1.1])
def test_a_start_at_or_after_the_end_is_unusable(tmp_path, rate, start):
    path = write(tmp_path / "a.wav", noise(1, rate), rate)
    with pytest.raises(UnusableAudio, match="no samples after"):
        read_audio(path, 24000, start, 0.5)


@pytest.mark.parametrize("name", ["text.wav", "cut.flac", "nan.wav", "inf.wav"])
def test_bad_files_are_noticed_when_they_are_read(tmp_path, name):
    make_bad(tmp_path)
    with pytest.raises(UnusableAudio):
        read_audio(tmp_path / name, 24000)


def test_a_rate_of_a_few_hertz_is_unusable(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(800), 6)
    with pytest.raises(UnusableAudio):
        inspect_audio(path) and read_audio(path, 24000)


# Crops


def manifest(path, durations):
    """A manifest of files that need not exist, named by their number."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav"])
        rows.writerows([i, d, f"{path.stem}/{i}"] for i, d in enumerate(durations))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Replaces reading: notes what was asked for, and returns zeros."""
    asked = []

    def fake(path, target_rate, start=0.0, seconds=None):
        asked.append((path, start))
        return torch.zeros(8)

    monkeypatch.setattr(crops_module, "read_audio", fake)
    return asked


def close(counts, shares):
    """Whether counts are those of draws with these shares, within 5 sigma."""
    counts, shares = np.array(counts), np.array(shares)
    sigma = np.sqrt(counts.sum() * shares * (1 - shares))
    return (np.abs(counts - counts.sum() * shares) <= 5 * sigma).all()


def test_files_are_drawn_by_duration_and_positions_uniformly(tmp_path, reads):
    durations = np.array([0.5, 1, 2, 4, 8, 12])
    crops = RandomCrops([manifest(tmp_path / "a.csv", durations)], crop_seconds=2)
    for draw in range(6000):
        crops[draw]
    files = np.array([int(path.split("/")[-1]) for path, _ in reads])
    starts = np.array([start for _, start in reads])
    counts = np.bincount(files, minlength=6)
    assert close(counts, durations / durations.sum())
    assert (starts[files < 3] == 0).all()  # as short as a crop: from the start
    for file in (3, 4, 5):
        found = np.sort(starts[files == file]) / (durations[file] - 2)
        assert 0 <= found[0] <= found[-1] <= 1
        uniform = np.arange(len(found)) / len(found)
        assert np.abs(found - uniform).max() < 2 / math.sqrt(len(found))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        (None, [1 / 4, 3 / 4, 0]),
        ([5, 3, 2], [0.5, 0.3, 0.2]),
        ([1, 0, 1], [0.5, 0, 0.5]),
    ],
)
def test_corpora_are_drawn_by_weight(tmp_path, reads, weights, shares):
    manifests = [
        manifest(tmp_path / "a.csv", [10, 10]),
        manifest(tmp_path / "b.csv", [20, 20, 20]),
        manifest(tmp_path / "c.csv", [1e-9]),
    ]
    crops = RandomCrops(manifests, weights=weights)
    drawn = [crops[i]["corpus"] for i in range(3000)]
    assert close(np.bincount(drawn, minlength=3), shares)
    assert ["abc"[i] for i in drawn] == [
        path[path.rindex("/") - 1] for path, _ in reads
    ]


@pytest.mark.parametrize(
    "weights",
    [
        *([], [1], [1, 2, 3], [0, 0], [1, -1], [1, math.nan], [1, math.inf]),
        *(1, 0.5, "1, 2", {"a": 1, "b": 2}, ["1", 2], [[1], [2]], [True, True]),
    ],
)
def test_wrong_corpus_weights(tmp_path, weights):
    manifests = [manifest(tmp_path / f"{name}.csv", [1, 1]) for name in "ab"]
    with pytest.raises(UserError) as caught:
        RandomCrops(manifests, weights=weights)
    assert f"corpus_weights={weights} for 2 corpora" in str(caught.value)
    with pytest.raises(UserError, match="corpus_weights"):
        ShardCrops(manifests, weights=weights)


@pytest.mark.parametrize("folders", [2024, ["/data", 2024], [], False, {"a": 1}])
def test_wrong_data_folder(tmp_path, folders):
    with pytest.raises(UserError) as caught:
        check_folders(folders)
    assert f"data_folder={folders}" in str(caught.value)
    assert "a path or a list of paths is allowed" in str(caught.value)


def test_a_draw_is_a_function_of_seed_and_number(tmp_path):
    for i in range(4):
        write(tmp_path / "audio" / f"{i}.wav", noise(1 + i, 16000, seed=i), 16000)
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")

    def draws(numbers, seed=0):
        crops = RandomCrops([corpus.train_csv], crop_seconds=0.5, seed=seed)
        return {i: (crops[i]["wav"], crops[i]["seed"]) for i in numbers}

    forwards, backwards = draws([3, 7, 10**9]), draws([10**9, 7, 3])
    for i in forwards:
        assert torch.equal(forwards[i][0], backwards[i][0])
        assert forwards[i][1] == backwards[i][1]
    assert forwards[3][1] != forwards[7][1]
    assert not torch.equal(forwards[3][0], forwards[7][0])
    assert draws([3], seed=1)[3][1] != forwards[3][1]


def test_draws_are_those_of_earlier_versions(tmp_path, reads):
    """A run that is resumed after an update goes on with the same crops."""
    manifests = [
        manifest(tmp_path / "a.csv", [0.5, 1, 2, 4, 8, 12]),
        manifest(tmp_path / "b.csv", [3] * 5),
    ]
    crops = RandomCrops(manifests, crop_seconds=2, seed=3)
    drawn = [crops[draw]["seed"] for draw in (0, 1, 2, 10**9)]
    assert [(path, round(float(start), 6)) for path, start in reads] == [
        ("b/0", 0.382828),
        ("b/4", 0.813381),
        ("b/2", 0.401739),
        ("a/5", 9.083286),
    ]
    assert drawn == [
        3684574418014248806,
        654679983617604038,
        2873400931701046956,
        4375600591368129908,
    ]


def test_a_file_that_went_bad_is_replaced_and_reported(tmp_path):
    for name in "abc":
        write(tmp_path / "audio" / f"{name}.wav", noise(1, 24000))
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")
    train = [row["wav"] for row in read_manifest(corpus.train_csv)]
    assert len(train) == 2
    crops = RandomCrops([corpus.train_csv], crop_seconds=0.5)
    with open(train[0], "w") as file:
        file.write("no longer audio")
    items = [crops[i] for i in range(20)]
    assert all(len(item["wav"]) == 12000 for item in items)
    reported = [bad for item in items for bad in item["unusable"]]
    assert {path for path, _ in reported} == {train[0]}
    assert all("unreadable" in reason for _, reason in reported)
    assert CropCollator()(items).unusable == reported
    os.unlink(train[1])
    with pytest.raises(UserError, match="in a row"):
        crops[0]


def test_short_files_are_padded(tmp_path):
    for i in range(3):
        write(tmp_path / "audio" / f"{i}.wav", noise(0.71, 24000, seed=i))
    (corpus,) = prepare_corpora(tmp_path / "audio", tmp_path / "save")
    short = RandomCrops([corpus.train_csv], crop_seconds=4)[0]
    cropped = RandomCrops([corpus.train_csv], crop_seconds=0.2)[0]
    assert len(short["wav"]) == 17040
    assert len(cropped["wav"]) == 4800
    batch = CropCollator()([short, cropped])
    assert batch.wavs.shape == (2, 17280)  # 54 frames
    assert batch.lengths.tolist() == [17040, 4800]
    assert torch.equal(batch.wavs[0, :17040], short["wav"])
    assert (batch.wavs[0, 17040:] == 0).all()
    assert (batch.wavs[1, 4800:] == 0).all()
    assert batch.seeds.tolist() == [short["seed"], cropped["seed"]]
    assert batch.full is False
    assert CropCollator()([short]).full is False  # its last frame is not full
    assert CropCollator()([cropped, cropped]).full is True


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_draws_of_a_step(world_size):
    ranks = range(world_size)
    samplers = [DrawSampler(8, 2, rank, world_size) for rank in ranks]
    drawn = []
    for first in (0, 3, 6):
        for sampler in samplers:
            sampler.steps = range(first, first + 3)
            assert len(sampler) == 3 * sampler.batches_per_step
        each = [list(sampler) for sampler in samplers]
        count = samplers[0].batches_per_step
        for start in range(0, 3 * count, count):
            parts = [batches[start : start + count] for batches in each]
            drawn.append(sorted(d for part in parts for batch in part for d in batch))
    assert drawn == [list(range(8 * i, 8 * i + 8)) for i in range(9)]


# Account of the unusable


def test_unusable_files_are_counted_once_and_remembered(tmp_path):
    path = tmp_path / "unusable.csv"
    names = [str(tmp_path / name) for name in ("a.wav", 'b, "c".wav')]
    for name in names:
        cut(write(Path(name), noise(1, 24000)))
    bad = UnusableFiles(path, 100, 0.05)
    assert len(bad) == 0
    bad.add([(names[0], "empty"), (names[0], "empty"), (names[1], "x, y")])
    bad.add([(names[0], "again")])
    assert len(bad) == 2
    again = UnusableFiles(path, 100, 0.05)
    assert len(again) == 2
    again.add([(names[0], "again"), (names[1], "x, y")])
    assert len(again) == 2
    again.add([(f"{i}.wav", "bad") for i in range(3)])
    with pytest.raises(UserError, match="6 of 100.*--max_unusable") as caught:
        again.add([("one too many.wav", "bad")])
    assert str(path) in str(caught.value)
    assert len(read_manifest(path)) == 6


def test_what_is_readable_again_is_forgotten(tmp_path):
    path = tmp_path / "unusable.csv"
    names = ["repaired.wav", "bad inside.wav", "bad.wav", "removed.wav"]
    files = [write(tmp_path / name, noise(1, 24000)) for name in names]
    noted = [(str(file), "unreadable") for file in files]
    # As a recogniser notes an utterance that has none; its corpus will say again.
    UnusableFiles(path, 100).add([*noted, ("dev/1-2-0003", "no transcript")])
    samples = noise(1, 24000)
    samples[5] = np.nan  # only reading all of it tells
    write(files[1], samples, subtype="FLOAT")
    cut(files[2])
    files[3].unlink()
    account = UnusableFiles(path, 40, max_share=0.05)
    still = [str(file) for file in files[1:3]]
    assert list(account.reasons) == still
    assert [row["path"] for row in read_manifest(path)] == still
    account.add([(still[0], "unreadable")])
    with pytest.raises(UserError, match="3 of 40"):
        account.add([(str(files[0]), "bad once more")])
