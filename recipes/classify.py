r"""Classifies recordings with a pretrained encoder: train, test, export.

    python recipes/classify.py hparams/classify_mini.yaml
    python recipes/classify.py hparams/classify_esc50.yaml --data_folder /data/ESC-50 \
        --encoder_folder results/base/1234/encoder
    python recipes/classify.py hparams/classify_mini.yaml --csv clips.csv

Makes, in the output folder: `classifier/`, which `foreign_class` loads;
`metrics.json`; `per_class.csv`; `confusion.png`; `predictions.csv`; `clips.csv`;
`unusable_files.csv`; checkpoints and features in `save/`. A run that was
interrupted goes on when the same command is given again, at the fold where it was.
Another encoder or other settings in the same output folder start anew, and the
results of the last command stand there.
"""

import logging
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from encodecmae_sb.brains.classify import (
    ClassifyBrain,
    check_encoder,
    clips_key,
    describe_data,
    find_data,
    loss_weights,
    store_summaries,
)
from encodecmae_sb.data.clips import (
    LabelledClips,
    all_labels,
    make_runs,
    targets_of,
    write_manifest,
)
from encodecmae_sb.evaluation.metrics import (
    class_rows,
    clip_scores,
    confusion_matrix,
    draw_confusion,
    write_rows,
)
from encodecmae_sb.inference.classifier import decide, export_classifier
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.files import whole_file, write_csv
from encodecmae_sb.utils.recoverables import History

SAMPLE_RATE = 24000  # of the encoders
LOGMEL_POOLING = "mean_std"  # of the baseline, whatever the yaml says

# What may differ between two commands that go on with the same training.
_NO_MATTER = {
    "output_folder",
    "save_folder",
    "data_folder",
    "csv",
    "train_csv",
    "valid_csv",
    "test_csv",
    "encoder_folder",  # its weights matter
    "num_workers",
    "encode_batch_size",
    "max_unusable",
    "ckpt_interval_minutes",
}
_MATTER = {"precision", "max_grad_norm", "grad_accumulation_factor", "debug"}


def check_settings(hparams):
    """Refuses values that have no meaning, before any work."""
    allowed = {
        "features": ("encodecmae", "logmel"),
        "head": ("linear", "mlp"),
        "multi_label": (False, True),
        "freeze": (False, True),
        "pretrained": (False, True),
    }
    for key, values in allowed.items():
        if hparams[key] not in values:
            raise UserError(
                f"{key}={hparams[key]}: allowed are {', '.join(map(str, values))}."
            )
    if torch.distributed.is_initialized():
        raise UserError("Classification runs in one process: start without torchrun.")


def encoder_of(run, hparams):
    """The encoder folder for a run, or the name of published weights."""
    return str(hparams["encoder_folder"]).replace("{fold}", run.name)


def check_encoders(runs, hparams):
    """Makes sure that there is an encoder for every run."""
    if hparams["features"] == "logmel":
        return
    for source in {encoder_of(run, hparams): None for run in runs}:
        check_encoder(source)


