"""Features of audio files from an exported encoder.

The command is `encodecmae_sb/commands/embed.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.embed import main

if __name__ == "__main__":
    run(main)
