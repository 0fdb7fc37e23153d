"""Evaluates encoders on tasks of HEAR, and finds finished work again."""

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from encodecmae_sb.data.hear_tasks import EVENT
from encodecmae_sb.evaluation.hear_heads import (
    HeadGrid,
    head_loss,
    logits_of,
    train_head,
)
from encodecmae_sb.evaluation.hear_scores import (
    EVENT_SCORES,
    event_counts,
    event_draws,
    event_scores,
    scene_draws,
    scene_scores,
)
from encodecmae_sb.evaluation.probe import DRAWS
from encodecmae_sb.evaluation.sound_events import find_events
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.utils.digests import digest, digest_each
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device
from encodecmae_sb.utils.files import computed_once
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.values import is_number

from .clip_features import check_source
from .clip_vectors import LOGMEL, RANDOM, named_encoders
from .hear_data import grid_of, postprocessings_of, uses_scores
from .hear_embeddings import HearEmbeddings, frame_targets, load_model

# Raise it when scores of the same embeddings change: heads are then trained again.
HEADS_VERSION = 1


class TaskData:
    """Embeddings and targets of a task; they are loaded when they are needed.

    Arguments
    ---------
    task : HearTask
    embeddings : HearEmbeddings
    """

    def __init__(self, task, embeddings):
        self.task = task
        self.encoder = embeddings.name
        self.device = embeddings.device
        self.stored = {split: embeddings.of(task, split) for split in task.splits}
        self.parts = {}
        # What heads depend on: embeddings, and what is said about the sounds.
        self.keys = {
            split: digest_each(
                (
                    [sound.labels, [vars(event) for event in sound.events]]
                    for sound in sounds
                ),
                self.stored[split].key,
            )
            for split, sounds in task.splits.items()
        }

    def part(self, split):
        """Embeddings [items, D] and targets [items, labels] of a split."""
        if split not in self.parts:
            task, stored = self.task, self.stored[split]
            sounds = task.splits[split]
            if task.kind == EVENT:
                targets = frame_targets(task, sounds, stored, self.encoder)
            else:
                targets = task.targets(sounds)
            pair = stored.inputs().to(self.device), targets.to(self.device)
            self.parts[split] = pair
        return self.parts[split]

    def train(self, fold):
        """As `part`, of all training splits of a fold."""
        parts = [self.part(split) for split in fold.train]
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


class Examiner:
    """Scores heads on a split.

    Arguments
    ---------
    data : TaskData
    split : str
    batch_size : int
    """

    def __init__(self, data, split, batch_size):
        self.task = data.task
        self.sounds = self.task.splits[split]
        self.stored = data.stored[split]
        self.inputs, self.targets = data.part(split)
        self.batch_size = batch_size
        if self.task.kind == EVENT:
            self.ways = postprocessings_of(self.task)
            index = {label: i for i, label in enumerate(self.task.labels)}
            self.reference = [
                [(index[event.label], event.start, event.end) for event in sound.events]
                for sound in self.sounds
            ]

    def _probabilities(self, logits):
        return probabilities(logits, self.task.multi_label).cpu().numpy()

    def _events(self, frames, way):
        """Events of every file, from probabilities of all frames."""
        slices = [self.stored.frames_of(sound) for sound in self.sounds]
        times = self.stored.times
        return [find_events(frames[own], times[own], **way) for own in slices]

    def _counts(self, names, frames, way):
        estimated = self._events(frames, way)
        return event_counts(names, self.reference, estimated, len(self.task.labels))

    def validate(self, head):
        """A value to choose heads by, and how events are made, if there are any."""
        logits = logits_of(head, self.inputs, self.batch_size)
        if not uses_scores(self.task):
            loss = head_loss(logits, self.targets, self.task.multi_label)
            return -loss.item(), self.ways[0] if self.task.kind == EVENT else None
        main, outcome = self.task.scores[0], self._probabilities(logits)
        if self.task.kind != EVENT:
            targets = self.targets.cpu().numpy()
            return scene_scores([main], outcome, targets)[main], None
        sign = -1 if EVENT_SCORES[main].smaller_is_better else 1
        tried = []
        for way in self.ways:
            score = event_scores(self._counts([main], outcome, way))[main]
            tried.append((sign * score, tuple(way.items())))
        value, way = max(tried)  # of equal ones the greater values, as in heareval
        return value, dict(way)

    def test(self, head, way, seed):
        """All scores, and the main one on sets that are drawn from the files."""
        logits = logits_of(head, self.inputs, self.batch_size)
        names, outcome = self.task.scores, self._probabilities(logits)
        if self.task.kind == EVENT:
            counts = self._counts(names, outcome, way)
            draws = event_draws(names[0], counts[names[0]], DRAWS, seed)
            return event_scores(counts), draws
        targets = self.targets.cpu().numpy()
        draws = scene_draws(names[0], outcome, targets, DRAWS, seed)
        return scene_scores(names, outcome, targets), draws


