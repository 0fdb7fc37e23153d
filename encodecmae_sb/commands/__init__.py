"""Command lines for `recipes/` and for `python -m encodecmae_sb`.

Each module has `main(argv)`, which returns the exit status. The first line of its
docstring is its line in the list of commands.
"""

import sys

LAYERS = "last, last_no_norm, all, or a number from 0"


def layer(text):
    """A layer as `--layer` names it: a number, or a word such as `last`."""
    return int(text) if text.isdigit() else text


def run(main):
    """Runs a command as a script; an error that the user can mend is a message."""
    # Imported here, because it imports torch: a list of commands should come at once.
    from encodecmae_sb.utils.experiment import quit_on_user_errors

    with quit_on_user_errors():
        if status := main(sys.argv[1:]):
            sys.exit(status)
