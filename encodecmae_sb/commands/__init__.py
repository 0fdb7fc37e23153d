"""Command lines for `recipes/` and for `python -m encodecmae_sb`.

Each module has `main(argv)`, which returns the exit status. The first line of its
docstring is its line in the list of commands.
"""

import sys


def run(main):
    """Runs a command as a script; an error that the user can mend is a message."""
    # Imported here, because it imports torch: a list of commands should come at once.
    from encodecmae_sb.utils.experiment import quit_on_user_errors

    with quit_on_user_errors():
        if status := main(sys.argv[1:]):
            sys.exit(status)
