"""What recognition and classification share: a head is trained on an encoder."""

import numpy as np
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.utils.progress import open_bar

from .base import ResumableBrain


class FineTuneBrain(ResumableBrain):
    """Trains a head, and along with it the encoder unless that is frozen.

    Modules: `encoder` (with an attribute `freeze`) and `head`. The argument
    `opt_class` makes an optimizer from parameters and `lr`. Reads from the yaml:
    `seed`, `epoch_counter`, `lr` and, for an encoder that is not frozen,
    `lr_encoder` and `freeze_steps` (steps before it starts to learn).

    Subclasses set `total_steps` before they call `fit`.
    """

    bar = None
    batch_is_empty = False  # of which no audio could be read

    def init_optimizers(self):
        """One optimizer for what is new, one for an encoder that is not frozen.

        Two, because SpeechBrain clips the gradients of a first group only.
        """
        head, encoder = list(self.modules.head.parameters()), []
        for name, parameter in self.modules.encoder.named_parameters():
            # The weights of a sum of layers are new, as the head is.
            new = name.endswith("layer_weights")
            if parameter.requires_grad:
                (head if new else encoder).append(parameter)
        groups = {"head": (head, self.hparams.lr)}
        if encoder:
            groups["encoder"] = (encoder, self.hparams.lr_encoder)
        self.peak_lr = {name: lr for name, (_, lr) in groups.items()}
        self.optimizers_dict = {
            name: self.opt_class(parameters, lr=lr)
            for name, (parameters, lr) in groups.items()
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(f"optimizer_{name}", optimizer)

    @property
    def encoder_waits(self):
        """Whether an encoder that is not frozen does not learn yet."""
        encoder = getattr(self.modules.encoder, "module", self.modules.encoder)
        return not encoder.freeze and self.optimizer_step < self.hparams.freeze_steps

    def freeze_optimizers(self, optimizers):
        """The encoder's optimizer waits for `freeze_steps`."""
        return {"head": optimizers["head"]} if self.encoder_waits else optimizers

    def step_seed(self, *more):
        """A seed for the next forward pass, by epoch and step alone."""
        step = [self.hparams.seed, self.hparams.epoch_counter.current, self.step]
        return int(np.random.SeedSequence([*step, *more]).generate_state(1)[0])

    def fit(self, *args, **kwargs):
        """As in SpeechBrain, with one progress bar for the whole run."""
        super().fit(*args, progressbar=False, **kwargs)
        if self.bar is not None:
            self.bar.close()

    def on_fit_start(self):
        """Recovers the last checkpoint and opens the progress bar."""
        super().on_fit_start()
        if if_main_process() and not self.noprogressbar:
            self.bar = open_bar(self.total_steps, initial=self.optimizer_step)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Notes what the batch measured, and moves the progress bar."""
        if self.steps.interval is not None and not self.batch_is_empty:
            self.steps.add(float(loss.detach()))
            processes = self.shares()["processes"]
            self.steps.seconds += processes * self.audio_seconds(batch)
        if should_step and self.steps.due(self.optimizer_step):
            self.log_steps()
        if self.bar is not None and should_step:
            epoch = self.hparams.epoch_counter.current
            self.bar.set_postfix(epoch=epoch, **self.shown(), refresh=False)
            self.bar.update(1)

    def audio_seconds(self, batch):
        """Seconds of audio in a batch; 0 where stored features are trained on."""
        return 0.0

    def shown(self):
        """What the progress bar shows besides the epoch: names and texts."""
        return {}
