"""What all Brains share: resuming, reporting, and runs that are counted in steps."""

import math
import time

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process, infer_device
from speechbrain.utils.logger import get_logger
from torch._functorch import config as partitioner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from encodecmae_sb.data.crops import CropCollator, DrawSampler, StepLoader
from encodecmae_sb.lobes import CodecLatents
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import AUTO, best_precision
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar

from .watched import WatchedBrain

logger = get_logger(__name__)

# Steps whose losses are read from the device together.
_READ_EVERY = 20


def share_crops(crops_per_step, batch_size, num_processes):
    """How many forward passes each process makes in an optimizer step.

    Arguments
    ---------
    crops_per_step : int
        Crops of all processes together.
    batch_size : int
        Crops per process and forward pass.
    num_processes : int

    Returns
    -------
    int

    Raises
    ------
    UserError
        If the processes cannot share the crops evenly.

    Example
    -------
    >>> share_crops(128, batch_size=16, num_processes=4)
    2
    """
    at_once = batch_size * num_processes
    if crops_per_step < 1 or crops_per_step % at_once:
        share = crops_per_step // num_processes
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        raise UserError(
            f"crops_per_step={crops_per_step} is not divisible by batch_size="
            f"{batch_size} x {num_processes} processes = {at_once}: "
            + (
                f"take a batch_size from {', '.join(map(str, fitting))}"
                if share * num_processes == crops_per_step and fitting
                else "take a number of processes that divides it"
            )
            + ", or another crops_per_step."
        )
    return crops_per_step // at_once


class ResumableBrain(WatchedBrain):
    """A Brain that can be stopped and resumed between any two optimizer steps.

    Reads from the yaml, besides `WatchedBrain`'s: `history`, and `precision`, which may
    be `auto` (see `precision.best_precision`). `--ckpt_interval_steps` on the command
    line replaces the yaml's `ckpt_interval_minutes`, and the other way round.

    Raises
    ------
    UserError
        If `max_grad_norm` is not positive: 0 would stop the training, and a negative
        number would reverse every step.
    """

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        given = getattr(run_opts, "overridden_args", run_opts or {})
        if hparams.get("precision") == AUTO and "precision" not in given:
            device = (run_opts or {}).get("device") or hparams.get("device")
            hparams = {**hparams, "precision": _choose_precision(device)}
        hparams = _one_interval(hparams, given)
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        norm = self.max_grad_norm
        if not isinstance(norm, int | float) or not norm > 0:
            raise UserError(
                f"max_grad_norm={norm}: give a positive number; 1e9 "
                "leaves gradients as they are."
            )

    @property
    def history(self):
        """The measurements of this run so far."""
        return self.hparams.history

    def shares(self):
        """How processes share a step, as far as the result depends on it."""
        processes = 1
        if self.distributed_launch:
            processes = torch.distributed.get_world_size()
        factor = self.grad_accumulation_factor
        return {"grad_accumulation_factor": factor, "processes": processes}

    def identify(self, **content):
        """Refuses to resume from the checkpoints of another training.

        Arguments
        ---------
        **content
            What the training depends on besides the yaml and the run options: data,
            targets, initial weights; see `identity.named`.

        Raises
        ------
        UserError
            If the output folder holds checkpoints of another training. The message
            lists the differences.
        """
        options = {"precision": self.precision, "max_grad_norm": self.max_grad_norm}
        how = {**options, **self.shares()}
        identity = {**getattr(self.hparams, "yaml_identity", {}), **how, **content}
        # A test may use another precision or number of processes than the training.
        ignored = how if self.test_only else ()
        self.checkpointer.identify(identity, ignored)
        if hasattr(self.hparams, "record_experiment") and not self.test_only:
            self.hparams.record_experiment()

    def report(self, row, shown, **checkpoint):
        """Notes what a validation measured, everywhere it is wanted, and saves.

        The row goes to the history, the terminal, a checkpoint, and the loggers of the
        yaml's `log_to` and `train_logger`.

        Arguments
        ---------
        row : dict of str to number
            `step` or `epoch`, or both, and what was measured. What begins with
            `train_` is of the training, all else of the validation.
        shown : str or None
            The line for the terminal, if any.
        **checkpoint
            Of SpeechBrain's `Checkpointer.save_and_keep_only`.
        """
        self.history.append(row)
        if if_main_process() and shown is not None:
            tqdm.write(shown)
        # logging.DEBUG: the line above is news enough.
        self.checkpointer.save_and_keep_only(**checkpoint, verbosity=10)
        # Last: a logger that fails must not cost the checkpoint.
        self.log(row)


