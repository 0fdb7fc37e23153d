"""Classification of clips, on features computed once or with the encoder learning."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain import Stage
from speechbrain.dataio.dataloader import SaveableDataLoader
from torch.utils.data import DataLoader
from tqdm import tqdm

from encodecmae_sb.data.clips import (
    EpochBatches,
    LabelledClips,
    inspect_clips,
    read_manifests,
)
from encodecmae_sb.data.corpora import find_clips
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.evaluation.metrics import accuracy_scores, multi_label_scores
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.pretrained.folder import check_folder
from encodecmae_sb.pretrained.published import PUBLISHED
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file, write_text
from encodecmae_sb.utils.progress import open_bar

from .base import ResumableBrain

CLASS_WEIGHTS = (None, "balanced")


def find_data(hparams, named, output):
    """Clips that can be used, from manifests or from a corpus.

    The rate in the yaml is the corpus's; manifests are held to one that is named on
    the command line.

    Arguments
    ---------
    hparams : dict
        Reads `csv`, `train_csv`, `valid_csv`, `test_csv`, `multi_label`, `corpus`,
        `data_folder`, `corpus_rate` and `max_unusable`.
    named : set of str
        The yaml keys given on the command line.
    output : Path
        Where `unusable_files.csv` is written.

    Returns
    -------
    clips : list of Clip
    unusable : int
        How many were left out.

    Raises
    ------
    ValueError, FileNotFoundError
        As `read_manifests`, `find_clips`, `inspect_clips` and `UnusableFiles`.
    """
    manifests = {
        key: hparams[key] for key in ("csv", "train_csv", "valid_csv", "test_csv")
    }
    rate = hparams["corpus_rate"]
    if any(manifests.values()):
        clips = read_manifests(hparams["multi_label"], **manifests)
        rate = rate if "corpus_rate" in named else None
    else:
        clips = find_clips(hparams["corpus"], hparams["data_folder"])
    found = len(clips)
    clips, bad = inspect_clips(clips, rate)
    listed = output / "unusable_files.csv"
    listed.unlink(missing_ok=True)
    UnusableFiles(listed, found, hparams["max_unusable"]).add(bad)
    return clips, len(bad)


def describe_data(clips, runs, labels, unusable):
    """One line on the clips that were found."""
    hours = sum(clip.duration for clip in clips) / 3600
    folds = f"{len(runs)} folds" if len(runs) > 1 else "one split"
    return (
        f"{len(clips)} clips, {hours:.2f} h, {len(labels)} classes, {folds}; "
        f"{unusable} files left out."
    )


def check_encoder(source, key="encoder_folder"):
    """Makes sure that there is an encoder, before any work.

    Arguments
    ---------
    source : str
        An exported folder, or the name of published weights.
    key : str
        The yaml key that names it, for the message.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if Path(source).expanduser().is_dir():
        check_folder(source)
    elif source not in PUBLISHED:
        raise UserError(
            f"There is no encoder in {key}={source} (from {Path.cwd()}). The "
            "demonstration's is made by\n"
            "  python recipes/pretrain.py hparams/mini.yaml\n"
            f"or name another one, with --{key}: a folder that a recipe exported, or "
            f"published weights: {', '.join(PUBLISHED)}."
        )


def clips_key(clips):
    """Tells lists of clips apart, also when a file was replaced."""
    rows = []
    for clip in clips:
        stat = os.stat(clip.wav)
        rows.append([clip.id, clip.labels, stat.st_size, stat.st_mtime_ns])
    return digest(rows)


