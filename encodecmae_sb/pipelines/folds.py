"""Trains a classifier for every fold, and finds finished folds again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from encodecmae_sb.brains.classify import ClassifyBrain
from encodecmae_sb.data.clip_batches import LabelledClips
from encodecmae_sb.data.clips import SEPARATOR, Fold
from encodecmae_sb.evaluation.metrics import (
    class_rows,
    clip_scores,
    over_folds,
    write_rows,
)
from encodecmae_sb.evaluation.plots import draw_confusion
from encodecmae_sb.inference.classifier import decide, export_classifier
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.pretrained.published import encoder_licence
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import write_metrics
from encodecmae_sb.utils.files import whole_file, write_csv
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.identity import MAY_CHANGE
from encodecmae_sb.utils.recoverables import History

from .clip_features import clips_key, in_fold, store_summaries

LOGMEL_POOLING = "mean_std"  # of the baseline, whatever the yaml says
# A training that goes on from a checkpoint may change these. The result of a finished
# fold depends on them.
_MATTER = {
    *("batch_size", "number_of_epochs", "grad_accumulation_factor"),
    *("optimizer_step_limit", "skip_nonfinite_grads", "nonfinite_patience"),
}


def check_settings(hparams):
    """Refuses values that have no meaning, before any work."""
    allowed = {
        "features": ("encodecmae", "logmel"),
        "head": ("linear", "mlp"),
        "freeze": (False, True),
        "pretrained": (False, True),
        "class_weights": (None, "balanced"),
    }
    for key, values in allowed.items():
        if hparams[key] not in values:
            names = ("null" if value is None else str(value) for value in values)
            raise UserError(f"{key}={hparams[key]}: allowed are {', '.join(names)}.")
    if torch.distributed.is_initialized():
        raise UserError("Classification runs in one process: start without torchrun.")


def describe_classifier(hparams):
    """One line on what is trained."""
    if hparams["features"] == "logmel":
        what = "Log-mel frames, mean and deviation over time"
    else:
        what = (
            f"Encoder {hparams['encoder_folder']}"
            f"{'' if hparams['pretrained'] else ' with NEW RANDOM WEIGHTS'}, "
            f"{'frozen' if hparams['freeze'] else 'fine-tuned'}, layer "
            f"{hparams['layer']}, {hparams['pooling']} pooling"
        )
    return f"{what}; {hparams['head']} head."


def build_classifier(hparams, fold, num_classes):
    """A new classifier; the same for the same seed, whatever was drawn before."""
    torch.manual_seed(hparams["seed"])
    pooling, num_layers = hparams["pooling"], 1
    if hparams["features"] == "logmel":
        lobe, pooling = LogMelFrames(), LOGMEL_POOLING
    else:
        weighted = hparams["layer"] == "weighted"
        lobe = EnCodecMAE(
            in_fold(hparams["encoder_folder"], fold),
            freeze=hparams["freeze"],
            output_all_hiddens=weighted,
            input_sample_rate=SAMPLE_RATE,
            layer="last" if weighted else hparams["layer"],
            pretrained=hparams["pretrained"],
        )
        num_layers = lobe.encoder.num_layers if weighted else 1
    head = ClipHead(
        lobe.dim,
        num_classes,
        num_layers,
        pooling,
        hparams["hidden_size"] if hparams["head"] == "mlp" else None,
        hparams["dropout"],
    )
    return ClipClassifier(lobe, head)


def loss_weights(targets, num_classes):
    """Weights that make up for classes of different size.

    Arguments
    ---------
    targets : torch.Tensor
        Of the training set, see `clips.targets_of`.
    num_classes : int

    Returns
    -------
    torch.Tensor
        float32, shape [classes]. Single-label: clips / (classes * clips of the class);
        multi-label: clips without the label / clips with it.

    Example
    -------
    >>> loss_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    if targets.dim() == 2:
        counts = targets.sum(0).clamp(min=1)
        return (len(targets) - counts).clamp(min=1) / counts
    counts = torch.bincount(targets, minlength=num_classes).clamp(min=1)
    return len(targets) / (num_classes * counts.float())


@dataclass
class FoldResult:
    """What training on a fold gave.

    Arguments
    ---------
    fold : Fold
    probabilities : torch.Tensor
        Of the test clips, float32, shape [clips, classes].
    metrics : dict of str to float
        On the test clips, see `metrics.clip_scores`.
    score : float
        Of the best validation.
    """

    fold: Fold
    probabilities: torch.Tensor
    metrics: dict
    score: float


