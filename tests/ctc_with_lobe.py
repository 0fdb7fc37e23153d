"""Drives the lobe as SpeechBrain's LibriSpeech CTC recipe drives wav2vec 2.0.

    python tests/ctc_with_lobe.py ENCODER_FOLDER OUTPUT STEPS KIND [run options]

The lobe stands where that recipe has `wav2vec2`; Adadelta trains `model`, Adam the lobe
unless it is frozen; augmentation that keeps the original doubles the batch. KIND is
`frozen`, `trained`, `weighted` (frozen, a sum of layers inside the lobe) or `summed`
(frozen, with the sum of layers that the documentation of `LayerSum` shows). Starts from
the last checkpoint in OUTPUT, trains to STEPS, saves, and prints the loss of every step
as JSON.
"""

import inspect
import json
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk, SpeedPerturb
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.checkpoints import Checkpointer

from encodecmae_sb import lobes
from encodecmae_sb.utils.experiment import quit_on_user_errors

# As in the recipe's yaml, but small.
SETTINGS = """
source: !PLACEHOLDER
freeze_wav2vec: !PLACEHOLDER
activation: !name:torch.nn.LeakyReLU
dnn_layers: 2
dnn_neurons: 32
"""
LOBE = """
wav2vec2: !new:encodecmae_sb.lobes.EnCodecMAE
    source: !ref <source>
    output_norm: True
    freeze: !ref <freeze_wav2vec>
    layer: LAYER

enc: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
    input_shape: [null, null, 32]
    activation: !ref <activation>
    dnn_blocks: !ref <dnn_layers>
    dnn_neurons: !ref <dnn_neurons>
"""
REST = """
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <dnn_neurons>
    n_neurons: 9

modules:
    wav2vec2: !ref <wav2vec2>
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>

model: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <ctc_lin>]
"""


def load_recipe(folder, kind):
    """The part of the recipe's yaml that has to do with the model."""
    text = LOBE.replace("LAYER", "weighted" if kind == "weighted" else "last")
    if kind == "summed":
        documented = inspect.getdoc(lobes.LayerSum).partition("::\n")[2]
        documented = documented.partition("\nArguments")[0]
        text = inspect.cleandoc(documented)
        for old, new in (
            ("/path/to/results/base/1234/encoder", "!ref <source>"),
            ("768", "32"),
            ("num_layers: 10", "num_layers: 3"),
        ):
            assert old in text
            text = text.replace(old, new)
    settings = {"source": folder, "freeze_wav2vec": kind != "trained"}
    return load_hyperpyyaml("\n".join((SETTINGS, text, REST)), settings)


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
        model = torch.optim.Adadelta(
            self.hparams.model.parameters(), lr=0.9, rho=0.95, eps=1e-8
        )
        self.optimizers_dict = {"model": model}
        if not self.hparams.freeze_wav2vec:
            self.optimizers_dict["wav2vec2"] = wav2vec
        if self.checkpointer is not None:
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


def train(folder, steps, kind, run_opts, output=None):
    """A Brain that has trained to a number of steps, from its checkpoint if any."""
    torch.manual_seed(0)
    hparams = load_recipe(folder, kind)
    hparams["wav_augment"] = Augmenter(
        concat_original=True,
        min_augmentations=2,
        max_augmentations=2,
        augmentations=[SpeedPerturb(16000, [95, 105]), DropChunk()],
    )
    recoverables = {"wav2vec2": hparams["wav2vec2"], "model": hparams["model"]}
    brain = Recogniser(
        hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=Checkpointer(output, recoverables) if output else None,
    )
    rank = int(torch.distributed.is_initialized() and torch.distributed.get_rank())
    brain.on_fit_start()
    done = brain.optimizer_step
    brain.modules.train()
    lobe = hparams["wav2vec2"]
    assert not (lobe.freeze and lobe.encoder.training)
    for batch in list(batches(steps, rank))[done:]:
        brain.step += 1
        brain.fit_batch(batch)
    return brain


def main(folder, output, steps, kind, *options):
    """Trains to a number of steps and prints the losses of those it made."""
    _, run_opts, _ = sb.parse_arguments(["none.yaml", *options])
    sb.utils.distributed.ddp_init_group(run_opts)
    brain = train(folder, int(steps), kind, run_opts, output)
    brain.checkpointer.save_checkpoint()
    if sb.utils.distributed.if_main_process():
        print(json.dumps(brain.losses))


if __name__ == "__main__":
    with quit_on_user_errors():
        main(*sys.argv[1:])
