"""How every recipe begins and ends."""

import contextlib
import difflib
import functools
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sys
import traceback
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from .errors import UserError
from .files import check_path, check_writable, is_out_of_space, write_text
from .identity import yaml_identity
from .loggers import check_loggers
from .preemption import Preempted, SignalEnd, note_end, note_end_in

# Keys of yaml files whose value is a path. Null is allowed but for `_NEEDED`, a list
# of paths for `_SEVERAL`.
_PATHS = (
    *("output_folder", "save_folder", "data_folder", "valid_folder", "codes_folder"),
    *("encoder_folder", "teacher", "codec", "csv", "train_csv", "valid_csv"),
    *("test_csv", "kenlm_model_path", "init", "tasks_dir", "published_scores"),
)
_NEEDED = {"output_folder", "save_folder", "codec", "teacher"}
_SEVERAL = {"data_folder", "valid_folder", "test_csv"}
_PATIENCE = timedelta(days=30)  # for processes whose work takes unequally long


def start_experiment(argv, can_test=False, choose=None):
    """Parses the command line, loads the yaml, makes the output folder.

    With `--debug` all results go to a folder `debug` in the output folder, which is
    emptied first. So a debug run never replaces a trained model.

    Arguments
    ---------
    argv : list of str
        A yaml file, run options of SpeechBrain, and overrides of yaml keys.
    can_test : bool
        Whether the recipe knows what to do with `--test_only`.
    choose : callable, optional
        Chooses more values before anything is built. It takes the values of the plain
        keys and the keys that the user gave, and returns a dict of overrides.

    Returns
    -------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    named : set of str
        The yaml keys given on the command line.

    Raises
    ------
    FileNotFoundError
        If there is no such yaml file.
    UserError
        If the yaml lacks a given key, a key is given twice, a path is no path, the
        recipe does not test, or the output folder cannot be written to.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    if not Path(hparams_file).is_file():
        raise FileNotFoundError(f"No such hyperparameter file: {hparams_file}")
    if isinstance(run_opts.optimizer_step_limit, str):  # as SpeechBrain parses it
        limit = int(run_opts.optimizer_step_limit)
        run_opts = replace(run_opts, optimizer_step_limit=limit)
    sb.utils.distributed.ddp_init_group(run_opts)
    named = re.findall(r"^(\w+):", overrides, flags=re.MULTILINE)
    text = Path(hparams_file).read_text(encoding="utf-8")
    _check_keys(named, text, hparams_file)
    if run_opts.test_only and not can_test:
        raise UserError(
            "--test_only: this recipe does not test without training: leave it out. "
            "What a finished run measured is in its metrics.json."
        )
    # SafeLoader does not build what the tags name; only plain values matter here.
    resolved = yaml.compose(resolve_references(text, overrides), yaml.SafeLoader)
    values = {key.value: value for key, value in resolved.value}
    for key in _PATHS:
        if key in values:
            _check_path(key, values[key])
    # Later these would fail in the middle of the work.
    kinds, logger = values.get("log_to"), values.get("train_logger")
    check_loggers(kinds and _plain_value(kinds), logger and yaml.serialize(logger))
    if choose is not None:
        plain = {key: _plain_value(node) for key, node in values.items()}
        for key, value in choose(plain, named).items():
            overrides += f"\n{key}: {json.dumps(value)}"
    if run_opts.debug and not run_opts.debug_persistently:
        folder = Path(values["output_folder"].value) / "debug"
        run_opts, overrides = _debug_in(folder, run_opts, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    check_writable(hparams["output_folder"])
    note_end_in(hparams["output_folder"])
    _check_shared(hparams["output_folder"])

    def record():
        sb.create_experiment_directory(
            experiment_directory=hparams["output_folder"],
            hyperparams_to_save=hparams_file,
            overrides=overrides,
            # SpeechBrain asks pip, which takes a second or two.
            save_env_desc=False,
        )
        if if_main_process():
            write_text(Path(hparams["output_folder"]) / "env.log", _environment())

    checkpointer = hparams.get("checkpointer")
    if checkpointer is not None:
        hparams["yaml_identity"] = yaml_identity(text, overrides, named)
    if checkpointer is not None and checkpointer.list_checkpoints():
        # The recorded files describe these checkpoints. The Brain's `identify` calls
        # `record` later, once it is sure that the checkpoints are of this training.
        hparams["record_experiment"] = record
    else:
        record()
    return hparams, run_opts, set(named)


def _check_shared(folder):
    """Makes sure that all machines of a run see one output folder."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if int(os.environ.get("LOCAL_WORLD_SIZE", world)) == world:
        return
    mark = Path(folder) / ".shared"
    token = [uuid.uuid4().hex]
    torch.distributed.broadcast_object_list(token)
    if if_main_process():
        write_text(mark, token[0])
    ddp_barrier()
    seen = mark.exists() and mark.read_text() == token[0]
    ddp_barrier()
    if if_main_process():
        mark.unlink(missing_ok=True)
    if not seen:
        raise UserError(
            f"output_folder={folder}: this machine ({socket.gethostname()}) does not "
            "see what the first machine wrote there. Give a folder on a disk that all "
            "machines share."
        )


