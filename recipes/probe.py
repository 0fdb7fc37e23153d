r"""Probes frozen representations: what is an encoder worth?

    python recipes/probe.py hparams/probe_mini.yaml
    python recipes/probe.py hparams/probe_fsdd.yaml --data_folder /data/fsdd \
        --encoders "[logmel, random, results/base/1234/encoder]"
    python recipes/probe.py hparams/probe_mini.yaml --layers True

Every clip becomes one vector, mean and deviation of its frames over time (`pooling`);
linear and MLP probes are trained on the vectors, chosen on the validation set, and
tested, as in HEAREval. `encoders` are any number of folders that a recipe exported,
names of published weights, `random` (the architecture of the first encoder named, with
new weights, others for each of the `repeats`) and `logmel` (mean and deviation over
time of log-mel frames). "{fold}" in a folder's path stands for the name of the fold
that is tested.

Of each score there is a 95 % interval: what other test clips, other seeds of the probes
and, for `random`, other weights would change. Other training clips, other pretrainings
of an encoder and other folds are not in it.

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
from encodecmae_sb.data.clips import all_labels, make_runs, targets_of, write_manifest
from encodecmae_sb.evaluation.metrics import write_rows
from encodecmae_sb.evaluation.probe import (
    DRAWS,
    ProbeGrid,
    check_whole,
    draw_bars,
    draw_layers,
    probe_vectors,
    spread,
)
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    choose_device,
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.files import write_text

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
        self.device = choose_device(run_opts["device"])
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

    def vectors(self, name, run, number=0):
        """What an encoder makes of all clips; computed once, and kept in a file.

        Arguments
        ---------
        name : str
        run : Run
        number : int
            Which of its repeats `random` is to be; each has other weights.

        Returns
        -------
        Vectors
        """
        source = in_fold(self.model if name == RANDOM else name, run)
        wanted = (source, number if name == RANDOM else None)
        if wanted not in self.known:
            self.known[wanted] = self._encode(name, source, number)
        return self.known[wanted]

    def pooling(self, name):
        """How frames become a vector; log-mel frames always do so in the same way."""
        return "mean_std" if name == LOGMEL else self.hparams["pooling"]

    def layer(self, name, number):
        """The layer that the vectors `number` belong to; log-mel frames have none."""
        if name == LOGMEL:
            return "-"
        return number if self.hparams["layers"] else self.hparams["layer"]

    def _encode(self, name, source, number):
        hparams, pooling = self.hparams, self.pooling(name)
        if name == LOGMEL:
            lobe, made, layer = LogMelFrames(), LOGMEL, None
        else:
            torch.manual_seed(hparams["seed"] + number)  # of the random weights
            lobe = EnCodecMAE(
                source,
                output_all_hiddens=hparams["layers"],
                input_sample_rate=SAMPLE_RATE,
                layer=hparams["layer"],
                pretrained=name != RANDOM,
            )
            made = describe(lobe.encoder)
            layer = "all" if hparams["layers"] else hparams["layer"]
        # Of the head only the pooling is used, which is all before what is learnt.
        head = ClipHead(lobe.dim, len(self.labels), pooling=pooling)
        # With the weights in its name, a file serves one initialisation only.
        weights = weights_key(lobe)
        key = digest([made, weights, FRAMES_VERSION, self.clips_key, pooling, layer])
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

    def probe(self, name, run, layer):
        """What `probe_vectors` gives for an encoder, a fold and a layer."""
        repeats, seed = self.hparams["repeats"], self.hparams["seed"]
        if name != RANDOM:
            return self._probe(self.vectors(name, run), run, layer, repeats, seed)
        # Each repeat has weights of its own; the probe is chosen for the first.
        rows, choice = [], None
        for number in range(repeats):
            vectors = self.vectors(name, run, number)
            (row,) = self._probe(vectors, run, layer, 1, seed + number, choice)
            choice = row["hidden_layers"], row["lr"]
            rows.append({**row, "repeat": number})
        return rows

    def _probe(self, vectors, run, layer, repeats, seed, choice=None):
        """What `probe_vectors` gives; computed once, and kept in a file."""
        multi_label = self.hparams["multi_label"]
        ids = [[clip.id for clip in part] for part in (run.train, run.valid, run.test)]
        asked = [vectors.key, layer, ids, asdict(self.grid)]
        asked += [repeats, seed, multi_label, choice, DRAWS]
        path = self.save / "probes" / f"{digest(asked)}.json"
        if not path.exists():
            parts = []
            for part in (run.train, run.valid, run.test):
                targets = targets_of(part, self.labels, multi_label)
                inputs = vectors.of(part, layer)
                parts.append((inputs.to(self.device), targets.to(self.device)))
            rows = probe_vectors(
                *parts,
                len(self.labels),
                self.grid,
                repeats,
                seed,
                choice,
                int(digest(ids[2]), 16),
            )
            write_text(path, json.dumps(rows))
        return json.loads(path.read_text(encoding="utf-8"))

    def compare(self):
        """Probes every encoder, in every layer that is stored and in every fold.

        Returns
        -------
        list of dict
            Rows of `probe_vectors` with `encoder`, `width`, `layer` (as in the yaml;
            with `layers` counted from 0), `pooling` and `fold`.
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
                    "layer": self.layer(name, layer),
                    "pooling": self.pooling(name),
                    "fold": run.name,
                }
                own.append([about | row for row in self.probe(name, run, layer)])
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
        f"choose from, {hparams['repeats']} repeats, on {comparison.device}.",
        flush=True,
    )
    finish(comparison, comparison.compare(), unusable, output)


