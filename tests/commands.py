"""Recipes as commands, run in this process: that saves the seconds of their imports."""

import runpy
import sys
from pathlib import Path
from unittest import mock

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def run_recipe(name, *arguments):
    """Runs `python recipes/NAME.py ARGUMENT ...`.

    A recipe that ends with a message raises SystemExit with that message.
    """
    script = str(RECIPES / f"{name}.py")
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]):
        runpy.run_path(script, run_name="__main__")
