"""Measuring speed: clocks, rates, memory, and the slow ways that one compares with.

Nothing here is used to train. `recipes/benchmark.py` puts it together.
"""

import contextlib
import ctypes
import gc
import os
import platform
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain import Stage
from speechbrain.utils.autocast import TorchAutocast
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.audio import read_audio, write_audio
from encodecmae_sb.data.crops import CropBatch, CropCollator, DrawSampler, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.nnet import transformer
from encodecmae_sb.nnet.chunks import encode_in_pieces
from encodecmae_sb.nnet.masking import FrameMask
from encodecmae_sb.utils.precision import tf32_allowed

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
_FLAGS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")
_HOP = 320


def describe_machine(device):
    """What figures of speed depend on.

    Arguments
    ---------
    device : torch.device
        What is measured on.

    Returns
    -------
    dict
        Plain values: processor, cores that may be used, instruction sets, load of
        others, versions; on a GPU its name and memory.
    """
    info = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            info.setdefault(name.strip(), value.strip())
    flags = info.get("flags", info.get("Features", "")).split()
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    described = {
        "processor": info.get("model name") or platform.processor(),
        "cores": cores,
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "load_average": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_gib"] = round(properties.total_memory / 2**30, 1)
        described["cuda"] = torch.version.cuda
    return described


def name_precision(dtype, device):
    """What products are computed in, in words.

    On a GPU float32 may mean TF32, whose products keep 10 of the 23 bits: SpeechBrain
    allows that. The codec and the log-mel front end never use it.

    Arguments
    ---------
    dtype : torch.dtype
        Of autocast; torch.float32 without it.
    device : torch.device

    Returns
    -------
    str

    Example
    -------
    >>> name_precision(torch.bfloat16, torch.device("cpu"))
    'bf16'
    """
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "float32"}
    name = names[dtype]
    if device.type != "cuda":
        return name
    allowed = tf32_allowed()
    words = {"products": allowed["matmul"], "convolutions": allowed["conv"]}
    kinds = [word for word, yes in words.items() if yes]
    return f"{name}, " + (f"TF32 for {' and '.join(kinds)}" if kinds else "no TF32")


def autocast_dtype(brain):
    """The type in which a Brain's training autocasts; torch.float32 without."""
    return getattr(brain.training_ctx.context, "fast_dtype", torch.float32)


def synchronize(device):
    """Waits until a device has done what it was told to; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(function, device, repeats=1):
    """Seconds that one call of a function takes, from start to end on the device.

    Arguments
    ---------
    function : callable
    device : torch.device
    repeats : int
        Calls in a row, so that a GPU has its queue filled as in training.

    Returns
    -------
    float
    """
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def matmul_rate(device, dtype, size=None, repeats=5):
    """Floating-point operations per second of a square matrix product.

    Arguments
    ---------
    device : torch.device
    dtype : torch.dtype
    size : int, optional
        Rows and columns; default: 2048, on a GPU 8192.
    repeats : int
        The median of so many is taken.

    Returns
    -------
    float

    Example
    -------
    >>> matmul_rate(torch.device("cpu"), torch.float32, size=64) > 0
    True
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = [time_call(lambda: torch.mm(a, b), device) for _ in range(repeats)]
    return 2 * size**3 / statistics.median(seconds)


@torch.no_grad()
def count_flops(model, masker, samples):
    """Floating-point operations of a training step per crop: 3 x the forward pass.

    Counted by torch on what it computes for one crop, attention included, the front
    end, which is not trained, left out.

    Arguments
    ---------
    model : MaskedCodecModel
    masker : GapMasker
    samples : int
        Of a crop.

    Returns
    -------
    int
    """
    device = next(model.parameters()).device
    frames = -(-samples // _HOP)
    lengths = torch.full((1,), frames, device=device)
    mask = masker(lengths, torch.zeros_like(lengths), frames, padded=False)
    wavs = torch.zeros(1, samples, device=device)

    def counted(function):
        # In this form torch counts attention on every device.
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            TorchAutocast(device_type=device.type, dtype=torch.float32),
        ):
            function()
        return counter.get_total_flops()

    whole = counted(lambda: model(wavs, mask))
    return 3 * (whole - counted(lambda: model.encoder.front_end(wavs)))


