"""Probes several encoders on the same clips, and finds finished work again."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from encodecmae_sb.evaluation.comparison import (
    behind_best,
    by_layer,
    covered,
    layer_metrics,
    main_rows,
    spread,
    tables_of,
    with_interval,
)
from encodecmae_sb.evaluation.metrics import write_rows
from encodecmae_sb.evaluation.plots import draw_bars, draw_layers
from encodecmae_sb.evaluation.probe import DRAWS, ProbeGrid, check_whole, probe_vectors
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device, write_metrics
from encodecmae_sb.utils.files import write_text
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.progress import open_bar

from .clip_features import (
    StoredSummaries,
    check_encoder,
    clips_key,
    in_fold,
    store_summaries,
)

LOGMEL, RANDOM = "logmel", "random"


def check_settings(hparams):
    """Refuses values that have no meaning, before any work."""
    if not isinstance(hparams["layers"], bool):
        raise UserError(f"layers={hparams['layers']}: allowed are True, False.")
    check_whole("repeats", hparams["repeats"], 1)
    check_whole("encode_batch_size", hparams["encode_batch_size"], 1)
    if hparams["pooling"] not in ("mean", "mean_std"):
        raise UserError(
            f"pooling={hparams['pooling']}: allowed are mean, mean_std. Pooling that "
            "learns, such as attentive, is for recipes/classify.py."
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
    named_encoders(hparams)


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


@dataclass
class Vectors:
    """The vectors of all clips from one encoder.

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


class ClipVectors:
    """Computes the vectors of clips; they are kept in files and found again.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    data : ClipData
    model : str or None
        The encoder that `random` is like.
    """

    def __init__(self, hparams, run_opts, data, model):
        self.hparams = hparams
        self.device = choose_device(run_opts["device"])
        self.quiet = run_opts["noprogressbar"]
        self.data = data
        self.save = Path(hparams["save_folder"])
        self.model = model
        self.clips_key = clips_key(data.clips)
        self.known = {}

    def vectors(self, name, fold, number=0):
        """The vectors of all clips from one encoder, computed once.

        Arguments
        ---------
        name : str
        fold : Fold
        number : int
            The repeat; in each, `random` has other weights.

        Returns
        -------
        Vectors
        """
        source = in_fold(self.model if name == RANDOM else name, fold)
        wanted = (source, number if name == RANDOM else None)
        if wanted not in self.known:
            self.known[wanted] = self._encode(name, source, number)
        return self.known[wanted]

    def _pooling(self, name):
        """How frames become a vector; for log-mel frames always in the same way."""
        return "mean_std" if name == LOGMEL else self.hparams["pooling"]

    def _encode(self, name, source, number):
        hparams, pooling = self.hparams, self._pooling(name)
        if name == LOGMEL:
            lobe, made, layer = LogMelFrames(), LOGMEL, None
        else:
            torch.manual_seed(hparams["seed"] + number)  # of the random weights
            lobe = EnCodecMAE(
                source,
                output_all_hiddens=hparams["layers"],
                input_sample_rate=SAMPLE_RATE,
                layer=hparams["layer"],
                chunk_seconds=hparams.get("chunk_seconds", 4.0),
                pretrained=name != RANDOM,
            )
            made = [describe(lobe.encoder), lobe.chunk]
            layer = "all" if hparams["layers"] else hparams["layer"]
        # Only the pooling of the head is used, which has nothing to learn.
        head = ClipHead(lobe.dim, len(self.data.labels), pooling=pooling)
        # With the weights in its name, a file belongs to one initialisation only.
        weights = weights_key(lobe)
        key = digest([made, weights, FRAMES_VERSION, self.clips_key, pooling, layer])
        stored = store_summaries(
            ClipClassifier(lobe, head).to(self.device),
            self.data.clips,
            self.save / "features" / f"{key}.bin",
            hparams["encode_batch_size"],
            hparams["num_workers"],
            self.device,
            self.quiet,
        )
        return Vectors(stored, key)


