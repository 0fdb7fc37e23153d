"""Preparers on small trees in the true layouts of the corpora."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from recordings import refuse
from torchaudio.datasets import gtzan

from encodecmae_sb.bundled import sound_folder, speech_folder
from encodecmae_sb.data.clips import (
    all_labels,
    inspect_clips,
    make_folds,
    read_manifests,
    write_manifest,
)
from encodecmae_sb.data.corpora import corpus_names, find_clips
from encodecmae_sb.utils.errors import UserError


def write(folder, *names, rate=16000):
    """Writes short audio files."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(rate // 10)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise, rate)


def speech_commands(folder):
    words = ("bed", "yes")
    files = [
        f"{w}/{i:08x}_nohash_{n}.wav" for w in words for i in (7, 8) for n in (0, 1)
    ]
    write(folder, *files, "_background_noise_/pink_noise.wav")
    (folder / "README.md").write_text("")
    (folder / "validation_list.txt").write_text(f"{files[0]}\n{files[4]}\n")
    (folder / "testing_list.txt").write_text(f"{files[1]}\n{files[5]}\n")
    parts = {"train": 4, "valid": 2, "test": 2}
    return parts, ["bed", "yes"], "validation_list.txt"


def esc50(folder):
    rows = [
        (f"{fold}-10003{n}-A-{n}.wav", fold, n, label, "False", 10003, "A")
        for fold in range(1, 6)
        for n, label in enumerate(("dog", "rain"))
    ]
    write(folder, *(f"audio/{row[0]}" for row in rows))
    (folder / "meta").mkdir()
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    lines += [",".join(map(str, row)) for row in rows]
    (folder / "meta/esc50.csv").write_text("\n".join(lines) + "\n")
    (folder / "meta/esc50-human.xlsx").write_text("")
    return {str(fold): 2 for fold in range(1, 6)}, ["dog", "rain"], "meta/esc50.csv"


def gtzan_tree(folder):
    lists = (gtzan.filtered_train, gtzan.filtered_valid, gtzan.filtered_test)
    names = []
    for part in lists:
        for genre in gtzan.gtzan_genres:
            names.append(next(name for name in part if name.startswith(genre)))
    write(folder, *(f"genres/{name.split('.')[0]}/{name}.wav" for name in names))
    return {"train": 10, "valid": 10, "test": 10}, gtzan.gtzan_genres, "genres/jazz"


def crema_d(folder):
    names = [
        f"AudioWAV/{actor}_{sentence}_{emotion}_XX.wav"
        for actor in range(1001, 1007)
        for sentence, emotion in (("DFA", "ANG"), ("IEO", "NEU"))
    ]
    write(folder, *names)
    (folder / "VideoDemographics.csv").write_text("ActorID,Age,Sex,Race,Ethnicity\n")
    parts = {"1": 4, "2": 2, "3": 2, "4": 2, "5": 2}  # 1006 shares fold 1 with 1001
    return parts, ["anger", "neutral"], "AudioWAV"


def nsynth(folder):
    for part, instrument in (("train", "033"), ("valid", "068"), ("test", "069")):
        notes = {}
        for pitch in (20, 21, 108, 109):
            name = f"bass_synthetic_{instrument}-{pitch:03d}-050"
            notes[name] = {"note_str": name, "pitch": pitch, "sample_rate": 16000}
            write(folder, f"nsynth-{part}/audio/{name}.wav")
        (folder / f"nsynth-{part}/examples.json").write_text(json.dumps(notes))
    parts = {"train": 2, "valid": 2, "test": 2}
    return parts, ["21", "108"], "nsynth-valid/examples.json"


def fsd50k(folder):
    truth = folder / "FSD50K.ground_truth"
    truth.mkdir(parents=True)
    (truth / "vocabulary.csv").write_text("0,Guitar,/m/0342h\n1,Music,/m/04rlf\n")
    (truth / "dev.csv").write_text(
        "fname,labels,mids,split\n"
        '64760,"Guitar,Music","/m/0342h,/m/04rlf",train\n'
        "64761,Bark,/m/05tny_,train\n"
        '345111,"Guitar,Music","/m/0342h,/m/04rlf",val\n'
    )
    (truth / "eval.csv").write_text(
        'fname,labels,mids\n37199,"Guitar,Music","/m/0342h,/m/04rlf"\n'
    )
    write(folder, *(f"FSD50K.dev_audio/{n}.wav" for n in (64760, 64761, 345111)))
    write(folder, "FSD50K.eval_audio/37199.wav")
    parts = {"train": 2, "valid": 1, "test": 1}
    return parts, ["Bark", "Guitar", "Music"], "FSD50K.ground_truth/eval.csv"


def fsdd(folder):
    names = [
        f"recordings/{digit}_{speaker}_{n}.wav"
        for digit in range(10)
        for speaker in ("george", "jackson", "theo")
        for n in (0, 49)
    ]
    write(folder, *names, rate=8000)
    parts = {"george": 20, "jackson": 20, "theo": 20}
    return parts, [str(digit) for digit in range(10)], "recordings"


