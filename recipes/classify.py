r"""Classifies recordings with a pretrained encoder: train, test, export.

    python recipes/classify.py hparams/classify_mini.yaml
    python recipes/classify.py hparams/classify.yaml --corpus esc50 \
        --data_folder /data/ESC-50 --encoder_folder results/base/1234/encoder
    python recipes/classify.py hparams/classify_mini.yaml --csv clips.csv

Makes, in the output folder: `classifier/`, which `foreign_class` loads;
`metrics.json`; `per_class.csv`; `confusion.png`; `predictions.csv`; `clips.csv`;
`unusable_files.csv`; checkpoints and features in `save/`. A run that was interrupted
goes on when the same command is given again, at the fold where it was. With another
encoder or other settings, training starts anew. `metrics.json` and the other results
are those of the last command.
"""

import logging
import sys
from pathlib import Path

from encodecmae_sb.data.clip_data import find_data, folder_of_data
from encodecmae_sb.pipelines.clip_features import check_encoder
from encodecmae_sb.pipelines.folds import (
    FoldTrainer,
    check_settings,
    describe_classifier,
    write_results,
)
from encodecmae_sb.utils.experiment import quit_on_user_errors, start_experiment


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv, True, folder_of_data)
    output = Path(hparams["output_folder"])
    check_settings(hparams)
    # A line an epoch is too much where an epoch takes a tenth of a second.
    logging.getLogger("speechbrain.utils.epoch_loop").setLevel(logging.WARNING)
    data = find_data(hparams, output)
    if hparams["features"] != "logmel":
        check_encoder(hparams["encoder_folder"], data.folds)
    print(f"{data.describe()}\n{describe_classifier(hparams)}", flush=True)

    trainer = FoldTrainer(hparams, run_opts, data)
    results, number = [], len(data.folds)
    for fold in data.folds:
        results.append(trainer.train(fold))
        shown = results[-1].metrics.items()
        print(
            f"{'Test' if number == 1 else f'Fold {fold.name}'} ({len(results)}/{number}"
            f", {len(fold.test)} clips): "
            + "  ".join(f"{key} {value:.3f}" for key, value in shown),
            flush=True,
        )
    report(write_results(trainer, results, output), results, output)


def report(metrics, results, output):
    """Prints the table, what was made, and what to do next."""
    keys = list(results[0].metrics)
    print("\nTest" + "".join(f"{key:>20}" for key in ["clips", *keys]))
    for result in results:
        print(
            f"{result.fold.name[:16]:<4}{len(result.fold.test):20d}"
            + "".join(f"{result.metrics[key]:20.3f}" for key in keys)
        )
    if len(results) > 1:
        print(f"{'mean':<24}" + "".join(f"{metrics[key]:20.3f}" for key in keys))
        deviations = "".join(f"{metrics[f'{key}_std']:20.3f}" for key in keys)
        print(f"{'deviation':<24}{deviations}")
    picture = ""
    if "most_frequent_class" in metrics:
        print(f"(always the most frequent class: {metrics['most_frequent_class']:.3f})")
        picture = "\n  confusion.png        which labels were taken for which"
    print(
        f"\nMade in {output}:\n"
        "  classifier/          the classifier, for foreign_class; README.md in it "
        "says how\n"
        "  metrics.json         the metrics above\n"
        f"  per_class.csv        the metrics of every class{picture}\n"
        "  predictions.csv      every test clip\n"
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
