"""Trains a classifier of clips, on stored features or with the encoder learning."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.dataio.dataloader import SaveableDataLoader
from torch.utils.data import DataLoader

from encodecmae_sb.data.clip_batches import EpochBatches
from encodecmae_sb.evaluation.metrics import clip_scores
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar

from .finetune import FineTuneBrain


class ClassifyBrain(FineTuneBrain):
    """Trains a `ClipClassifier`. What is random depends on seed and step alone.

    Modules: `encoder` and `head`, those of the classifier. Reads from the yaml, besides
    what `FineTuneBrain` reads: `number_of_epochs`, `history`, `batch_size` and
    `num_workers`.

    Arguments
    ---------
    classifier : ClipClassifier
    multi_label : bool
        Whether a clip may have several labels.
    loss_weights : torch.Tensor, optional
        Of the classes, float32, shape [classes].
    """

    fits_once = False  # a Brain for each fold

    def __init__(
        self, *args, classifier, multi_label=False, loss_weights=None, **kwargs
    ):
        modules = {"encoder": classifier.lobe, "head": classifier.head}
        super().__init__(modules, *args, **kwargs)
        self.classifier = classifier
        self.multi_label = multi_label
        self.loss_weights = None
        if loss_weights is not None:
            self.loss_weights = loss_weights.to(self.device)
        self.stored = False

    def fit_clips(self, train, valid):
        """Trains for `number_of_epochs`.

        Arguments
        ---------
        train, valid : LabelledClips
            Both with waveforms, or both with what `store_summaries` stored.
        """
        durations = [clip.duration for clip in train.clips]
        self.stored = train.stored is not None
        if self.stored and not self.modules.head.keeps_frames:
            durations = [0.0] * len(durations)  # nothing is padded
        self.train_sampler = EpochBatches(
            durations, self.hparams.batch_size, self.hparams.seed
        )
        # Reading what is stored is faster than passing it between processes.
        workers = 0 if self.stored else self.hparams.num_workers
        train_loader = SaveableDataLoader(
            train,
            batch_sampler=self.train_sampler,
            collate_fn=train.collate,
            num_workers=workers,
            worker_init_fn=ignore_signals,
            pin_memory=self.device_type == "cuda",
        )
        self.checkpointer.add_recoverable("dataloader-TRAIN", train_loader)
        valid_loader = DataLoader(
            valid,
            batch_size=self.hparams.batch_size,
            collate_fn=valid.collate,
            num_workers=workers,
            worker_init_fn=ignore_signals,
        )
        steps = len(self.train_sampler) // self.grad_accumulation_factor
        self.total_steps = steps * self.hparams.number_of_epochs
        self.fit(self.hparams.epoch_counter, train_loader, valid_loader)

    def on_fit_batch_start(self, batch, should_step):
        """Seeds dropout, by the step alone."""
        torch.manual_seed(self.step_seed())

    def audio_seconds(self, batch):
        """Seconds of audio in a batch; 0 where stored features are trained on."""
        return 0.0 if self.stored else float(batch.lengths.sum()) / SAMPLE_RATE

    def shown(self):
        """The score of the last validation."""
        rows = self.history.rows
        return {"valid": f"{rows[-1]['score']:.3f}"} if rows else {}

    def compute_forward(self, batch, stage):
        """Logits [B, classes], float32."""
        lengths = batch.lengths  # on the CPU, where frames are counted
        batch = batch.to(self.device)
        if self.stored:
            return self.modules.head(batch.inputs.float(), batch.lengths).float()
        waits = stage == Stage.TRAIN and self.encoder_waits
        with torch.no_grad() if waits else contextlib.nullcontext():
            summary, num_frames = self.classifier.summarise(batch.inputs, lengths)
        return self.modules.head(summary, num_frames).float()

    def compute_objectives(self, predictions, batch, stage):
        """The loss. In validation it also keeps logits and targets for the score."""
        targets = batch.targets.to(self.device)
        if self.multi_label:
            loss = F.binary_cross_entropy_with_logits(
                predictions, targets, pos_weight=self.loss_weights
            )
        else:
            loss = F.cross_entropy(predictions, targets, weight=self.loss_weights)
        if stage == Stage.VALID:
            self.seen.append((predictions.cpu(), targets.cpu()))
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Forgets the logits and targets of the last validation."""
        self.seen = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After a validation: adds a row to the history and saves a checkpoint."""
        if stage == Stage.TRAIN:
            self.train_loss = float(stage_loss)
            return
        if not np.isfinite([self.train_loss, stage_loss]).all():
            raise UserError(
                f"The loss is {self.train_loss} in epoch {epoch}: lower --lr"
                f"{'' if self.modules.encoder.freeze else ' or --lr_encoder'}."
            )
        logits, targets = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        scores = clip_scores(logits.sigmoid() if self.multi_label else logits, targets)
        score = scores[self.score_name]
        row = {
            "epoch": epoch,
            "step": self.optimizer_step,
            "train_loss": self.train_loss,
            "valid_loss": float(stage_loss),
            "score": score,
        }
        shown = (
            f"epoch {epoch}: loss {row['train_loss']:.3f}  validation: "
            f"loss {row['valid_loss']:.3f}  {self.score_name} {score:.3f}"
        )
        # An epoch of a head alone takes less than a second: the bar is enough.
        self.report(
            row,
            None if self.modules.encoder.freeze else shown,
            meta={"score": score, "loss": row["valid_loss"], "epoch": epoch},
            importance_keys=[_merit],
        )

    @property
    def score_name(self):
        """The metric by which the best checkpoint is chosen."""
        return "mAP" if self.multi_label else "accuracy"

    def load_best(self):
        """Loads the checkpoint with the best validation.

        Returns
        -------
        dict
            Its `score`, `loss` and `epoch`.

        Raises
        ------
        UserError
            If there is none.
        """
        best = self.checkpointer.recover_if_possible(importance_key=_merit)
        if best is None:
            raise UserError(
                f"No checkpoint in {self.checkpointer.checkpoints_dir}: nothing was "
                "trained. Run without --test_only first."
            )
        return {key: best.meta[key] for key in ("score", "loss", "epoch")}

    def predict(self, data):
        """Probabilities of clips.

        Waveforms are classified one by one, as `classify_file` does. Stored summaries
        were encoded in batches, so they are the same up to float noise.

        Arguments
        ---------
        data : LabelledClips
            With waveforms, or with what `store_summaries` stored.

        Returns
        -------
        torch.Tensor
            float32, shape [clips, classes].
        """
        self.stored = data.stored is not None
        workers = 0 if self.stored else self.hparams.num_workers
        loader = DataLoader(
            data,
            collate_fn=data.collate,
            num_workers=workers,
            worker_init_fn=ignore_signals,
        )
        self.classifier.eval()
        rows = []
        quiet = self.noprogressbar or self.stored
        bar = open_bar(len(loader), "Testing", "clips", quiet=quiet)
        with torch.no_grad(), bar:
            for batch in loader:
                logits = self.compute_forward(batch, Stage.TEST)
                rows.append(probabilities(logits, self.multi_label).cpu())
                bar.update(1)
        return torch.cat(rows)


def _merit(checkpoint):
    """Orders checkpoints: by score, then by loss, then the earlier epoch."""
    meta = checkpoint.meta
    if "score" not in meta:  # saved within an epoch
        return (-np.inf, 0.0, 0)
    return (meta["score"], -meta["loss"], -meta["epoch"])
