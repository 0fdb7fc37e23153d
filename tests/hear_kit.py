"""The kit heareval 2021.1.3 run on the same inputs, and inputs for recorded values.

The kit wants TensorFlow, and packages of 2021. `.ci/run` installs it into a folder of
its own, with newer ones and without TensorFlow, for tests/test_hear_scores.py. With it,
`python tests/hear_kit.py` writes tests/reference/heareval.json anew.
"""

import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import logging
import os
import pickle
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference/heareval.json"
LABELS = ["a", "b", "c", "d"]
WAYS = [
    {"median_filter_ms": 250, "min_duration": 125},
    {"median_filter_ms": 100, "min_duration": 0},
    {"median_filter_ms": 0, "min_duration": 60, "threshold": 0.6},
]
SCENE = ["top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc"]
EVENT = [
    *("event_onset_200ms_fms", "event_onset_50ms_fms"),
    *("event_onset_offset_50ms_20perc_fms", "segment_1s_er"),
]
INSTALLED = importlib.util.find_spec("heareval") is not None


def scene_inputs(multi_label):
    """Probabilities and targets, [120, 24]; some are right but for the octave."""
    rng = np.random.default_rng(int(multi_label))
    targets = np.eye(24)[np.arange(120) % 24]
    octave = np.roll(targets, 12, axis=1)
    if multi_label:
        targets = np.maximum(targets, rng.random(targets.shape) < 0.1)
    scores = 0.6 * targets + 0.4 * octave + rng.random(targets.shape)
    return scores / scores.sum(1, keepdims=True), targets.astype(np.float32)


