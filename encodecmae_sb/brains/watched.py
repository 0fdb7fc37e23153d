"""Watching the steps of a run, and ending it at a signal or by the clock."""

import time
from pathlib import Path

import numpy as np
import torch
from speechbrain import Brain
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.loggers import close_logger, log_row, open_loggers
from encodecmae_sb.utils.preemption import Preempted, SignalWatch


class StepLog:
    """What the steps since the last line of the loggers measured.

    Arguments
    ---------
    interval : int or None
        Optimizer steps between two lines; None: nothing is kept.

    Example
    -------
    >>> steps = StepLog(2)
    >>> for loss, norm in ((3.0, 1.0), (2.0, torch.inf)):
    ...     steps.add(loss)
    ...     steps.add_norm(torch.tensor(norm))
    >>> steps.take()
    {'step_loss': 2.5, 'grad_norm': 1.0, 'skipped': 0.5}
    """

    def __init__(self, interval):
        self.interval = interval
        self.losses, self.norms = [], []
        self.start_clock()

    def start_clock(self):
        """Starts to time the audio anew, as after a validation."""
        self.seconds, self.started = 0.0, time.monotonic()

    def due(self, step):
        """Whether a line is due after an optimizer step."""
        return self.interval is not None and step % self.interval == 0

    def add(self, *losses):
        """Adds losses, read from the device."""
        if self.interval is not None:
            self.losses += losses

    def add_norm(self, norm):
        """Adds the norm of a step's gradients, a tensor that is not read yet."""
        if self.interval is not None:
            self.norms.append(norm.detach())

    def take(self):
        """The figures since the last line, by name; and begins the next line."""
        norms = torch.stack(self.norms).tolist() if self.norms else []
        figures = {
            "step_loss": _mean(self.losses),
            "grad_norm": _mean(norms),
            "skipped": 1 - np.isfinite(norms).mean().item() if norms else 0.0,
        }
        if self.seconds:
            passed = max(time.monotonic() - self.started, 1e-9)
            figures["audio_per_second"] = self.seconds / passed
        self.losses, self.norms = [], []
        self.start_clock()
        return figures


def _mean(values):
    """The mean of what is finite; NaN if nothing is."""
    finite = [value for value in values if np.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


class WatchedBrain(Brain):
    """A Brain whose steps are logged, and that ends in good order at a signal.

    At SIGTERM or SIGUSR1 it saves a checkpoint after the running step and raises
    `Preempted`. Under torchrun all processes do so after the same step, whichever of
    them got the signal: before each step they ask each other, without their devices.

    Reads from the yaml, where there are: `log_to`, `log_interval`, `train_logger`,
    `log_folder` (default: the folder `log` in the output folder).
    """

    fits_once = True  # per process; else others use the yaml's `train_logger`, too

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        logs = getattr(self.hparams, "log_to", None), self.train_logger
        wanted = any(log is not None for log in logs)
        interval = getattr(self.hparams, "log_interval", 20)
        if not isinstance(interval, int) or interval < 1:
            raise UserError(f"log_interval={interval}: give a number of steps above 0.")
        self.steps = StepLog(interval if wanted else None)
        self.loggers = None  # opened for the first row
        self.host_group = None
        self.signals = SignalWatch()
        self.stopping = False

    @property
    def train_logger(self):
        """The logger that the yaml builds, or None."""
        return getattr(self.hparams, "train_logger", None)

    def fit(self, *args, **kwargs):
        """As in SpeechBrain.

        Raises
        ------
        Preempted
            After a signal, once a checkpoint is saved.
        """
        with self.signals:
            try:
                super().fit(*args, **kwargs)
                # The signal may have come in the last validation, which has saved.
                self.stopping, _ = self.agree(self.signals.received is not None, False)
                self._stop_if_asked()
            finally:
                for logger in self.loggers or ():
                    own = self.fits_once or logger is not self.train_logger
                    close_logger(logger, shared=not own)
                self.loggers = None

    def on_fit_start(self):
        """Recovers the last checkpoint; lets the processes agree on when to stop."""
        super().on_fit_start()
        if torch.distributed.is_initialized():
            # On the host, so that no device is waited for.
            self.host_group = torch.distributed.new_group(backend="gloo")

    def agree(self, *flags):
        """Whether each of some flags is set in any process.

        Arguments
        ---------
        *flags : bool

        Returns
        -------
        list of bool
            The same in every process.
        """
        if self.host_group is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        most = torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(votes, most, group=self.host_group)
        return votes.bool().tolist()

    def _fit_train(self, *args, **kwargs):
        self.steps.start_clock()
        super()._fit_train(*args, **kwargs)

    def _open_loggers(self):
        hparams = vars(self.hparams)
        loggers = [] if self.train_logger is None else [self.train_logger]
        if hparams.get("log_to") is None:
            return loggers
        output = Path(hparams["output_folder"])
        plain = str | int | float | bool | list | None
        settings = {k: v for k, v in hparams.items() if isinstance(v, plain)}
        folder = hparams.get("log_folder", output / "log")
        return loggers + open_loggers(hparams["log_to"], folder, str(output), settings)

    def log(self, row):
        """Hands a row of figures to the loggers; see `loggers.log_row`."""
        if self.loggers is None and if_main_process():
            self.loggers = self._open_loggers()
        for logger in self.loggers or ():
            log_row(logger, row)

    def log_steps(self):
        """Hands to the loggers what the steps since the last line measured."""
        figures = self.steps.take()
        if not self.skip_nonfinite_grads and not self.scaler.is_enabled():
            figures["skipped"] = 0.0
        for number, (name, optimizer) in enumerate(self.optimizers_dict.items()):
            rates = [group["lr"] for group in optimizer.param_groups]
            figures[f"lr_{name}" if number else "lr"] = max(rates)
        figures = {f"train_{name}": value for name, value in figures.items()}
        self.log({"step": self.optimizer_step, **figures})

    def optimizers_step(self):
        """As in SpeechBrain; measures the gradients first if they are to be logged."""
        if self.steps.interval is not None:
            gradients = [
                p.grad for p in self.modules.parameters() if p.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(gradients)
            self.steps.add_norm(norm / self.scaler.get_scale())
        super().optimizers_step()

    def between_steps(self):
        """Whether no accumulated gradient is waiting for an optimizer step."""
        return self.step % self.grad_accumulation_factor == 0

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # A checkpoint holds no gradients, so it must not interrupt an accumulation.
        if not self.between_steps():
            return False
        # SpeechBrain asks the same, with a broadcast through the devices in each step.
        minutes = (time.time() - last_ckpt_time) / 60
        due = 0 < self.ckpt_interval_minutes < minutes
        due = due or 0 < self.ckpt_interval_steps <= steps_since_ckpt
        self.stopping, due = self.agree(self.signals.received is not None, due)
        return self.checkpointer is not None and (self.stopping or due)

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        self._stop_if_asked()

    def _stop_if_asked(self):
        if self.stopping:
            raise Preempted(
                f"Stopped by {self.signals.received or 'another process'} after "
                f"optimizer step {self.optimizer_step}; a checkpoint is saved. The "
                "same command goes on from there."
            )
