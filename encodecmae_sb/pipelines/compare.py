"""Probes several encoders on the same clips, and finds finished work again."""

from dataclasses import asdict, fields

import numpy as np

from encodecmae_sb.evaluation.comparison import (
    by_layer,
    main_rows,
    spread,
    tables_of,
)
from encodecmae_sb.evaluation.probe import ProbeGrid, probe_vectors
from encodecmae_sb.evaluation.simple_probes import (
    KNN,
    LINEAR,
    few_of_each,
    folds_within_classes,
    leave_one_out,
    simple_probe,
)
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import computed_once
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.values import is_number

from .clip_features import draws_seed
from .clip_vectors import (
    LOGMEL,
    RANDOM,
    ClipVectors,
    check_encoding,
    named_encoders,
)

MLP = "mlp"
PROBES = (LINEAR, MLP, KNN)
ALL = "all"  # of `labels_per_class`
LEVELLED = ", equal level"  # at the end of a row's name


def check_settings(hparams):
    """Refuses values that have no meaning, before any work."""
    check_encoding(hparams)
    if not isinstance(hparams["normalise"], bool):
        raise UserError(f"normalise={hparams['normalise']}: allowed are True, False.")
    _check_list(hparams, "probes", PROBES.__contains__, ", ".join(PROBES))
    rates = "numbers above 0, such as [0.001, 0.01, 0.1]"
    _check_list(hparams, "strengths", lambda c: is_number(c) and c > 0, rates)
    counts = "whole numbers from 1, such as [1, 3, 10]"
    _check_list(hparams, "neighbours", _is_count, counts)
    if hparams["labels_per_class"] is not None:
        counts += ", and all"
        _check_list(
            hparams, "labels_per_class", lambda n: n == ALL or _is_count(n), counts
        )


def _is_count(value):
    return type(value) is int and value >= 1


def _check_list(hparams, key, allows, allowed):
    values = hparams[key]
    good = isinstance(values, list) and values and all(map(allows, values))
    if not good or len(set(values)) < len(values):
        raise UserError(f"{key}={values}: give a list, each once, of: {allowed}.")


