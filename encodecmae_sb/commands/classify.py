"""Labels audio files with a classifier that is already trained.

    python -m encodecmae_sb classify CLASSIFIER_FOLDER AUDIO_FILE [AUDIO_FILE ...]

Prints a line for each file, with tabs between: its path, its label, and the most
probable classes with their probabilities. Where a file may have several labels, they
are joined by semicolons; `-` stands for none. A file that cannot be used is reported
and passed over; the exit status is then 1.

This command trains nothing. `recipes/classify.py` of the repository trains a classifier
and exports the folder.
"""

import argparse
import sys

from encodecmae_sb.inference import load
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device


def main(argv):
    """Labels the files that the command line names; returns the exit status."""
    if argv and argv[0].endswith(".yaml"):
        raise UserError(
            f"{argv[0]}: this command applies a classifier, and takes its folder. To "
            "train one, in the repository: python recipes/classify.py " + argv[0]
        )
    parser = argparse.ArgumentParser(
        description=f"{__doc__.splitlines()[0]} It trains nothing: "
        "recipes/classify.py of the repository trains a classifier."
    )
    add = parser.add_argument
    add("classifier", help="folder that recipes/classify.py exported, or user/name")
    add("audio", nargs="+", help="WAV, FLAC, OGG or MP3 files")
    add("--top", type=int, default=3, help="classes to print; 0: all; default: 3")
    add("--device", help="cpu, cuda:0, ...; default: a GPU if any")
    args = parser.parse_args(argv)
    if args.top < 0:
        raise UserError(f"--top {args.top}: give a number from 0; 0 is all classes.")
    run_opts = {"device": str(choose_device(args.device))}
    classifier = load(args.classifier, "classifier", run_opts)
    failed = 0
    for path in args.audio:
        try:
            print(describe(classifier, path, args.top), flush=True)
        except (UserError, FileNotFoundError) as error:
            print(f"{path}: left out: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def describe(classifier, path, top):
    """The line of one file.

    Arguments
    ---------
    classifier : EnCodecMAEClassifier
    path : str or Path
    top : int
        How many classes to name with their probability; 0: all.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError, UserError
        As `EnCodecMAEClassifier.classify_file`.
    """
    probabilities, _, _, (label,) = classifier.classify_file(path)
    if isinstance(label, list):
        label = "; ".join(label) or "-"
    order = probabilities[0].argsort(descending=True, stable=True).tolist()
    classes = [
        f"{classifier.labels[i]} {probabilities[0, i]:.3f}"
        for i in order[: top or None]
    ]
    return "\t".join([str(path), label, *classes])
