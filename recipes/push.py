"""Shares an exported folder on the Hugging Face hub.

The command is `encodecmae_sb/commands/push.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.push import main

if __name__ == "__main__":
    run(main)
