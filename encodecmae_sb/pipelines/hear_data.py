"""Reads tasks of HEAR, checks them, and says how each is evaluated."""

import itertools
from dataclasses import replace

from encodecmae_sb.data.hear_tasks import EVENT, find_tasks, inspect_task, read_task
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.evaluation.hear_scores import (
    EVENT_SCORES,
    NEED_EVERY_LABEL,
    SCENE_SCORES,
)
from encodecmae_sb.evaluation.probe import check_whole
from encodecmae_sb.utils.errors import UserError

# What heareval does with every recording unless the task says otherwise.
_POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}
# heareval validates this task less often, which its metadata do not say.
_OWN_GRIDS = {"dcase2016_task2": {"check_val_every_n_epoch": [10]}}
# Names in task metadata -> our names; a value is a list there.
_SETTINGS = {
    "hidden_layers": "hidden_layers",
    "lr": "lrs",
    "hidden_dim": "hidden_size",
    "dropout": "dropout",
    "batch_size": "batch_size",
    "max_epochs": "number_of_epochs",
    "check_val_every_n_epoch": "valid_interval",
    "patience": "patience",
}


def find_data(hparams, output):
    """Reads the tasks and inspects their audio.

    Arguments
    ---------
    hparams : dict
        Reads `tasks_dir`, `tasks`, `sample_rate` and `max_unusable`.
    output : Path
        Folder for `unusable_files.csv`.

    Returns
    -------
    list of HearTask

    Raises
    ------
    UserError
        If there is no folder given, a task is not as it should be, or too many files
        are unusable.
    """
    if hparams["tasks_dir"] is None:
        raise UserError(
            "tasks_dir is not given: name the folder with tasks of HEAR, --tasks_dir "
            "DIR. It has a folder for each task, such as DIR/esc50-v2.0.0-full. "
            "docs/heareval.md says where to get them."
        )
    check_whole("sample_rate", hparams["sample_rate"], 1000)
    folders = find_tasks(hparams["tasks_dir"], hparams["tasks"])
    tasks = [
        read_task(name, folder, hparams["sample_rate"])
        for name, folder in folders.items()
    ]
    for task in tasks:
        check_scores(task)
    found = [inspect_task(task) for task in tasks]
    files = sum(len(split) for task in tasks for split in task.splits.values())
    listed = output / "unusable_files.csv"
    listed.unlink(missing_ok=True)
    unusable = [item for _, bad in found for item in bad]
    UnusableFiles(listed, files, hparams["max_unusable"]).add(unusable)
    return [task for task, _ in found]


def check_scores(task):
    """Refuses scores that are unknown, or that cannot be computed for a task."""
    known = EVENT_SCORES if task.kind == EVENT else SCENE_SCORES
    unknown = [name for name in task.scores if name not in known]
    if unknown or not task.scores:
        raise UserError(
            f"{task.folder}: evaluation={task.scores} in its metadata. Known scores of "
            f"{task.kind} tasks are {', '.join(known)}."
        )
    if task.scores[0] not in NEED_EVERY_LABEL:
        return
    for fold in task.folds:
        for split in (fold.valid, fold.test):
            counts = task.targets(task.splits[split]).sum(0)
            bad = (counts == 0) | (counts == len(task.splits[split]))
            if bad.any():
                raise UserError(
                    f"{task.folder}: {task.scores[0]} needs files with and without "
                    f"every label, but in {split} none or all have "
                    f"{task.labels[int(bad.nonzero()[0])]!r}."
                )


def grid_of(task, grid):
    """The heads for a task: those of the yaml, with what the task itself says."""
    said = _OWN_GRIDS.get(task.metadata["task_name"], {})
    said = said | task.metadata.get("evaluation_params", {}).get(
        "task_specific_param_grid", {}
    )
    values = {}
    for name, value in said.items():
        if name not in _SETTINGS or not isinstance(value, list) or not value:
            raise UserError(
                f"{task.folder}: task_specific_param_grid has {name}={value}. Lists "
                f"are allowed for {', '.join(_SETTINGS)}."
            )
        ours = _SETTINGS[name]
        several = ours in ("hidden_layers", "lrs")
        if not several and len(value) > 1:
            raise UserError(
                f"{task.folder}: task_specific_param_grid has {name}={value}. One "
                "value is allowed."
            )
        values[ours] = value if several else value[0]
    # A quick run may have fewer epochs than the task has between validations.
    epochs = values.get("number_of_epochs", grid.number_of_epochs)
    interval = values.get("valid_interval", grid.valid_interval)
    values["valid_interval"] = min(interval, epochs)
    return replace(grid, **values)


def postprocessings_of(task):
    """The ways to make events of frames to choose from, each a dict."""
    said = task.metadata.get("evaluation_params", {}).get(
        "event_postprocessing_grid", _POSTPROCESSING
    )
    names = sorted(said)
    if set(names) - {"median_filter_ms", "min_duration", "threshold"}:
        raise UserError(
            f"{task.folder}: event_postprocessing_grid={said}. Allowed are lists for "
            "median_filter_ms, min_duration and threshold."
        )
    ways = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(said[name] for name in names))
    ]
    if len(ways) != 1 and not uses_scores(task):
        raise UserError(
            f"{task.folder}: heads are chosen by their loss, so "
            f"event_postprocessing_grid must have one value for each key: {said}."
        )
    return ways


def uses_scores(task):
    """Whether heads are chosen by the main score; if not, by their loss."""
    return task.metadata.get("use_scoring_for_early_stopping", True)
