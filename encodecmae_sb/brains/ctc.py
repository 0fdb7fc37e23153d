"""CTC speech recognition on top of an EnCodecMAE encoder."""

import contextlib

import torch
from speechbrain import Stage
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain.utils.seed import seed_everything

from encodecmae_sb.data.speech import collate_speech, is_empty
from encodecmae_sb.data.tokenizer import BLANK
from encodecmae_sb.inference.recogniser import search
from encodecmae_sb.nnet.lengths import absolute_lengths, relative_lengths
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file
from encodecmae_sb.utils.preemption import ignore_signals

from .finetune import FineTuneBrain


def check_validated(checkpointer):
    """Makes sure that there is a checkpoint to test.

    Raises
    ------
    UserError
        If no checkpoint was validated.
    """
    if not any("cer" in saved.meta for saved in checkpointer.list_checkpoints()):
        raise UserError(
            f"--test_only, but {checkpointer.checkpoints_dir} holds no checkpoint that "
            "was validated: run without it first."
        )


class CTCBrain(FineTuneBrain):
    """Trains a recogniser; randomness is a function of seed and step alone.

    Modules: `encoder` (`EnCodecMAE`) and `head` (`CTCHead`). Reads from the yaml,
    besides what `FineTuneBrain` reads: `number_of_epochs`, `history`,
    `batch_seconds`, `num_buckets`, `max_batch_items`, `test_batch_size`,
    `num_workers`, `lr_schedule` and, if there is one, `wav_augment`.

    Validation decodes greedily; `evaluate_set` uses a CTC beam search. `wer` and
    `cer` are in per cent.
    """

    def __init__(self, *args, tokens, unusable=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens = tokens
        self.unusable = unusable
        self.searcher = None
        self.num_empty = 0

    def fit_speech(self, train_set, valid_set):
        """Trains for `number_of_epochs`.

        Arguments
        ---------
        train_set, valid_set : DynamicItemDataset
            From `data.speech.speech_dataset`.
        """
        sampler = DynamicBatchSampler(
            train_set,
            self.hparams.batch_seconds,
            num_buckets=self.hparams.num_buckets,
            length_func=lambda row: row["duration"],
            max_batch_ex=self.hparams.max_batch_items,
            seed=self.hparams.seed,
        )
        if not self.distributed_launch:
            # Without this SpeechBrain does not tell the sampler the epoch, and every
            # epoch has the same batches.
            self.train_sampler = sampler
        self.total_steps = len(sampler) * self.hparams.number_of_epochs
        if self.distributed_launch:
            self.total_steps //= torch.distributed.get_world_size()
        self.total_steps = max(1, self.total_steps // self.grad_accumulation_factor)
        self.fit(
            self.hparams.epoch_counter,
            train_set,
            valid_set,
            train_loader_kwargs={
                "batch_sampler": sampler,
                "collate_fn": collate_speech,
                "num_workers": self.hparams.num_workers,
                "worker_init_fn": ignore_signals,
            },
            valid_loader_kwargs=self.loader_options(),
        )

    def loader_options(self):
        """How validation and test sets are loaded."""
        return {
            "batch_size": self.hparams.test_batch_size,
            "collate_fn": collate_speech,
        }

    def on_fit_batch_start(self, batch, should_step):
        """Sets seeds and learning rates; both depend on the step alone."""
        rank = self.rank if self.distributed_launch else 0
        # SpeechBrain's augmentations draw from the global generators.
        seed_everything(self.step_seed(rank), verbose=False)
        progress = min(1.0, self.optimizer_step / self.total_steps)
        for name, optimizer in self.optimizers_dict.items():
            for group in optimizer.param_groups:
                group["lr"] = self.hparams.lr_schedule(progress, self.peak_lr[name])
        self.note_unusable(batch)

    def audio_seconds(self, batch):
        """Seconds of audio in a batch."""
        wavs, lens = batch.sig
        return float(lens.sum()) * wavs.shape[1] / self.hparams.sample_rate

    def shown(self):
        """The mean loss so far."""
        return {"loss": f"{self.avg_train_loss:.3f}"}

    def update_average(self, loss, avg_loss):
        """The mean loss of a stage so far, without batches that have no audio."""
        if self.batch_is_empty:
            self.num_empty += 1
            return avg_loss
        if not torch.isfinite(loss):
            return avg_loss
        return avg_loss + (float(loss) - avg_loss) / (self.step - self.num_empty)

    def note_unusable(self, batch):
        """Accounts for files that could not be read."""
        bad = [item for items in batch.unusable for item in items]
        if bad and self.unusable is not None:
            self.unusable.add(bad)

    def compute_forward(self, batch, stage):
        """Waveforms -> log-probabilities.

        Returns
        -------
        log_probs : torch.Tensor
            Shape [B, T, tokens]; B is larger than the batch where the augmentation
            adds to it.
        num_steps : torch.Tensor
            Steps of each item, int64, shape [B].
        """
        wavs, lens = batch.to(self.device).sig
        training = stage == Stage.TRAIN
        if training and hasattr(self.hparams, "wav_augment"):
            wavs, lens = self.hparams.wav_augment(wavs, lens)
        encoder = getattr(self.modules.encoder, "module", self.modules.encoder)
        num_frames = encoder.num_frames(absolute_lengths(lens, wavs.shape[1]))
        # In a frozen encoder the sum of layers learns from the start.
        no_gradients = training and self.encoder_waits
        with torch.no_grad() if no_gradients else contextlib.nullcontext():
            frames = self.modules.encoder(wavs, lens)
        return self.modules.head(frames, num_frames)

    def compute_objectives(self, predictions, batch, stage):
        """The CTC loss; outside training also the error counts."""
        log_probs, num_steps = predictions
        targets, target_lens = batch.tokens
        if stage == Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            targets, target_lens = self.hparams.wav_augment.replicate_multiple_labels(
                targets, target_lens
            )
        self.batch_is_empty = is_empty(batch)
        if self.batch_is_empty:
            # No effect, but gradients of all parameters: other processes wait for them.
            loss = 0 * log_probs.sum()
        else:
            lens = relative_lengths(num_steps, log_probs.shape[1])
            with torch.autocast(log_probs.device.type, enabled=False):
                loss = ctc_loss(log_probs, targets, lens, target_lens, BLANK)
        if stage != Stage.TRAIN:
            self.note_unusable(batch)
            if not self.batch_is_empty:
                texts = self.decode(log_probs, num_steps)
                self.count_errors(batch.id, texts, batch.wrd)
        return loss

    def decode(self, log_probs, num_steps):
        """Log-probabilities -> list of texts."""
        if self.searcher is not None:
            return search(self.searcher, log_probs, num_steps)
        lens = relative_lengths(num_steps, log_probs.shape[1])
        numbers = ctc_greedy_decode(log_probs, lens, blank_id=BLANK)
        return [self.tokens.decode(item) for item in numbers]

    def count_errors(self, ids, texts, references):
        """Adds utterances to the word and character errors."""
        for stats, units in ((self.wer, str.split), (self.cer, list)):
            stats.append(
                ids, [units(text) for text in texts], [units(t) for t in references]
            )

    def on_stage_start(self, stage, epoch=None):
        """Empties the counts."""
        self.num_empty = 0  # batches of which no audio could be read
        if stage != Stage.TRAIN:
            self.wer, self.cer = ErrorRateStats(), ErrorRateStats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After a validation: notes what it measured and saves a checkpoint."""
        if stage == Stage.TRAIN:
            self.train_loss = stage_loss
        elif stage == Stage.VALID:
            row = {
                "epoch": epoch,
                "step": self.optimizer_step,
                "train_loss": float(self.train_loss),
                "valid_loss": float(stage_loss),
                "wer": float(self.wer.summarize("error_rate")),
                "cer": float(self.cer.summarize("error_rate")),
            }
            self.report(
                row,
                f"epoch {epoch}: loss {row['train_loss']:.3f}  validation: "
                f"loss {row['valid_loss']:.3f}  WER {row['wer']:.1f} %  "
                f"CER {row['cer']:.1f} %",
                meta={"cer": row["cer"], "epoch": epoch},
                min_keys=["cer"],
            )

    def evaluate_set(self, test_set, searcher, path):
        """Measures a test set with the checkpoint that validated best.

        Arguments
        ---------
        test_set : DynamicItemDataset
            From `data.speech.speech_dataset`.
        searcher : CTCBaseSearcher
            Decodes.
        path : str or Path
            Where to write the alignments of words and of characters.

        Returns
        -------
        dict of str to float
            `wer`, `cer` and `loss`.
        """
        self.searcher = searcher
        loss = self.evaluate(
            test_set,
            min_key="cer",
            progressbar=False,
            test_loader_kwargs=self.loader_options(),
        )
        self.searcher = None
        figures = {
            "wer": float(self.wer.summarize("error_rate")),
            "cer": float(self.cer.summarize("error_rate")),
            "loss": float(loss),
        }
        if if_main_process():
            with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:
                self.wer.write_stats(file)
                file.write("\n\nCharacters\n")
                self.cer.write_stats(file)
        return figures