def _one_interval(hparams, given):
    """The yaml's values, without the interval that the command line replaces."""
    pair = ["ckpt_interval_minutes", "ckpt_interval_steps"]
    for asked, other in (pair, pair[::-1]):
        if asked in given and other not in given and other in hparams:
            return {**hparams, other: 0}
    return hparams


def _choose_precision(device=None):
    """The precision that `precision: auto` means on the device of this run."""
    device = device or infer_device()
    precision = best_precision(device)
    if precision == "fp32" and if_main_process():
        print(f"Precision: fp32, since bf16 is not faster on {device}.", flush=True)
    return precision


class StepBrain(ResumableBrain):
    """A Brain whose run is counted in optimizer steps.

    In SpeechBrain's terms, an epoch is the stretch between two validations. A batch is
    everything that a process contributes to an optimizer step: a list with one
    `CropBatch` for each forward pass.

    All randomness comes with the crops (see `data.crops`). The number of the optimizer
    step alone says which crops come next. So a run that was killed at any step and
    started again ends with the same weights, bit for bit on a CPU. It may resume with
    another number of processes, another batch size or another `valid_interval`.

    No step waits for the device: losses are read every 20 steps, or when the progress
    bar is drawn or a line goes to the loggers.

    Reads from the yaml: `training_steps`, `valid_interval`, `batch_size`,
    `num_workers`, `history`, SpeechBrain's run options and, in place of
    `grad_accumulation_factor`, `crops_per_step`.

    Subclasses define `compute_forward`, `compute_objectives`, `validation_row`,
    and set `shown` to the numbers that the progress bar shows.
    """

    def __init__(self, *args, unusable=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.unusable = unusable
        self.shown = {}
        self.shown_at = -math.inf
        self.valid_loader = None
        self.train_loss = None  # until the first steps
        self.stage = None
        self.unread = []
        self.skipped_steps = 0
        self.bar = None
        self.world_size = 1
        if self.distributed_launch:
            self.world_size = torch.distributed.get_world_size()
        if getattr(self.hparams, "crops_per_step", None) is not None:
            self.grad_accumulation_factor = share_crops(
                self.hparams.crops_per_step, self.hparams.batch_size, self.world_size
            )

    @property
    def crops_per_step(self):
        """Crops of an optimizer step, all processes together."""
        share = self.hparams.batch_size * self.grad_accumulation_factor
        return share * self.world_size

    def shares(self):
        """The crops of a step. How processes share them does not change the result."""
        return {"crops_per_step": self.crops_per_step}

    @property
    def validated_step(self):
        """The optimizer step of the last validation; 0 before the first."""
        return int(self.history.rows[-1]["step"]) if self.history.rows else 0

    def fit_crops(self, train_crops, valid_crops):
        """Trains to `training_steps`.

        Arguments
        ---------
        train_crops : RandomCrops
            Endless random crops.
        valid_crops : FixedCrops
            The validation set.
        """
        sampler = DrawSampler(
            self.crops_per_step,
            self.hparams.batch_size,
            rank=self.rank if self.distributed_launch else 0,
            world_size=self.world_size,
        )
        train_loader = StepLoader(
            train_crops,
            sampler,
            num_workers=self.hparams.num_workers,
            pin_memory=self.device_type == "cuda",
            worker_init_fn=ignore_signals,
        )
        self.valid_loader = DataLoader(
            valid_crops,
            batch_size=self.hparams.batch_size,
            collate_fn=CropCollator(),
        )
        # Our own bar spans the run; SpeechBrain's would restart every epoch.
        self.fit(self.stretches(sampler), train_loader, self.valid_loader, False)
        if self.bar is not None:
            self.bar.close()

    def stretches(self, sampler):
        """Sets the sampler to the steps before each validation, one after another.

        Arguments
        ---------
        sampler : DrawSampler
            Its `steps` are set.

        Yields
        ------
        int
            The number of the validation, counted from 1.
        """
        interval, last = self.hparams.valid_interval, self.hparams.training_steps
        # A run that was killed after its last step still needs its last validation.
        while self.validated_step < last:
            due = self.validated_step // interval + 1
            due = max(due, math.ceil(self.optimizer_step / interval))
            sampler.steps = range(self.optimizer_step, min(due * interval, last))
            yield len(self.history.rows) + 1

    def on_fit_start(self):
        """Recovers the last checkpoint and opens the progress bar."""
        super().on_fit_start()
        if if_main_process() and not self.noprogressbar:
            self.bar = open_bar(
                self.hparams.training_steps, initial=self.optimizer_step
            )

    def on_stage_start(self, stage, epoch=None):
        """Starts to time the steps until the next validation."""
        self.stage = stage
        if stage == Stage.TRAIN:
            self.stretch_started = time.time()
            self.stretch_seconds = 0.0

    def on_fit_batch_start(self, batches, should_step):
        """Adds files that could not be read to the list of unusable files."""
        bad = [item for batch in batches for item in batch.unusable]
        if bad and self.unusable is not None:
            self.unusable.add(bad)

    def on_fit_batch_end(self, batches, outputs, loss, should_step):
        """Moves the progress bar."""
        samples = sum(batch.wavs.shape[0] * batch.wavs.shape[1] for batch in batches)
        seconds = samples / self.hparams.sample_rate * self.world_size
        self.stretch_seconds += seconds
        self.steps.seconds += seconds
        if self.bar is None:
            return
        self.bar.update(1)
        if time.monotonic() - self.shown_at < self.bar.mininterval:
            return  # the bar is not drawn now, and reading would wait for the device
        self.shown_at = time.monotonic()
        rate = self.stretch_seconds / (time.time() - self.stretch_started)
        shown = {name: f"{float(value):.3f}" for name, value in self.shown.items()}
        shown["audio"] = f"{rate:.1f} s/s"
        self.bar.set_postfix(shown, refresh=False)

    def fit_batch(self, batches):
        """Makes an optimizer step: a forward and backward pass for each batch of crops.

        Unlike SpeechBrain's, it leaves the loss on the device. `read_losses` checks
        later whether it is finite.

        Arguments
        ---------
        batches : list of CropBatch
            What this process contributes to the step.

        Returns
        -------
        torch.Tensor
            The mean loss of the batches, detached, on the device.
        """
        self.on_fit_batch_start(batches, True)
        losses, outputs = [], None
        for number, batch in enumerate(batches, 1):
            with self.no_sync(number < len(batches)):
                with self.training_ctx:
                    outputs = self.compute_forward(batch, Stage.TRAIN)
                    loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach())
        self.optimizers_step()
        loss = torch.stack(losses).mean()
        if "loss" in self.shown:
            self.shown["loss"] = loss  # of all batches, not of the last one
        self.on_fit_batch_end(batches, outputs, loss, True)
        return loss

    def between_steps(self):
        """Always true: `fit_batch` makes a whole step."""
        return True

    def optimizers_step(self):
        """Clips the gradients and updates the weights.

        With `skip_nonfinite_grads` it skips a step whose gradients are not all finite.
        The result is SpeechBrain's. SpeechBrain measures the gradients twice and asks
        the device once per parameter. Here the norm is measured once and stays on the
        device; the fused optimizer scales the gradients while it reads them.
        """
        groups = self.optimizer.param_groups
        if self.scaler.is_enabled() or not all(group.get("fused") for group in groups):
            super().optimizers_step()
            return
        parameters = [p for group in groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.steps.add_norm(norm)
        # The optimizer divides the gradients by this.
        self.optimizer.grad_scale = (norm / self.max_grad_norm).clamp(min=1).float()
        if self.skip_nonfinite_grads:
            self.optimizer.found_inf = (~norm.isfinite()).float()
            self.skipped_steps = self.skipped_steps + self.optimizer.found_inf
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def update_average(self, loss, avg_loss):
        """Keeps a training loss on the device, and reads every 20 of them."""
        if self.stage != Stage.TRAIN:
            return super().update_average(loss, avg_loss)
        self.unread.append(loss)
        due = self.steps.due(self.optimizer_step)
        if due or len(self.unread) == _READ_EVERY:
            avg_loss = self.read_losses(avg_loss)
        if due:
            self.log_steps()
        return avg_loss

    def read_losses(self, avg_loss):
        """Adds the losses that were not read yet to the mean training loss.

        Arguments
        ---------
        avg_loss : float
            The mean loss since the last validation, without them.

        Returns
        -------
        float
            The mean over all processes.

        Raises
        ------
        UserError
            If more losses than `nonfinite_patience` allows were not finite.
        """
        if not self.unread:
            return avg_loss
        losses = self.mean_over_processes(torch.stack(self.unread).float()).tolist()
        first = self.step - len(losses) + 1
        self.unread = []
        self.steps.add(*losses)
        for step, loss in enumerate(losses, first):
            if math.isfinite(loss):
                avg_loss += (loss - avg_loss) / step
                continue
            self.nonfinite_count += 1
            if self.nonfinite_count > self.nonfinite_patience:
                raise UserError(
                    f"The loss was not finite {self.nonfinite_count} times since the "
                    f"last validation, more than nonfinite_patience="
                    f"{self.nonfinite_patience} allows, the last time at optimizer "
                    f"step {self.optimizer_step} or shortly before. Train anew, with "
                    "another --output_folder: with a lower lr (now "
                    f"{self.optimizer.param_groups[0]['lr']:g}) or max_grad_norm, or "
                    "with precision bf16 or fp32 if it is fp16. Or go on from the last "
                    "checkpoint with --skip_nonfinite_grads True."
                )
            logger.warning("The loss was not finite in a batch.")
        return avg_loss

    def mean_over_processes(self, tensor):
        """The mean of a tensor over all processes, the same in each.

        Arguments
        ---------
        tensor : torch.Tensor
            The same shape in every process. It may be overwritten.

        Returns
        -------
        torch.Tensor
        """
        if self.world_size == 1:
            return tensor
        torch.distributed.all_reduce(tensor)
        return tensor / self.world_size

    def _compile(self):
        if self.compile and self.device_type == "cpu":
            # The gradient of a ReLU needs only its output, which is stored anyway. By
            # default the compiler also stores a table of booleans. Filling it takes
            # longer than the ReLU. This switch makes the compiler recompute instead.
            partitioner.aggressive_recomputation = True
        if self.compile:
            for module in self.modules.modules():
                if isinstance(module, CodecLatents):
                    module.stay_uncompiled()
        super()._compile()

    def _wrap_distributed(self):
        super()._wrap_distributed()
        for module in self.modules.values():
            if isinstance(module, DistributedDataParallel):
                # Our buffers never change, and some are large: a whole frozen codec.
                module.broadcast_buffers = False

    def _save_intra_epoch_ckpt(self):
        self.avg_train_loss = self.read_losses(self.avg_train_loss)
        super()._save_intra_epoch_ckpt()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After a validation: notes what it measured and saves a checkpoint."""
        if stage == Stage.TRAIN:
            self.train_loss = self.read_losses(stage_loss)
            if skipped := int(self.skipped_steps):
                logger.warning(
                    f"{skipped} steps since the last validation were skipped: their "
                    "gradients were not finite."
                )
            self.skipped_steps = 0
            return
        row = {"step": self.optimizer_step}
        if self.train_loss is not None:
            row["train_loss"] = self.train_loss
        row.update(self.validation_row(stage_loss))
        row = {name: float(value) for name, value in row.items()}
        shown = [f"{k} {v:.3f}" for k, v in row.items() if k in self.reported]
        self.report(
            row,
            f"step {self.optimizer_step}: " + "  ".join(shown),
            meta={"step": self.optimizer_step, "loss": float(stage_loss)},
            num_to_keep=2,
        )

    # What is printed after each validation.
    reported = ()

    def validation_row(self, stage_loss):
        """What the validation measured, as a flat dict of numbers."""
        return {"valid_loss": stage_loss}
