r"""Probes frozen representations: what is an encoder worth?

    python recipes/probe.py hparams/probe_mini.yaml
    python recipes/probe.py hparams/probe_fsdd.yaml --data_folder /data/fsdd \
        --encoders "[logmel, random, results/base/1234/encoder]"
    python recipes/probe.py hparams/probe_mini.yaml --layers True
    python recipes/probe.py hparams/verify_fsdd.yaml --data_folder /data/fsdd
    python recipes/probe.py hparams/words_mini.yaml

Every clip becomes one vector, mean and deviation of its frames over time (`pooling`).
The vectors are judged by `probes`: linear (logistic regression), mlp (chosen on the
validation set among a grid, as in HEAREval) and knn (the nearest training clips).
`encoders` are any number of folders that a recipe exported, names of published weights,
`random` (the architecture of the first encoder named, with new weights, others for each
of the `repeats`) and `logmel` (mean and deviation over time of log-mel frames).
"{fold}" in a folder's path stands for the name of the test fold. `normalise` adds a row
for each encoder from clips at equal level: it shows what only the level does.

Each score has a 95 % interval: what other test clips (or groups of clips, or folds, see
`resample`), other seeds of the probes and, for `random`, other weights would change. It
does not cover other training clips and other pretrainings of an encoder.

Three pictures help to choose a model: with `--layers True` the score layer by layer;
with `--encoders "[..., results/mini/1234/steps]"` over the steps of a pretraining with
`--keep_encoders True`; with `--labels_per_class "[1, 5, 20, all]"` over the number of
labelled clips.

Makes, in the output folder: `metrics.json`; `probes.csv`, every probe that was
tested; `probe.png`; with the options above `layers.png`, `steps.png` and `labels.png`;
`clips.csv`; `unusable_files.csv`; vectors and finished folds in `save/`. A run that was
interrupted goes on when the same command is given again. If encoders are added, the
others are not computed again.

The yaml's `task` may also be `verification` (do two clips have one speaker?) and
`words` (what words are recognised from the frames?): docs/verification.md,
docs/words.md.

`python -m encodecmae_sb probe` takes the same arguments where the package is installed
without its repository. A yaml that is not there, such as hparams/probe_mini.yaml, is
then the one in the package.
"""

from pathlib import Path

from encodecmae_sb.bundled import hparams_folder
from encodecmae_sb.data.clip_data import find_data
from encodecmae_sb.evaluation.comparison import spread
from encodecmae_sb.pipelines.clip_vectors import check_encoders
from encodecmae_sb.pipelines.compare import Comparison, check_settings
from encodecmae_sb.pipelines.compare_results import write_results
from encodecmae_sb.pipelines.compare_trials import compare_trials
from encodecmae_sb.pipelines.compare_words import compare_words
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import start_experiment

# Besides classes.
TASKS = {"verification": compare_trials, "words": compare_words}


def main(argv):
    """Runs the experiment that the command line describes; returns the exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    hparams, run_opts, _ = start_experiment([find_yaml(argv[0]), *argv[1:]])
    task = hparams.get("task", "classes")
    if task not in ("classes", *TASKS):
        raise UserError(f"task={task}: allowed are classes, {', '.join(TASKS)}.")
    if task in TASKS:
        TASKS[task](hparams, run_opts)
        return 0
    output = Path(hparams["output_folder"])
    check_settings(hparams)
    data = find_data(hparams, output)
    comparison = Comparison(hparams, run_opts, data)
    check_encoders(comparison.encoders, data.folds)
    print(
        f"{data.describe()}\n"
        f"{len(comparison.names)} rows, probes {', '.join(comparison.probes)}, "
        f"{hparams['repeats']} repeats, on {comparison.device}.",
        flush=True,
    )
    rows = comparison.compare()
    few = comparison.compare_labels() if hparams["labels_per_class"] else {}
    results = write_results(comparison, rows, few, output)
    report(results, comparison.score_name, few, output)
    return 0


def find_yaml(name):
    """The path of a yaml: the user's own, else `hparams/NAME` in the package.

    Example
    -------
    >>> find_yaml("my/own.yaml")
    'my/own.yaml'
    """
    shipped = hparams_folder() / Path(name).name
    ours = name in (shipped.name, f"hparams/{shipped.name}") and shipped.is_file()
    if Path(name).exists() or not ours:
        return name
    print(f"{name} is not here: {shipped} of the package is used.", flush=True)
    return str(shipped)


def report(results, key, few_labels, output):
    """Prints the tables, what was made, and what to do next."""
    metrics, names = results.metrics, [name for _, name in results.rows]
    wide = max(map(len, [*names, "encoder"]))

    def cell(name, width=12):
        return f"{metrics[name]:{width}.3f}" if name in metrics else f"{'-':>{width}}"

    def interval(name):
        if f"{name}_low" not in metrics:
            return f"{'-':>18}"
        return f"{metrics[f'{name}_low']:9.3f} to {metrics[f'{name}_high']:.3f}"

    for probe in results.curves:
        print(
            f"\n{probe}\n{'encoder':{wide}}{'width':>7}{'layer':>14}{'pooling':>10}"
            f"{key:>10}{'95 % interval':>18}{'dev. folds':>12}{'dev. seeds':>12}"
            f"{'behind best':>13}{'95 % interval':>18}"
        )
        for (kind, name), row in results.rows.items():
            if kind == probe:
                at = f"{name}/{probe}/{key}"
                print(
                    f"{name:{wide}}{row['width']:7d}{row['layer']:>14}"
                    f"{row['pooling']:>10}{cell(at, 10)}{interval(at)}"
                    f"{cell(f'{at}_std_folds')}{cell(f'{at}_std_repeats')}"
                    f"{cell(f'{at}_behind_best', 13)}{interval(f'{at}_behind_best')}"
                )
    print(f"(interval, {metrics['interval_covers']})")
    if "most_frequent_class" in metrics:
        print(f"(always the most frequent class: {metrics['most_frequent_class']:.3f})")
    if "layers.png" in results.pictures:
        for probe, curves in results.curves.items():
            print(f"\n{probe}: {key} of each layer, counted from 0")
            for name, tables in curves.items():
                means = [f"{spread(scores)['mean']:8.3f}" for scores, _ in tables]
                print(f"{name:{wide}}{''.join(means)}")
    if few_labels:
        print(f"\nlinear: {key} with few labelled clips per class")
        for i, (name, numbers) in enumerate(few_labels.items()):
            if i == 0:
                heads = "".join(f"{number:>8}" for number in numbers)
                print(f"{'encoder':{wide}}{heads}")
            means = [f"{spread(scores)['mean']:8.3f}" for scores, _ in numbers.values()]
            print(f"{name:{wide}}{''.join(means)}")
    print(f"\nMade in {output}:\n  metrics.json         the metrics above, and others")
    for name, what in results.pictures.items():
        print(f"  {name:20} {what}")
    print(
        "  probes.csv           every probe that was tested\n"
        "  clips.csv            the clips as a manifest, to change and give as --csv\n"
        "Next, the same command with\n"
        "  --layers True        layer by layer\n"
        '  --labels_per_class "[1, 5, 20, all]"   with few labels\n'
        '  --encoders "[A, B]"  other encoders; what was computed is kept\n'
        "  --csv FILE           your own recordings: ID,wav,duration,label,fold\n"
        "or train and export a classifier: python recipes/classify.py"
    )