def _debug_in(folder, run_opts, overrides):
    """Empties a folder and makes it the output folder; the new options and overrides.

    By default SpeechBrain drops the checkpointer of a debug run, which recipes need. It
    is kept: the checkpoints go to this folder, too, where no other run finds them.
    """
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)
    ddp_barrier()
    run_opts = replace(
        run_opts,
        debug_persistently=True,
        overridden_args={*run_opts.overridden_args, "debug_persistently"},
    )
    overrides = re.sub(r"(?m)^output_folder:.*\n?", "", overrides)
    return run_opts, f"{overrides}\noutput_folder: {json.dumps(str(folder))}\n"


def _environment():
    """Versions of Python and of all packages, and the GPU, as text."""
    packages = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return "\n".join([f"Python {sys.version}", f"GPU: {gpu}", *sorted(packages), ""])


def _check_keys(named, text, hparams_file):
    """Makes sure that a yaml has the overridden keys, and each is given once."""
    known = re.findall(r"(?m)^(\w+):", text)
    for key in named:
        if named.count(key) > 1:
            raise UserError(f"--{key} is given {named.count(key)} times: give it once.")
        if key not in known:
            close = difflib.get_close_matches(key, known, 3)
            raise UserError(
                f"--{key}: there is no such key in {hparams_file}, nor such a run "
                "option of SpeechBrain. "
                + (f"Is it --{' or --'.join(close)}?" if close else "See the file.")
            )


def load_key(hparams_file, key, overrides, choose=None):
    r"""What a yaml file says under one key; the rest of the file is not built.

    Arguments
    ---------
    hparams_file : str or Path
    key : str
    overrides : dict
        Values that replace those of other keys of the file.
    choose : callable, optional
        As for `start_experiment`.

    Returns
    -------
    object

    Raises
    ------
    UserError
        If there is no such file, or no such key in it.

    Example
    -------
    >>> file = getfixture("tmp_path") / "a.yaml"
    >>> _ = file.write_text("size: 2\nlayer: !name:torch.nn.Linear [!ref <size>, 3]\n")
    >>> load_key(file, "layer", {"size": 5})()
    Linear(in_features=5, out_features=3, bias=True)
    """
    if not Path(hparams_file).is_file():
        raise UserError(f"No such hyperparameter file: {hparams_file}")
    text = Path(hparams_file).read_text(encoding="utf-8")
    tree = yaml.compose(resolve_references(text, overrides), yaml.SafeLoader)
    if choose is not None:
        plain = {name.value: _plain_value(node) for name, node in tree.value}
        overrides = {**overrides, **choose(plain, overrides)}
        tree = yaml.compose(resolve_references(text, overrides), yaml.SafeLoader)
    tree.value = [item for item in tree.value if item[0].value == key]
    if not tree.value:
        raise UserError(f"{hparams_file} has no key {key}.")
    return load_hyperpyyaml(yaml.serialize(tree))[key]


_TAGGED = object()