class HearEvaluation:
    """Trains and tests heads; embeddings and heads are kept in files.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    tasks : list of HearTask
    """

    def __init__(self, hparams, run_opts, tasks):
        if torch.distributed.is_initialized():
            raise UserError("This runs in one process: start without torchrun.")
        self.hparams = hparams
        self.tasks = tasks
        self.seed = hparams["seed"]
        self.names, self.like = named_encoders(hparams)
        self.device = choose_device(run_opts["device"])
        self.quiet = run_opts["noprogressbar"]
        self.save = Path(hparams["save_folder"])
        seconds = hparams["encode_batch_seconds"]
        if not is_number(seconds) or seconds <= 0:
            raise UserError(f"encode_batch_seconds={seconds}: give a number above 0.")
        grid = HeadGrid(
            **{field.name: hparams[field.name] for field in fields(HeadGrid)}
        )
        self.grids = {task.name: grid_of(task, grid) for task in tasks}
        for task in tasks:
            if task.kind == EVENT:
                postprocessings_of(task)
        for name in self.names:
            if name not in (LOGMEL, RANDOM):
                check_source(name, "encoders")

    @property
    def heads(self):
        """Heads that are trained for one encoder."""
        return sum(
            len(self.grids[task.name].drawn(self.seed)) + len(task.folds) - 1
            for task in self.tasks
        )

    def evaluate(self):
        """Evaluates every encoder in every task.

        Returns
        -------
        list of dict
            Heads: `task`, `encoder`, `fold`, `hidden_layers`, `initialisation`, `lr`,
            `epoch`, `valid` (more is better), `chosen`, `scores` and `draws` (of the
            test split), and `postprocessing`.
        """
        rows, total = [], len(self.names) * self.heads
        with open_bar(total, "Training heads", "heads", quiet=self.quiet) as bar:
            for name in self.names:
                rate = self.hparams["sample_rate"]
                embeddings = HearEmbeddings(
                    name,
                    load_model(name, self.like, rate, self.seed),
                    self.save / "embeddings",
                    self.hparams["encode_batch_seconds"],
                    self.hparams["num_workers"],
                    self.device,
                    self.quiet,
                )
                for task in self.tasks:
                    bar.set_postfix_str(f"{name}, {task.name}", refresh=False)
                    own = self._task_rows(TaskData(task, embeddings), bar)
                    rows += own
                    main = task.scores[0]
                    tested = [row["scores"][main] for row in own if row["chosen"]]
                    bar.write(f"{name}, {task.name}: {main} {np.mean(tested):.3f}")
        return rows

    def _task_rows(self, data, bar):
        """Heads of one task: chosen in the first fold, trained anew in the others."""
        first, *others = data.task.folds
        rows = []
        for choice in self.grids[data.task.name].drawn(self.seed):
            rows.append(self._head(data, first, choice))
            bar.update(1)
        best = max(rows, key=lambda row: row["valid"])
        best["chosen"] = True
        choice = best["hidden_layers"], best["initialisation"], best["lr"]
        for fold in others:
            rows.append(self._head(data, fold, choice) | {"chosen": True})
            bar.update(1)
        return rows

    def _head(self, data, fold, choice):
        """The row of one head, trained once and kept in a file."""
        task, grid = data.task, self.grids[data.task.name]
        training = asdict(grid)
        for name in ("hidden_layers", "initialisations", "lrs", "grid_points"):
            del training[name]  # of these only the choice matters
        keys = [data.keys[split] for split in (*fold.train, fold.valid, fold.test)]
        asked = [HEADS_VERSION, keys, task.labels, choice, training, self.seed]
        asked += [task.scores, uses_scores(task), task.multi_label, DRAWS]
        if task.kind == EVENT:
            asked.append(postprocessings_of(task))
        path = self.save / "heads" / f"{digest(asked)}.json"
        head = computed_once(path, lambda: self._train(data, fold, choice, grid))
        return {
            "task": task.name,
            "encoder": data.encoder,
            "fold": fold.name,
            **dict(zip(("hidden_layers", "initialisation", "lr"), choice, strict=True)),
            **head,
            "chosen": False,
        }

    def _train(self, data, fold, choice, grid):
        """Trains a head, validates it and tests it."""
        valid, test = (
            Examiner(data, split, grid.batch_size) for split in (fold.valid, fold.test)
        )
        trained = train_head(
            data.train(fold),
            valid.validate,
            data.task.multi_label,
            choice,
            grid,
            self.seed,
        )
        seed = int(digest([sound.name for sound in test.sounds]), 16)
        scores, draws = test.test(trained.head, trained.note, seed)
        return {
            "epoch": trained.epoch,
            "valid": trained.value,
            "postprocessing": trained.note,
            "scores": scores,
            "draws": None if draws is None else draws.tolist(),
        }