def finish(comparison, rows, unusable, output):
    """Writes all that was found out, and says what to do next."""
    hparams, runs = comparison.hparams, comparison.runs
    write_rows(output / "probes.csv", [with_interval(row, runs) for row in rows])
    by_layer = {}  # encoder -> layer -> rows
    for row in rows:
        layers = by_layer.setdefault(row["encoder"], {})
        layers.setdefault(row["layer"], []).append(row)
    by_layer = {name: list(layers.values()) for name, layers in by_layer.items()}
    main_layer = {
        name: main_rows(layers, hparams["layer"]) for name, layers in by_layer.items()
    }

    key = comparison.score_name
    columns = list(rows[0])
    others = columns[columns.index(key) + 1 : columns.index("draws")]
    metrics = {}
    for name, layers in by_layer.items():
        metrics |= measured(f"{name}/", main_layer[name], runs, key, others)
        if len(layers) > 1:
            for i, own in enumerate(layers):
                metrics |= measured(f"{name}/layer_{i}/", own, runs, key)
        for about in ("layer", "pooling"):
            metrics[f"{name}/{about}"] = main_layer[name][0][about]
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
        "interval_covers": covered(runs, hparams["repeats"], RANDOM in main_layer),
        "unusable_files": unusable,
    }
    scores, draws = (
        [table_of(own, runs, what) for own in main_layer.values()]
        for what in (key, "draws")
    )
    metrics |= behind_best(list(main_layer), scores, draws, key)
    write_metrics(output, metrics)
    draw_bars(list(main_layer), scores, draws, output / "probe.png", key, chance)
    picture = output / "layers.png"
    picture.unlink(missing_ok=True)
    curves = {
        name: [
            (table_of(own, runs, key), table_of(own, runs, "draws")) for own in layers
        ]
        for name, layers in by_layer.items()
    }
    if hparams["layers"]:
        draw_layers(curves, picture, key)
    report(main_layer, curves, metrics, key, output, picture.exists())


def with_interval(row, runs):
    """A row of `probes.csv`: instead of draws the 95 % interval of this one probe."""
    row = dict(row)
    draws = row.pop("draws")
    own = spread([[np.mean(draws)]], [[draws]])
    covers = covered(runs[:1], 1)
    return {**row, "low": own["low"], "high": own["high"], "interval_covers": covers}


def covered(runs, repeats, with_random=False):
    """What a 95 % interval covers, in words."""
    clips = f"test clips of each of the {len(runs)} folds" if runs[1:] else "test clips"
    text = f"95 %: other {clips}"
    left_out = "training clips, pretrainings" + (", folds" if runs[1:] else "")
    if repeats == 1:
        return f"{text}; not other seeds, {left_out}"
    text += f" and seeds ({repeats} were tried"
    if with_random:
        text += f"; for {RANDOM} also other weights, new for each seed"
    return f"{text}); not other {left_out}"


def measured(prefix, rows, runs, key, others=()):
    """Figures of one encoder and layer as metrics; of the first with its interval."""
    metrics = {}
    for name in (key, *others):
        scores = table_of(rows, runs, name)
        draws = table_of(rows, runs, "draws") if name == key else None
        for what, value in spread(scores, draws).items():
            metrics[f"{prefix}{name}{'' if what == 'mean' else f'_{what}'}"] = value
        if len(runs) > 1:
            for run, own in zip(runs, scores, strict=True):
                metrics[f"{prefix}fold_{run.name}/{name}"] = spread([own])["mean"]
    return metrics


def behind_best(names, scores, draws, key):
    """How far each encoder is behind the best, fold by fold and clip by clip.

    Folds and clips differ more than encoders do: a difference within them is surer
    than either of the two means.
    """
    best = max(range(len(names)), key=lambda i: spread(scores[i])["mean"])
    metrics = {}
    for i, name in enumerate(names):
        if i != best:
            difference = spread(
                np.subtract(scores[best], scores[i]), np.subtract(draws[best], draws[i])
            )
            for what in ("mean", "low", "high", "stderr_folds"):
                if what in difference:
                    suffix = "" if what == "mean" else f"_{what}"
                    metrics[f"{name}/{key}_behind_best{suffix}"] = difference[what]
    return metrics


def report(main_layer, curves, metrics, key, output, has_layers):
    """Prints the table, what was made, and what to do next."""
    wide = max(map(len, [*main_layer, "encoder"]))

    def cell(name, width=12):
        return f"{metrics[name]:{width}.3f}" if name in metrics else f"{'-':>{width}}"

    def interval(name):
        if f"{name}_low" not in metrics:
            return f"{'-':>18}"
        return f"{metrics[f'{name}_low']:9.3f} to {metrics[f'{name}_high']:.3f}"

    print(
        f"\n{'encoder':{wide}}{'width':>7}{'layer':>14}{'pooling':>10}{key:>10}"
        f"{'95 % interval':>18}{'dev. folds':>12}{'dev. seeds':>12}"
        f"{'behind best':>13}{'95 % interval':>18}"
    )
    for name, rows in main_layer.items():
        row, score = rows[0], f"{name}/{key}"
        print(
            f"{name:{wide}}{row['width']:7d}{row['layer']:>14}{row['pooling']:>10}"
            f"{cell(score, 10)}{interval(score)}"
            f"{cell(f'{score}_std_folds')}{cell(f'{score}_std_repeats')}"
            f"{cell(f'{score}_behind_best', 13)}{interval(f'{score}_behind_best')}"
        )
    print(f"(interval, {metrics['interval_covers']})")
    if "most_frequent_class" in metrics:
        print(f"(always the most frequent class: {metrics['most_frequent_class']:.3f})")
    if has_layers:
        print(f"\n{key} of each layer, counted from 0")
        for name, layers in curves.items():
            means = "".join(f"{spread(scores)['mean']:8.3f}" for scores, _ in layers)
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
