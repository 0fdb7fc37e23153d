"""What pretraining and codec training share: a run counted in steps that can be
killed at any of them, reports as it goes, and remembers what it measured."""

import json
import math
import time

import torch
from speechbrain import Brain, Stage
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
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
from encodecmae_sb.utils.progress import open_bar

logger = get_logger(__name__)

# Steps whose losses are read from the device together.
_READ_EVERY = 20


def cosine_schedule(progress, lr, warmup=0.01, final=0.05):
    """Learning rate after a share of a run: linear warm-up, then half a cosine.

    Example
    -------
    >>> cosine_schedule(0.01, lr=1.0), round(cosine_schedule(1.0, lr=1.0), 2)
    (1.0, 0.05)
    """
    if progress < warmup:
        return lr * progress / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def share_crops(crops_per_step, batch_size, num_processes):
    """Forward passes of each process that make up a step of so many crops.

    Arguments
    ---------
    crops_per_step : int
        Of all processes together.
    batch_size : int
        Crops per process and forward pass.
    num_processes : int

    Returns
    -------
    int

    Raises
    ------
    UserError
        If the crops cannot be shared evenly.

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


@register_checkpoint_hooks
class History:
    """What each validation measured, saved with every checkpoint.

    Example
    -------
    >>> history = History()
    >>> history.append({"step": 10, "loss": 0.5})
    >>> history.column("loss")
    [0.5]
    """

    def __init__(self):
        self.rows = []

    def append(self, row):
        """Adds a row: a dict of plain numbers."""
        self.rows.append(row)

    def column(self, name):
        """All values of one measurement, oldest first."""
        return [row[name] for row in self.rows if name in row]

    @mark_as_saver
    def save(self, path):
        """Writes the rows as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.rows, file)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads the rows back."""
        with open(path, encoding="utf-8") as file:
            self.rows = json.load(file)


class ResumableBrain(Brain):
    """A Brain with a history, that can be stopped between any two optimizer steps.

    Reads from the yaml: `history`; `precision`, which may be `auto` (see
    `precision.best_precision`); and, if there is one, `train_logger`.

    Raises
    ------
    ValueError
        If `max_grad_norm` is not positive: 0 would stop the learning, and a negative
        number turn it round.
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
        """How the work of a step is shared, as far as the result depends on it."""
        processes = 1
        if self.distributed_launch:
            processes = torch.distributed.get_world_size()
        factor = self.grad_accumulation_factor
        return {"grad_accumulation_factor": factor, "processes": processes}

    def identify(self, **content):
        """Makes sure that checkpoints which are there are of this very training.

        Arguments
        ---------
        **content
            What the training depends on besides the yaml and the run options: data,
            targets, weights that it starts from; see `identity.named`.

        Raises
        ------
        UserError
            If they are of another; the message lists what differs.
        """
        options = {"precision": self.precision, "max_grad_norm": self.max_grad_norm}
        how = {**options, **self.shares()}
        identity = {**getattr(self.hparams, "yaml_identity", {}), **how, **content}
        # A test may be run otherwise than the training was.
        ignored = how if self.test_only else ()
        self.checkpointer.identify(identity, ignored)
        if hasattr(self.hparams, "record_experiment") and not self.test_only:
            self.hparams.record_experiment()

    def report(self, row, shown, **checkpoint):
        """Notes what a validation measured, everywhere it is wanted, and saves.

        The row goes to the history, the terminal, the yaml's `train_logger` where there
        is one (SpeechBrain's loggers fit as they are), and into a checkpoint.

        Arguments
        ---------
        row : dict of str to number
            `step` or `epoch`, or both, and what was measured. What begins with
            `train_` is of the training, all else of the validation.
        shown : str
            The line for the terminal.
        **checkpoint
            Of SpeechBrain's `Checkpointer.save_and_keep_only`.
        """
        row = {name: float(value) for name, value in row.items()}
        self.history.append(row)
        if if_main_process():
            tqdm.write(shown)
            logger = getattr(self.hparams, "train_logger", None)
            if logger is not None:
                _log(logger, row)
        # logging.DEBUG: the line above is news enough.
        self.checkpointer.save_and_keep_only(**checkpoint, verbosity=10)

    def between_steps(self):
        """Whether no part of an accumulated gradient waits for the others."""
        return self.step % self.grad_accumulation_factor == 0

    def _should_save_intra_epoch_ckpt(self, *args):
        # A checkpoint does not hold gradients.
        return super()._should_save_intra_epoch_ckpt(*args) and self.between_steps()


def _log(logger, row):
    """Hands a row to one of SpeechBrain's loggers."""
    meta = {name: int(row[name]) for name in ("epoch", "step") if name in row}
    train = {k.removeprefix("train_"): v for k, v in row.items() if k[:6] == "train_"}
    measured = (k for k in row if k not in meta and k[:6] != "train_")
    valid = {k.removeprefix("valid_"): row[k] for k in measured}
    logger.log_stats(meta, train_stats=train, valid_stats=valid)


def _choose_precision(device=None):
    """What `precision: auto` stands for on the device that a run is on."""
    device = device or infer_device()
    precision = best_precision(device)
    if precision == "fp32" and if_main_process():
        print(
            f"Precision: fp32, since {device} has no instructions for bf16.", flush=True
        )
    return precision


