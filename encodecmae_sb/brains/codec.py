"""Trains a codec with EnCodec's interface, from scratch; see `nnet.codec_training`."""

import torch
from speechbrain import Stage

from encodecmae_sb.data.crops import CropCollator
from encodecmae_sb.evaluation.codec import codec_report
from encodecmae_sb.nnet.codec_training import (
    ResidualCodebooks,
    relative_error,
    vary,
)

from .base import ResumableBrain, StepBrain


class CodecBrain(StepBrain):
    """Trains an EnCodec-shaped network to reconstruct.

    Modules: `codec_net`, `mel_distance`, `envelope`. Reads from the yaml, besides
    `StepBrain`'s: `quantize_from` (the step at which the codebooks start),
    `wave_weight`, `mel_weight`, `envelope_weight`, `order_latents`, `lr_schedule`.
    """

    reported = ("train_loss", "mel_ratio", "perplexity_min")

    def on_fit_start(self):
        """Prepares the codebooks' training."""
        self.codebooks = ResidualCodebooks(self.modules.codec_net.quantizer)
        super().on_fit_start()

    def shares(self):
        """The batch size may not change: items of a batch are mixed with each other."""
        batch_size = self.hparams.batch_size
        return {**ResumableBrain.shares(self), "batch_size": batch_size}

    @property
    def net(self):
        """The network, without the wrapper of distributed training."""
        net = self.modules.codec_net
        return getattr(net, "module", net)

    def quantizing(self, stage):
        """Whether codes are used: in all steps after step `quantize_from`."""
        last = self.hparams.quantize_from - (stage == Stage.TRAIN)
        return self.optimizer_step > last

    def on_fit_batch_start(self, batches, should_step):
        """Sets the learning rate; starts the codebooks at `quantize_from`."""
        super().on_fit_batch_start(batches, should_step)
        start, end = 0, self.hparams.quantize_from
        if self.quantizing(Stage.TRAIN):
            start, end = end, self.hparams.training_steps
        progress = (self.optimizer_step - start) / (end - start)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(progress)
        if self.optimizer_step == self.hparams.quantize_from:
            self.start_codebooks()

    @torch.no_grad()
    def start_codebooks(self):
        """k-means on the latents of fresh draws of training audio."""
        crops, collate = self.train_crops, self.collate
        latents, wanted = [], 20 * self.net.quantizer.bins
        draw = 0
        self.net.eval()
        while sum(part[..., 0].numel() for part in latents) < wanted:
            batch = collate([crops[draw + i] for i in range(self.hparams.batch_size)])
            draw += self.hparams.batch_size
            batch = batch.to(self.device)
            wavs = vary(batch.wavs, batch.seeds)
            latents.append(self.net.encoder(wavs.unsqueeze(1)).transpose(1, 2))
        self.net.train()
        latents = self.hparams.order_latents(self.net, torch.cat(latents))
        # The optimizer's averages for the two layers belong to the old basis.
        for layer in (self.net.encoder.model[-1], self.net.decoder.model[0]):
            for parameter in layer.parameters():
                self.optimizer.state.pop(parameter, None)
        generator = torch.Generator().manual_seed(self.hparams.seed)
        self.codebooks.start(latents.flatten(0, 1), generator)

    def fit_crops(self, train_crops, valid_crops):
        """Trains to `training_steps`; see `StepBrain`."""
        self.train_crops, self.collate = train_crops, CropCollator()
        super().fit_crops(train_crops, valid_crops)

    def compute_forward(self, batch, stage):
        """Reconstructs.

        Returns
        -------
        wavs, reconstruction : torch.Tensor
            Samples, shape [B, N].
        latents : torch.Tensor
            What the encoder gave, shape [B, D, T].
        """
        batch = batch.to(self.device)
        training = stage == Stage.TRAIN
        wavs = vary(batch.wavs, batch.seeds) if training else batch.wavs
        # Freeze the encoder once the codebooks have started; otherwise its codes become
        # unpredictable from neighbouring frames.
        with torch.set_grad_enabled(training and not self.quantizing(stage)):
            latents = self.net.encoder(wavs.unsqueeze(1)).float()
        decoded = latents
        if self.quantizing(stage):
            with torch.autocast(self.device_type, enabled=False):
                if training:
                    frames = latents.detach().transpose(1, 2).flatten(0, 1)
                    seed = self.hparams.seed + self.optimizer_step
                    generator = torch.Generator().manual_seed(seed)
                    self.codebooks.update(frames, generator)
                decoded = self.codebooks.quantize(latents)
        reconstruction = self.net.decoder(decoded).squeeze(1).float()
        return wavs, reconstruction[:, : wavs.shape[1]], latents

    def compute_objectives(self, predictions, batch, stage):
        """Relative error of the waveform, multi-scale log-mel L1, and envelope."""
        wavs, reconstruction, latents = predictions
        with torch.autocast(self.device_type, enabled=False):
            wave = relative_error(wavs, reconstruction)
            mel = self.hparams.mel_distance(wavs, reconstruction)
            loss = self.hparams.wave_weight * wave + self.hparams.mel_weight * mel
            if not self.quantizing(stage):
                envelope = self.modules.envelope(wavs, latents)
                loss = loss + self.hparams.envelope_weight * envelope
        self.shown = {"wave": wave.item(), "mel": mel.item()}
        return loss

    def _fit_valid(self, valid_set, epoch, enable):
        self.measured = codec_report(
            self.net, valid_set, self.device, self.quantizing(Stage.VALID)
        )
        super()._fit_valid(valid_set, epoch, enable)

    def validation_row(self, stage_loss):
        """The figures of `codec_report`."""
        return {"valid_loss": stage_loss, **self.measured}