def build_classifier(hparams, run, num_classes):
    """A new classifier; the same for the same seed, whatever came before."""
    torch.manual_seed(hparams["seed"])
    pooling, num_layers = hparams["pooling"], 1
    if hparams["features"] == "logmel":
        lobe, pooling = LogMelFrames(), LOGMEL_POOLING
    else:
        weighted = hparams["layer"] == "weighted"
        lobe = EnCodecMAE(
            encoder_of(run, hparams),
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


class Trainer:
    """Trains and tests runs, and finds again what it trained before.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    runs : list of Run
    labels : list of str
    """

    def __init__(self, hparams, run_opts, runs, labels):
        self.hparams = hparams
        self.run_opts = run_opts
        self.runs = runs
        self.labels = labels
        self.save = Path(hparams["save_folder"])

    def brain(self, run):
        """A Brain for a run, and the run's own folder."""
        hparams = self.hparams
        classifier = build_classifier(hparams, run, len(self.labels))
        folder = self.save / f"{run.name}-{self.key(run, classifier)}"
        own = {"epoch_counter": EpochCounter(hparams["number_of_epochs"])}
        own["history"] = History()
        recoverables = {"head": classifier.head, **own}
        if not classifier.lobe.freeze:
            recoverables["lobe"] = classifier.lobe
        weights = loss_weights(
            self.targets(run.train), len(self.labels), hparams["class_weights"]
        )
        brain = ClassifyBrain(
            classifier=classifier,
            multi_label=hparams["multi_label"],
            loss_weights=weights,
            opt_class=hparams["opt_class"],
            hparams={**hparams, **own},
            run_opts=self.run_opts,
            checkpointer=AtomicCheckpointer(folder, recoverables),
        )
        return brain, folder

    def key(self, run, classifier):
        """A name for all that the outcome of a run depends on."""
        settings = {
            key: value
            for key, value in self.hparams.items()
            if key not in _NO_MATTER
            and isinstance(value, (str, int, float, bool, type(None)))
        }
        given = {
            key: self.run_opts[key] for key in _MATTER & self.run_opts.overridden_args
        }
        optimizer = str(self.hparams["opt_class"].keywords)
        parts = [clips_key(part) for part in (run.train, run.valid, run.test)]
        parts.append(FRAMES_VERSION)
        return digest([settings, given, optimizer, parts, weights_key(classifier)])

    def targets(self, clips):
        """See `targets_of`."""
        return targets_of(clips, self.labels, self.hparams["multi_label"])

    def data(self, clips, stored=None):
        """Clips for a Brain."""
        return LabelledClips(clips, self.targets(clips), SAMPLE_RATE, stored)

    def stored(self, run, brain):
        """Features of a frozen encoder, computed once for all runs that share it."""
        hparams, head = self.hparams, brain.classifier.head
        sharing = [
            other
            for other in self.runs
            if encoder_of(other, hparams) == encoder_of(run, hparams)
        ]
        clips = {
            clip.id: clip for other in sharing for clip in other.train + other.valid
        }
        clips = list(clips.values())
        kind = [head.pooling, hparams["layer"], hparams["features"], FRAMES_VERSION]
        key = digest([clips_key(clips), kind, weights_key(brain.classifier.lobe)])
        return store_summaries(
            brain.classifier,
            clips,
            self.save / "features" / f"{key}.bin",
            hparams["encode_batch_size"],
            hparams["num_workers"],
            brain.device,
            brain.noprogressbar,
        )

    def train(self, run):
        """Trains, goes back to the best checkpoint, tests.

        Returns
        -------
        dict
            `probabilities`, float32, [clips of the test, classes], and of the
            checkpoint `score`, `loss` and `epoch`.
        """
        brain, folder = self.brain(run)
        results = folder / "results.npz"
        if not results.exists():
            stored = None
            if brain.classifier.lobe.freeze:
                stored = self.stored(run, brain)
            brain.fit_clips(self.data(run.train, stored), self.data(run.valid, stored))
            best = brain.load_best()
            probabilities = brain.predict(self.data(run.test))
            if brain.test_only:  # the training may not be at its end
                return {**best, "probabilities": probabilities}
            with whole_file(results) as scratch, open(scratch, "wb") as file:
                np.savez(file, probabilities=probabilities.numpy(), **best)
        with np.load(results) as saved:
            result = {key: saved[key].item() for key in ("score", "loss", "epoch")}
            result["probabilities"] = torch.from_numpy(saved["probabilities"])
        return result

    def export(self, run, folder, origin, figures):
        """Writes the classifier of a run."""
        brain, _ = self.brain(run)
        brain.load_best()
        export_classifier(
            brain.classifier,
            self.labels,
            folder,
            self.hparams["multi_label"],
            origin,
            figures,
        )


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, named = start_experiment(argv, can_test=True)
    output = Path(hparams["output_folder"])
    check_settings(hparams)
    # A line an epoch is too much where an epoch takes a tenth of a second.
    logging.getLogger("speechbrain.utils.epoch_loop").setLevel(logging.WARNING)
    clips, unusable = find_data(hparams, named, output)
    runs, labels = make_runs(clips, hparams["valid_share"]), all_labels(clips)
    check_encoders(runs, hparams)
    write_manifest(output / "clips.csv", clips)

    trainer = Trainer(hparams, run_opts, runs, labels)
    print(
        f"{describe_data(clips, runs, labels, unusable)}\n{describe(hparams)}",
        flush=True,
    )
    results, figures = [], []
    for number, run in enumerate(runs, 1):
        results.append(trainer.train(run))
        figures.append(
            clip_scores(results[-1]["probabilities"], trainer.targets(run.test))
        )
        shown = "  ".join(f"{key} {value:.3f}" for key, value in figures[-1].items())
        print(
            f"{'Test' if len(runs) == 1 else f'Fold {run.name}'} ({number}/{len(runs)}"
            f", {len(run.test)} clips): {shown}",
            flush=True,
        )
    finish(trainer, results, figures, unusable, output)


def describe(hparams):
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


def summarise(runs, figures):
    """Means and deviations over the folds, and every fold's own figures."""
    metrics = {}
    for key in figures[0]:
        values = [row[key] for row in figures]
        metrics[key] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"{key}_std"] = statistics.stdev(values)
    if len(runs) > 1:
        for run, row in zip(runs, figures, strict=True):
            metrics.update(
                {f"fold_{run.name}/{key}": value for key, value in row.items()}
            )
    return metrics


