"""The recipe on tiny tasks in HEAR's layout; the scores are in test_hear_scores.py."""

import contextlib
import io
import json

import numpy as np
import pytest
import soundfile
import torch
from classification import read_rows
from commands import ROOT, run_recipe
from hear_folders import RATE, write_beeps, write_chords, write_tones

from encodecmae_sb import hear
from encodecmae_sb.data.hear_tasks import (
    SoundEvent,
    find_tasks,
    inspect_task,
    read_task,
)
from encodecmae_sb.evaluation.hear_results import PUBLISHED, read_published
from encodecmae_sb.pipelines import heareval
from encodecmae_sb.pipelines.hear_embeddings import (
    HearEmbeddings,
    SplitEmbeddings,
    frame_targets,
    load_model,
)

QUICK = {"hidden_size": 32, "number_of_epochs": 12, "grid_points": 2, "num_workers": 0}


def run(folder, output, **options):
    given = {"tasks_dir": folder, "output_folder": output, "sample_rate": RATE}
    given |= QUICK | options
    given = {key: value for key, value in given.items() if value is not None}
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    yaml = ROOT / "hparams/heareval.yaml"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_recipe("heareval", yaml, "--device", "cpu", "--noprogressbar", *flags)
    return said.getvalue()


def fails(folder, output, **options):
    """The message of a run that cannot work."""
    with pytest.raises(SystemExit) as end:
        run(folder, output, **options)
    return str(end.value)


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder around three tasks, as an archive unpacks."""
    root = tmp_path_factory.mktemp("hear") / "hear-2021.0.6/tasks"
    write_tones(root)
    write_chords(root)
    write_beeps(root)
    return root.parent


@pytest.fixture(scope="module")
def finished(tasks, mel_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    published = output / "published.csv"
    published.write_text(
        "task,encoder,score,value,source\n"
        "tones,paper-base,top1_acc,0.123,a test\n"
        "tones,paper-base,mAP,0.456,not the main score\n"
        "esc50,paper-base,top1_acc,0.789,another task\n"
    )
    encoders = f"[logmel, random, {mel_folder}]"
    text = run(tasks, output, encoders=encoders, published_scores=published)
    # A later run in this folder writes others.
    return output, text, metrics_of(output), read_rows(output / "heareval.csv")


def test_a_run_compares_encoders_in_all_tasks(finished, mel_folder):
    output, text, metrics, _ = finished
    heads = read_rows(output / "heads.csv")
    scores = {"beeps": "event_onset_200ms_fms", "chords": "mAP", "tones": "top1_acc"}
    for name in ("logmel", "random", str(mel_folder)):
        means = [metrics[f"{name}/{task}/{score}"] for task, score in scores.items()]
        assert metrics[f"{name}/mean"] == pytest.approx(np.mean(means))
        assert f"{np.mean(means):.3f}" in text
        for task, score in scores.items():
            key = f"{name}/{task}/{score}"
            assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
        folds = [metrics[f"{name}/chords/fold_fold0{i}/mAP"] for i in range(3)]
        assert metrics[f"{name}/chords/mAP"] == pytest.approx(np.mean(folds))
        deviation = metrics[f"{name}/chords/mAP_std_folds"]
        assert deviation == pytest.approx(np.std(folds, ddof=1))
        for task, count in (("beeps", 2), ("chords", 4), ("tones", 2)):
            own = [h for h in heads if (h["encoder"], h["task"]) == (name, task)]
            assert len(own) == count
            first = [h for h in own if h["fold"] == own[0]["fold"]]
            best = max(first, key=lambda head: float(head["valid"]))
            chosen = [h for h in own if h["chosen"] == "True"]
            assert best in chosen
            assert len({(h["hidden_layers"], h["lr"]) for h in chosen}) == 1
            assert all((h["test"] == "") == (h["chosen"] == "False") for h in own)
    assert metrics["logmel/tones/top1_acc"] > 0.7  # chance: 0.33
    assert metrics["logmel/beeps/event_onset_200ms_fms"] > 0.3
    assert "logmel/beeps/segment_1s_er" in metrics
    assert metrics["tasks"] == 3
    for name in ("metrics.json", "heareval.csv", "heareval.png", "heads.csv"):
        assert name in text
        assert (output / name).exists()


def test_published_scores_stand_beside_ours(finished):
    _, text, metrics, rows = finished
    assert "0.123" in text
    assert "0.456" not in text
    assert "0.789" not in text
    theirs = [row for row in rows if row["encoder"] == "paper-base (published)"]
    assert [(row["task"], row["value"]) for row in theirs] == [("tones", "0.1230")]
    assert "paper-base (published)/mean" not in metrics


def test_the_table_of_published_scores_is_whole(tmp_path):
    read_published(PUBLISHED)
    bad = tmp_path / "bad.csv"
    bad.write_text("task,encoder,score,value,source\nesc50,a,top1_acc,0.5,\n")
    with pytest.raises(ValueError, match="line 2: the source is empty"):
        read_published(bad)
    bad.write_text("task,encoder,score,value\n")
    with pytest.raises(ValueError, match="lacks the columns source"):
        read_published(bad)
    bad.write_text("task,encoder,score,value,source\nesc50,a,top1_acc,high,page 1\n")
    with pytest.raises(ValueError, match="value=high"):
        read_published(bad)


def test_nothing_is_computed_twice(finished, tasks, mel_folder, monkeypatch):
    output, _, before, _ = finished
    trained = []
    monkeypatch.setattr(heareval, "train_head", lambda *a: trained.append(a))
    files = {p: p.stat().st_mtime_ns for p in (output / "save").rglob("*.*")}
    run(tasks, output, encoders=f"[logmel, {mel_folder}]", tasks="[tones, chords]")
    after = metrics_of(output)
    assert not trained
    assert after["logmel/tones/mAP"] == before["logmel/tones/mAP"]
    assert "random/mean" not in after
    assert {p: p.stat().st_mtime_ns for p in (output / "save").rglob("*.*")} == files


def test_a_run_that_was_interrupted_goes_on(
    finished, tasks, mel_folder, tmp_path, monkeypatch
):
    train, store = heareval.train_head, HearEmbeddings._store
    trained, encoded = [], []

    def dies(*arguments):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(arguments)
        return train(*arguments)

    def stores(*arguments):
        encoded.append(arguments)
        return store(*arguments)

    monkeypatch.setattr(heareval, "train_head", dies)
    monkeypatch.setattr(HearEmbeddings, "_store", stores)
    encoders = f"[logmel, {mel_folder}]"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tasks, tmp_path, encoders=encoders)
    assert len(list((tmp_path / "save/heads").iterdir())) == 5
    assert not (tmp_path / "metrics.json").exists()
    # As if it had ended while it wrote: without notes, embeddings are computed anew.
    notes = sorted((tmp_path / "save/embeddings").glob("*.json"))
    notes[0].unlink()
    splits = len(encoded)
    monkeypatch.setattr(
        heareval, "train_head", lambda *a: trained.append(a) or train(*a)
    )
    run(tasks, tmp_path, encoders=encoders)
    assert len(trained) == 2 * (2 + 4 + 2)
    assert len(encoded) == 2 * (3 + 3 + 3) + 1
    assert splits < len(encoded)
    whole, ours = finished[2], metrics_of(tmp_path)
    for key, value in ours.items():
        if key not in ("tasks", "interval_covers"):
            assert whole[key] == value, key


def test_embeddings_are_those_of_the_hear_api(tasks, mel_folder, tmp_path):
    model = load_model(str(mel_folder), None, RATE, 0)
    embeddings = HearEmbeddings(
        str(mel_folder), model, tmp_path, 1.5, 0, torch.device("cpu"), True
    )
    folders = find_tasks(tasks)
    scenes = inspect_task(read_task("chords", folders["chords"], RATE))[0]
    found = embeddings.of(scenes, "fold01")
    for sound in scenes.splits["fold01"]:
        wav = torch.from_numpy(soundfile.read(sound.path, dtype="float32")[0])
        expected = hear.get_scene_embeddings(wav[None], model)[0]
        assert torch.allclose(found.stored[sound.name], expected, atol=1e-5)
    beeps = inspect_task(read_task("beeps", folders["beeps"], RATE))[0]
    found = embeddings.of(beeps, "valid")
    for sound in beeps.splits["valid"]:
        wav = torch.from_numpy(soundfile.read(sound.path, dtype="float32")[0])
        frames, times = hear.get_timestamp_embeddings(wav[None], model)
        assert torch.allclose(found.stored[sound.name], frames[0], atol=1e-5)
        own = found.times[found.frames_of(sound)]
        assert np.array_equal(own, times[0].numpy())
    inputs = found.inputs()
    assert inputs.shape == (len(found.times), model.timestamp_embedding_size)


def test_random_weights_are_others_than_the_trained(mel_folder):
    trained, first, same = (
        load_model(name, str(mel_folder), RATE, 1).encoder.projection.weight
        for name in (str(mel_folder), "random", "random")
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, trained)


def test_labels_of_frames(tasks):
    beeps = read_task("beeps", find_tasks(tasks)["beeps"], RATE)
    sound = beeps.splits["test"][0]
    events = SoundEvent("low", 10.0, 30.0), SoundEvent("high", 25.0, 26.0)
    sound = type(sound)(sound.name, sound.path, events=events)
    stored = type("Stored", (), {"places": {sound.name: [0, 5]}})
    times = np.array([9.9, 10.0, 20.0, 30.0, 31.0])
    embeddings = SplitEmbeddings(stored, times, "key")
    targets = frame_targets(beeps, [sound], embeddings, "mine")
    assert beeps.labels == ("high", "low", "middle")
    assert targets[:, 1].tolist() == [0, 1, 1, 1, 0]  # both ends belong to the event
    assert not targets[:, 0].any()


def test_without_a_folder_the_message_says_what_to_give(tmp_path):
    message = fails(None, tmp_path, encoders="[logmel]")
    assert "--tasks_dir DIR" in message
    assert "docs/heareval.md" in message


def test_frames_must_reach_the_last_event(tasks, mel_folder, tmp_path, monkeypatch):
    whole = hear.get_timestamp_embeddings

    def short(audio, model):
        frames, times = whole(audio, model)
        return frames[:, :50], times[:, :50]

    monkeypatch.setattr(hear, "get_timestamp_embeddings", short)
    message = fails(tasks, tmp_path, encoders=f"[{mel_folder}]", tasks="[beeps]")
    assert "The 50 frames" in message
    assert "end at 0.66 s" in message
    assert "last event" in message


def test_unusable_audio_is_listed(tmp_path):
    folder = write_tones(tmp_path / "tasks")
    audio = folder / str(RATE) / "train"
    (audio / "train3.wav").write_bytes(b"")
    (audio / "train4.wav").unlink()
    message = fails(tmp_path / "tasks", tmp_path / "out", encoders="[logmel]")
    assert "2 of 63 audio files are unusable" in message
    run(tmp_path / "tasks", tmp_path / "out", encoders="[logmel]", max_unusable=0.1)
    rows = read_rows(tmp_path / "out/unusable_files.csv")
    assert sorted(row["path"].split("/")[-1] for row in rows) == [
        *("train3.wav", "train4.wav")
    ]


def test_an_encoder_that_is_not_there(tasks, tmp_path):
    message = fails(tasks, tmp_path, encoders="[logmel, no/such/encoder]")
    assert "no encoder in encoders=no/such/encoder" in message
