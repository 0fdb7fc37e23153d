"""Probes frozen representations: what is an encoder worth?

    python recipes/probe.py hparams/probe_mini.yaml

The command is `encodecmae_sb/commands/probe.py`, which says more.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.probe import main

if __name__ == "__main__":
    run(main)
