"""Runs a recipe in this process, which saves the time of starting another."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


def run_recipe(name, *arguments):
    """Runs a recipe as the command line does, and returns what it printed.

    Arguments
    ---------
    name : str
        Of the file in recipes/, such as "classify.py".
    *arguments
        Those of the command line.

    Raises
    ------
    SystemExit
        With the message, if the recipe ends with an error that the user can mend.
    """
    path, said = str(ROOT / "recipes" / name), io.StringIO()
    argv = mock.patch.object(sys, "argv", [path, *map(str, arguments)])
    with contextlib.redirect_stdout(said), argv:
        runpy.run_path(path, run_name="__main__")
    return said.getvalue()