class Comparison(ClipVectors):
    """Computes vectors and probes them; both are kept in files and found again.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    data : ClipData
    """

    def __init__(self, hparams, run_opts, data):
        self.names, model = named_encoders(hparams)
        super().__init__(hparams, run_opts, data, model)
        self.grid = ProbeGrid(
            **{field.name: hparams[field.name] for field in fields(ProbeGrid)}
        )
        # The metric that encoders are compared by.
        self.score_name = "mAP" if data.multi_label else "accuracy"

    def check_encoders(self):
        """Makes sure that there is every encoder, for every fold."""
        for name in self.names:
            if name not in (LOGMEL, RANDOM):
                check_encoder(name, self.data.folds, "encoders")

    def _layer(self, name, number):
        """The layer of the vectors `number`; log-mel frames have none."""
        if name == LOGMEL:
            return "-"
        return number if self.hparams["layers"] else self.hparams["layer"]

    def probe(self, name, fold, layer):
        """Rows of `probe_vectors` for an encoder, a fold and a layer."""
        repeats, seed = self.hparams["repeats"], self.hparams["seed"]
        if name != RANDOM:
            return self._probe(self.vectors(name, fold), fold, layer, repeats, seed)
        # Each repeat has weights of its own; the probe is chosen for the first.
        rows, choice = [], None
        for number in range(repeats):
            vectors = self.vectors(name, fold, number)
            (row,) = self._probe(vectors, fold, layer, 1, seed + number, choice)
            choice = row["hidden_layers"], row["lr"]
            rows.append({**row, "repeat": number})
        return rows

    def _probe(self, vectors, fold, layer, repeats, seed, choice=None):
        """Rows of `probe_vectors`, computed once and kept in a file."""
        parts = (fold.train, fold.valid, fold.test)
        ids = [[clip.id for clip in part] for part in parts]
        asked = [vectors.key, layer, ids, asdict(self.grid)]
        asked += [repeats, seed, self.data.multi_label, choice, DRAWS]
        path = self.save / "probes" / f"{digest(asked)}.json"
        if not path.exists():
            tensors = [
                (
                    vectors.of(part, layer).to(self.device),
                    self.data.targets(part).to(self.device),
                )
                for part in parts
            ]
            rows = probe_vectors(
                *tensors,
                len(self.data.labels),
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
        folds = self.data.folds
        work = [(name, fold) for name in self.names for fold in folds]
        rows = []
        with open_bar(len(work), "Probing", "folds", quiet=self.quiet) as bar:
            for name, fold in work:
                bar.set_postfix_str(f"{name}, {fold.name}", refresh=False)
                vectors = self.vectors(name, fold)
                own = []
                for layer in range(vectors.num_layers):
                    about = {
                        "encoder": name,
                        "width": vectors.width,
                        "layer": self._layer(name, layer),
                        "pooling": self._pooling(name),
                        "fold": fold.name,
                    }
                    own.append([about | row for row in self.probe(name, fold, layer)])
                    rows += own[-1]
                shown = main_rows(own, self.hparams["layer"])
                score = spread([[row[self.score_name] for row in shown]])["mean"]
                which = f", fold {fold.name}" if len(folds) > 1 else ""
                bar.update(1)
                bar.write(f"{name}{which}: {self.score_name} {score:.3f}")
        return rows


def write_results(comparison, rows, output):
    """Writes metrics, the table of all probes, and pictures.

    Arguments
    ---------
    comparison : Comparison
    rows : list of dict
        From `Comparison.compare`.
    output : Path
        The folder to write to.

    Returns
    -------
    metrics : dict
        What `metrics.json` says.
    encoders : dict of str to list of dict
        Of each encoder the rows of the layer that the yaml names.
    curves : dict of str to list of (list, list)
        Of each encoder and layer scores and draws, as for `spread`.
    """
    hparams, data, key = comparison.hparams, comparison.data, comparison.score_name
    folds = [fold.name for fold in data.folds]
    write_rows(output / "probes.csv", [with_interval(row, folds) for row in rows])
    layers_of = by_layer(rows)
    encoders = {
        name: main_rows(layers, hparams["layer"]) for name, layers in layers_of.items()
    }
    columns = list(rows[0])
    others = columns[columns.index(key) + 1 : columns.index("draws")]
    metrics = {}
    for name, layers in layers_of.items():
        metrics |= layer_metrics(f"{name}/", encoders[name], folds, key, others)
        if len(layers) > 1:
            for i, own in enumerate(layers):
                metrics |= layer_metrics(f"{name}/layer_{i}/", own, folds, key)
        for about in ("layer", "pooling"):
            metrics[f"{name}/{about}"] = encoders[name][0][about]
    chance = None
    if not data.multi_label:
        chance = metrics["most_frequent_class"] = data.most_frequent_class()
    metrics |= {
        "clips": len(data.clips),
        "classes": len(data.labels),
        "folds": len(folds),
        "repeats": hparams["repeats"],
        "interval_covers": covered(folds, hparams["repeats"], RANDOM in encoders),
        "unusable_files": data.unusable,
    }
    tables = [tables_of(own, folds, key) for own in encoders.values()]
    metrics |= behind_best(list(encoders), tables, key)
    write_metrics(output, metrics)

    scores, draws = zip(*tables, strict=True)
    draw_bars(list(encoders), scores, draws, output / "probe.png", key, chance)
    curves = {
        name: [tables_of(own, folds, key) for own in layers]
        for name, layers in layers_of.items()
    }
    picture = output / "layers.png"
    picture.unlink(missing_ok=True)
    if hparams["layers"]:
        draw_layers(curves, picture, key)
    return metrics, encoders, curves