class Comparison(ClipVectors):
    """Computes vectors and probes them; both are kept in files and found again.

    A row has the name that the yaml gives its encoder. With `normalise` there is a
    second one, "NAME, equal level", from clips that were brought to one level.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    data : ClipData
    """

    def __init__(self, hparams, run_opts, data):
        self.encoders, model = named_encoders(hparams)
        super().__init__(hparams, run_opts, data, model)
        levels = ("", LEVELLED) if hparams["normalise"] else ("",)
        self.names = [name + level for name in self.encoders for level in levels]
        self.probes = hparams["probes"]
        self.grid = ProbeGrid(
            **{field.name: hparams[field.name] for field in fields(ProbeGrid)}
        )
        # The metric that encoders are compared by.
        self.score_name = "mAP" if data.multi_label else "accuracy"
        if hparams["labels_per_class"] and data.multi_label:
            raise UserError(
                "labels_per_class is for clips with one label: with several there is "
                "no fair draw. Give labels_per_class=null."
            )
        self.resample = _resampling(hparams["resample"], data)

    def _vectors(self, name, fold, number=0):
        equal = name.endswith(LEVELLED)
        return self.vectors(name.removesuffix(LEVELLED), fold, number, equal)

    def _main_layer(self, vectors):
        """The place of the layer that the yaml names among those that are stored."""
        layer = self.hparams["layer"]
        several = vectors.num_layers > 1 and isinstance(layer, int)
        return layer if several else vectors.num_layers - 1

    def _layer(self, encoder, number):
        """The layer of the vectors `number`; log-mel frames have none."""
        if encoder == LOGMEL:
            return "-"
        return number if self.hparams["layers"] else self.hparams["layer"]

    def probe(self, kind, name, fold, layer):
        """Rows of one probe for an encoder, a fold and a layer: one for each repeat.

        A repeat of an MLP has another seed, a repeat of `random` other weights. Linear
        probes and neighbours have no seed: of other encoders there is one row.
        """
        random = name.removesuffix(LEVELLED) == RANDOM
        repeats, seed = self.hparams["repeats"], self.hparams["seed"]
        if kind == MLP and not random:
            vectors = self._vectors(name, fold)
            return self._mlp(vectors, fold, layer, repeats, seed)
        rows, choice = [], None
        for number in range(repeats if random else 1):
            vectors = self._vectors(name, fold, number)
            if kind == MLP:  # it is chosen for the first weights
                (row,) = self._mlp(vectors, fold, layer, 1, seed + number, choice)
                choice = row["hidden_layers"], row["lr"]
            else:
                row = self._simple(kind, vectors, fold, layer)
            rows.append({**row, "repeat": number})
        return rows

    def _mlp(self, vectors, fold, layer, repeats, seed, choice=None):
        """Rows of `probe_vectors`, computed once and kept in a file."""
        parts = (fold.train, fold.valid, fold.test)
        groups = self._groups(fold)
        asked = [vectors.key, layer, [_ids(part) for part in parts], asdict(self.grid)]
        asked += [repeats, seed, self.data.multi_label, choice, groups]

        def compute():
            tensors = [
                (
                    vectors.of(part, layer).to(self.device),
                    self.data.targets(part).to(self.device),
                )
                for part in parts
            ]
            return probe_vectors(
                *tensors,
                len(self.data.labels),
                self.grid,
                repeats,
                seed,
                choice,
                draws_seed(fold.test),
                groups,
            )

        return [
            {**row, "choice": f"{row['hidden_layers']} hidden, lr {row['lr']:g}"}
            for row in self._kept(asked, compute)
        ]

    def _simple(self, kind, vectors, fold, layer, labels=None, seed=0):
        """The row of `simple_probe`, computed once and kept in a file.

        In cross-validation all clips outside the test fold are for training, and the
        probe is chosen by leaving out each of the other folds in turn. With an official
        split it is chosen on the validation clips, and trained without them.

        Arguments
        ---------
        kind : str
        vectors : Vectors
        fold : Fold
        layer : int
        labels : int, optional
            Training clips per class; default: all.
        seed : int
            Of the draw of these clips.
        """
        split = len(self.data.folds) == 1
        clips = fold.train + fold.valid + fold.test
        ends = np.cumsum([len(fold.train), len(fold.valid), len(fold.test)])
        train = np.arange(ends[0 if split else 1])
        choices = self.hparams["strengths" if kind == LINEAR else "neighbours"]
        groups = self._groups(fold)
        parts = [clip.part for clip in clips]
        asked = [kind, vectors.key, layer, _ids(clips), parts, ends.tolist(), split]
        asked += [choices, labels, seed, self.data.multi_label, groups]

        def compute():
            targets, chosen = self.data.targets(clips).numpy(), train
            if labels:
                chosen = few_of_each(targets, train, labels, seed)
                folds = folds_within_classes(targets, chosen)
                inner = leave_one_out(chosen, folds) if labels > 1 else []
            elif split:
                inner = [(train, np.arange(ends[0], ends[1]))]
            else:
                inner = leave_one_out(train, np.array(parts)[train])
            return simple_probe(
                kind,
                vectors.of(clips, layer).numpy(),
                targets,
                chosen,
                np.arange(ends[1], ends[2]),
                inner,
                choices,
                draws_seed(fold.test),
                groups,
            )

        row = self._kept(asked, compute)
        name = "C" if kind == LINEAR else "k"
        return {**row, "choice": f"{name} {row['choice']:g}"}

    def _groups(self, fold):
        """The group of each test clip, where groups are resampled; else None."""
        if self.resample != "groups":
            return None
        return [clip.group or clip.id for clip in fold.test]

    def _kept(self, asked, compute):
        """What was computed for this before, or is now."""
        return computed_once(self.save / "probes" / f"{digest(asked)}.json", compute)

    def compare(self):
        """Probes every encoder, in every layer that is stored and in every fold.

        Returns
        -------
        list of dict
            `encoder`, `probe`, `width`, `layer` (as in the yaml; with `layers` counted
            from 0), `pooling`, `fold`, `repeat`, `choice`, `valid` (the main metric
            where the choice was made), the metrics of `clip_scores` on the test clips,
            and `draws`, the main metric on sets drawn from the test clips.
        """
        folds = self.data.folds
        work = [(name, fold) for name in self.names for fold in folds]
        rows = []
        with open_bar(len(work), "Probing", "folds", quiet=self.quiet) as bar:
            for name, fold in work:
                bar.set_postfix_str(f"{name}, {fold.name}", refresh=False)
                own = self._rows(name, fold)
                rows += own
                said = []
                for kind in self.probes:
                    (layers,) = by_layer(
                        [row for row in own if row["probe"] == kind]
                    ).values()
                    shown = main_rows(layers, self.hparams["layer"])
                    score = spread([[row[self.score_name] for row in shown]])["mean"]
                    said.append(f"{kind} {score:.3f}")
                which = f", fold {fold.name}" if len(folds) > 1 else ""
                bar.update(1)
                bar.write(f"{name}{which}: {self.score_name} {', '.join(said)}")
        return rows

    def _rows(self, name, fold):
        encoder = name.removesuffix(LEVELLED)
        vectors, rows = self._vectors(name, fold), []
        for layer in range(vectors.num_layers):
            about = {
                "encoder": name,
                "probe": None,
                "width": vectors.width,
                "layer": self._layer(encoder, layer),
                "pooling": self.pooling(encoder),
                "fold": fold.name,
            }
            for kind in self.probes:
                for row in self.probe(kind, name, fold, layer):
                    kept = {key: row[key] for key in row if key not in _OF_MLP}
                    start = {key: kept.pop(key) for key in ("repeat", "choice")}
                    rows.append({**about, "probe": kind, **start, **kept})
        return rows

    def compare_labels(self):
        """Linear probes trained on a few clips of each class.

        Clips are drawn `repeats` times, the same for all encoders.

        Returns
        -------
        dict of str to dict of int or str to (list, list)
            Name -> `labels_per_class` -> scores and draws, as for `spread`.
        """
        numbers, folds = self.hparams["labels_per_class"], self.data.folds
        repeats, found = self.hparams["repeats"], {}
        total = len(self.names) * len(numbers)
        with open_bar(total, "Few labels", "curves", quiet=self.quiet) as bar:
            for name in self.names:
                random = name.removesuffix(LEVELLED) == RANDOM
                for labels in numbers:
                    rows = []
                    for fold in folds:
                        for number in range(repeats):
                            vectors = self._vectors(name, fold, random * number)
                            layer = self._main_layer(vectors)
                            draw = (None, 0) if labels == ALL else (labels, number)
                            row = self._simple(LINEAR, vectors, fold, layer, *draw)
                            rows.append({**row, "fold": fold.name})
                    found.setdefault(name, {})[labels] = tables_of(
                        rows,
                        [fold.name for fold in folds],
                        self.score_name,
                        self.resample == "folds",
                    )
                    bar.update(1)
        return found


# What only the rows of MLPs have; `choice` says it.
_OF_MLP = ("hidden_layers", "lr", "epoch")


def _ids(clips):
    return [clip.id for clip in clips]


def _resampling(said, data):
    """What is drawn anew for the intervals: "clips", "groups" or "folds"."""
    allowed = ("auto", "clips", "groups", "folds")
    if said not in allowed:
        raise UserError(f"resample={said}: allowed are {', '.join(allowed)}.")
    counts = [len({clip.group or clip.id for clip in fold.test}) for fold in data.folds]
    grouped = any(clip.group for clip in data.tested)
    if said == "groups" and not grouped:
        raise UserError(
            "resample=groups: no clip has a group. Give the manifest a column group, "
            "such as the speaker of each clip, or give resample=clips."
        )
    if said == "groups" and min(counts) == 1:
        raise UserError(
            "resample=groups: the test clips of a fold are one group, so there is "
            "nothing to draw. Give resample=folds."
        )
    if said == "folds" and len(data.folds) == 1:
        raise UserError(
            "resample=folds: there is one test set. Give resample=clips or groups."
        )
    if said != "auto":
        return said
    if not grouped or min(counts) == len(data.folds) == 1:
        return "clips"
    return "folds" if min(counts) == 1 else "groups"
