r"""Tests models on corrupted recordings: noise, modifications, compression.

    python recipes/robustness.py MODEL
    python recipes/robustness.py MODEL [MODEL ...] --data_folder /data/ESC-50
    python recipes/robustness.py MODEL --csv clips.csv --fold 3

MODEL is a folder of a classifier or a recogniser that a recipe exported, or of an
encoder, which a linear probe is fitted for, on clean clips; or user/name on the hub.
Each recording is tested clean and under every corruption in three strengths. Without
--data_folder and --csv the test takes the small corpus in this package.

Clips that a classifier was trained on are not tested. --fold names the part that was
held out; by default it is the one that the README of the classifier names. `--fold all`
tests all clips, and says that no model was trained on any. For a recogniser --fold is a
folder of a corpus in LibriSpeech's layout.

Makes, in the output folder: `table.md`; `metrics.json`; `robustness.csv`;
`robustness.png`; `examples/`, to listen to; outputs of the models in `save/`. A run
that was interrupted goes on when the same command is given again.
"""

import argparse
from pathlib import Path

from encodecmae_sb.commands import LAYERS, layer
from encodecmae_sb.data.clip_data import AUTO
from encodecmae_sb.data.clips import all_labels
from encodecmae_sb.evaluation.corruptions import Sounds, check_names
from encodecmae_sb.inference import (
    EnCodecMAEASR,
    EnCodecMAEClassifier,
    EnCodecMAEEncoder,
    load,
)
from encodecmae_sb.pipelines import robustness_data as data
from encodecmae_sb.pipelines.robustness import (
    Robustness,
    TestedClassifier,
    TestedProbe,
    TestedRecogniser,
    write_results,
)
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import announce_demonstration, choose_device
from encodecmae_sb.utils.files import check_writable