class Clock:
    """Attributes the time that passes, all of it, to named parts.

    On a GPU the moments are taken by the device itself, without waiting for it.

    Arguments
    ---------
    device : torch.device

    Example
    -------
    >>> clock = Clock(torch.device("cpu"))
    >>> clock.start()
    >>> clock.mark("work")
    >>> list(clock.read())
    ['work']
    """

    def __init__(self, device):
        self.device = device
        self.marks = []

    def start(self):
        """Begins: what came before is not counted."""
        synchronize(self.device)
        self.marks = [(None, self._now())]

    def mark(self, name):
        """What passed since the last mark belongs to `name`."""
        self.marks.append((name, self._now()))

    def read(self):
        """Seconds of each part since `start`.

        Returns
        -------
        dict of str to float
        """
        synchronize(self.device)
        seconds = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            passed = end - begin if self.device.type != "cuda" else _between(begin, end)
            seconds[name] = seconds.get(name, 0.0) + passed
        return seconds

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(begin, end):
    return begin.elapsed_time(end) / 1000


def reset_peak(device):
    """Starts a new measurement of peak memory; see `peak_memory`.

    Returns
    -------
    int or None
        Bytes in use now.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free counts no longer
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device):
    """Most bytes in use at once since `reset_peak`: of the GPU, else of the process.

    Returns
    -------
    int or None
        None where the system does not tell (it takes Linux, or a GPU).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name):
    """A figure of this process from Linux, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


class BenchmarkBrain(PretrainBrain):
    """The Brain of pretraining, one step at a time and, where asked to, with a clock.

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
        """Under torchrun: every step goes by the mean gradient of all processes."""
        self._wrap_distributed()
        self.init_optimizers()

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

        def begins(module):  # what came before is none of the parts
            return module.register_forward_pre_hook(lambda *_: self.clock.mark("other"))

        handles = [
            begins(model),
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
    frames = -(-samples // _HOP)
    shape = (batch_size, frames, n_codebooks)
    return CropBatch(
        wavs=0.2 * torch.randn(batch_size, samples, generator=generator),
        lengths=torch.full((batch_size,), samples),
        num_frames=torch.full((batch_size,), samples // _HOP),
        seeds=torch.arange(batch_size),
        corpus=torch.zeros(batch_size, dtype=torch.int64),
        full=samples % _HOP == 0,
        unusable=[],
        targets=torch.randint(codebook_size, shape, generator=generator),
    )


# The settings that are compared. Each is a context manager that takes a brain and
# gives a function of the batch to run it on.


@contextlib.contextmanager
def changed(owner, name, value):
    """Within it, an attribute has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def in_float32(brain):
    """No autocast."""
    context = TorchAutocast(device_type=brain.device_type, dtype=torch.float32)
    return changed(brain, "training_ctx", context)


def without_codes(batch):
    """The same batch, whose codes are then the codec's work in the step."""
    return replace(batch, targets=None)


@contextlib.contextmanager
def checkpointed(brain):
    """The inside of each layer is computed anew for the backward pass."""
    model = brain.hparams.model
    with (
        changed(model.encoder.transformer, "activation_checkpointing", True),
        changed(model.decoder, "activation_checkpointing", True),
    ):
        yield


class Compiled:
    """Modules as `--compile` makes them.

    Arguments
    ---------
    brain : BenchmarkBrain
    """

    def __init__(self, brain):
        before = dict(brain.modules)
        with changed(brain, "compile", True):
            brain._compile()
        now = brain.modules.items()
        self.modules = {name: new for name, new in now if new is not before[name]}
        brain.modules.update(before)

    @contextlib.contextmanager
    def __call__(self, brain):
        """Within it, the brain uses them."""
        before = {name: brain.modules[name] for name in self.modules}
        brain.modules.update(self.modules)
        try:
            yield
        finally:
            brain.modules.update(before)


def torch_attention(brain):
    """On a CPU in bf16, too, torch's own kernel for attention."""
    return changed(transformer, "_FEW_FRAMES", 0)


def dense_attention(brain):
    """A baseline: every layer adds a mask of every pair of frames, head by head."""
    return changed(transformer.SelfAttention, "forward", _dense_attention)


def _dense_attention(self, x, valid=None):
    batch, frames, _ = x.shape
    qkv = self.qkv(x).view(batch, frames, 3, self.num_heads, self.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each [B * H, T, head_dim]
    if valid is None:
        valid = torch.ones(batch, frames, dtype=torch.bool, device=x.device)
    allowed = valid[:, None, None, :].expand(-1, self.num_heads, frames, -1)
    mask = torch.zeros(batch * self.num_heads, frames, frames, device=x.device)
    mask = mask.masked_fill(~allowed.flatten(0, 1), -1e9)
    scores = q @ k.transpose(1, 2) / self.head_dim**0.5 + mask
    x = scores.softmax(-1).to(v.dtype) @ v
    x = x.view(batch, self.num_heads, frames, self.head_dim)
    return self.out(x.transpose(1, 2).flatten(2))


class LoopMasker(nn.Module):
    """A baseline: hides frames in gaps, item by item and gap by gap in Python.

    Arguments
    ---------
    masker : GapMasker
        Whose ratio and gap are used.

    Example
    -------
    >>> from encodecmae_sb.lobes import GapMasker
    >>> masker = LoopMasker(GapMasker(0.5, 15))
    >>> masker(torch.tensor([300, 100]), torch.tensor([1, 2]), 300).hidden.sum(1)
    tensor([150,  50])
    """

    def __init__(self, masker):
        super().__init__()
        self.ratio, self.gap = masker.ratio, masker.gap
        self.num_hidden = masker.num_hidden

    def forward(self, lengths, seeds, num_frames, padded=True):
        """As `GapMasker`, of which it draws other gaps."""
        masks = []
        for length, seed in zip(lengths.tolist(), seeds.tolist(), strict=True):
            rng = random.Random(seed)
            wanted = self.num_hidden(length)
            mask, hidden = [False] * num_frames, 0
            while hidden < wanted:
                start = rng.randrange(length)
                for frame in range(start, min(start + self.gap, length)):
                    if not mask[frame] and hidden < wanted:
                        mask[frame] = True
                        hidden += 1
            masks.append(mask)
        hidden = torch.tensor(masks, device=lengths.device)
        max_visible = num_frames - self.num_hidden(num_frames)
        return FrameMask.of(hidden, lengths if padded else None, max_visible)


@contextlib.contextmanager
def loop_masking(brain):
    """A baseline: masks drawn by `LoopMasker`."""
    before = brain.modules["masker"]
    brain.modules["masker"] = LoopMasker(before)
    try:
        yield
    finally:
        brain.modules["masker"] = before


class UnfusedOptimizer:
    """A baseline: the same optimizer, a pass over the memory for every operation.

    Arguments
    ---------
    brain : BenchmarkBrain
    """

    def __init__(self, brain):
        (group,) = brain.optimizer.param_groups
        options = {name: group[name] for name in ("lr", "betas", "weight_decay")}
        self.optimizer = torch.optim.AdamW(group["params"], fused=False, **options)

    @contextlib.contextmanager
    def __call__(self, brain):
        """Within it, the brain uses it."""
        fused = brain.optimizers_dict["opt_class"]
        with changed(brain, "optimizer", self.optimizer):
            brain.optimizers_dict["opt_class"] = self.optimizer
            try:
                yield
            finally:
                brain.optimizers_dict["opt_class"] = fused


def time_embedding(encoder, seconds, batch_size, dtype, device):
    """How fast an encoder embeds files, and how far from float32.

    Arguments
    ---------
    encoder : AudioEncoder
        In eval mode.
    seconds : float
        Length of a file.
    batch_size : int
        Files at once.
    dtype : torch.dtype
        torch.float32 or torch.bfloat16.
    device : torch.device

    Returns
    -------
    times_real_time : float
    features : torch.Tensor
        Of the first file, float32, shape [T, D].
    """
    wavs = spoken(int(seconds * encoder.front_end.sample_rate)).repeat(batch_size, 1)
    context = TorchAutocast(device_type=device.type, dtype=dtype)

    def embed():
        with torch.no_grad(), context:
            return encode_in_pieces(encoder, wavs)

    took = []
    # Short ones again and again: a second in all tells more than a few milliseconds.
    while not took or (sum(took) < 1 and len(took) < 50):
        took.append(time_call(embed, device))
    features = embed()[0].float() if batch_size == 1 else None
    return seconds * batch_size / statistics.median(took), features


def spoken(samples):
    """Speech of the bundled corpus at 24 kHz, one utterance after the other.

    Returns
    -------
    torch.Tensor
        Shape [samples].
    """
    parts, there = [], 0
    paths = sorted(speech_folder().rglob("*.flac"))
    for path in paths * (1 + samples // 24000):
        parts.append(read_audio(path, 24000))
        there += len(parts[-1])
        if there >= samples:
            break
    return torch.cat(parts)[:samples]


def write_long_files(folder, count=24, seconds=14):
    """FLAC files at 16 kHz as long as LibriSpeech's, of bundled utterances.

    Arguments
    ---------
    folder : Path
        Made.
    count : int
        How many.
    seconds : float
        How long each.
    """
    folder.mkdir(parents=True)
    utterances = [
        soundfile.read(path, dtype="int16")[0]
        for path in sorted(speech_folder().rglob("*.flac"))
    ]
    wanted, at = int(16000 * seconds), 0
    for i in range(count):
        parts = []
        while sum(map(len, parts)) < wanted:
            parts.append(utterances[at % len(utterances)])
            at += 1
        audio = np.concatenate(parts)[:wanted]
        write_audio(folder / f"{i}.flac", audio, 16000)


def open_loader(folders, scratch, batch_size, seconds, num_workers, batches):
    """Random crops as pretraining loads them.

    Arguments
    ---------
    folders : list of Path
        Of audio.
    scratch : Path
        Where manifests go.
    batch_size, seconds, num_workers, batches : number
        Crops per batch, their length, processes that read, batches in all.

    Returns
    -------
    DataLoader
        Of `CropBatch`.
    """
    corpora = prepare_corpora(folders, scratch)
    crops = RandomCrops([corpus.train_csv for corpus in corpora], seconds)
    return DataLoader(
        crops,
        batch_sampler=DrawSampler(batch_size, batch_size, steps=range(batches)),
        collate_fn=CropCollator(),
        num_workers=num_workers,
    )


def time_loader(loader, warm_up=2):
    """Seconds of audio per second that a loader delivers.

    The clock starts when the last batch of the warm-up is there. Workers finish
    together: the batches of the warm-up, and those measured, must be a multiple of
    their number.

    Arguments
    ---------
    loader : DataLoader
        See `open_loader`.
    warm_up : int
        Batches that do not count, at least 1: processes start, files come into memory.

    Returns
    -------
    float
    """
    seconds = 0.0
    for i, batch in enumerate(loader, 1):
        if i > warm_up:
            seconds += int(batch.lengths.sum()) / 24000
        elif i == warm_up:
            started = time.perf_counter()
    return seconds / (time.perf_counter() - started)
