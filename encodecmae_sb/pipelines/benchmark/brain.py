"""The Brain of pretraining with random weights, one step at a time."""

import contextlib
import functools
from dataclasses import replace
from unittest.mock import patch

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain import Stage

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.data.crops import CropBatch
from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.encodec import FrozenCodec, build_encodec
from encodecmae_sb.utils.grid import HOP

from .measure import Clock, name_precision

# Where the time of a step goes, in the order of the step.
PARTS = (
    "loader",
    "codec",
    "front end",
    "encoder",
    "decoder",
    "head and loss",
    "backward",
    "optimizer",
    "other",
)


class BenchmarkBrain(PretrainBrain):
    """The Brain of pretraining, one step at a time and, if wanted, with a clock.

    Arguments
    ---------
    *args, **kwargs
        As for `PretrainBrain`.

    Attributes
    ----------
    clock : Clock or None
        Attributes the time of a step to `PARTS` while there is one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.clock = None
        self.init_optimizers()
        self.on_stage_start(Stage.TRAIN)
        self.modules.train()

    def share_gradients(self):
        """Under torchrun: steps use the mean gradient of all processes."""
        self._wrap_distributed()
        self.init_optimizers()

    def autocast_dtype(self):
        """The type in which steps autocast; torch.float32 without."""
        return getattr(self.training_ctx.context, "fast_dtype", torch.float32)

    def name_precision(self):
        """The precision of steps, in words."""
        return name_precision(self.autocast_dtype(), torch.device(self.device))

    @functools.cached_property
    def unfused_optimizer(self):
        """AdamW for the same parameters that is not fused."""
        (group,) = self.optimizer.param_groups
        options = {name: group[name] for name in ("lr", "betas", "weight_decay")}
        return torch.optim.AdamW(group["params"], fused=False, **options)

    @functools.cached_property
    def compiled_modules(self):
        """The modules that `--compile` compiles, compiled."""
        before = dict(self.modules)
        with patch.object(self, "compile", True):
            self._compile()
        now = dict(self.modules)
        self.modules.update(before)
        return {name: new for name, new in now.items() if new is not before[name]}

    def run_step(self, batch):
        """What training does with a batch, from its arrival to the optimizer."""
        self.step += 1
        loss = self.fit_batch([batch])
        self.avg_train_loss = self.update_average(loss, self.avg_train_loss)

    @contextlib.contextmanager
    def timed(self):
        """Within it, `clock` is told of every part of a step."""
        model, loss_fn = self.hparams.model, self.hparams.loss_fn
        self.clock = Clock(torch.device(self.device))

        def ends(module, name):
            return module.register_forward_hook(lambda *_: self.clock.mark(name))

        handles = [
            # The time before the model belongs to no part.
            model.register_forward_pre_hook(lambda *_: self.clock.mark("other")),
            ends(model.encoder.front_end, "front end"),
            ends(model.encoder.transformer, "encoder"),
            ends(model.decoder, "decoder"),
            ends(loss_fn, "head and loss"),
        ]
        try:
            yield self.clock
        finally:
            for handle in handles:
                handle.remove()
            self.clock = None

    def codes(self, batch):
        """See `PretrainBrain`."""
        if self.clock is None:
            return super().codes(batch)
        self.clock.mark("other")
        codes = super().codes(batch)
        self.clock.mark("codec")
        return codes

    def optimizers_step(self):
        """See SpeechBrain."""
        if self.clock is not None:
            self.clock.mark("backward")
        super().optimizers_step()
        if self.clock is not None:
            self.clock.mark("optimizer")


def build(options, folder):
    """The Brain of pretraining as a yaml describes it.

    Arguments
    ---------
    options : Options
    folder : Path
        A checkpoint folder is made here; nothing is written to it.

    Returns
    -------
    BenchmarkBrain
    """
    arguments = [options.hparams, "--device", options.device, "--noprogressbar"]
    arguments += [*options.keys, "--output_folder", str(folder / "run")]
    file, run_opts, overrides = sb.parse_arguments(arguments)
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(file, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, overrides)
    if options.codec == "random_encodec":
        codec = FrozenCodec(build_encodec(), "random_encodec")
    else:
        codec = Codec(options.codec, hparams["n_codebooks"])
    front_end = hparams["model"].encoder.front_end
    if isinstance(front_end, CodecLatents):
        front_end.use(codec)
    hparams["grad_accumulation_factor"] = 1
    return BenchmarkBrain(
        modules={**hparams["modules"], "targets": codec},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
    )


def random_batch(batch_size, samples, n_codebooks, codebook_size, seed=0):
    """Crops of noise with random codes.

    Returns
    -------
    CropBatch
        Without padding.

    Example
    -------
    >>> random_batch(2, 24000, 8, 1024).targets.shape
    torch.Size([2, 75, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, -(-samples // HOP), n_codebooks)
    return CropBatch(
        wavs=0.2 * torch.randn(batch_size, samples, generator=generator),
        lengths=torch.full((batch_size,), samples),
        num_frames=torch.full((batch_size,), samples // HOP),
        seeds=torch.arange(batch_size),
        corpus=torch.zeros(batch_size, dtype=torch.int64),
        full=samples % HOP == 0,
        unusable=[],
        targets=torch.randint(codebook_size, shape, generator=generator),
    )


def batch_for(brain, options, size, seed=0):
    """Random crops as long as the options say."""
    hparams = brain.hparams
    samples = int(options.seconds * hparams.sample_rate)
    shape = (size, samples, hparams.n_codebooks, hparams.codebook_size)
    return random_batch(*shape, seed)


def without_codes(batch):
    """The same batch without codes: the codec computes them in the step."""
    return replace(batch, targets=None)
