"""Heads, events and scores of HEAR are those of the kit heareval."""

import json
from types import SimpleNamespace

import hear_kit
import numpy as np
import pytest
import torch
from hear_folders import write_beeps, write_chords, write_tones
from hear_kit import EVENT, LABELS, SCENE, WAYS, event_inputs, scene_inputs

from encodecmae_sb.data.hear_tasks import SCENE as SCENE_KIND
from encodecmae_sb.evaluation.hear_heads import HeadGrid, train_head
from encodecmae_sb.evaluation.hear_scores import (
    event_counts,
    event_draws,
    event_scores,
    scene_draws,
    scene_scores,
)
from encodecmae_sb.evaluation.sound_events import EventScore, SegmentScore, find_events
from encodecmae_sb.pipelines.heareval import Examiner
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def recorded():
    return json.loads(hear_kit.REFERENCE.read_text())


def numbered(events):
    return [
        (LABELS.index(event["label"]), event["start"], event["end"]) for event in events
    ]


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_of_scenes(recorded, multi_label):
    found = scene_scores(SCENE, *scene_inputs(multi_label))
    assert found == pytest.approx(recorded[f"scene, {multi_label}"], abs=1e-6)


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_events_and_their_scores(recorded, number):
    expected = recorded[f"events, {number}"]
    estimated = []
    for i, (frames, times, _) in enumerate(event_inputs()):
        events = find_events(frames, times, **WAYS[number])
        assert sorted(events) == sorted(numbered(expected["events"][f"{i}"]))
        estimated.append(events)
    reference = [numbered(events) for _, _, events in event_inputs()]
    found = event_scores(event_counts(EVENT, reference, estimated, len(LABELS)))
    for name, value in expected["scores"].items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("multi_label", [False, True])
def test_heads(recorded, multi_label):
    scores = ["mAP", "top1_acc"] if multi_label else ["top1_acc", "mAP"]
    parts = [
        [torch.from_numpy(values).double() for values in part]
        for part in hear_kit.head_inputs(multi_label)
    ]
    task = SimpleNamespace(
        **{"kind": SCENE_KIND, "scores": scores, "multi_label": multi_label},
        **{"metadata": {}, "splits": {"valid": (), "test": ()}},
    )
    splits = dict(zip(("train", "valid", "test"), parts, strict=True))
    data = SimpleNamespace(task=task, stored=dict.fromkeys(splits), part=splits.get)
    valid, test = (Examiner(data, split, 16) for split in ("valid", "test"))
    grid = HeadGrid([2], [0.001], **hear_kit.HEAD_SETTINGS)
    with hear_kit.float64():
        trained = train_head(
            splits["train"], valid.validate, multi_label, hear_kit.HEAD, grid, seed=42
        )
    found, draws = test.test(trained.head, trained.note, 0)
    expected = dict(recorded[f"head, {multi_label}"])
    assert trained.epoch == expected.pop("epoch")
    assert trained.value == pytest.approx(expected.pop("valid"), abs=1e-3)
    assert found == pytest.approx(expected, abs=1e-3)
    assert np.mean(draws) == pytest.approx(found[scores[0]], abs=0.03)


def test_the_heads_of_the_kit_are_tried():
    """Those that the kit draws for each task; see its parameter grid."""
    grid = HeadGrid(
        **{"hidden_layers": [1, 2], "lrs": [3.2e-3, 1e-3, 3.2e-4, 1e-4]},
        **{"initialisations": ["uniform", "normal"], "grid_points": 8},
    )
    drawn = grid.drawn(seed=42)
    assert len(set(drawn)) == 8
    assert drawn[:3] == [(1, "normal", 1e-4), (2, "uniform", 1e-3), (1, "normal", 1e-3)]


def test_events_have_one_partner_at_most():
    score = EventScore(0.2)
    reference = [(0, 0.0, 100.0), (0, 150.0, 200.0)]
    # The first may have either; only one of the two choices leaves one for the second.
    estimated = [(0, 200.0, 300.0), (0, 350.0, 360.0)]
    assert score.counts(reference, estimated, 1).tolist() == [2, 2, 2]
    assert score.counts(reference, estimated[:1], 1).tolist() == [1, 2, 1]
    assert score.counts(reference, [(1, 0.0, 100.0)], 2).tolist() == [0, 2, 1]
    strict = EventScore(0.2, offset_share=0.2)
    assert strict.counts([(0, 0.0, 5000.0)], [(0, 0.0, 4100.0)], 1)[0] == 1
    assert strict.counts([(0, 0.0, 5000.0)], [(0, 0.0, 3900.0)], 1)[0] == 0