class StepBrain(ResumableBrain):
    """A Brain whose run is counted in optimizer steps.

    SpeechBrain's epoch is here the stretch between two validations, and its batch all
    crops that a process contributes to an optimizer step: a list with a `CropBatch`
    for each forward pass. All randomness comes with the crops (see `data.crops`), and
    which crops come next follows from the number of optimizer steps alone. So a run
    killed at any step and started again ends with the same weights, bit for bit on a
    CPU, and it may go on with other numbers of processes, of crops per forward pass
    or of steps between validations. No step waits for the device: what is to be
    reported is read every 20 steps, or when the bar is drawn.

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
        """Crops of an optimizer step, of all processes together."""
        share = self.hparams.batch_size * self.grad_accumulation_factor
        return share * self.world_size

    def shares(self):
        """Only the crops of a step: how they are shared changes nothing."""
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
        )
        valid_loader = DataLoader(
            valid_crops,
            batch_size=self.hparams.batch_size,
            collate_fn=CropCollator(),
        )
        # Our own bar spans the run; SpeechBrain's would restart every epoch.
        self.fit(self.stretches(sampler), train_loader, valid_loader, False)
        if self.bar is not None:
            self.bar.close()

    def stretches(self, sampler):
        """Numbers the stretches between validations, from where the run is now.

        Arguments
        ---------
        sampler : DrawSampler
            Is told which steps each stretch has.

        Yields
        ------
        int
            Validations so far, plus 1.
        """
        interval, last = self.hparams.valid_interval, self.hparams.training_steps
        # The step alone does not tell that a run is finished: it may have been killed
        # before its last validation.
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
        """Starts the clock of a training stretch."""
        self.stage = stage
        if stage == Stage.TRAIN:
            self.stretch_started = time.time()
            self.stretch_seconds = 0.0

    def on_fit_batch_start(self, batches, should_step):
        """Accounts for files that could not be read."""
        bad = [item for batch in batches for item in batch.unusable]
        if bad and self.unusable is not None:
            self.unusable.add(bad)

    def on_fit_batch_end(self, batches, outputs, loss, should_step):
        """Moves the progress bar."""
        samples = sum(batch.wavs.shape[0] * batch.wavs.shape[1] for batch in batches)
        self.stretch_seconds += samples / self.hparams.sample_rate * self.world_size
        if self.bar is None:
            return
        self.bar.update(1)
        if time.monotonic() - self.shown_at < self.bar.mininterval:
            return  # reading the numbers would wait for the device, and show nothing
        self.shown_at = time.monotonic()
        rate = self.stretch_seconds / (time.time() - self.stretch_started)
        shown = {name: f"{float(value):.3f}" for name, value in self.shown.items()}
        shown["audio"] = f"{rate:.1f} s/s"
        self.bar.set_postfix(shown, refresh=False)

    def fit_batch(self, batches):
        """An optimizer step: a forward and backward pass for each batch of crops.

        As in SpeechBrain, but that the loss stays on the device: whether it is finite
        is seen when it is read.

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
            self.shown["loss"] = loss  # not that of the last batch alone
        self.on_fit_batch_end(batches, outputs, loss, True)
        return loss

    def between_steps(self):
        """Always: `fit_batch` makes a whole step."""
        return True

    def optimizers_step(self):
        """Clips the gradients and makes a step.

        With `skip_nonfinite_grads` not if they are not all finite. As in SpeechBrain,
        which measures them twice and asks the device for each parameter; a fused
        optimizer takes both as numbers on the device, and scales gradients as it
        reads them.
        """
        groups = self.optimizer.param_groups
        if self.scaler.is_enabled() or not all(group.get("fused") for group in groups):
            super().optimizers_step()
            return
        parameters = [p for group in groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # The optimizer divides by it.
        self.optimizer.grad_scale = (norm / self.max_grad_norm).clamp(min=1).float()
        if self.skip_nonfinite_grads:
            self.optimizer.found_inf = (~norm.isfinite()).float()
            self.skipped_steps = self.skipped_steps + self.optimizer.found_inf
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def update_average(self, loss, avg_loss):
        """Keeps a training loss for later, and now and then reads those kept."""
        if self.stage != Stage.TRAIN:
            return super().update_average(loss, avg_loss)
        self.unread.append(loss)
        if len(self.unread) < _READ_EVERY:
            return avg_loss
        return self.read_losses(avg_loss)

    def read_losses(self, avg_loss):
        """Mean loss of a training stretch, with the losses that were not read yet.

        Arguments
        ---------
        avg_loss : float
            The mean without them.

        Returns
        -------
        float
            Over all processes.

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
            Of the same shape in every process; may be overwritten.

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
            # For the gradient of a ReLU its output will do, which is kept in any case.
            # Left to itself the compiler keeps a table of booleans beside it, and
            # fills that value by value, which takes longer than all of the ReLU. This
            # is the one switch for it; what else is computed anew is cheap.
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
                # Our buffers never change; one that is frozen may be a whole codec.
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
        row = {"step": self.optimizer_step, "train_loss": self.train_loss}
        row.update(self.validation_row(stage_loss))
        shown = [f"{k} {v:.3f}" for k, v in row.items() if k in self.reported]
        self.report(
            row,
            f"step {self.optimizer_step}: " + "  ".join(shown),
            meta={"step": self.optimizer_step, "loss": float(stage_loss)},
            num_to_keep=2,
        )

    # Names in the validation row that are printed after each validation.
    reported = ()

    def validation_row(self, stage_loss):
        """What the validation measured, as a flat dict of numbers."""
        return {"valid_loss": stage_loss}
