"""Evaluates encoders on the tasks of HEAR.

    python recipes/heareval.py hparams/heareval.yaml --tasks_dir /data/hear/tasks

The command is `encodecmae_sb/commands/heareval.py`, which says more.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.heareval import main

if __name__ == "__main__":
    run(main)