class FoldTrainer:
    """Trains and tests classifiers, one for each fold.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    data : ClipData

    Attributes
    ----------
    best : FoldResult
        Of the fold that validated best so far.
    classifier : ClipClassifier
        That of the same fold, on the CPU.
    """

    def __init__(self, hparams, run_opts, data):
        self.hparams = hparams
        self.run_opts = run_opts
        self.data = data
        self.save = Path(hparams["save_folder"])
        self.settings = self._settings()
        self.lobe_keys = {}  # encoder -> hash of its architecture and weights
        self.licences = {}  # of the encoder of each fold, by name
        self.best = self.classifier = None

    def _settings(self):
        """All yaml keys and run options that the result of a fold depends on."""
        given = {key: self.run_opts[key] for key in self.run_opts.overridden_args}
        optimizer = self.hparams["opt_class"]
        settings = {
            key: value
            for key, value in {**self.hparams, **given}.items()
            if key in _MATTER or key not in {*MAY_CHANGE, "test_only"}
            if isinstance(value, (str, int, float, bool, type(None)))
        }
        return [settings, optimizer.func.__qualname__, str(optimizer.keywords)]

    def _lobe_key(self, fold, lobe):
        """Tells encoders apart; each is hashed once, however many folds share it."""
        source = in_fold(self.hparams["encoder_folder"], fold)
        if source not in self.lobe_keys:
            self.lobe_keys[source] = module_key(lobe)
        return self.lobe_keys[source]

    def _clips(self, clips, stored=None):
        return LabelledClips(clips, self.data.targets(clips), stored)

    def _brain(self, fold):
        """A Brain for a fold, and the fold's own folder."""
        hparams, num_classes = self.hparams, len(self.data.labels)
        classifier = build_classifier(hparams, fold, num_classes)
        parts = [clips_key(part) for part in (fold.train, fold.valid, fold.test)]
        encoder = self._lobe_key(fold, classifier.lobe)
        key = digest([self.settings, parts, encoder, FRAMES_VERSION])
        folder = self.save / f"{fold.name}-{key}"
        own = {"epoch_counter": EpochCounter(hparams["number_of_epochs"])}
        own["history"] = History()
        log_folder = Path(hparams["output_folder"]) / "log" / fold.name
        recoverables = {"head": classifier.head, **own}
        if not classifier.lobe.freeze:
            recoverables["lobe"] = classifier.lobe
        weights = None
        if hparams["class_weights"] == "balanced":
            weights = loss_weights(self.data.targets(fold.train), num_classes)
        brain = ClassifyBrain(
            classifier=classifier,
            multi_label=self.data.multi_label,
            loss_weights=weights,
            opt_class=hparams["opt_class"],
            hparams={**hparams, **own, "log_folder": log_folder},
            run_opts=self.run_opts,
            checkpointer=AtomicCheckpointer(folder, recoverables),
        )
        return brain, folder

    def _stored(self, fold, brain):
        """Features of a frozen encoder, computed once for all folds that share it."""
        hparams, source = self.hparams, self.hparams["encoder_folder"]
        clips = {
            clip.id: clip
            for other in self.data.folds
            if in_fold(source, other) == in_fold(source, fold)
            for clip in other.train + other.valid
        }
        clips = list(clips.values())
        pooling = brain.classifier.head.pooling
        kind = [pooling, hparams["layer"], hparams["features"], FRAMES_VERSION]
        encoder = self._lobe_key(fold, brain.classifier.lobe)
        key = digest([clips_key(clips), kind, encoder])
        return store_summaries(
            brain.classifier,
            clips,
            self.save / "features" / f"{key}.bin",
            hparams["encode_batch_size"],
            hparams["num_workers"],
            brain.device,
            brain.noprogressbar,
        )

    def train(self, fold):
        """Trains, loads the best checkpoint, tests; or reads the results of before.

        Arguments
        ---------
        fold : Fold

        Returns
        -------
        FoldResult
        """
        brain, folder = self._brain(fold)
        if self.hparams["features"] != "logmel":
            source = in_fold(self.hparams["encoder_folder"], fold)
            self.licences[fold.name] = encoder_licence(source)
        path = folder / "results.npz"
        finished = path.exists()
        if finished:
            with np.load(path) as saved:
                score = saved["score"].item()
                probabilities = torch.from_numpy(saved["probabilities"])
        else:
            if brain.test_only:
                brain.load_best()  # before anything is encoded: is there one?
            stored = None
            if brain.classifier.lobe.freeze:
                stored = self._stored(fold, brain)
            parts = (self._clips(part, stored) for part in (fold.train, fold.valid))
            brain.fit_clips(*parts)
            score = brain.load_best()["score"]
            if not _serves(stored, brain.classifier.head, fold):
                stored = None
            probabilities = brain.predict(self._clips(fold.test, stored))
            if not brain.test_only:  # then the training may not be at its end
                with whole_file(path) as scratch, open(scratch, "wb") as file:
                    np.savez(file, probabilities=probabilities.numpy(), score=score)
        metrics = clip_scores(probabilities, self.data.targets(fold.test))
        result = FoldResult(fold, probabilities, metrics, score)
        if self.best is None or score > self.best.score:
            if finished:
                brain.load_best()
            self.best, self.classifier = result, brain.classifier.cpu()
        return result