def librispeech(folder):
    for speaker, chapter in ((103, 1240), (103, 1241), (1034, 121119)):
        number = 5 if speaker == 103 else 10
        write(
            folder,
            *(
                f"train-clean-100/{speaker}/{chapter}/{speaker}-{chapter}-{n:04d}.flac"
                for n in range(number)
            ),
        )
        home = folder / f"train-clean-100/{speaker}/{chapter}"
        (home / f"{speaker}-{chapter}.trans.txt").write_text("")
    write(folder, "dev-clean/84/121123/84-121123-0000.flac")
    parts = {"train": 16, "valid": 2, "test": 2}
    return parts, ["103", "1034"], "train-clean-100"


def esc10(folder):
    names = ("Dog bark", "Rain", "Waves", "Baby", "Clock", "Sneeze", "Helicopter")
    names = [*names, "Chainsaw", "Rooster", "Fire"]
    for number, name in enumerate(names, 1):
        takes = [f"{fold}-1003{number}-{take}" for fold in range(1, 6) for take in "AB"]
        files = [f"{number:03d} - {name}/{take}.ogg" for take in takes]
        write(folder, *files)
    (folder / "README.md").write_text("")
    return {str(fold): 20 for fold in range(1, 6)}, sorted(names), "003 - Waves"


TREES = {
    "speech_commands": speech_commands,
    "esc10": esc10,
    "esc50": esc50,
    "gtzan": gtzan_tree,
    "crema_d": crema_d,
    "nsynth": nsynth,
    "fsd50k": fsd50k,
    "fsdd": fsdd,
    "librispeech": librispeech,
}


def test_every_corpus_is_tested():
    assert sorted(TREES) == corpus_names()


@pytest.mark.parametrize("corpus", TREES)
def test_true_layout(corpus, tmp_path):
    parts, labels, needed = TREES[corpus](tmp_path)
    clips, unusable = inspect_clips(find_clips(corpus, tmp_path))
    assert not unusable
    assert {part: sum(c.part == part for c in clips) for part in parts} == parts
    assert len(clips) == sum(parts.values())
    assert all_labels(clips) == labels
    assert all(clip.duration == 0.1 for clip in clips)
    folds = make_folds(clips)
    assert len(folds) == (1 if "train" in parts else len(parts))

    # What is missing is named, and where it was looked for.
    path = tmp_path / needed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as error:
        find_clips(corpus, tmp_path)
    assert needed.split("/")[-1].split("-")[0] in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "corpus", ["esc10", "esc50", "crema_d", "fsdd", "speech_commands"]
)
def test_clips_that_belong_together_are_known(corpus, tmp_path):
    TREES[corpus](tmp_path)
    clips = find_clips(corpus, tmp_path)
    groups = {}
    for clip in clips:
        groups.setdefault(clip.group, []).append(clip)
    assert "" not in groups
    assert max(map(len, groups.values())) > 1
    read = read_manifests(csv=write_manifest_of(tmp_path, clips))
    assert [clip.group for clip in read] == [clip.group for clip in clips]
    if corpus in ("crema_d", "fsdd"):  # folds of speakers
        assert all(len({clip.part for clip in own}) == 1 for own in groups.values())


def write_manifest_of(folder, clips):
    write_manifest(folder / "clips.csv", clips)
    return folder / "clips.csv"


@pytest.mark.parametrize(
    ("corpus", "inside"),
    [
        ("speech_commands", "yes"),
        ("esc50", "meta"),
        ("crema_d", "AudioWAV"),
        ("fsdd", "recordings"),
        ("librispeech", "train-clean-100"),
        ("librispeech", "train-clean-100/103"),
        ("librispeech", "train-clean-100/103/1241"),
    ],
)
def test_an_unreadable_folder_is_not_passed_over(corpus, inside, tmp_path, monkeypatch):
    TREES[corpus](tmp_path)
    refuse(monkeypatch, tmp_path / inside)
    with pytest.raises(UserError, match=f"{inside} cannot be read: .*denied"):
        find_clips(corpus, tmp_path)


def test_bundled_corpora_have_the_same_layouts():
    clips = find_clips("esc50", sound_folder())
    assert len(clips) == 200
    assert len(make_folds(clips)) == 5
    clips = find_clips("librispeech", speech_folder())
    (fold,) = make_folds(clips)
    assert len(all_labels(clips)) == 10
    assert len(fold.test) == 20


def test_unknown_corpus_and_folder(tmp_path):
    with pytest.raises(UserError, match="crema_d"):
        find_clips("esc51", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"meta/esc50\.csv"):
        find_clips("esc50", tmp_path / "none")
    with pytest.raises(UserError, match="--data_folder"):
        find_clips("esc50", None)


def test_audio_that_is_missing_broken_or_of_another_rate(tmp_path):
    esc50(tmp_path)
    broken = tmp_path / "audio/1-100030-A-0.wav"
    broken.write_text("no audio")
    (tmp_path / "audio/2-100030-A-0.wav").unlink()
    clips, unusable = inspect_clips(find_clips("esc50", tmp_path))
    assert len(clips) == 8
    assert str(broken) in dict(unusable)
    with pytest.raises(UserError, match="16000 Hz, but corpus_rate=44100"):
        inspect_clips(clips, 44100)
