"""The commands of the installed package: `python -m encodecmae_sb COMMAND ...`."""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from encodecmae_sb import __version__, commands

USAGE = "python -m encodecmae_sb"


def summaries():
    """Every command with the first line of its docstring; none is imported."""
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text("utf-8"))).splitlines()[0]
        for path in sorted(Path(commands.__file__).parent.glob("[a-z]*.py"))
    }


def listing():
    """The text that says which commands there are."""
    known = summaries()
    wide = max(map(len, known))
    rows = [f"  {name:{wide}}  {summary}" for name, summary in known.items()]
    return "\n".join(
        [
            f"encodecmae_sb {__version__}: EnCodecMAE for SpeechBrain",
            f"\n{USAGE} COMMAND ...\n",
            *rows,
            f"\n{USAGE} COMMAND --help says what a command takes.",
            "To train, use recipes/ of the repository: they are not installed.",
        ]
    )


def main():
    """Runs the command that the command line names, or lists all."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
        return
    if name == "--version":
        print(f"encodecmae_sb {__version__}")
        return
    known = summaries()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        sys.exit(f"Error: there is no command {name}.{hint}\n\n{listing()}")
    sys.argv = [f"{USAGE} {name}", *rest]  # argparse prints the first as the program
    commands.run(importlib.import_module(f"encodecmae_sb.commands.{name}").main)


if __name__ == "__main__":
    main()
