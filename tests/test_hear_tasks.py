"""Reading HEAR's folders, and what is said when they are not as they should be."""

import json
import random
import shutil

import pytest
from hear_folders import RATE, write_beeps, write_chords, write_tones

from encodecmae_sb.data.hear_tasks import find_tasks, inspect_task, read_task
from encodecmae_sb.evaluation.hear_heads import HeadGrid
from encodecmae_sb.pipelines.hear_data import check_scores, grid_of, postprocessings_of
from encodecmae_sb.utils.errors import UserError

WRITE = {"tones": write_tones, "chords": write_chords, "beeps": write_beeps}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("hear") / "tasks"
    for write in WRITE.values():
        write(root)
    return root


@pytest.fixture
def root(originals, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(originals, tmp_path / "tasks")


def read(root, name, rate=RATE):
    return read_task(name, find_tasks(root)[name], rate)


def edit(path, change):
    """Changes what a JSON file says."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def metadata(root, name, **values):
    edit(
        root / f"{name}-v1.0-full/task_metadata.json", lambda said: said.update(values)
    )


def test_splits_and_folds(originals):
    tones, chords = read(originals, "tones"), read(originals, "chords")
    (fold,) = tones.folds
    assert (fold.train, fold.valid, fold.test) == (("train",), "valid", "test")
    assert [len(split) for split in tones.splits.values()] == [30, 15, 18]
    assert tones.targets(tones.splits["test"]).sum(1).tolist() == [1] * 18
    assert [(fold.train, fold.valid, fold.test) for fold in chords.folds] == [
        (("fold02",), "fold01", "fold00"),
        (("fold00",), "fold02", "fold01"),
        (("fold01",), "fold00", "fold02"),
    ]
    # The order in which the kit trains: one generator for all splits.
    order = random.Random(0)
    for split, sounds in chords.splits.items():
        path = originals / f"chords-v1.0-full/{split}.json"
        names = list(json.loads(path.read_text()))
        order.shuffle(names)
        assert [sound.name for sound in sounds] == names


def test_tasks_are_found_by_their_names(originals, root):
    assert list(find_tasks(originals)) == ["beeps", "chords", "tones"]
    assert find_tasks(originals.parent).keys() == find_tasks(originals).keys()
    assert list(find_tasks(originals / "tones-v1.0-full")) == ["tones"]
    assert list(find_tasks(originals, ["tones", "beeps-v1.0-full"])) == [
        *("tones", "beeps")
    ]
    write_tones(root, mode="5h")
    assert list(find_tasks(root, "tones-5h")) == ["tones-5h"]
    assert list(find_tasks(root, "tones")) == ["tones"]
    shutil.rmtree(root / "tones-v1.0-full")
    assert list(find_tasks(root, "tones")) == ["tones-5h"]
    write_tones(root, mode="50h")
    with pytest.raises(UserError, match="tones-v1.0-50h, tones-v1.0-5h"):
        find_tasks(root, "tones")
    assert list(find_tasks(root)) == ["beeps", "chords", "tones-50h", "tones-5h"]


def test_two_versions_of_a_task(root):
    write_tones(root, version="v2.0")
    with pytest.raises(UserError) as error:
        find_tasks(root)
    assert "tones-v1.0-full, tones-v2.0-full" in str(error.value)
    assert '--tasks "[tones-v2.0-full]"' in str(error.value)
    with pytest.raises(UserError, match="2 folders are of the task tones"):
        find_tasks(root, ["tones"])
    chosen = find_tasks(root, ["tones-v2.0-full", "beeps"])
    assert chosen["tones"].name == "tones-v2.0-full"


def test_the_folder_of_another_version(root):
    (root / "tones-v1.0-full").rename(root / "tones-v3.0-full")
    with pytest.raises(UserError, match="another version.*describes tones-v1.0-full"):
        find_tasks(root)


def test_folders_without_tasks(tmp_path, originals):
    with pytest.raises(UserError, match="there is no task in it"):
        find_tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="tasks_dir="):
        find_tasks(tmp_path / "nothing")
    with pytest.raises(UserError, match="no task esc50.*beeps, chords, tones"):
        find_tasks(originals, ["esc50"])
    with pytest.raises(UserError, match="tasks=3"):
        find_tasks(originals, 3)


def test_a_missing_rate_says_which_are_there(originals, root):
    with pytest.raises(UserError, match=r"sample_rate=48000. There is 16000 Hz"):
        read(originals, "tones", 48000)
    shutil.move(root / "tones-v1.0-full/16000", root / "elsewhere")
    with pytest.raises(UserError, match="There are no rates"):
        read(root, "tones")


def test_a_file_of_another_rate(root):
    folder = root / "tones-v1.0-full"
    shutil.copytree(folder / "16000", folder / "48000")
    with pytest.raises(UserError, match="has 16000 Hz, but its folder is for 48000"):
        inspect_task(read(root, "tones", 48000))


@pytest.mark.parametrize("missing", ["valid.json", "16000/valid"])
def test_a_missing_split(root, missing):
    path = root / "tones-v1.0-full" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="split valid of .* is missing"):
        read(root, "tones")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("beeps", {"prediction_type": "accdoa"}, "type of the task is event accdoa"),
        ("beeps", {"prediction_type": "multiclass"}, "event multilabel"),
        ("tones", {"embedding_type": "song"}, "type of the task is song multiclass"),
        ("tones", {"split_mode": "random"}, "split_mode=random"),
        ("tones", {"splits": ["train", "test"]}, "lacks the splits valid"),
        ("chords", {"splits": ["fold00", "fold01"]}, "At least 3"),
    ],
)
def test_unknown_types(root, task, values, message):
    metadata(root, task, **values)
    with pytest.raises(UserError, match=message):
        read(root, task)


def test_broken_metadata(root):
    path = root / "tones-v1.0-full/task_metadata.json"
    edit(path, lambda said: said.pop("evaluation"))
    with pytest.raises(UserError, match="lacks evaluation"):
        find_tasks(root)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        find_tasks(root)


def test_labels_outside_the_vocabulary(root):
    path = root / "tones-v1.0-full/test.json"
    edit(path, lambda said: said.update({"test0.wav": ["shrill"]}))
    with pytest.raises(UserError, match="test0.wav has the label 'shrill'"):
        read(root, "tones")
    edit(path, lambda said: said.update({"test0.wav": ["low", "high"]}))
    with pytest.raises(UserError, match="test0.wav has 2 labels"):
        read(root, "tones")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idx,label\n1,low\n2,high\n", "count from 0"),
        ("label\nlow\nhigh\n", "columns idx and label"),
    ],
)
def test_bad_vocabularies(root, text, message):
    (root / "tones-v1.0-full/labelvocabulary.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(root, "tones")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            {"label": "low", "start": 900, "end": 400},
            "starts at 900 ms and ends at 400",
        ),
        ({"label": "low", "start": -5, "end": 400}, "must start at 0 or later"),
        ({"label": "buzz", "start": 0, "end": 400}, "'buzz', which is not in"),
        ({"label": "low", "start": 0}, "in the place of an event"),
    ],
)
def test_bad_events(root, event, message):
    path = root / "beeps-v1.0-full/train.json"
    edit(path, lambda said: said.update({"train1.wav": [event]}))
    with pytest.raises(UserError, match=message):
        read(root, "beeps")


def test_events_after_the_end_of_the_audio(root):
    late = {"label": "low", "start": 7000, "end": 7400}
    edit(
        root / "beeps-v1.0-full/test.json", lambda said: said["test0.wav"].append(late)
    )
    with pytest.raises(UserError, match="lasts 6.00 s.*starts at 7.00 s"):
        inspect_task(read(root, "beeps"))


def test_unknown_scores(root):
    metadata(root, "tones", evaluation=["event_onset_200ms_fms"])
    with pytest.raises(UserError, match="Known scores of scene tasks are top1_acc"):
        check_scores(read(root, "tones"))
    metadata(root, "tones", evaluation=["aucroc"])
    check_scores(read(root, "tones"))
    lows = {f"test{i}.wav": ["low"] for i in range(18)}
    edit(root / "tones-v1.0-full/test.json", lambda said: said.update(lows))
    with pytest.raises(UserError, match="aucroc needs files with and without"):
        check_scores(read(root, "tones"))


def test_a_task_may_change_the_grid(root):
    grid = HeadGrid([1, 2], [0.1], number_of_epochs=500, valid_interval=3)
    beeps = read(root, "beeps")
    assert grid_of(beeps, grid) == grid
    assert postprocessings_of(beeps) == [
        {"median_filter_ms": 250, "min_duration": 125},
        {"median_filter_ms": 250, "min_duration": 250},
    ]
    params = {
        "task_specific_param_grid": {
            **{"max_epochs": [50], "check_val_every_n_epoch": [1], "lr": [0.2, 0.3]},
        },
        "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
    }
    metadata(root, "beeps", evaluation_params=params)
    own = grid_of(read(root, "beeps"), grid)
    assert (own.number_of_epochs, own.valid_interval, own.lrs) == (50, 1, [0.2, 0.3])
    assert postprocessings_of(read(root, "beeps")) == [
        {"median_filter_ms": 150, "min_duration": 50}
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task_specific_param_grid": {"optim": ["SGD"]}}, "Lists are allowed for"),
        ({"task_specific_param_grid": {"patience": [1, 2]}}, "One value is allowed"),
        ({"event_postprocessing_grid": {"smooth": [1]}}, "Allowed are lists for"),
        ({}, "one value for each key"),  # with the loss, as heads are chosen here
    ],
)
def test_bad_grids_of_tasks(root, params, message):
    use = {"use_scoring_for_early_stopping": False}
    metadata(root, "beeps", evaluation_params=params, **use)
    beeps = read(root, "beeps")
    with pytest.raises(UserError, match=message):
        grid_of(beeps, HeadGrid([1], [0.1])), postprocessings_of(beeps)
