"""Transcribes audio files with an exported recogniser.

The command is `encodecmae_sb/commands/transcribe.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.transcribe import main

if __name__ == "__main__":
    run(main)