def test_nothing_found_is_no_error():
    reference, nothing = [[(0, 0.0, 500.0)]], [[]]
    found = event_scores(event_counts(EVENT, reference, nothing, 2))
    assert found["event_onset_200ms_fms"] == 0
    assert found["segment_1s_er"] == 1  # everything is missing
    assert find_events(np.full((1, 2), 0.9), np.array([5.0]), 250, 0) == [
        *((0, 5.0, 5.0), (1, 5.0, 5.0))
    ]
    assert SegmentScore(1.0).counts([], [], 2).tolist() == [0, 0, 0, 0]


def test_intervals_of_events_come_from_files():
    rows = np.array([[1.0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]])
    draws = event_draws("event_onset_200ms_fms", rows, 400, seed=1)
    assert set(draws * 4 % 1) == {0}  # of four files
    assert draws.mean() == pytest.approx(0.5, abs=0.05)
    same = event_draws("event_onset_200ms_fms", np.ones((4, 3)), 10, seed=1)
    assert same.tolist() == [1] * 10


def test_intervals_of_scenes():
    outcome = scene_inputs(False)
    for name, value in scene_scores(
        ["top1_acc", "chroma_acc", "mAP"], *outcome
    ).items():
        draws = scene_draws(name, *outcome, 300, seed=0)
        assert np.quantile(draws, 0.01) < value < np.quantile(draws, 0.99), name
    assert scene_draws("aucroc", *outcome, 10, seed=0) is None


def test_a_head_stops_and_goes_back():
    x, y = torch.rand(17, 3), torch.eye(2)[torch.arange(17) % 2]
    values = iter([0.1, 0.5, 0.5, 0.4, float("nan"), 0.9])
    kept = []

    def validate(head):
        kept.append(head(x))
        return next(values), len(kept)

    grid = HeadGrid([1], [0.1], hidden_size=4, batch_size=16, patience=3)
    trained = train_head((x, y), validate, False, (1, "uniform", 0.1), grid, seed=0)
    assert (trained.epoch, trained.value, trained.note, len(kept)) == (2, 0.5, 2, 5)
    with torch.no_grad():
        assert torch.equal(trained.head(x), kept[1])
    with pytest.raises(UserError, match="every label"):
        train_head(
            *((x, y), lambda head: (float("nan"), None)),
            *(False, (1, "uniform", 0.1), grid, 0),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initialisations": ["orthogonal"]}, "uniform, normal"),
        ({"valid_interval": 200}, "no validation"),
        ({"grid_points": 0}, "grid_points=0"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_bad_grids(options, message):
    with pytest.raises(UserError, match=message):
        HeadGrid([1], [0.1], **options)


@pytest.mark.skipif(
    not hear_kit.INSTALLED,
    reason="heareval is not installed (.ci/run says how)",
)
@pytest.mark.parametrize(
    ("write", "more"),
    [
        (write_tones, {}),
        (write_chords, {}),
        (write_beeps, {}),
        (
            write_beeps,
            {
                "use_scoring_for_early_stopping": False,
                "evaluation_params": {
                    "event_postprocessing_grid": {
                        **{"median_filter_ms": [150], "min_duration": [50]},
                    },
                    "task_specific_param_grid": {
                        **{"max_epochs": [20], "check_val_every_n_epoch": [1]},
                    },
                },
            },
        ),
    ],
)
def test_the_kit_finds_the_same(mel_folder, tmp_path, write, more):
    """The whole way, from the files to the scores of the heads that are chosen."""
    from test_heareval import metrics_of, run

    folder = write(tmp_path / "tasks", **more)
    size = {"hidden_size": 64, "number_of_epochs": 60, "grid_points": 3}
    (tmp_path / "kit").mkdir()
    expected = hear_kit.evaluate(folder, mel_folder, tmp_path / "kit", **size)
    run(tmp_path / "tasks", tmp_path / "ours", encoders=f"[{mel_folder}]", **size)
    ours = metrics_of(tmp_path / "ours")
    name = folder.name.partition("-")[0]
    expected = expected.get("aggregated_scores", expected.get("test"))
    compared = 0
    for key, value in expected.items():
        key = key.removeprefix("test_").removesuffix("_mean")
        if f"{mel_folder}/{name}/{key}" in ours:
            compared += 1
            assert ours[f"{mel_folder}/{name}/{key}"] == pytest.approx(value, abs=1e-3)
    assert compared >= 3
