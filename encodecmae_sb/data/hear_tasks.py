"""Tasks of the HEAR benchmark, in the folders in which they are published.

A task is a folder `NAME-VERSION-MODE`, such as `esc50-v2.0.0-full`, with
`task_metadata.json`, `labelvocabulary.csv`, a file `SPLIT.json` for each split, and
audio in `RATE/SPLIT/FILE.wav`. A split is train, valid or test, or a fold. Its file
says for each audio file the labels, or a list of events with `label`, `start` and `end`
in ms.
Source: Turian et al. (arXiv 2203.03022) and the package heareval 2021.1.3.
"""

import csv
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from encodecmae_sb.utils.errors import UserError

from .audio import UnusableAudio, inspect_files
from .clips import PARTS

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"
SCENE, EVENT = "scene", "event"
# embedding_type and prediction_type -> whether a sound or frame may have many labels
KINDS = {
    (SCENE, "multiclass"): False,
    (SCENE, "multilabel"): True,
    (EVENT, "multilabel"): True,
}
SPLIT_MODES = ("trainvaltest", "new_split_kfold", "presplit_kfold")
_NEEDED = {
    *("task_name", "version", "embedding_type", "prediction_type"),
    *("split_mode", "splits", "evaluation"),
}


@dataclass(frozen=True)
class SoundEvent:
    """A sound event: its label, its start and its end in ms."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Sound:
    """An audio file of a task.

    Arguments
    ---------
    name : str
        Unique in its split.
    path : Path
    labels : tuple of str
        Of a scene.
    events : tuple of SoundEvent
        Of a recording with events.
    num_samples : int
        Length; 0 until `inspect_task` has read it.
    """

    name: str
    path: Path
    labels: tuple = ()
    events: tuple = ()
    num_samples: int = 0


@dataclass(frozen=True)
class HearFold:
    """Names of the splits that train, validate and test; `name` is that of the test."""

    name: str
    train: tuple
    valid: str
    test: str


@dataclass(frozen=True)
class HearTask:
    """A task of HEAR.

    Arguments
    ---------
    name : str
        Its name, with the mode if that is not "full".
    folder : Path
    rate : int
        Of its audio, in Hz.
    kind : str
        "scene" or "event".
    multi_label : bool
        Whether a sound, or a frame, may have several labels or none.
    labels : tuple of str
        The vocabulary, in the order of the targets.
    splits : dict of str to tuple of Sound
        In the order in which heads are trained on them.
    folds : tuple of HearFold
    metadata : dict
        Of the file.
    """

    name: str
    folder: Path
    rate: int
    kind: str
    multi_label: bool
    labels: tuple
    splits: dict
    folds: tuple
    metadata: dict

    @property
    def scores(self):
        """Names of its scores. Heads are chosen by the first."""
        return self.metadata["evaluation"]

    def targets(self, sounds):
        """0 or 1 for every label of scenes, float32, [sounds, labels]."""
        index = {label: i for i, label in enumerate(self.labels)}
        targets = torch.zeros(len(sounds), len(self.labels))
        for row, sound in zip(targets, sounds, strict=True):
            row[[index[label] for label in sound.labels]] = 1
        return targets


def find_tasks(tasks_dir, wanted=None):
    """Finds the folders of tasks.

    Arguments
    ---------
    tasks_dir : str or Path
        The folder that has them, such as `tasks`, a folder around it, or a single task.
    wanted : list of str or str, optional
        Names of tasks or of their folders; default: all.

    Returns
    -------
    dict of str to Path
        The folder of each task. A task whose mode is not "full" has it in its name, as
        in `nsynth_pitch-5h`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If there is no task, or two folders are of one task.
    """
    root = Path(tasks_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"No such folder: tasks_dir={tasks_dir}")
    levels = [""] if (root / METADATA).is_file() else ["*/", "*/*/", "*/*/*/"]
    folders = sorted(
        path.parent for level in levels for path in root.glob(level + METADATA)
    )
    if not folders:
        raise UserError(
            f"tasks_dir={tasks_dir}: there is no task in it, that is, no folder with a "
            f"file {METADATA}. Unpack an archive of HEAR there, such as "
            "hear2021-esc50-v2.0.0-full-48000.tar.gz: see docs/heareval.md."
        )
    found = [(_title(folder), folder) for folder in folders]
    if wanted is not None:
        wanted = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(wanted, list) or not wanted:
            raise UserError(f"tasks={wanted}: give a list of names, or null for all.")
        chosen = []
        for name in map(str, wanted):
            exact = [item for item in found if name in (item[0], item[1].name)]
            matching = exact or [
                item for item in found if name == _metadata(item[1])["task_name"]
            ]
            if not matching:
                raise UserError(
                    f"tasks: there is no task {name} in {tasks_dir}. There are "
                    f"{', '.join(dict(found))}."
                )
            if len(matching) > 1:
                raise _several(name, [folder for _, folder in matching])
            chosen += [item for item in matching if item not in chosen]
        found = chosen
    for title, _ in found:
        same = [folder for other, folder in found if other == title]
        if len(same) > 1:
            raise _several(title, same)
    return dict(found)


def _several(name, folders):
    """The error for a task that several folders are of."""
    names = [folder.name for folder in folders]
    twice = len(set(names)) < len(names)
    shown = ", ".join(map(str, folders) if twice else names)
    how = (
        "Keep one of them"
        if twice
        else f'Name the one to use by its folder, for example --tasks "[{names[-1]}]"'
    )
    return UserError(
        f"{len(names)} folders are of the task {name}, in other versions or modes: "
        f"{shown}. {how}."
    )


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Unpack the archive of the task again."
        ) from error


def _metadata(folder):
    """The metadata of a task; its folder must be named after them."""
    metadata = _read_json(folder / METADATA)
    missing = _NEEDED - set(metadata)
    if missing:
        raise UserError(f"{folder / METADATA} lacks {', '.join(sorted(missing))}.")
    start = f"{metadata['task_name']}-{metadata['version']}-"
    mode = metadata.setdefault("mode", folder.name.removeprefix(start))
    if folder.name != start + mode:
        raise UserError(
            f"{folder} is the folder of another version of the task: its {METADATA} "
            f"describes {start}{mode}. Unpack the archive again, or give the folder "
            "that name."
        )
    return metadata


def _title(folder):
    """How a task is called in tables."""
    metadata = _metadata(folder)
    mode = metadata["mode"]
    return metadata["task_name"] + ("" if mode == "full" else f"-{mode}")


def read_task(name, folder, rate):
    """Reads what a task is about; its audio is not opened.

    Arguments
    ---------
    name : str
        See `HearTask`.
    folder : Path
    rate : int
        Of the audio to use, in Hz.

    Returns
    -------
    HearTask

    Raises
    ------
    UserError
        If the type of the task is unknown, a split, a file or the rate is missing, a
        label is not in the vocabulary, or an event ends before it begins.
    """
    metadata = _metadata(folder)
    kind = metadata["embedding_type"], metadata["prediction_type"]
    if kind not in KINDS:
        raise UserError(
            f"{folder}: the type of the task is {' '.join(map(str, kind))}. Allowed "
            f"are {', '.join(map(' '.join, KINDS))}."
        )
    rates = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    if rate not in rates:
        raise UserError(
            f"{folder} has no audio at sample_rate={rate}. There "
            f"{'is' if len(rates) == 1 else 'are'} "
            f"{', '.join(f'{each} Hz' for each in rates) or 'no rates'}: give one with "
            "--sample_rate, or fetch the archive of this rate."
        )
    folds = _folds(folder, metadata)
    labels = _vocabulary(folder / VOCABULARY)
    splits = {}
    # The kit trains without drawing: batches follow one order, which it shuffles once.
    order = random.Random(0)
    for split in metadata["splits"]:
        sounds = _sounds(folder, rate, split, kind, set(labels))
        order.shuffle(sounds)
        splits[split] = tuple(sounds)
    return HearTask(
        name, folder, rate, kind[0], KINDS[kind], labels, splits, folds, metadata
    )


def _folds(folder, metadata):
    """The training, validation and test splits, one fold or several."""
    mode, splits = metadata["split_mode"], metadata["splits"]
    if mode not in SPLIT_MODES:
        raise UserError(
            f"{folder}: split_mode={mode} in {METADATA}, allowed are "
            f"{', '.join(SPLIT_MODES)}."
        )
    if mode == "trainvaltest":
        missing = set(PARTS) - set(splits)
        if missing:
            raise UserError(
                f"{folder}: {METADATA} lacks the splits {', '.join(sorted(missing))}."
            )
        return (HearFold("test", ("train",), "valid", "test"),)
    names = sorted(splits)
    if len(set(names)) < 3 or len(set(names)) < len(names):
        raise UserError(
            f"{folder}: the folds in {METADATA} are {', '.join(names)}. At least 3 "
            "are needed, each once."
        )
    folds = []
    for i, test in enumerate(names):
        valid = names[(i + 1) % len(names)]
        train = tuple(name for name in names if name not in (test, valid))
        folds.append(HearFold(test, train, valid, test))
    return tuple(folds)


def _vocabulary(path):
    """The labels, by their numbers."""
    if not path.is_file():
        raise UserError(f"There is no {path}. Unpack the archive of the task again.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    try:
        numbers = {int(row["idx"]): row["label"] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: columns idx and label are needed.") from error
    if len(rows) < 2 or sorted(numbers) != list(range(len(rows))):
        raise UserError(f"{path}: idx must count from 0, with at least two labels.")
    return tuple(numbers[i] for i in range(len(rows)))


def _sounds(folder, rate, split, kind, labels):
    """The sounds of a split, in the order of its file."""
    path, audio = folder / f"{split}.json", folder / str(rate) / split
    for needed in (path, audio):
        if not needed.exists():
            there = sorted(other.stem for other in folder.glob("*.json"))
            raise UserError(
                f"The split {split} of {folder} is missing: there is no {needed}. "
                f"Files are there for {', '.join(there)}. Unpack the archive again."
            )
    sounds = []
    for name, said in _read_json(path).items():
        if kind[0] == EVENT:
            events = tuple(_event(path, name, event) for event in said)
            sound = Sound(name, audio / name, events=events)
            used = [event.label for event in events]
        else:
            used = list(map(str, said))
            sound = Sound(name, audio / name, labels=tuple(used))
            if kind[1] == "multiclass" and len(used) != 1:
                raise UserError(
                    f"{path}: {name} has {len(used)} labels. A multiclass task has "
                    "one label for each file."
                )
        unknown = sorted(set(used) - labels)
        if unknown:
            raise UserError(
                f"{path}: {name} has the label {unknown[0]!r}, which is not in "
                f"{VOCABULARY}. Do both files belong to the same version of the task?"
            )
        sounds.append(sound)
    if not sounds:
        raise UserError(f"{path} lists no files.")
    return sounds


def _event(path, name, said):
    try:
        event = SoundEvent(str(said["label"]), float(said["start"]), float(said["end"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {name} has {said!r} in the place of an event. An event has a "
            "label, and start and end in ms."
        ) from error
    if not 0 <= event.start <= event.end:
        raise UserError(
            f"{path}: an event {event.label!r} of {name} starts at {event.start:g} ms "
            f"and ends at {event.end:g} ms. It must start at 0 or later, and end after "
            "that. Correct the file."
        )
    return event


def inspect_task(task):
    """Inspects every audio file of a task.

    Arguments
    ---------
    task : HearTask

    Returns
    -------
    task : HearTask
        With the sounds that can be used, and their lengths.
    unusable : list of (str, str)
        Path and reason of the others.

    Raises
    ------
    UserError
        If a file has another rate, an event starts after the end of its file, or a
        split has no usable file.
    """
    sounds = [sound for split in task.splits.values() for sound in split]
    what = f"Reading files of {task.name}"
    results = inspect_files((sound.path for sound in sounds), len(sounds), what)
    usable, unusable = {}, []
    for sound, result in zip(sounds, results, strict=True):
        if isinstance(result, UnusableAudio):
            unusable.append((str(sound.path), str(result)))
            continue
        if result.sample_rate != task.rate:
            raise UserError(
                f"{sound.path} has {result.sample_rate} Hz, but its folder is for "
                f"{task.rate} Hz. Unpack the archive again."
            )
        late = [event for event in sound.events if event.start > 1000 * result.duration]
        if late:
            raise UserError(
                f"{sound.path} lasts {result.duration:.2f} s, but an event "
                f"{late[0].label!r} starts at {late[0].start / 1000:.2f} s. Is the "
                "audio of another version of the task?"
            )
        usable[sound.path] = replace(sound, num_samples=result.num_samples)
    splits = {
        name: tuple(usable[sound.path] for sound in split if sound.path in usable)
        for name, split in task.splits.items()
    }
    empty = [name for name, split in splits.items() if not split]
    if empty:
        raise UserError(
            f"The split {empty[0]} of {task.folder} has no usable audio file; the "
            f"first is {unusable[0][0]}: {unusable[0][1]}."
        )
    return replace(task, splits=splits), unusable
