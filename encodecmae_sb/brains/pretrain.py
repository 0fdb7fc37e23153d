"""Masked pretraining: hide half of the frames, predict their codes."""

import math
from pathlib import Path

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

from encodecmae_sb.data.crops import CropCollator
from encodecmae_sb.evaluation.monitors import Monitors, utterance_vectors, word_probe
from encodecmae_sb.nnet.codebooks import CodebookSampler
from encodecmae_sb.nnet.masking import frame_mask
from encodecmae_sb.nnet.schedules import layer_scales, warmed
from encodecmae_sb.nnet.targets import on_frames_of
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.recoverables import Unigrams
from encodecmae_sb.utils.values import is_number

from .base import StepBrain

# Crops in which codes are counted, if a run draws as many.
_UNIGRAM_CROPS = 512


class PretrainBrain(StepBrain):
    """Pretrains a `MaskedCodecModel` on the codes of its targets.

    Modules: `model` (`MaskedCodecModel`), `masker` (`GapMasker`), `loss_fn`
    (`MaskedCodecLoss`) and, unless the crops bring their codes (see `data.codes`),
    `targets` (`Targets`). Reads from the yaml, besides `StepBrain`'s, what is there of:

    * `init`: validates once before the first step, since the weights are not new.
    * `lr_schedule`: a function of the share of the run that is done (the paper: none).
    * `warmup_steps`: steps in which the learning rate rises to `lr`; see `warmed`.
    * `layer_decay`: see `layer_scales`.
    * `input_augment`: a function `(wavs [B, N], lengths [B], seeds [B]) -> wavs` of
      what the model hears in training, called once in each forward pass, after the
      targets were taken from the clean audio. Whatever it draws must follow from the
      seeds, or a resumed run would hear something else.
    * `codebooks_per_step`: how many codebooks a training step predicts, drawn by their
      weight in the loss; null: all. The training loss is then in the mean that of all.

    Validation measures on all hidden frames of the validation set, for each codebook
    q = 1, 2, ...:

    * `masked_ce_q`: the cross-entropy, in nats.
    * `masked_accuracy_q`: the share of frames whose most probable code is right.
    * `unigram_ce_q`: the cross-entropy, in nats, of a model that knows how often each
      code occurs in the training set, and nothing else.

    With several corpora each of these is given for every corpus, too, as
    `<corpus>/<name>`; the unigram is then that of this corpus alone.

    With one codebook, as in self-training, it also measures:

    * `majority_accuracy`: the accuracy of the best constant answer on hidden frames.
    * `clusters_used`: the share of the codes that occur in the validation set.
    * `cluster_perplexity`: e to the entropy of their distribution there.

    With `keep_encoders: True` in the yaml each validation also exports the encoder, to
    `steps/step_N` in the output folder.

    With `monitors: True` in the yaml it also measures what `evaluation.monitors`
    describes, on frames of whole crops and utterances, with nothing hidden.
    """

    reported = (
        *("train_loss", "masked_ce_1", "unigram_ce_1", "masked_accuracy_1"),
        *("majority_accuracy", "clusters_used"),
    )

    def __init__(self, *args, corpora=("all",), **kwargs):
        super().__init__(*args, **kwargs)
        self.corpora = list(corpora)
        self.unigram = None
        self.transcripts = None  # of the validation set, once it is known
        self.utterances = []  # of it: audio, and the words in it
        self.licence = None  # that the encoder has, once it is known
        steps, decay = self._option("warmup_steps"), self._option("layer_decay")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise UserError(f"warmup_steps={steps}: give a whole number, or null.")
        if decay is not None and not (is_number(decay) and 0 < decay <= 1):
            raise UserError(
                f"layer_decay={decay}: give a number above 0 and up to 1, or null."
            )
        self.codebook_sampler = self._make_sampler()
        self.drawn = None  # the codebooks of the step, where these are not all

    def _make_sampler(self):
        """What draws the codebooks of each step; None if all are predicted."""
        count = self._option("codebooks_per_step")
        if count is None:
            return None
        if type(count) is not int or count < 1:
            raise UserError(
                f"codebooks_per_step={count}: give a whole number above 0, or null for "
                "all codebooks."
            )
        weights = self.hparams.loss_fn.weights.tolist()
        if count >= sum(weight > 0 for weight in weights):
            return None
        return CodebookSampler(weights, count, self.hparams.seed)

    def _option(self, name):
        return getattr(self.hparams, name, None)

    def init_optimizers(self):
        """As SpeechBrain's; with `layer_decay`, parameters have shares of the rate."""
        super().init_optimizers()
        decay = self._option("layer_decay")
        if decay is None:
            return
        model, groups = self.hparams.model, []
        names = {id(p): name for name, p in model.named_parameters()}
        scales = layer_scales(model, decay)
        for group in self.optimizer.param_groups:
            by_scale = {}
            for parameter in group["params"]:
                scale = scales.get(names.get(id(parameter)), 1.0)
                by_scale.setdefault(scale, []).append(parameter)
            for scale, parameters in by_scale.items():
                share = {"params": parameters, "lr_scale": scale}
                groups.append({**group, **share, "lr": scale * group["lr"]})
        self.optimizer.param_groups[:] = groups

    def fit_crops(self, train_crops, valid_crops):
        """Trains to `training_steps`; see `StepBrain`."""
        self.train_crops = train_crops
        self.transcripts = [item.get("wrd", "") for item in valid_crops.items]
        self.utterances = [
            (item["utterance"], set(item["wrd"].split()))
            for item in valid_crops.items
            if "utterance" in item
        ]
        super().fit_crops(train_crops, valid_crops)

    def on_fit_start(self):
        """Counts codes, unless a checkpoint has them."""
        unigrams = Unigrams()
        self.checkpointer.add_recoverable("unigrams", unigrams)
        super().on_fit_start()
        if unigrams.log_probs is None:
            unigrams.log_probs = self.count_codes(self.train_crops)
        self.unigram = unigrams.log_probs.to(self.device)
        if self._option("init") and not (self.optimizer_step or self.history.rows):
            self._fit_valid(self.valid_loader, 0, False)
            if if_main_process():
                loss = self.history.rows[0]["valid_loss"]
                tqdm.write(f"Validation loss before the first step: {loss:.6f}")

    @torch.no_grad()
    def count_codes(self, crops):
        """Counts codes in training crops: for the mixture, and for each corpus.

        Arguments
        ---------
        crops : RandomCrops
            The mixture is counted in its first 512 draws, or in all draws of a shorter
            run. A corpus is counted in its crops among them. Further draws are added
            until there are half as many.

        Returns
        -------
        torch.Tensor
            Log-probabilities of the mixture and then of each corpus, float32, shape
            [1 + corpora, Q, K]. Each count is increased by 1, so that no probability
            is 0. NaN for a corpus that is drawn too rarely.
        """
        sizes = self.hparams.n_codebooks, self.hparams.codebook_size
        counts = torch.ones(1 + len(self.corpora), *sizes)
        collate, size = CropCollator(), self.hparams.batch_size
        draws, enough = self._draws_to_count(crops)
        for start in range(0, len(draws), size):
            chosen = draws[start : start + size]
            batch = collate([crops[draw] for draw in chosen])
            codes = self.codes(batch.to(self.device)).cpu()
            rows = chosen, batch.corpus.tolist(), codes, batch.num_frames
            for draw, corpus, item, num_frames in zip(*rows, strict=True):
                tables = [counts[1 + corpus]]
                if draw < self._sample_size:
                    tables.append(counts[0])
                for q, found in enumerate(item[:num_frames].T):
                    found = torch.bincount(found, minlength=counts.shape[-1])
                    for table in tables:
                        table[q] += found
        counts[1:][~enough] = torch.nan
        return (counts / counts.sum(-1, keepdim=True)).log().to(self.device)

    @property
    def _sample_size(self):
        draws = self.hparams.training_steps * self.crops_per_step
        return min(_UNIGRAM_CROPS, draws)

    def _draws_to_count(self, crops):
        """The draws in which codes are counted, and which corpora have enough."""
        size = self._sample_size
        draws = list(range(size))
        corpora = [crops.corpus_of(draw) for draw in draws]
        drawn = np.bincount(corpora, minlength=len(self.corpora))
        for draw in range(size, 100 * size):
            if drawn.min() >= size // 2:
                break
            corpus = crops.corpus_of(draw)
            if drawn[corpus] < size // 2:
                draws.append(draw)
                drawn[corpus] += 1
        return draws, torch.from_numpy(drawn >= size // 2)

    def codes(self, batch):
        """The targets of a batch on the device, int64, shape [B, T, Q]."""
        if batch.targets is not None:
            return batch.targets
        # As `extract_codes` computes them, so that stored codes are the same.
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            return self.modules.targets.encode(batch.wavs, batch.lengths)

    def augmented(self, batch):
        """What the model hears of a training batch: clean, or as `input_augment` says.

        Raises
        ------
        UserError
            If it gives another shape.
        """
        augment = self._option("input_augment")
        if augment is None:
            return batch.wavs
        if isinstance(augment, torch.nn.Module):
            augment.to(self.device)
        with torch.autocast(self.device_type, enabled=False):
            wavs = augment(batch.wavs, batch.lengths, batch.seeds)
        if wavs.shape != batch.wavs.shape:
            raise UserError(
                f"input_augment gives the shape {list(wavs.shape)} for waveforms of "
                f"{list(batch.wavs.shape)}. It must keep the shape."
            )
        # Nothing is heard after an item's end.
        return wavs * frame_mask(batch.lengths, wavs.shape[1])

    def on_stage_start(self, stage, epoch=None):
        """Empties the sums of the validation."""
        super().on_stage_start(stage, epoch)
        if stage == Stage.VALID:
            self.sums = torch.zeros(
                len(self.corpora),
                4,
                self.hparams.n_codebooks,
                dtype=torch.float64,
            )
            self.frames = torch.zeros(len(self.corpora), dtype=torch.float64)
            # How often each code of the only codebook occurs: hidden, and in all.
            size = self.hparams.codebook_size
            self.code_counts = torch.zeros(2, size, dtype=torch.int64)
            self.monitors = None
            if self._option("monitors") and self.transcripts is not None:
                sizes = self.hparams.n_codebooks, size
                self.monitors = Monitors(self.transcripts, self.corpora, *sizes)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """As `StepBrain`; after a validation it keeps the encoder, if it is to."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == Stage.VALID and self._option("keep_encoders") and if_main_process():
            row = self.history.rows[-1]
            step = int(row["step"])
            export_encoder(
                self.hparams.model.encoder,
                Path(self.hparams.output_folder) / f"steps/step_{step}",
                f"Kept at step {step} of a training on {', '.join(self.corpora)}.",
                row,
                licence=self.licence,
            )

    def on_fit_batch_start(self, batches, should_step):
        """Counts frames, draws codebooks and sets the learning rate of the step."""
        super().on_fit_batch_start(batches, should_step)
        frames = torch.cat([batch.num_frames for batch in batches])
        counts = self.modules.masker.counts(frames)
        # The counts of one batch on average. With these, the mean of the losses of all
        # batches is the loss of all frames of the step, however they are shared.
        counts = counts.to(self.device, non_blocking=True) / len(batches)
        self.step_counts = self.mean_over_processes(counts)
        if self.codebook_sampler is not None:
            # By the number of the step: all processes and batches of it have the same.
            drawn = self.codebook_sampler.draw(self.optimizer_step)
            self.drawn = drawn.to(self.device)
        rate = self.learning_rate()
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    def learning_rate(self):
        """That of the next step; None if the optimizer's own stays as it is."""
        schedule, steps = self._option("lr_schedule"), self._option("warmup_steps")
        rate = None
        if schedule is not None:
            rate = schedule(self.optimizer_step / self.hparams.training_steps)
        if steps is None:
            return rate
        lr = self.hparams.lr
        return warmed(lr if rate is None else rate, self.optimizer_step, lr, steps)

    def compute_forward(self, batch, stage):
        """Hides frames and predicts codes.

        Returns
        -------
        logits : torch.Tensor
            Shape [B, T, Q, K]; in training of the step's codebooks alone.
        codes : torch.Tensor
            int64, shape [B, T, Q].
        mask : FrameMask
            Which frames are hidden, visible and padding.
        """
        items = batch.num_frames, batch.seeds, batch.corpus  # still on the CPU
        batch = batch.to(self.device)
        codes = self.codes(batch)
        # After the targets: they stay those of the clean audio.
        wavs = self.augmented(batch) if stage == Stage.TRAIN else batch.wavs
        front_end = self.hparams.model.encoder.front_end
        wavs, codes = on_frames_of(front_end, wavs, codes)
        if stage == Stage.VALID and self.monitors is not None:
            num_frames = None if batch.full else batch.num_frames
            frames = self.hparams.model.encoder(wavs, num_frames).last
            self.monitors.add_frames(frames, *items)
        mask = self.modules.masker(
            batch.num_frames, batch.seeds, codes.shape[1], padded=not batch.full
        )
        if stage == Stage.TRAIN and self.drawn is not None:
            return self.modules.model(wavs, mask, self.drawn.numbers), codes, mask
        return self.modules.model(wavs, mask), codes, mask

    def compute_objectives(self, predictions, batch, stage):
        """The loss. In validation it also adds to the sums behind the metrics."""
        logits, codes, mask = predictions
        training = stage == Stage.TRAIN
        # In validation every process sees all items.
        counts = drawn = None
        if training:
            counts, drawn = self.step_counts, self.drawn
        loss = self.modules.loss_fn(
            logits, codes, mask, counts, drawn, with_accuracy=not training
        )
        if training:
            self.shown = {"loss": loss.loss.detach()}
        else:
            self.add_to_sums(loss, codes, mask.hidden, batch.corpus)
            if self.hparams.n_codebooks == 1:
                self.add_to_counts(codes[..., 0], mask)
            if self.monitors is not None:
                hidden = mask.hidden
                self.monitors.add_codes(codes[hidden], logits[hidden].argmax(-1))
        return loss.loss

    def add_to_sums(self, loss, codes, hidden, corpus):
        """Adds a validation batch to the sums over hidden frames per corpus."""
        q = torch.arange(codes.shape[-1], device=codes.device)
        mixture = -self.unigram[0, q, codes]
        own = -self.unigram[1 + corpus.to(codes.device)[:, None, None], q, codes]
        counted = hidden[..., None].to(mixture)
        for i, values in enumerate((loss.ce, loss.right, mixture, own)):
            # Moved first: not every device has double precision.
            per_item = (values * counted).sum(1).cpu().double()
            self.sums[:, i].index_add_(0, corpus.cpu(), per_item)
        self.frames.index_add_(0, corpus.cpu(), hidden.sum(1).cpu().double())

    def add_to_counts(self, codes, mask):
        """Counts the codes of a validation batch [B, T]: hidden ones, and all."""
        for row, where in zip(
            self.code_counts, (mask.hidden, mask.frames), strict=True
        ):
            row += torch.bincount(codes[where].cpu(), minlength=len(row))

    def validation_row(self, stage_loss):
        """The metrics of the class docstring, overall and per corpus."""
        row = {"valid_loss": stage_loss}
        row.update(_figures(self.sums[:, :3].sum(0) / self.frames.sum()))
        if len(self.corpora) > 1:
            for i, name in enumerate(self.corpora):
                sums = self.sums[i, [0, 1, 3]]
                figures = _figures(sums / self.frames[i].clamp(min=1))
                known = {k: v for k, v in figures.items() if not math.isnan(v)}
                row.update({f"{name}/{key}": value for key, value in known.items()})
        if self.hparams.n_codebooks == 1:
            row.update(_cluster_figures(*self.code_counts.double()))
        if self.monitors is not None:
            row.update(self.monitors.row())
            row.update(self.word_figures())
        return row

    def word_figures(self):
        """What `word_probe` finds, if there are utterances enough, by its name."""
        if not self.utterances:
            return {}
        wavs, words = zip(*self.utterances, strict=True)
        encoder = self.hparams.model.encoder
        area = word_probe(utterance_vectors(encoder, wavs, self.device), words)
        return {} if math.isnan(area) else {"word_probe_auc": area}


def _figures(means):
    """Names for means [3, Q] of cross-entropy, accuracy, unigram cross-entropy."""
    names = ("masked_ce", "masked_accuracy", "unigram_ce")
    return {
        f"{name}_{q + 1}": value.item()
        for name, row in zip(names, means, strict=True)
        for q, value in enumerate(row)
    }


def _cluster_figures(hidden, every):
    """Figures of one codebook from the counts of its codes, each of shape [K]."""
    shares = every / every.sum()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return {
        "majority_accuracy": (hidden.max() / hidden.sum()).item(),
        "clusters_used": (every > 0).double().mean().item(),
        "cluster_perplexity": entropy.exp().item(),
    }