def _plain_value(node):
    """What a yaml node says; `_TAGGED` if a tag says what to build."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except yaml.constructor.ConstructorError:
        return _TAGGED


def _check_path(key, node):
    """Makes sure that the value of a key is a path, or is built by the yaml."""
    value = _plain_value(node)
    if value is not _TAGGED and (value is not None or key in _NEEDED):
        check_path(key, value, several=key in _SEVERAL)


@contextlib.contextmanager
def quit_on_user_errors():
    """Ends a script with the message alone if the user can fix the cause.

    That includes a lack of memory or of disk space: the message says what to do.
    Other errors keep their traceback. A signal that asks the process to end gives
    `preemption.EXIT_CODE`. See there for the file that tells it from an error.
    """
    note_end_in(None)
    with SignalEnd(), _messages():
        try:
            yield
        except Preempted:
            note_end("preempted")
            raise
        except Exception:
            note_end("failed")
            raise


@contextlib.contextmanager
def _messages():
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
    except Preempted as stop:
        print(f"\n{stop.message}", file=sys.stderr, flush=True)
        if torch.distributed.is_initialized():
            os._exit(stop.code)  # see `_quit`
        raise
    except (UserError, FileNotFoundError) as error:
        _quit(f"\nError: {error}")
    except Exception as error:
        if is_out_of_memory(error):
            _quit(
                f"\nError: out of memory: {str(error).splitlines()[0]}\n"
                "A pretraining or self-training goes on from its last checkpoint when "
                "the command is given again with a smaller batch_size (raising "
                "grad_accumulation_factor by the same factor, which leaves a step "
                "what it is) or with --activation_checkpointing True. With another "
                "--output_folder, and as far as the yaml has these keys: a smaller "
                "batch_size, batch_seconds or crop_seconds, or --precision bf16."
            )
        if is_out_of_space(error):
            _quit(
                f"\nError: the disk is full, or a quota is used up: {error}\n"
                "Free some space, or choose a folder on another disk, and give the "
                "same command again: what is finished is kept, and a training run "
                "goes on from its last checkpoint."
            )
        if torch.distributed.is_initialized():
            _quit(traceback.format_exc())
        raise


def _quit(message):
    """Ends the process with a message and exit code 1.

    One of several processes ends at once: an orderly shutdown could wait for the
    other processes, which wait for this one.
    """
    if not torch.distributed.is_initialized():
        sys.exit(message)
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_out_of_memory(error):
    """Whether an error means that a device, or the system, is out of memory.

    Arguments
    ---------
    error : Exception

    Returns
    -------
    bool

    Example
    -------
    >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(ValueError())
    (True, False)
    """
    # torch has no error class for this on a CPU.
    return isinstance(
        error, (MemoryError, torch.OutOfMemoryError)
    ) or "DefaultCPUAllocator" in str(error)


def choose_device(name=None):
    """Chooses the device of this process, and tries it.

    Arguments
    ---------
    name : str, optional
        Such as `cpu` or `cuda:1`; plain `cuda` is the GPU of this process under
        torchrun, else the first. Default: `cuda` where there is one, else `cpu`.

    Returns
    -------
    torch.device

    Raises
    ------
    UserError
        If it cannot be used.

    Example
    -------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    exact = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        torch.empty(0, device=exact)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(
            f"--device {name}: device={exact} cannot be used: {why}. Without --device "
            "a GPU is taken if there is one, else the CPU."
        ) from error
    return torch.device(exact)


def main_process_first(function, *args):
    """Calls a function in every process, in the others after the main one.

    Use it for what the main process downloads or writes and the others then find.

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
    if if_main_process():
        result = function(*args)
        ddp_barrier()
        return result
    ddp_barrier()
    return function(*args)


def join_processes():
    """Joins the processes of torchrun, if there are several; they wait for days."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)


def patient_barrier():
    """Makes a barrier for processes whose work takes unequally long.

    A barrier of SpeechBrain gives up after half an hour; this one waits for days.
    All processes call this function at about the same time.

    Returns
    -------
    callable
        Returns once every process has called it.
    """
    if not torch.distributed.is_initialized():
        return lambda: None
    group = torch.distributed.new_group(timeout=_PATIENCE, backend="gloo")
    return functools.partial(torch.distributed.barrier, group)


def announce_demonstration(does):
    """Prints that a run uses the bundled corpus, for lack of the user's own data.

    Arguments
    ---------
    does : str
        What the run does with the bundled corpus, such as "trains on".
    """
    if if_main_process():
        print(
            f"DEMONSTRATION: no --data_folder was given, so this run {does} the small\n"
            "synthetic corpus in this repository (speech of 10 synthetic voices, and\n"
            "sounds). For a real model: --data_folder FOLDER, any folder of audio.",
            flush=True,
        )


def write_metrics(folder, metrics):
    """Writes `metrics.json`: one flat object of what a recipe measured.

    Arguments
    ---------
    folder : str or Path
    metrics : dict of str to number or str
    """
    write_text(Path(folder) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
