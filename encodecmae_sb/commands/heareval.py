r"""Evaluates encoders on the tasks of HEAR.

    python recipes/heareval.py hparams/heareval.yaml --tasks_dir /data/hear/tasks
    python recipes/heareval.py hparams/heareval.yaml --tasks_dir /data/hear/tasks \
        --tasks "[esc50, dcase2016_task2]" --encoders "[logmel, mel256-ec-base]"

`tasks_dir` is the folder with the tasks as they are published; docs/heareval.md says
where to get them. Frozen embeddings come from the HEAR API (`encodecmae_sb/hear.py`).
On them heads are trained, chosen on the validation split, and tested, in the protocol
of the kit heareval 2021.1.3. `encoders` are any number of folders that a recipe
exported, names of published weights, `random` (the architecture of the first encoder
named, with new weights) and `logmel`.

Makes, in the output folder: `metrics.json`; `heareval.csv`, the tasks and encoders;
`heads.csv`, every head that was trained; `heareval.png`; `unusable_files.csv`;
embeddings and heads in `save/`. A run that was interrupted goes on when the same
command is given again. If encoders or tasks are added, the others are not computed
again.

`python -m encodecmae_sb heareval` takes the same arguments where the package is
installed without its repository.
"""

from pathlib import Path

from encodecmae_sb.evaluation.hear_results import (
    INTERVAL_COVERS,
    mean_over_tasks,
    published_results,
    read_published,
    results_of,
    write_results,
)
from encodecmae_sb.evaluation.plots import short_name
from encodecmae_sb.pipelines.hear_data import find_data
from encodecmae_sb.pipelines.heareval import HearEvaluation
from encodecmae_sb.utils.experiment import start_experiment

from .probe import find_yaml

_WIDE = 23  # of a column


def main(argv):
    """Runs the evaluation that the command line describes; returns the exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    hparams, run_opts, _ = start_experiment([find_yaml(argv[0]), *argv[1:]])
    output = Path(hparams["output_folder"])
    tasks = find_data(hparams, output)
    published = read_published(hparams["published_scores"])
    evaluation = HearEvaluation(hparams, run_opts, tasks)
    files = sum(len(split) for task in tasks for split in task.splits.values())
    print(
        f"{len(tasks)} tasks ({', '.join(task.name for task in tasks)}), {files} files "
        f"at {hparams['sample_rate']} Hz.\n{len(evaluation.names)} encoders, "
        f"{evaluation.heads} heads to train for each, on {evaluation.device}.",
        flush=True,
    )
    rows = evaluation.evaluate()
    main_scores = {task.name: task.scores[0] for task in tasks}
    results = results_of(rows, main_scores)
    others = published_results(published, main_scores)
    write_results(rows, results, others, output)
    report(results, others, main_scores, output)
    return 0


def report(results, published, main_scores, output):
    """Prints the table, what was made, and what to do next."""
    encoders = list(dict.fromkeys(each.encoder for each in (*results, *published)))
    found = {(each.task, each.encoder): each.spread for each in (*results, *published)}
    wide = max(map(len, [*main_scores, "mean of the tasks"])) + 2
    wide_score = max(map(len, [*main_scores.values(), "score"]))
    names = "".join(f"{short_name(name, _WIDE - 2):>{_WIDE}}" for name in encoders)
    print(f"\n{'task':{wide}}{'score':{wide_score}}{names}")
    for task, score in main_scores.items():
        cells = "".join(_cell(found.get((task, name))) for name in encoders)
        print(f"{task:{wide}}{score:{wide_score}}{cells}")
    means = [
        mean_over_tasks([each for each in results if each.encoder == name])
        for name in encoders
    ]
    cells = "".join(map(_cell, means))
    print(f"{'mean of the tasks':{wide}}{'':{wide_score}}{cells}")
    print(
        f"(intervals, {INTERVAL_COVERS})\n\n"
        f"Made in {output}:\n"
        "  metrics.json   these and all other scores, of every fold, too\n"
        "  heareval.csv   the same table, a row for each task and encoder\n"
        "  heareval.png   the same as a picture\n"
        "  heads.csv      every head that was trained, and which were chosen\n"
        "Next, the same command with\n"
        '  --encoders "[A, B]"  other encoders; what was computed is kept\n'
        '  --tasks "[A, B]"     some of the tasks'
    )


def _cell(spread):
    """A score with its interval, as a column of the table."""
    if not spread:
        return f"{'-':>{_WIDE}}"
    text = f"{spread['mean']:.3f}"
    if "low" in spread:
        text += f" ({spread['low']:.3f}-{spread['high']:.3f})"
    return f"{text:>{_WIDE}}"