class ClassifyBrain(ResumableBrain):
    """Trains a `ClipClassifier`; randomness is a function of seed and step alone.

    Modules: `lobe` and `head`, those of the classifier. Reads from the yaml: `seed`,
    `number_of_epochs`, `epoch_counter`, `history`, `batch_size`, `num_workers`,
    `lr`, and, for a lobe that is not frozen, `lr_encoder` and `freeze_steps` (steps
    before it starts to learn).

    Arguments
    ---------
    classifier : ClipClassifier
    multi_label : bool
        Whether a clip may have several labels.
    loss_weights : torch.Tensor, optional
        From `loss_weights`.
    """

    def __init__(
        self, *args, classifier, multi_label=False, loss_weights=None, **kwargs
    ):
        modules = {"lobe": classifier.lobe, "head": classifier.head}
        super().__init__(modules, *args, **kwargs)
        self.classifier = classifier
        self.multi_label = multi_label
        self.loss_weights = None
        if loss_weights is not None:
            self.loss_weights = loss_weights.to(self.device)
        self.stored = False
        self.bar = None

    def fit_clips(self, train, valid):
        """Trains for `number_of_epochs`.

        Arguments
        ---------
        train, valid : LabelledClips
            Both with waveforms, or both with what `store_summaries` stored.
        """
        self.stored = train.stored is not None
        durations = [clip.duration for clip in train.clips]
        if self.stored and not self.modules.head.keeps_frames:
            durations = [0.0] * len(durations)  # nothing is padded
        self.train_sampler = EpochBatches(
            durations, self.hparams.batch_size, self.hparams.seed
        )
        # What is stored is read faster than handed from process to process.
        workers = 0 if self.stored else self.hparams.num_workers
        train_loader = SaveableDataLoader(
            train,
            batch_sampler=self.train_sampler,
            collate_fn=train.collate,
            num_workers=workers,
            pin_memory=self.device_type == "cuda",
        )
        self.checkpointer.add_recoverable("dataloader-TRAIN", train_loader)
        valid_loader = DataLoader(
            valid,
            batch_size=self.hparams.batch_size,
            collate_fn=valid.collate,
            num_workers=workers,
        )
        steps = len(self.train_sampler) // self.grad_accumulation_factor
        self.total_steps = steps * self.hparams.number_of_epochs
        self.fit(
            self.hparams.epoch_counter,
            train_loader,
            valid_loader,
            progressbar=False,  # our own spans the run
        )
        if self.bar is not None:
            self.bar.close()

    def init_optimizers(self):
        """One optimizer for the head, one for a lobe that is not frozen.

        Two, because SpeechBrain clips the gradients of a first group only.
        """
        groups = {"head": (self.modules.head, self.hparams.lr)}
        if not self.modules.lobe.freeze:
            groups["encoder"] = (self.modules.lobe, self.hparams.lr_encoder)
        self.optimizers_dict = {
            name: self.opt_class(
                [p for p in module.parameters() if p.requires_grad], lr=lr
            )
            for name, (module, lr) in groups.items()
        }
        for name, optimizer in self.optimizers_dict.items():
            self.checkpointer.add_recoverable(f"optimizer_{name}", optimizer)

    def freeze_optimizers(self, optimizers):
        """The encoder's optimizer waits for `freeze_steps`."""
        if self.optimizer_step < self.hparams.freeze_steps:
            return {"head": optimizers["head"]}
        return optimizers

    def on_fit_start(self):
        """Recovers the last checkpoint and opens the progress bar."""
        super().on_fit_start()
        if not self.noprogressbar:
            self.bar = open_bar(self.total_steps, initial=self.optimizer_step)

    def on_fit_batch_start(self, batch, should_step):
        """Seeds dropout, by the step alone."""
        step = [self.hparams.seed, self.hparams.epoch_counter.current, self.step]
        torch.manual_seed(int(np.random.SeedSequence(step).generate_state(1)[0]))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Moves the progress bar."""
        if self.bar is not None and should_step:
            shown = {"epoch": self.hparams.epoch_counter.current}
            if self.history.rows:
                shown["valid"] = f"{self.history.rows[-1]['score']:.3f}"
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(1)

    def compute_forward(self, batch, stage):
        """Logits [B, classes], float32."""
        batch = batch.to(self.device)
        if self.stored:
            return self.modules.head(batch.inputs.float(), batch.lengths).float()
        training = stage == Stage.TRAIN
        frozen = training and self.optimizer_step < self.hparams.freeze_steps
        with torch.no_grad() if frozen else contextlib.nullcontext():
            lens = batch.lengths / batch.inputs.shape[1]
            summary, num_frames = self.classifier.summarise(batch.inputs, lens)
        return self.modules.head(summary, num_frames).float()

    def compute_objectives(self, predictions, batch, stage):
        """The loss; in validation also what the score comes from."""
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
        """Empties what validation has seen."""
        self.seen = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After a validation: notes what it measured and saves a checkpoint."""
        if stage == Stage.TRAIN:
            self.train_loss = float(stage_loss)
            return
        if not np.isfinite([self.train_loss, stage_loss]).all():
            raise UserError(
                f"The loss is {self.train_loss} in epoch {epoch}: lower --lr"
                f"{'' if self.modules.lobe.freeze else ' or --lr_encoder'}."
            )
        logits, targets = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        if self.multi_label:
            score = multi_label_scores(logits.sigmoid(), targets)["mAP"]
        else:
            score = accuracy_scores(logits, targets)["accuracy"]
        row = {
            "epoch": epoch,
            "step": self.optimizer_step,
            "train_loss": self.train_loss,
            "valid_loss": float(stage_loss),
            "score": score,
        }
        self.history.append(row)
        if not self.modules.lobe.freeze:
            tqdm.write(
                f"epoch {epoch}: loss {row['train_loss']:.3f}  validation: "
                f"loss {row['valid_loss']:.3f}  {self.score_name} {score:.3f}"
            )
        self.checkpointer.save_and_keep_only(
            meta={"score": score, "loss": row["valid_loss"], "epoch": epoch},
            importance_keys=[_merit],
            verbosity=10,  # logging.DEBUG
        )

    @property
    def score_name(self):
        """What validation goes by."""
        return "mAP" if self.multi_label else "accuracy"

    def load_best(self):
        """Goes back to the checkpoint that validated best.

        Returns
        -------
        dict
            Its `score`, `loss` and `epoch`.

        Raises
        ------
        ValueError
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
        """Probabilities of clips, each computed alone, as `classify_file` does.

        Arguments
        ---------
        data : LabelledClips
            With waveforms.

        Returns
        -------
        torch.Tensor
            float32, shape [clips, classes].
        """
        loader = DataLoader(
            data, collate_fn=data.collate, num_workers=self.hparams.num_workers
        )
        self.classifier.eval()
        rows = []
        with torch.no_grad():
            for batch in _bar(loader, "Testing", self.noprogressbar):
                logits = self.classifier(batch.inputs.to(self.device))
                rows.append(probabilities(logits, self.multi_label).cpu())
        return torch.cat(rows)


def _merit(checkpoint):
    """Orders checkpoints: score, then loss, then the earlier epoch."""
    meta = checkpoint.meta
    if "score" not in meta:  # within an epoch
        return (-np.inf, 0.0, 0)
    return (meta["score"], -meta["loss"], -meta["epoch"])


def _bar(items, what, disable):
    return tqdm(
        items,
        desc=what,
        unit=" batches",
        dynamic_ncols=True,
        mininterval=0.5,
        leave=False,
        disable=disable or len(items) < 20,
    )


def loss_weights(targets, num_classes, how):
    """Weights that make up for classes of different size.

    Arguments
    ---------
    targets : torch.Tensor
        Of the training set, see `targets_of`.
    num_classes : int
    how : str, optional
        "balanced": single-label, clips / (classes * clips of the class);
        multi-label, clips without the label / clips with it. None: no weights.

    Returns
    -------
    torch.Tensor or None
        float32, shape [classes].

    Raises
    ------
    ValueError
        If `how` is none of these.

    Example
    -------
    >>> loss_weights(torch.tensor([0, 0, 0, 1]), 2, "balanced")
    tensor([0.6667, 2.0000])
    """
    if how not in CLASS_WEIGHTS:
        raise UserError(f"class_weights={how}: allowed are null and balanced.")
    if how is None:
        return None
    if targets.dim() == 2:
        counts = targets.sum(0).clamp(min=1)
        return (len(targets) - counts).clamp(min=1) / counts
    counts = torch.bincount(targets, minlength=num_classes).clamp(min=1)
    return len(targets) / (num_classes * counts.float())


class StoredSummaries:
    """What a frozen encoder and the fixed part of the pooling give, from a file.

    Arguments
    ---------
    path : str or Path
        Written by `store_summaries`.
    """

    def __init__(self, path):
        path = Path(path)
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.places = notes["places"]
        self.values = np.memmap(
            path, mode="r", dtype=notes["dtype"], shape=tuple(notes["shape"])
        )

    def __getitem__(self, clip_id):
        place = self.places[clip_id]
        rows = slice(*place) if isinstance(place, list) else place
        return torch.from_numpy(np.array(self.values[rows]))

    def __len__(self):
        return len(self.places)


@torch.no_grad()
def store_summaries(classifier, clips, path, batch_size, num_workers, device, quiet):
    """Runs every clip through a frozen classifier as far as nothing is learnt.

    Pooled vectors are kept in float32, frames in float16; a file that is already
    there is used.

    Arguments
    ---------
    classifier : ClipClassifier
        On the device.
    clips : list of Clip
    path : str or Path
        The file, whose name must be different for every other encoder, pooling and
        list of clips.
    batch_size, num_workers : int
    device : str or torch.device
    quiet : bool
        No progress bar.

    Returns
    -------
    StoredSummaries
    """
    path = Path(path)
    notes_path = path.with_suffix(".json")
    if notes_path.exists():
        return StoredSummaries(path)
    # Clips of like length together.
    clips = sorted(clips, key=lambda clip: -clip.duration)
    data = LabelledClips(clips, torch.zeros(len(clips)))
    loader = DataLoader(
        data, batch_size=batch_size, collate_fn=data.collate, num_workers=num_workers
    )
    frames = classifier.head.keeps_frames
    classifier.eval()
    places, rows = {}, 0
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        for batch in _bar(loader, "Encoding", quiet):
            batch = batch.to(device)
            lens = batch.lengths / batch.inputs.shape[1]
            summary, num_frames = classifier.summarise(batch.inputs, lens)
            summary = summary.half() if frames else summary.float()
            if not torch.isfinite(summary).all():
                bad = ~torch.isfinite(summary).flatten(1).all(1).cpu()
                clip = clips[batch.index.cpu()[bad][0]]
                raise UserError(
                    "The encoder gives features that are not finite (NaN or Inf), "
                    f"first of {clip.wav}: its weights are damaged. Pretrain it again "
                    "or name another one."
                )
            items = summary.cpu().numpy()  # [B, T, L, D] or [B, L, W]
            for i, item, count in zip(
                batch.index.tolist(), items, num_frames.tolist(), strict=True
            ):
                places[clips[i].id] = [rows, rows + count] if frames else rows
                rows += count if frames else 1
                file.write((item[:count] if frames else item).tobytes())
    notes = {
        "shape": [rows, *items.shape[-2:]],
        "dtype": str(items.dtype),
        "places": places,
    }
    # Last: with the notes the file counts.
    write_text(notes_path, json.dumps(notes))
    return StoredSummaries(path)