def finish(trainer, results, figures, unusable, output):
    """Writes all that was found out, and says what to do next."""
    runs, labels, hparams = trainer.runs, trainer.labels, trainer.hparams
    multi_label = hparams["multi_label"]
    tested = [clip for run in runs for clip in run.test]
    probabilities = torch.cat([result["probabilities"] for result in results])
    targets = trainer.targets(tested)

    metrics = summarise(runs, figures)
    metrics |= {
        "clips": sum(
            len(part) for part in (runs[0].train, runs[0].valid, runs[0].test)
        ),
        "classes": len(labels),
        "folds": len(runs),
        "unusable_files": unusable,
    }
    metrics |= {key: hparams[key] for key in ("features", "head")}
    if hparams["features"] == "logmel":  # which have neither weights nor layers
        metrics["pooling"] = LOGMEL_POOLING
    else:
        for key in ("pretrained", "freeze", "layer", "pooling"):
            metrics[key] = hparams[key]
    if not multi_label:
        counts = torch.bincount(targets, minlength=len(labels))
        metrics["most_frequent_class"] = counts.max().item() / len(targets)
    write_metrics(output, metrics)
    write_rows(output / "per_class.csv", class_rows(probabilities, targets, labels))
    write_predictions(output / "predictions.csv", tested, probabilities, trainer)
    picture = output / "confusion.png"
    picture.unlink(missing_ok=True)
    main_score = next(iter(figures[0]))
    if not multi_label:
        counts = confusion_matrix(probabilities.argmax(1), targets, len(labels))
        title = f"{len(tested)} test clips, accuracy {metrics[main_score]:.3f}"
        draw_confusion(counts, labels, picture, title)

    best = max(range(len(runs)), key=lambda i: (results[i]["score"], -i))
    run, shown = runs[best], dict(figures[best])
    fold = ""
    if len(runs) > 1:
        fold = f" Of {len(runs)} folds it is the one that validated best; fold "
        fold += f"{run.name} was held out for its test."
        shown |= {
            f"{main_score}, mean of the folds": metrics[main_score],
            f"{main_score}, deviation": metrics[f"{main_score}_std"],
        }
    corpus = hparams["csv"] or hparams["train_csv"] or hparams["corpus"]
    origin = f"Trained on {len(run.train)} clips of {corpus}. {describe(hparams)}{fold}"
    trainer.export(run, output / "classifier", origin, shown)
    report(metrics, runs, figures, output, picture.exists())


def write_predictions(path, clips, probabilities, trainer):
    """One row a clip: what it is, and what was said."""
    multi_label = trainer.hparams["multi_label"]
    _, scores, _, names = decide(probabilities, trainer.labels, multi_label)
    if multi_label:
        names = [";".join(some) for some in names]
        scores = [";".join(map(str, some.tolist())) for some in scores]
    else:
        scores = scores.tolist()
    rows = (
        {
            "ID": clip.id,
            "wav": clip.wav,
            "fold": clip.part,
            "label": ";".join(clip.labels),
            "predicted": name,
            "score": score,
        }
        for clip, name, score in zip(clips, names, scores, strict=True)
    )
    write_csv(path, rows, ["ID", "wav", "fold", "label", "predicted", "score"])


def report(metrics, runs, figures, output, has_picture):
    """Prints the table, what was made, and what to do next."""
    keys = list(figures[0])
    print("\nTest" + "".join(f"{key:>20}" for key in ["clips", *keys]))
    for run, row in zip(runs, figures, strict=True):
        print(
            f"{run.name[:16]:<4}{len(run.test):20d}"
            + "".join(f"{row[key]:20.3f}" for key in keys)
        )
    if len(runs) > 1:
        print(f"{'mean':<24}" + "".join(f"{metrics[key]:20.3f}" for key in keys))
        deviations = "".join(f"{metrics[f'{key}_std']:20.3f}" for key in keys)
        print(f"{'deviation':<24}{deviations}")
    if "most_frequent_class" in metrics:
        print(f"(always the most frequent class: {metrics['most_frequent_class']:.3f})")
    print(
        f"\nMade in {output}:\n"
        "  classifier/          the classifier, for foreign_class; README.md in it "
        "says how\n"
        "  metrics.json         the figures above\n"
        "  per_class.csv        the figures of every class"
        + ("\n  confusion.png        what was taken for what" if has_picture else "")
        + "\n  predictions.csv      every test clip\n"
        "  clips.csv            the clips as a manifest, to change and give as --csv\n"
        "Next, the same command with, one at a time,\n"
        "  --pretrained False   what pretraining is worth\n"
        "  --features logmel    what an encoder is worth\n"
        "  --freeze False       fine-tune the encoder\n"
        "  --csv FILE           your own recordings: ID,wav,duration,label,fold\n"
        "(and --output_folder FOLDER, to keep these results)"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
