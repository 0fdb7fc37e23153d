"""A page of a run: curves, figures, sounds, a map of clips.

The command is `encodecmae_sb/commands/report.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.report import main

if __name__ == "__main__":
    run(main)
