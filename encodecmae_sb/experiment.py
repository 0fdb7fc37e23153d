"""How every recipe begins and ends."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml

from .errors import UserError


def start_experiment(argv):
    """Parses the command line, loads the yaml, makes the output folder.

    Arguments
    ---------
    argv : list of str
        A yaml file, run options of SpeechBrain, and overrides of yaml keys.

    Returns
    -------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    named : set of str
        The yaml keys given on the command line.

    Raises
    ------
    UserError
        If the output folder cannot be written to.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    if not Path(hparams_file).is_file():
        raise FileNotFoundError(f"No such hyperparameter file: {hparams_file}")
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    named = re.findall(r"^(\w+):", overrides, flags=re.MULTILINE)
    return hparams, run_opts, set(named)


@contextlib.contextmanager
def quit_on_user_errors():
    """Ends a script with the message alone where the user can mend the cause.

    Everything else keeps its traceback.
    """
    try:
        yield
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            # With gloo, torch 2.11 now and then aborts ("terminate called without an
            # active exception") while the interpreter shuts down after all is done.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"\nError: {error}")


def main_process_first(function, *args):
    """Calls a function in every process, in the others after the main one.

    For what the main process fetches or writes and the others then find.

    Arguments
    ---------
    function : callable
    *args
        Its arguments.

    Returns
    -------
    object
        The function's result in this process.
    """
    if sb.utils.distributed.if_main_process():
        result = function(*args)
        sb.utils.distributed.ddp_barrier()
        return result
    sb.utils.distributed.ddp_barrier()
    return function(*args)


def write_metrics(folder, metrics):
    """Writes `metrics.json`: one flat object of what a recipe measured.

    Arguments
    ---------
    folder : str or Path
    metrics : dict of str to number or str
    """
    scratch = Path(folder) / "metrics.json.tmp"
    scratch.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, Path(folder) / "metrics.json")
