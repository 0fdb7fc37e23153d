r"""Probes frozen representations: what is an encoder worth?

    python recipes/probe.py hparams/probe_mini.yaml
    python recipes/probe.py hparams/probe_fsdd.yaml --data_folder /data/fsdd \
        --encoders "[logmel, random, results/base/1234/encoder]"
    python recipes/probe.py hparams/probe_mini.yaml --layers True

Every clip becomes one vector, mean and deviation of its frames over time (`pooling`);
linear and MLP probes are trained on the vectors, chosen on the validation set, and
tested, as in HEAREval. `encoders` are any number of folders that a recipe exported,
names of published weights, `random` (the architecture of the first encoder named, with
new weights) and `logmel` (mean and deviation over time of log-mel frames). "{fold}" in
a folder's path stands for the name of the fold that is tested.

Makes, in the output folder: `metrics.json`; `probes.csv`, every probe that was
tested; `probe.png`; with `--layers True` `layers.png`; `clips.csv`;
`unusable_files.csv`; vectors and finished folds in `save/`. A run that was
interrupted goes on when the same command is given again; encoders that are added
are computed, the others are not computed again.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from encodecmae_sb.brains.classify import (
    StoredSummaries,
    check_encoder,
    clips_key,
    describe_data,
    find_data,
    store_summaries,
)
from encodecmae_sb.data.labelled import (
    all_labels,
    make_runs,
    targets_of,
    write_manifest,
)
from encodecmae_sb.digests import digest, weights_key
from encodecmae_sb.errors import UserError
from encodecmae_sb.experiment import (
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.export import encoder_yaml
from encodecmae_sb.files import write_text
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.lobes.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.probe import (
    ProbeGrid,
    check_whole,
    draw_bars,
    draw_layers,
    probe_vectors,
    spread,
)
from encodecmae_sb.scores import write_rows

SAMPLE_RATE = 24000  # of the encoders
LOGMEL, RANDOM = "logmel", "random"


def check_settings(hparams):
    """Refuses values that have no meaning, before any work."""
    for key in ("multi_label", "layers"):
        if not isinstance(hparams[key], bool):
            raise UserError(f"{key}={hparams[key]}: allowed are True, False.")
    check_whole("repeats", hparams["repeats"], 1)
    check_whole("encode_batch_size", hparams["encode_batch_size"], 1)
    if hparams["pooling"] not in ("mean", "mean_std"):
        raise UserError(
            f"pooling={hparams['pooling']}: allowed are mean, mean_std. What learns, "
            "such as attentive pooling, is for recipes/classify.py."
        )
    layer = hparams["layer"]
    if layer not in ("last", "last_no_norm"):
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise UserError(
                f"layer={layer}: allowed are last, last_no_norm and a number from 0."
            )
    elif layer == "last_no_norm" and hparams["layers"]:
        raise UserError(
            "layer=last_no_norm is none of the layers that layers=True goes through: "
            "give one of the two."
        )
    if torch.distributed.is_initialized():
        raise UserError("Probing runs in one process: start without torchrun.")


def named_encoders(hparams):
    """The encoders to compare, and the one that `random` is like.

    Returns
    -------
    names : list of str
    model : str or None
        The first that is neither `random` nor `logmel`.
    """
    names = hparams["encoders"]
    names = [str(name) for name in (names if isinstance(names, list) else [names])]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"encoders={names}: give one or more, each once, for example\n"
            f'  --encoders "[{LOGMEL}, {RANDOM}, results/mini/1234/encoder]"'
        )
    models = [name for name in names if name not in (LOGMEL, RANDOM)]
    if RANDOM in names and not models:
        raise UserError(
            f"encoders={names}: {RANDOM} has the architecture of the first encoder "
            "named, and there is none. Name one, such as results/mini/1234/encoder."
        )
    return names, models[0] if models else None


def in_fold(name, run):
    """The encoder for a fold."""
    return name.replace("{fold}", run.name)


@dataclass
class Vectors:
    """What an encoder makes of all clips.

    Arguments
    ---------
    stored : StoredSummaries
        Clip ID -> vectors, float32, [L, W].
    key : str
        A name for all that they depend on.
    """

    stored: StoredSummaries
    key: str

    @property
    def num_layers(self):
        """Layers that were stored, L."""
        return self.stored.values.shape[1]

    @property
    def width(self):
        """Of a vector, W."""
        return self.stored.values.shape[2]

    def of(self, clips, layer):
        """Vectors of some clips, [clips, W]."""
        return torch.stack([self.stored[clip.id][layer] for clip in clips])


class Comparison:
    """Computes vectors and probes them, and finds again what it computed before.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    clips : list of Clip
    runs : list of Run
    """

    def __init__(self, hparams, run_opts, clips, runs):
        self.hparams = hparams
        self.device = run_opts["device"]
        self.quiet = run_opts["noprogressbar"]
        self.clips = clips
        self.runs = runs
        self.labels = all_labels(clips)
        self.save = Path(hparams["save_folder"])
        self.names, self.model = named_encoders(hparams)
        self.grid = ProbeGrid(
            **{field.name: hparams[field.name] for field in fields(ProbeGrid)}
        )
        self.clips_key = clips_key(clips)
        self.known = {}

    def check_encoders(self):
        """Makes sure that there is every encoder, for every fold."""
        for name in self.names:
            if name not in (LOGMEL, RANDOM):
                for source in {in_fold(name, run): None for run in self.runs}:
                    check_encoder(source, "encoders")

    def vectors(self, name, run):
        """What an encoder makes of all clips; computed once, and kept in a file."""
        source = in_fold(self.model if name == RANDOM else name, run)
        if (name == RANDOM, source) not in self.known:
            self.known[name == RANDOM, source] = self._encode(name, source)
        return self.known[name == RANDOM, source]

    def _encode(self, name, source):
        hparams = self.hparams
        torch.manual_seed(hparams["seed"])  # of the random weights
        if name == LOGMEL:
            lobe, pooling, made = LogMelFrames(), "mean_std", LOGMEL
        else:
            lobe = EnCodecMAE(
                source,
                output_all_hiddens=hparams["layers"],
                input_sample_rate=SAMPLE_RATE,
                layer=hparams["layer"],
                pretrained=name != RANDOM,
            )
            pooling, made = hparams["pooling"], encoder_yaml(lobe.encoder)
        # Of the head only the pooling is used, which is all before what is learnt.
        head = ClipHead(lobe.dim, len(self.labels), pooling=pooling)
        layer = "all" if hparams["layers"] else hparams["layer"]
        key = digest([made, weights_key(lobe), self.clips_key, pooling, layer])
        stored = store_summaries(
            ClipClassifier(lobe, head).to(self.device),
            self.clips,
            self.save / "features" / f"{key}.bin",
            hparams["encode_batch_size"],
            hparams["num_workers"],
            self.device,
            self.quiet,
        )
        return Vectors(stored, key)

    def probe(self, vectors, run, layer):
        """What `probe_vectors` gives for a fold; computed once, and kept in a file."""
        hparams = self.hparams
        ids = [[clip.id for clip in part] for part in (run.train, run.valid, run.test)]
        asked = [vectors.key, layer, ids, asdict(self.grid)]
        asked += [hparams["repeats"], hparams["seed"], hparams["multi_label"]]
        path = self.save / "probes" / f"{digest(asked)}.json"
        if not path.exists():
            parts = []
            for part in (run.train, run.valid, run.test):
                targets = targets_of(part, self.labels, hparams["multi_label"])
                inputs = vectors.of(part, layer)
                parts.append((inputs.to(self.device), targets.to(self.device)))
            rows = probe_vectors(
                *parts,
                len(self.labels),
                self.grid,
                hparams["repeats"],
                hparams["seed"],
            )
            write_text(path, json.dumps(rows))
        return json.loads(path.read_text(encoding="utf-8"))

    def compare(self):
        """Probes every encoder, in every layer that is stored and in every fold.

        Returns
        -------
        list of dict
            Rows of `probe_vectors` with `encoder`, `width`, `layer` (counted from 0;
            of those that are stored) and `fold`.
        """
        work = [(name, run) for name in self.names for run in self.runs]
        bar = tqdm(
            total=len(work),
            desc="Probing",
            unit=" folds",
            dynamic_ncols=True,
            mininterval=0.5,
            leave=False,
            disable=self.quiet,
        )
        rows = []
        for name, run in work:
            bar.set_postfix_str(f"{name}, {run.name}", refresh=False)
            vectors = self.vectors(name, run)
            own = []
            for layer in range(vectors.num_layers):
                about = {
                    "encoder": name,
                    "width": vectors.width,
                    "layer": layer,
                    "fold": run.name,
                }
                own.append([about | row for row in self.probe(vectors, run, layer)])
                rows += own[-1]
            shown = main_rows(own, self.hparams["layer"])
            score = spread([[row[self.score_name] for row in shown]])["mean"]
            fold = f", fold {run.name}" if len(self.runs) > 1 else ""
            bar.update(1)
            bar.write(f"{name}{fold}: {self.score_name} {score:.3f}")
        bar.close()
        return rows

    @property
    def score_name(self):
        """The figure that is gone by."""
        return "mAP" if self.hparams["multi_label"] else "accuracy"


def main_rows(layers, layer):
    """Of what belongs to each layer, that of the layer that the yaml names."""
    if len(layers) == 1 or isinstance(layer, str):
        return layers[-1]
    return layers[layer]


def table_of(rows, runs, key):
    """A figure of one encoder and layer, [folds, repeats]."""
    return [[row[key] for row in rows if row["fold"] == run.name] for run in runs]


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, named = start_experiment(argv)
    output = Path(hparams["output_folder"])
    check_settings(hparams)
    named_encoders(hparams)  # before the files are read
    clips, unusable = find_data(hparams, named, output)
    runs = make_runs(clips, hparams["valid_share"])
    comparison = Comparison(hparams, run_opts, clips, runs)
    comparison.check_encoders()
    write_manifest(output / "clips.csv", clips)
    print(
        f"{describe_data(clips, runs, comparison.labels, unusable)}\n"
        f"{len(comparison.names)} encoders, {len(comparison.grid.choices)} probes to "
        f"choose from, {hparams['repeats']} repeats.",
        flush=True,
    )
    finish(comparison, comparison.compare(), unusable, output)


def finish(comparison, rows, unusable, output):
    """Writes all that was found out, and says what to do next."""
    hparams, runs = comparison.hparams, comparison.runs
    write_rows(output / "probes.csv", rows)
    by_layer = {}  # encoder -> layer -> rows
    for row in rows:
        layers = by_layer.setdefault(row["encoder"], {})
        layers.setdefault(row["layer"], []).append(row)
    by_layer = {name: list(layers.values()) for name, layers in by_layer.items()}
    main_layer = {
        name: main_rows(layers, hparams["layer"]) for name, layers in by_layer.items()
    }

    figures = list(rows[0])[list(rows[0]).index("valid") + 1 :]
    metrics = {}
    for name, layers in by_layer.items():
        metrics |= measured(f"{name}/", main_layer[name], runs, figures)
        if len(layers) > 1:
            for i, own in enumerate(layers):
                metrics |= measured(f"{name}/layer_{i}/", own, runs, figures[:1])
    chance = None
    if not hparams["multi_label"]:
        tested = [clip for run in runs for clip in run.test]
        counts = targets_of(tested, comparison.labels, False).bincount()
        chance = counts.max().item() / len(tested)
        metrics["most_frequent_class"] = chance
    metrics |= {
        "clips": len(comparison.clips),
        "classes": len(comparison.labels),
        "folds": len(runs),
        "repeats": hparams["repeats"],
        "layer": hparams["layer"],
        "pooling": hparams["pooling"],
        "unusable_files": unusable,
    }
    key = comparison.score_name
    scores = [table_of(own, runs, key) for own in main_layer.values()]
    metrics |= behind_best(list(main_layer), scores, key)
    write_metrics(output, metrics)
    draw_bars(list(main_layer), scores, output / "probe.png", key, chance)
    picture = output / "layers.png"
    picture.unlink(missing_ok=True)
    curves = {
        name: [table_of(own, runs, key) for own in layers]
        for name, layers in by_layer.items()
    }
    if hparams["layers"]:
        draw_layers(curves, picture, key)
    report(main_layer, curves, metrics, key, output, picture.exists())


def measured(prefix, rows, runs, figures):
    """Figures of one encoder and layer as metrics."""
    metrics = {}
    for key in figures:
        scores = table_of(rows, runs, key)
        for what, value in spread(scores).items():
            metrics[f"{prefix}{key}{'' if what == 'mean' else f'_{what}'}"] = value
        if len(runs) > 1:
            for run, own in zip(runs, scores, strict=True):
                metrics[f"{prefix}fold_{run.name}/{key}"] = spread([own])["mean"]
    return metrics


def behind_best(names, scores, key):
    """How far each encoder is behind the best, fold by fold.

    Folds differ more than encoders do: a difference within folds is surer than either
    of the two means.
    """
    best = max(scores, key=lambda table: spread(table)["mean"])
    metrics = {}
    for name, table in zip(names, scores, strict=True):
        if table is not best:
            difference = spread(np.subtract(best, table))
            metrics[f"{name}/{key}_behind_best"] = difference["mean"]
            if "stderr" in difference:
                metrics[f"{name}/{key}_behind_best_stderr"] = difference["stderr"]
    return metrics


def report(main_layer, curves, metrics, key, output, has_layers):
    """Prints the table, what was made, and what to do next."""
    wide = max(map(len, [*main_layer, "encoder"]))

    def cell(name):
        return f"{metrics[name]:12.3f}" if name in metrics else f"{'-':>12}"

    print(
        f"\n{'encoder':{wide}}{'width':>8}{key:>12}"
        f"{'std error':>12}{'dev. folds':>12}{'dev. seeds':>12}"
        f"{'behind best':>13}{'std error':>12}"
    )
    for name, rows in main_layer.items():
        print(
            f"{name:{wide}}{rows[0]['width']:8d}"
            + cell(f"{name}/{key}")
            + "".join(
                cell(f"{name}/{key}_{what}")
                for what in ("stderr", "std_folds", "std_repeats")
            )
            + f" {cell(f'{name}/{key}_behind_best')}"
            + cell(f"{name}/{key}_behind_best_stderr")
        )
    if "most_frequent_class" in metrics:
        print(f"(always the most frequent class: {metrics['most_frequent_class']:.3f})")
    if has_layers:
        print(f"\n{key} of each layer, counted from 0")
        for name, layers in curves.items():
            means = "".join(f"{spread(scores)['mean']:8.3f}" for scores in layers)
            print(f"{name:{wide}}{means}")
    print(
        f"\nMade in {output}:\n"
        "  metrics.json         the figures above, and those of every fold\n"
        "  probe.png            the same as a picture"
        + ("\n  layers.png           the layers as a picture" if has_layers else "")
        + "\n  probes.csv           every probe that was tested\n"
        "  clips.csv            the clips as a manifest, to change and give as --csv\n"
        "Next, the same command with\n"
        + ("" if has_layers else "  --layers True        layer by layer\n")
        + '  --encoders "[A, B]"  other encoders; what was computed is kept\n'
        "  --csv FILE           your own recordings: ID,wav,duration,label,fold\n"
        "or train and export a classifier: python recipes/classify.py"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
