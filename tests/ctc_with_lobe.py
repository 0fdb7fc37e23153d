"""Drives the lobe as SpeechBrain's LibriSpeech CTC recipe drives wav2vec 2.0.

    python tests/ctc_with_lobe.py ENCODER_FOLDER OUTPUT STEPS FREEZE [run options]

The lobe stands where that recipe has `wav2vec2`; Adadelta trains the head, Adam the
lobe; augmentation that keeps the original doubles the batch. Starts from the last
checkpoint in OUTPUT, trains to STEPS, saves, and prints the loss of every step as JSON.
"""

import json
import sys

import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk, SpeedPerturb
from speechbrain.lobes.models.VanillaNN import VanillaNN
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.checkpoints import Checkpointer

from encodecmae_sb.experiment import quit_on_user_errors
from encodecmae_sb.lobes import EnCodecMAE


class Recogniser(sb.Brain):
    """The steps of the recipe, on random waveforms."""

    def compute_forward(self, batch, stage):
        wavs, lens, _, _ = batch
        wavs, lens = self.hparams.wav_augment(wavs.to(self.device), lens)
        x = self.modules.enc(self.modules.wav2vec2(wavs, lens))
        return self.modules.ctc_lin(x).log_softmax(-1), lens

    def compute_objectives(self, predictions, batch, stage):
        log_probs, lens = predictions
        targets, target_lens = self.hparams.wav_augment.replicate_multiple_labels(
            *batch[2:]
        )
        assert len(log_probs) == 2 * len(batch[0])
        return ctc_loss(log_probs.float(), targets, lens, target_lens, 0)

    def init_optimizers(self):
        wav2vec = torch.optim.Adam(self.modules.wav2vec2.parameters(), lr=1e-3)
        head = [*self.modules.enc.parameters(), *self.modules.ctc_lin.parameters()]
        model = torch.optim.Adadelta(head, lr=0.9, rho=0.95, eps=1e-8)
        self.optimizers_dict = {"model": model}
        lobe = self.modules.wav2vec2
        if not getattr(lobe, "module", lobe).freeze:
            self.optimizers_dict["wav2vec2"] = wav2vec
        self.checkpointer.add_recoverable("wav2vec_opt", wav2vec)
        self.checkpointer.add_recoverable("modelopt", model)

    def on_fit_start(self):
        super().on_fit_start()
        self.losses = []

    def on_fit_batch_start(self, batch, should_step):
        torch.manual_seed(self.optimizer_step)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.losses.append(loss.item())


def batches(steps, rank):
    """The same batch for the same step, another in each process."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 * step + rank)
        wavs = 0.1 * torch.randn(2, 12000, generator=generator)
        targets = torch.randint(1, 9, (2, 5), generator=generator)
        yield wavs, torch.tensor([1.0, 0.7]), targets, torch.tensor([1.0, 0.8])


def main(folder, output, steps, freeze, *options):
    """Trains to a number of steps and prints the losses of those it made."""
    _, run_opts, _ = sb.parse_arguments(["none.yaml", *options])
    sb.utils.distributed.ddp_init_group(run_opts)
    torch.manual_seed(0)
    lobe = EnCodecMAE(folder, freeze=freeze == "frozen", output_norm=True)
    modules = {
        "wav2vec2": lobe,
        "enc": VanillaNN([None, None, lobe.dim], dnn_neurons=32),
        "ctc_lin": Linear(input_size=32, n_neurons=9),
    }
    wav_augment = Augmenter(
        concat_original=True,
        min_augmentations=2,
        max_augmentations=2,
        augmentations=[SpeedPerturb(16000, [95, 105]), DropChunk()],
    )
    brain = Recogniser(
        modules,
        hparams={"wav_augment": wav_augment},
        run_opts=run_opts,
        checkpointer=Checkpointer(output, modules),
    )
    rank = int(torch.distributed.is_initialized() and torch.distributed.get_rank())
    brain.on_fit_start()
    done = brain.optimizer_step
    brain.modules.train()
    assert not (lobe.freeze and lobe.encoder.training)
    for batch in list(batches(int(steps), rank))[done:]:
        brain.step += 1
        brain.fit_batch(batch)
    brain.checkpointer.save_checkpoint()
    if sb.utils.distributed.if_main_process():
        print(json.dumps(brain.losses))


if __name__ == "__main__":
    with quit_on_user_errors():
        main(*sys.argv[1:])
