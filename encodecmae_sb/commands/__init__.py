"""Commands that need no yaml, for `recipes/` and for `python -m encodecmae_sb`.

Each module has `main(argv)`, which returns the exit status.
"""

import sys

from encodecmae_sb.utils.experiment import quit_on_user_errors


def run(main):
    """Runs a command as a script; an error that the user can mend is a message."""
    with quit_on_user_errors():
        sys.exit(main(sys.argv[1:]))
