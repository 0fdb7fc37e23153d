"""Manifests: what is found in a folder, what is refused, when it is looked at again."""

import errno
import os
import signal

import numpy as np
import pytest
import soundfile
from recordings import RATES, both, make_bad, noise, refuse, write
from speechbrain.dataio.dataset import DynamicItemDataset

from encodecmae_sb.data.manifest import check_folders, prepare_corpora, read_manifest
from encodecmae_sb.utils.errors import UserError


@pytest.fixture
def corpus_folder(tmp_path):
    folder = tmp_path / "audio"
    for i, rate in enumerate(RATES):
        write(folder / f"{rate}.wav", noise(0.3, rate, 1 + i % 2), rate)
    write(folder / "nested" / "deep" / "b.FLAC", noise(0.3, 16000), 16000)
    write(folder / "silence.ogg", np.zeros(24000))
    (folder / "notes.txt").write_text("not audio, and not meant to be\n")
    return folder


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


@pytest.mark.parametrize("folders", [2024, ["/data", 2024], [], False, {"a": 1}])
def test_wrong_data_folder(tmp_path, folders):
    with pytest.raises(UserError) as caught:
        check_folders(folders)
    assert f"data_folder={folders}" in str(caught.value)
    assert "a path or a list of paths is allowed" in str(caught.value)