def parse(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="exported folder, or user/name")
    add("--data_folder", help="where the corpus was unpacked")
    add("--corpus", help="as of recipes/classify.py; default: esc50")
    add("--csv", help="instead: ID,wav,label,fold; for a recogniser ID,wav,wrd")
    add("--fold", help="the part to test on; default: what the README says")
    add("--corruptions", nargs="+", metavar="NAME", help="default: all")
    add("--noise_folder", help="environmental noise; default: sounds in this package")
    add("--max_clips", type=int, help="test on so many, spread over the list")
    add("--layer", type=layer, default="last", help=f"of an encoder: {LAYERS}")
    add("--seed", type=int, default=0, help="of what corruptions draw")
    add("--batch_size", type=int, default=8)
    add("--max_unusable", type=float, help="share of the files; default: as the corpus")
    add("--output_folder", type=Path, help="default: robustness beside the first model")
    add("--device", help="cpu, cuda:0, ...; default: a GPU if any")
    add("--noprogressbar", action="store_true", dest="quiet")
    args = parser.parse_args(argv)
    for name, least in (("max_clips", 2), ("batch_size", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: give a whole number from {least}.")
    if len(set(args.models)) < len(args.models):
        raise UserError(f"{' '.join(args.models)}: give each model once.")
    if args.noise_folder and not Path(args.noise_folder).expanduser().is_dir():
        raise UserError(f"--noise_folder {args.noise_folder}: there is no such folder.")
    if args.layer == "all":
        raise UserError("--layer all: give one layer.")
    return args


def main(argv):
    """Tests what the command line names; returns the exit status."""
    args = parse(argv)
    corruptions = check_names(args.corruptions)
    output = args.output_folder or _place(args.models[0])
    check_writable(output)
    device = choose_device(args.device)
    loaded = {name: load(name, None, {"device": str(device)}) for name in args.models}
    speech = {isinstance(model, EnCodecMAEASR) for model in loaded.values()}
    if len(speech) > 1:
        raise UserError(
            f"{' '.join(args.models)}: recognisers are tested on other recordings than "
            "classifiers and encoders. Give them one by one."
        )
    if not (args.data_folder or args.csv):
        announce_demonstration("tests on")
    prepare = _recognisers if speech == {True} else _classifiers
    models, test = prepare(args, loaded, output, device)
    sounds = Sounds(args.noise_folder, [clip.wav for clip in test.clips], device)
    if args.noise_folder and any(each.name == "environment" for each in corruptions):
        sounds.key("environment")  # reads the folder: can it be used?
    settings = output / "save", args.seed, args.batch_size, args.quiet
    robustness = Robustness(models, test, corruptions, sounds, *settings)
    for name, why in robustness.missing.items():
        print(f"{name}: not available: {why}")
    print(f"{test.what}\n{len(robustness.conditions())} conditions.", flush=True)
    table = write_results(robustness, robustness.run(), output)
    report(table, test, output)
    return 0


def _place(model):
    """Beside a model, or in results if it is not here."""
    here = Path(model).expanduser()
    return (here.resolve().parent if here.is_dir() else Path("results")) / "robustness"


def _recognisers(args, loaded, output, device):
    """Recognisers, and the utterances that they are tested on."""
    if args.corpus:
        raise UserError(
            f"--corpus {args.corpus}: that is for clips with labels. Utterances come "
            "from --data_folder, in LibriSpeech's layout, or --csv."
        )
    cards = {name: data.read_card(name, "recogniser") for name in loaded}
    test = data.speech_test(vars(args), cards, output)
    return [TestedRecogniser(*item) for item in loaded.items()], test


def _classifiers(args, loaded, output, device):
    """Classifiers and probes, and the clips that they are tested on."""
    if args.data_folder and args.csv:
        raise UserError("--data_folder and --csv: give one of them.")
    several = any(m.hparams.multi_label for m in _classifiers_of(loaded))
    options = vars(args) | {"multi_label": several or AUTO}
    clips, multi_label, corpus = data.find_labelled(options, output)
    cards, labels = {}, all_labels(clips)
    for name, model in loaded.items():
        if isinstance(model, EnCodecMAEClassifier):
            cards[name] = data.read_card(name, "classifier")
            data.check_labels(clips, model.labels, name)
            if model.hparams.multi_label != bool(multi_label):
                wanted = "several labels" if model.hparams.multi_label else "one label"
                raise UserError(
                    f"{name} gives {wanted} to each clip. The labels of these clips "
                    "are of the other kind."
                )
            labels = model.labels
            if any(each.labels != labels for each in _classifiers_of(loaded)):
                raise UserError(
                    "The classifiers have different classes: give them one by one."
                )
    parts, why = data.choose_parts(clips, args.fold, cards, corpus)
    settings = multi_label, corpus, args.max_clips
    test = data.labelled_test(clips, parts, why, labels, *settings)
    models = []
    for name, model in loaded.items():
        if isinstance(model, EnCodecMAEEncoder):
            if multi_label:
                raise UserError(
                    f"{name}: a linear probe is for clips with one label. Train a "
                    "classifier: python recipes/classify.py"
                )
            models.append(
                TestedProbe(
                    name,
                    model.mods.encoder,
                    args.layer,
                    clips,
                    data.targets_of(clips, labels, False),
                    parts,
                    output / "save",
                    args.batch_size,
                    device,
                    args.quiet,
                )
            )
        else:
            models.append(TestedClassifier(name, model))
    return models, test


def _classifiers_of(loaded):
    return [m for m in loaded.values() if isinstance(m, EnCodecMAEClassifier)]


def report(table, test, output):
    """Prints the table, what was made, and what to do next."""
    print(
        f"\n{table}\n\n{test.what}\n"
        "(95 %: other test clips; not other training clips, seeds, pretrainings. Loss: "
        "relative to the clean clips.)\n"
        f"\nMade in {output}:\n"
        "  table.md             the table above\n"
        "  metrics.json         its figures\n"
        "  robustness.csv       the same, a row for each condition\n"
        "  robustness.png       the same as a picture\n"
        "  examples/            a clip under each corruption, to listen to\n"
        "Next, the same command with\n"
        "  MODEL MODEL          models side by side; what was computed is kept\n"
        "  --noise_folder DIR   noise of the place where the model will be used"
    )
