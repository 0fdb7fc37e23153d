r"""Compares ways to pretrain: the same time for each, several seeds, linear probes.

    python recipes/compare_pretraining.py hparams/compare_pretraining.yaml
    python recipes/compare_pretraining.py hparams/compare_pretraining.yaml \
        --variants "[codec: hparams/mini.yaml, half: hparams/mini.yaml --dim 96]" \
        --tasks "[digits: {corpus: fsdd, data_folder: /data/fsdd}]" --minutes 2

A variant is a yaml and overrides, as on the command line of recipes/pretrain.py. Its
speed is measured first. Then it makes as many steps as fit into `minutes`, from each of
`seeds`. The encoders, log-mel frames and random weights of the first variant's
architecture are judged by linear probes on labelled clips, one fold left out in turn.

Makes, in the output folder: `table.md`, `results.json`, `TASK.png`; each training in
`runs/VARIANT/SEED`. A comparison that was interrupted goes on when the same command is
given again; what is finished is kept, also when variants, seeds or tasks are added.
"""

import sys
from pathlib import Path

from encodecmae_sb.pipelines.compare_pretraining import PretrainingComparison
from encodecmae_sb.utils.experiment import quit_on_user_errors, start_experiment


def main(argv):
    """Runs the comparison that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv)
    script = Path(__file__).with_name("pretrain.py")
    comparison = PretrainingComparison(hparams, run_opts, script)
    comparison.find_clips()
    comparison.train()
    print(comparison.results())


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
