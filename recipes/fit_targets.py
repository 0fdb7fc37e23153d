"""Targets for pretraining that are no codec, fitted to a corpus.

The command is `encodecmae_sb/commands/fit_targets.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.fit_targets import main

if __name__ == "__main__":
    run(main)