def event_inputs():
    """Of 4 files probabilities of frames [T, 4], times [T] and events; one is empty."""
    rng = np.random.default_rng(5)
    files = []
    for number in range(4):
        frames = 300 + 40 * number
        times = 6.5 + 13.25 * np.arange(frames)
        slow = rng.random((frames // 20 + 2, len(LABELS)))
        probabilities = np.repeat(slow, 20, axis=0)[:frames]
        probabilities = 0.75 * probabilities + 0.25 * rng.random(probabilities.shape)
        events = []
        for label in LABELS * (number < 3):
            active = probabilities[:, LABELS.index(label)] > 0.6
            for first in np.flatnonzero(np.diff(active.astype(int)) > 0)[::2]:
                start = times[first] + rng.choice([-300, -70, -20, 20, 70])
                start = max(start, 0.0)
                end = start + rng.choice([150.0, 260.0, 400.0])
                events.append({"label": label, "start": start, "end": end})
        files.append((probabilities.astype(np.float32), times, events))
    return files


def head_inputs(multi_label):
    """Embeddings [n, 6] and targets [n, 4] of a training, validation and test split."""
    rng = np.random.default_rng(10 + multi_label)
    parts = []
    for count in (66, 30, 40):
        targets = np.eye(len(LABELS))[rng.integers(len(LABELS), size=count)]
        if multi_label:
            targets = np.maximum(targets, rng.random(targets.shape) < 0.3)
        noise = rng.random((count, 6)) - 0.5
        inputs = 3 * noise + 1.5 * np.pad(targets, ((0, 0), (0, 2)))
        parts.append((inputs.astype(np.float32), targets.astype(np.float32)))
    return parts


# Of the heads that are recorded: the first is (hidden layers, initialisation, lr).
HEAD = (2, "normal", 0.001)
HEAD_SETTINGS = {
    **{"hidden_size": 32, "batch_size": 16, "dropout": 0.1},
    **{"number_of_epochs": 40, "valid_interval": 3, "patience": 4},
}


@contextlib.contextmanager
def kit(folder):
    """The modules of the kit that embed, predict and score; work is done in a folder.

    Every head starts from the seed 42, and nothing else draws from the generator: data
    loaders have their own, and no summary of the head is computed.
    """
    stub = types.ModuleType("tensorflow")
    stub.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    stub.Module = type("Module", (), {})
    before, variable = os.getcwd(), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    sys.modules.setdefault("tensorflow", stub)
    os.environ[variable] = "1"
    os.chdir(folder)
    try:
        from heareval import score
        from heareval.embeddings import task_embeddings as embed
        from heareval.predictions import task_predictions as predict

        load = torch.utils.data.DataLoader
        predict.DataLoader = functools.partial(load, generator=torch.Generator())
        predict.torchinfo = types.SimpleNamespace(summary=lambda *a, **k: None)
        if not hasattr(predict, "train_before"):
            predict.train_before = predict.task_predictions_train
            predict.test_before = predict.task_predictions_test

        def train(**given):
            torch.manual_seed(42)
            return predict.train_before(**given)

        def test(**given):
            # The kit chooses events by the epoch; this Lightning keeps it elsewhere.
            point = given["grid_point"]
            point.trainer.fit_loop.epoch_progress.current.completed = point.epoch
            return predict.test_before(**given)

        predict.task_predictions_train, predict.task_predictions_test = train, test
        yield embed, predict, score
    finally:
        os.chdir(before)
        os.environ.pop(variable)
        if sys.modules["tensorflow"] is stub:
            del sys.modules["tensorflow"]


@contextlib.contextmanager
def float64():
    """New weights have 64 bits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def scores_of(score, names, labels, *arguments):
    """Scores by the kit, as a flat dict."""
    index = {label: i for i, label in enumerate(labels)}
    found = {}
    for name in names:
        value = score.available_scores[name](label_to_idx=index)(*arguments)
        for sub, number in value if isinstance(value, tuple) else [("", float(value))]:
            main = sub in ("", "f_measure", "error_rate")
            found[name if main else f"{name}_{sub}"] = float(number)
    return found


def evaluate(task, encoder, output, hidden_size, number_of_epochs, grid_points):
    """What the kit finds for a task of 16 kHz: its results, all scores included."""
    with kit(output) as (embed, predict, _):
        embedding = embed.Embedding("encodecmae_sb.hear", str(encoder))
        embedding.model.sample_rate = 16000
        out = Path(output) / task.name
        embed.task_embeddings(embedding, task, out)
        predict.PARAM_GRID |= {
            "hidden_dim": [hidden_size],
            "max_epochs": [number_of_epochs],
        }
        predict.task_predictions(
            embedding_path=out,
            embedding_size=embedding.model.scene_embedding_size,
            grid_points=grid_points,
            gpus=None,
            in_memory=True,
            deterministic=True,
            grid="default",
            logger=logging.getLogger("kit"),
        )
        return json.loads((out / "test.predicted-scores.json").read_text())


def train_by_kit(predict, score, multi_label, folder):
    """Epoch, validation and test scores of one head of `HEAD_SETTINGS`.

    In float64, for rounding differs from one processor to another, and 200 steps make
    it large enough to change ranks.
    """
    folder.mkdir()
    double = functools.partial(predict.pl.Trainer, precision=64)
    names = ("train", "valid", "test")
    for name, (inputs, targets) in zip(names, head_inputs(multi_label), strict=True):
        inputs.tofile(folder / f"{name}.embeddings.npy")
        sizes = json.dumps(inputs.shape)
        (folder / f"{name}.embedding-dimensions.json").write_text(sizes)
        labels = [[LABELS[i] for i in np.flatnonzero(row)] for row in targets]
        (folder / f"{name}.target-labels.pkl").write_bytes(pickle.dumps(labels))
    index = {label: i for i, label in enumerate(LABELS)}
    conf = {
        **{"hidden_layers": HEAD[0], "lr": HEAD[2], "optim": torch.optim.Adam},
        "initialization": torch.nn.init.xavier_normal_,
        **{"hidden_dim": 32, "batch_size": 16, "dropout": 0.1, "max_epochs": 40},
        **{"check_val_every_n_epoch": 3, "patience": 4},
        **{"hidden_norm": torch.nn.BatchNorm1d, "norm_after_activation": False},
        "embedding_norm": torch.nn.Identity,
    }
    kind = "multilabel" if multi_label else "multiclass"
    common = {
        "embedding_path": folder,
        "metadata": {"embedding_type": "scene", "prediction_type": kind},
        "data_splits": {name: [name] for name in names},
        **{"label_to_idx": index, "nlabels": len(LABELS), "in_memory": True},
    }
    used = ["mAP", "top1_acc"] if multi_label else ["top1_acc", "mAP"]
    with mock.patch.object(predict.pl, "Trainer", double), float64():
        point = predict.task_predictions_train(
            embedding_size=6,
            scores=[score.available_scores[name](label_to_idx=index) for name in used],
            conf=conf,
            use_scoring_for_early_stopping=True,
            gpus=None,
            deterministic=True,
            **common,
        )
    found = predict.task_predictions_test(grid_point=point, **common)
    tested = {name: found[f"test_{name}"] for name in used}
    return {"epoch": point.epoch + 1, "valid": point.validation_score, **tested}


def record():
    """What the kit finds for all of the inputs above."""
    values = {}
    with tempfile.TemporaryDirectory() as folder, kit(folder) as (_, predict, score):
        for kind in (False, True):
            labels = [str(i) for i in range(24)]
            found = scores_of(score, SCENE, labels, *scene_inputs(kind))
            values[f"scene, {kind}"] = found
            values[f"head, {kind}"] = train_by_kit(
                predict, score, kind, Path(folder) / f"{kind}"
            )
        reference = {f"{i}": file[2] for i, file in enumerate(event_inputs())}
        for number, way in enumerate(WAYS):
            events = {
                f"{i}": predict.create_events_from_prediction(
                    dict(zip(times, torch.from_numpy(frames), strict=True)),
                    dict(enumerate(LABELS)),
                    **way,
                )
                for i, (frames, times, _) in enumerate(event_inputs())
            }
            scores = scores_of(score, EVENT, LABELS, events, reference)
            values[f"events, {number}"] = {"events": events, "scores": scores}
    return values


if __name__ == "__main__":
    rows = (f'"{name}": {json.dumps(value)}' for name, value in record().items())
    REFERENCE.write_text("{" + ",\n".join(rows) + "}\n")