def _serves(stored, head, fold):
    """Whether the test clips are stored, and as precisely as they are computed.

    Frames are stored in half precision. Tested on them, a classifier would be slightly
    other than the one that is exported.
    """
    if stored is None or head.keeps_frames:
        return False
    return all(clip.id in stored for clip in fold.test)


def write_results(trainer, results, output):
    """Writes metrics, tables, the picture and the classifier of the best fold.

    Arguments
    ---------
    trainer : FoldTrainer
    results : list of FoldResult
        Of all folds.
    output : Path
        The folder to write to.

    Returns
    -------
    dict
        What `metrics.json` says.
    """
    data, hparams = trainer.data, trainer.hparams
    folds, labels = data.folds, data.labels
    probabilities = torch.cat([result.probabilities for result in results])
    targets = data.targets(data.tested)

    names = [fold.name for fold in folds]
    metrics = over_folds(names, [result.metrics for result in results])
    metrics |= {"clips": len(data.clips), "classes": len(labels), "folds": len(folds)}
    metrics |= {"unusable_files": data.unusable}
    metrics |= {key: hparams[key] for key in ("features", "head")}
    if hparams["features"] == "logmel":  # which have neither weights nor layers
        metrics["pooling"] = LOGMEL_POOLING
    else:
        for key in ("pretrained", "freeze", "layer", "pooling"):
            metrics[key] = hparams[key]
    if not data.multi_label:
        metrics["most_frequent_class"] = data.most_frequent_class()
    write_metrics(output, metrics)
    write_rows(output / "per_class.csv", class_rows(probabilities, targets, labels))
    _write_predictions(output / "predictions.csv", data, probabilities)
    picture, main = output / "confusion.png", next(iter(metrics))
    picture.unlink(missing_ok=True)
    if not data.multi_label:
        title = f"{len(targets)} test clips, accuracy {metrics[main]:.3f}"
        draw_confusion(probabilities.argmax(1), targets, labels, picture, title)

    best = trainer.best
    figures, which = dict(best.metrics), ""
    if len(folds) > 1:
        which = (
            f" Of {len(folds)} folds it is the one that validated best; fold "
            f"{best.fold.name} was held out for its test."
        )
        figures[f"{main}, mean of the folds"] = metrics[main]
        figures[f"{main}, deviation"] = metrics[f"{main}_std"]
    corpus = hparams["csv"] or hparams["train_csv"] or hparams["corpus"]
    # `inference.classifier.read_training` reads these sentences.
    origin = f"Trained on {len(best.fold.train)} clips of {corpus}. "
    origin += f"{describe_classifier(hparams)}{which}"
    export_classifier(
        trainer.classifier,
        labels,
        output / "classifier",
        data.multi_label,
        origin,
        figures,
        trainer.licences.get(best.fold.name),
    )
    return metrics


def _write_predictions(path, data, probabilities):
    """One row a clip: what it is, and what the classifier says."""
    _, scores, _, names = decide(probabilities, data.labels, data.multi_label)
    if data.multi_label:
        names = [SEPARATOR.join(some) for some in names]
        scores = [SEPARATOR.join(map(str, some.tolist())) for some in scores]
    else:
        scores = scores.tolist()
    rows = (
        {
            "ID": clip.id,
            "wav": clip.wav,
            "fold": clip.part,
            "label": SEPARATOR.join(clip.labels),
            "predicted": name,
            "score": score,
        }
        for clip, name, score in zip(data.tested, names, scores, strict=True)
    )
    write_csv(path, rows, ["ID", "wav", "fold", "label", "predicted", "score"])
