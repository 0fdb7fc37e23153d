"""Trains variants of a pretraining for the same time, and probes their encoders."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from encodecmae_sb.data.clip_data import AUTO, find_data
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.evaluation.comparison import spread
from encodecmae_sb.evaluation.plots import draw_bars
from encodecmae_sb.evaluation.simple_probes import linear_probe
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device
from encodecmae_sb.utils.files import computed_once, write_text
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.values import is_number

from .clip_vectors import LOGMEL, RANDOM, ClipVectors

# Of a trial, so that little but steps is timed. Copies cost nothing in a step.
_TRIAL = {"valid_items": 4, "monitors": False, "log_to": "null", "altered_copies": 0}
_CLIPS = ("data_folder", "csv", "train_csv", "valid_csv", "test_csv")
_FACTS = ("corpus_rate", "multi_label", "valid_share", "max_unusable")
_VALIDATIONS = 4  # of a training
_INTERVAL = (0.025, 0.975)


class PretrainingComparison:
    """Everything from variants to the table.

    Arguments
    ---------
    hparams : dict
        Of hparams/compare_pretraining.yaml.
    run_opts : speechbrain.core.RunOptions
    script : Path
        recipes/pretrain.py.

    Raises
    ------
    UserError
        If a value has no meaning.
    """

    def __init__(self, hparams, run_opts, script):
        self.hparams = hparams
        self.run_opts = run_opts
        self.script = script
        self.output = Path(hparams["output_folder"])
        self.save = Path(hparams["save_folder"])
        self.variants = _variants(hparams["variants"])
        self.seeds = hparams["seeds"]
        if not isinstance(self.seeds, list) or not self.seeds:
            raise UserError(f'seeds={self.seeds}: give a list, --seeds "[1, 2, 3]".')
        minutes = hparams["minutes"]
        if minutes is not None and not (is_number(minutes) and minutes > 0):
            raise UserError(
                f"minutes={minutes}: a number above 0, or null for training_steps as "
                "the variants say."
            )
        example = "digits: {corpus: fsdd, data_folder: /data/fsdd}"
        self.tasks = _named("tasks", hparams["tasks"], dict, example)
        self.data = {}

    def find_clips(self):
        """Finds the labelled clips of every task, before anything is trained."""
        for task, said in self.tasks.items():
            keys = (
                dict.fromkeys(_CLIPS) | dict.fromkeys(_FACTS, AUTO) | {"corpus": None}
            )
            unknown = said.keys() - keys.keys()
            if unknown:
                raise UserError(
                    f"tasks: {task} has {', '.join(sorted(unknown))}; known are "
                    f"{', '.join(sorted(keys))}."
                )
            folder = self._task_folder(task)
            folder.mkdir(parents=True, exist_ok=True)
            data = find_data(keys | said, folder)
            if data.multi_label or len(data.folds) < 2:
                raise UserError(
                    f"tasks: {task} needs clips of one label, and two folds or more."
                )
            self.data[task] = data
            print(f"{task}: {data.describe()}", flush=True)

    def _task_folder(self, task):
        """Where the clips, vectors and probes of a task are kept."""
        return self.save / "tasks" / _file_name(task)

    # Training

    def run_folder(self, name, seed):
        """Where a variant is trained from a seed."""
        return self.output / "runs" / _file_name(name) / str(seed)

    def train(self):
        """Trains every variant from every seed; what is finished stays as it is."""
        work = [(seed, name) for seed in self.seeds for name in self.variants]
        steps = {name: self.steps_of(name) for name in self.variants}
        quiet = self.run_opts["noprogressbar"]
        with open_bar(len(work), "Pretraining", "runs", quiet=quiet) as bar:
            for seed, name in work:
                bar.set_postfix_str(f"{name}, seed {seed}")
                folder = self.run_folder(name, seed)
                said = [*self.variants[name], steps[name]]
                self._check_same(folder, said)
                options = {"seed": seed}
                if steps[name] is not None:
                    often = max(1, steps[name] // _VALIDATIONS)
                    options |= {"training_steps": steps[name]}
                    options |= {"valid_interval": often}
                # A finished run trains nothing, and refuses other settings and data.
                self._pretrain(name, folder, options)
                bar.update()

    def _check_same(self, folder, said):
        """Refuses a folder that another variant of this name has filled."""
        note = folder / "variant.json"
        if note.exists() and json.loads(note.read_text()) != said:
            raise UserError(
                f"{folder} was trained as {json.loads(note.read_text())}, and now it "
                f"is {said}. Give the variant another name, or another "
                "--output_folder."
            )
        write_text(note, json.dumps(said))

    def steps_of(self, name):
        """Steps that take `minutes`; a step is timed once, and kept in a file."""
        minutes, few = self.hparams["minutes"], self.hparams["trial_steps"]
        if minutes is None:
            return None
        key = digest([self.variants[name], few])
        path = self.save / "trials" / f"{key}.json"
        if not path.exists():
            taken = []
            for steps in (few, 4 * few):
                folder = self.save / "trials" / f"{key}-{steps}"
                shutil.rmtree(folder, ignore_errors=True)  # of a trial that was killed
                options = {"training_steps": steps, "valid_interval": steps, **_TRIAL}
                started = time.monotonic()
                self._pretrain(name, folder, options)
                taken.append(time.monotonic() - started)
            # What is not a step takes as long in both.
            step = (taken[1] - taken[0]) / (3 * few)
            if step <= 0:
                raise UserError(
                    f"{name}: {4 * few} steps did not take longer than {few}. Give "
                    "more --trial_steps."
                )
            write_text(path, json.dumps({"seconds_a_step": step}))
        step = json.loads(path.read_text(encoding="utf-8"))["seconds_a_step"]
        steps = max(1, round(60 * minutes / step))
        print(f"{name}: {1000 * step:.0f} ms a step, {steps} steps", flush=True)
        return steps

    def _pretrain(self, name, folder, options):
        """Runs recipes/pretrain.py; its output goes to a file."""
        folder.mkdir(parents=True, exist_ok=True)
        options = {**options, "output_folder": folder}
        command = [sys.executable, str(self.script)]
        command += _without(self.variants[name], options)
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        command += ["--device", str(choose_device(self.run_opts["device"]))]
        command += ["--noprogressbar"]
        log = folder / "output.txt"
        with open(log, "a", encoding="utf-8") as file:
            file.write(shlex.join(command) + "\n")
            file.flush()
            ended = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        if ended.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-10:])
            raise UserError(
                f"variant {name} ended with exit code {ended.returncode}. The end of "
                f"{log}:\n{tail}"
            )

    # Judging

    def encoders(self):
        """Rows of the table: a name, and for each seed what to load."""
        found = {LOGMEL: [LOGMEL], RANDOM: [RANDOM] * len(self.seeds)}
        for name in self.variants:
            folders = [self.run_folder(name, seed) / "encoder" for seed in self.seeds]
            found[name] = list(map(str, folders))
        return found

    def scores(self, task):
        """Rows of `linear_probe` of each encoder, seed and fold of a task.

        Returns
        -------
        dict of str to (numpy.ndarray, numpy.ndarray)
            Accuracies [folds, seeds] and draws [folds, seeds, DRAWS] of each row.
        """
        data = self.data[task]
        first = next(iter(self.variants))
        model = self.run_folder(first, self.seeds[0]) / "encoder"
        known = {"save_folder": self._task_folder(task), "layers": False, "seed": 0}
        settings = {**self.hparams, **known}
        clip_vectors = ClipVectors(settings, self.run_opts, data, model)
        clips = data.tested
        targets = data.targets(clips).numpy()
        groups = np.array([clip.part for clip in clips])
        rows = {}
        for name, sources in self.encoders().items():
            folds = []
            for fold in data.folds:
                seeds = []
                for number, source in enumerate(sources):
                    vectors = clip_vectors.vectors(source, fold, number)
                    seeds.append(
                        self._probe(task, vectors, clips, targets, groups, fold.name)
                    )
                folds.append(seeds)
            rows[name] = tuple(
                np.array([[row[key] for row in seeds] for seeds in folds])
                for key in ("accuracy", "draws")
            )
        return rows

    def _probe(self, task, vectors, clips, targets, groups, fold):
        """A row of `linear_probe`, computed once and kept in a file."""
        strengths = self.hparams["strengths"]
        asked = [vectors.key, fold, strengths, groups.tolist(), targets.tolist()]
        path = self._task_folder(task) / "probes" / f"{digest(asked)}.json"

        def compute():
            values = vectors.of(clips, 0).numpy()
            seed = int(digest([fold, len(clips)]), 16)
            return linear_probe(values, targets, groups, fold, strengths, seed)

        return computed_once(path, compute)

    def heard(self, task, name):
        """How many clips of a task are in the training audio of a variant."""
        folders = [self.run_folder(name, seed) / "save" for seed in self.seeds]
        manifests = [path for f in folders for path in f.glob("*_train.csv")]
        trained = {path for m in manifests for path in read_columns(m, wav=str)[0]}
        paths = [os.path.abspath(clip.wav) for clip in self.data[task].clips]
        return sum(path in trained for path in paths)

    def results(self):
        """Writes `table.md`, `results.json` and a picture of each task.

        Returns
        -------
        str
            The table, and where things are.
        """
        lines, found = [], {}
        for task in self.data:
            rows = self.scores(task)
            heard = {name: self.heard(task, name) for name in self.variants}
            lines += _table(task, rows, heard, len(self.data[task].clips))
            found[task] = {
                name: {
                    "folds": [fold.name for fold in self.data[task].folds],
                    "accuracy": accuracy.tolist(),
                    "clips_heard": heard.get(name, 0),
                    **spread(accuracy, draws),
                }
                for name, (accuracy, draws) in rows.items()
            }
            picture = self.output / f"{_file_name(task)}.png"
            chance = self.data[task].most_frequent_class()
            draw_bars({"linear": rows}, picture, "accuracy", chance)
        table = "\n".join(lines)
        write_text(self.output / "table.md", table + "\n")
        write_text(self.output / "results.json", json.dumps(found, indent=2))
        pictures = ", ".join(f"{_file_name(task)}.png" for task in self.data)
        return (
            f"\n{table}\n\nMade in {self.output}:\n"
            "  table.md       the table above\n"
            "  results.json   every seed and fold\n"
            f"  {pictures}: the same as pictures\n"
            "  runs/          the trainings, each with its encoder/ and curves.png"
        )


def _table(task, rows, heard, clips):
    """Lines of Markdown: each encoder's accuracy, and what it is above random."""
    lines = [
        f"**{task}**",
        "",
        "| | accuracy | 95 % interval | above random | 95 % interval | worst fold "
        "| clips heard in pretraining |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = rows[RANDOM]
    for name, (accuracy, draws) in rows.items():
        own = spread(accuracy, draws)
        cells = [name, f"{own['mean']:.3f}", f"{own['low']:.3f} to {own['high']:.3f}"]
        if name == RANDOM:
            cells += ["", "", ""]
        else:
            difference = accuracy.mean(1) - base[0].mean(1)  # [folds]
            low, high = np.quantile(_means(draws, 1) - _means(base[1], 2), _INTERVAL)
            cells += [
                f"{difference.mean():+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                f"{difference.min():+.3f}",
            ]
        cells.append(f"{heard[name]} of {clips}" if name in heard else "")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _means(draws, seed):
    """Mean accuracy [sets] on the same sets of clips, with seeds drawn anew."""
    each = draws.mean(0)  # [seeds, sets]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(each), size=each.shape)
    return np.take_along_axis(each, drawn, 0).mean(0)


def _named(key, said, kind, example):
    """A list of mappings with one name each, as one mapping.

    It is a list because SpeechBrain adds to a mapping what the command line gives.
    """
    mappings = said if isinstance(said, list) else [said]
    pairs = [
        pair
        for one in mappings
        for pair in (one.items() if isinstance(one, dict) else [(one, None)])
    ]
    if not pairs or not all(isinstance(value, kind) for _, value in pairs):
        raise UserError(f'{key}={said}: give a list, such as --{key} "[{example}]"')
    names = [str(name) for name, _ in pairs]
    files = [_file_name(name) for name in names]
    for name in names:
        if name in (LOGMEL, RANDOM) or files.count(_file_name(name)) > 1:
            raise UserError(f"{key}: {name} is taken: give it another name.")
    return {str(name): value for name, value in pairs}


def _variants(said):
    """Name -> arguments of recipes/pretrain.py."""
    found = _named("variants", said, str, "codec: hparams/mini.yaml")
    found = {name: shlex.split(text) for name, text in found.items()}
    for name, arguments in found.items():
        if not arguments or not Path(arguments[0]).is_file():
            raise UserError(
                f"variants: {name} begins with no yaml file: {' '.join(arguments)}"
            )
        for key in ("--seed", "--output_folder"):
            if key in arguments:
                raise UserError(
                    f"variants: {name} has {key}, which the comparison gives itself."
                )
    return found


def _without(arguments, keys):
    """Arguments without `--key value` of some keys."""
    kept, skip = [], False
    for word in arguments:
        if not skip and word.removeprefix("--") not in keys:
            kept.append(word)
        skip = not skip and word.startswith("--") and word[2:] in keys
    return kept


def _file_name(name):
    return re.sub(r"[^\w.-]+", "_", name)
