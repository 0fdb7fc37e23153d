"""Where the figures of a run go while it runs: file, TensorBoard, Weights & Biases."""

import functools
import importlib.util
import os
import uuid
from pathlib import Path

from .errors import UserError
from .files import write_text

KINDS = ("file", "tensorboard", "wandb")


def logger_kinds(log_to):
    """The kinds of loggers that the key `log_to` asks for.

    Arguments
    ---------
    log_to : str, list of str or None

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        If there is no such kind.

    Example
    -------
    >>> logger_kinds(None), logger_kinds("file"), logger_kinds(["file", "wandb"])
    ([], ['file'], ['file', 'wandb'])
    """
    kinds = log_to if isinstance(log_to, list) else [log_to]
    kinds = [kind for kind in kinds if kind is not None]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(
                f"log_to={log_to}: allowed are {', '.join(KINDS)}, several of them in "
                'brackets, as in --log_to "[file, tensorboard]", and null.'
            )
    return kinds


def check_loggers(log_to, train_logger=None):
    """Makes sure, before anything else is done, that loggers can be opened.

    Arguments
    ---------
    log_to : str, list of str or None
    train_logger : str, optional
        What the yaml says under this key.

    Raises
    ------
    UserError
        If a package or the key of Weights & Biases is missing.
    """
    kinds, train_logger = logger_kinds(log_to), train_logger or ""
    for kind, name in (("tensorboard", "TensorboardLogger"), ("wandb", "WandBLogger")):
        if kind not in kinds and name not in train_logger:
            continue
        if importlib.util.find_spec(kind) is None:
            raise UserError(
                f"{kind} is not installed: pip install 'encodecmae_sb[{kind}]', or "
                f"pip install {kind}."
            )
        if kind == "wandb" and "mode: offline" not in train_logger:
            _check_wandb()


def _check_wandb():
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "Weights & Biases has no key on this machine. Give it once with `wandb "
            "login`, or for this run with the environment variable WANDB_API_KEY. Or "
            "set WANDB_MODE=offline: the run is then kept on disk, and `wandb sync` "
            "sends it later."
        )


def open_loggers(log_to, folder, name, settings):
    """Opens the loggers that the key `log_to` names.

    Arguments
    ---------
    log_to : str, list of str or None
    folder : str or Path
        Where they write: `log.txt`, `tensorboard/` and `wandb/`.
    name : str
        Of the run, for Weights & Biases.
    settings : dict of str to number or str
        Of the run, for Weights & Biases.

    Returns
    -------
    list
        Loggers of SpeechBrain's.
    """
    loggers = _speechbrain_loggers()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    opened = []
    for kind in logger_kinds(log_to):
        if kind == "file":
            logger = loggers.FileTrainLogger(folder / "log.txt", precision=4)
            # The terminal has lines of its own.
            logger.log_stats = functools.partial(logger.log_stats, verbose=False)
            opened.append(logger)
        elif kind == "tensorboard":
            opened.append(loggers.TensorboardLogger(str(folder / "tensorboard")))
        else:
            opened.append(_open_wandb(folder, name, settings))
    return opened


def _speechbrain_loggers():
    # Not imported by runs without loggers: it warns where torchvision is missing.
    from speechbrain.utils import train_logger

    return train_logger


def _open_wandb(folder, name, settings):
    import wandb

    # A run that goes on keeps its page.
    identity = folder / "wandb_id.txt"
    if not identity.exists():
        write_text(identity, uuid.uuid4().hex[:8])
    logger = _speechbrain_loggers().WandBLogger(
        wandb.init,
        project=os.environ.get("WANDB_PROJECT", "encodecmae_sb"),
        name=name,
        id=identity.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=settings,
    )
    logger.run.define_metric("*", step_metric="step")
    return logger


def log_row(logger, row):
    """Hands a row of figures to one of SpeechBrain's loggers.

    Arguments
    ---------
    logger : TrainLogger
        Of SpeechBrain's, or any object with its method `log_stats`.
    row : dict of str to number
        `step`, `epoch` where there are epochs, and what was measured. What begins with
        `train_` is of the training, all else of the validation.
    """
    meta = {name: int(row[name]) for name in ("epoch", "step") if name in row}
    train = {k.removeprefix("train_"): v for k, v in row.items() if k[:6] == "train_"}
    measured = (k for k in row if k not in meta and k[:6] != "train_")
    valid = {k.removeprefix("valid_"): row[k] for k in measured} or None
    loggers = _speechbrain_loggers()
    if isinstance(logger, loggers.TensorboardLogger):
        # It counts its own calls, from 0 in each process.
        before = meta.pop("step") - 1
        counts = {"train": train, "valid": valid or {}}
        counts = {kind: dict.fromkeys(row, before) for kind, row in counts.items()}
        logger.global_step.update(counts, meta=before)
    elif isinstance(logger, loggers.WandBLogger) and "epoch" in meta:
        # It takes the epoch for its step, which must not go back.
        train["epoch"] = meta.pop("epoch")
    logger.log_stats(meta, train_stats=train or None, valid_stats=valid)
    if valid and isinstance(logger, loggers.TensorboardLogger):
        logger.writer.flush()


def close_logger(logger, shared=False):
    """Writes what a logger still holds, and ends it.

    Arguments
    ---------
    logger : TrainLogger
    shared : bool
        Others may write to it later: a run of Weights & Biases, which cannot be opened
        again, then ends with the process.
    """
    loggers = _speechbrain_loggers()
    if isinstance(logger, loggers.TensorboardLogger):
        logger.writer.close()  # it opens again by itself
    elif isinstance(logger, loggers.WandBLogger) and not shared:
        logger.run.finish()
