"""Tests models on corrupted recordings: noise, modifications, compression.

The command is `encodecmae_sb/commands/robustness.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.robustness import main

if __name__ == "__main__":
    run(main)
