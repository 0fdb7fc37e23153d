"""How every recipe begins and ends."""

import contextlib
import json
import os
import re
import sys
import traceback
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

    That includes a lack of memory: the message says which settings to lower.
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
        _quit(f"\nError: {error}")
    except Exception as error:
        if _is_out_of_memory(error):
            _quit(
                f"\nError: out of memory: {str(error).splitlines()[0]}\n"
                "Lower, as far as the yaml has these keys, batch_size (raising "
                "grad_accumulation_factor by the same factor leaves a step what it "
                "is) or crop_seconds; or take --precision bf16, or "
                "--activation_checkpointing True. A training run goes on from its "
                "last checkpoint when the command is given again."
            )
        if torch.distributed.is_initialized():
            _quit(traceback.format_exc())
        raise


def _quit(message):
    """Ends the process with a message and exit code 1.

    One of several ends at once: while it shuts down in good order it may wait for
    the others, which are waiting for it.
    """
    if not torch.distributed.is_initialized():
        sys.exit(message)
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _is_out_of_memory(error):
    """Whether a device, or the system, had no more memory to give."""
    # On a CPU torch has no class for it.
    return isinstance(
        error, (MemoryError, torch.OutOfMemoryError)
    ) or "DefaultCPUAllocator" in str(error)


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
