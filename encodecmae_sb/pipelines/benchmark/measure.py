"""Clocks, rates and memory: what a benchmark measures with."""

import contextlib
import ctypes
import gc
import os
import platform
from pathlib import Path

import torch
from speechbrain.utils.autocast import TorchAutocast
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer, timer
from torch.utils.flop_counter import FlopCounterMode

from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.precision import tf32_allowed

_FLAGS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")


def describe_machine(device):
    """What figures of speed depend on.

    Arguments
    ---------
    device : torch.device
        What is measured on.

    Returns
    -------
    dict
        Plain values: processor, cores that may be used, instruction sets, load by
        other programs, versions; on a GPU its name and memory.
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
    """The precision of products, in words.

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


def time_call(function, repeats=1):
    """Seconds of one call, from its start to the end of its work on the device.

    Arguments
    ---------
    function : callable
    repeats : int
        Calls in a row, so that a GPU has its queue filled as in training.

    Returns
    -------
    float
    """
    started = timer()  # waits for the device
    for _ in range(repeats):
        function()
    return (timer() - started) / repeats


def median_time(function, seconds):
    """Median of the seconds of a call, over calls for at least so many seconds.

    Arguments
    ---------
    function : callable
    seconds : float

    Returns
    -------
    float
    """
    threads = torch.get_num_threads()  # the default is one
    clock = Timer("function()", globals={"function": function}, num_threads=threads)
    return clock.blocked_autorange(min_run_time=seconds).median


def matmul_rate(device, dtype, size=None):
    """Floating-point operations per second of a square matrix product.

    Arguments
    ---------
    device : torch.device
    dtype : torch.dtype
    size : int, optional
        Rows and columns; default: 2048, on a GPU 8192.

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
    return 2 * size**3 / median_time(lambda: torch.mm(a, b), seconds=0.3)


@torch.no_grad()
def count_flops(model, masker, samples, codebooks=None):
    """Floating-point operations of a training step per crop: 3 x the forward pass.

    Counted by torch on what it computes for one crop, attention included. The front
    end is left out, since it is not trained.

    Arguments
    ---------
    model : MaskedCodecModel
    masker : GapMasker
    samples : int
        Of a crop.
    codebooks : int, optional
        How many a step predicts; default: all.

    Returns
    -------
    int
    """
    device = next(model.parameters()).device
    frames = -(-samples // HOP)
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

    chosen = None if codebooks is None else torch.arange(codebooks, device=device)
    whole = counted(lambda: model(wavs, mask, chosen))
    front_end = model.encoder.front_end
    some = {}
    if getattr(front_end, "skips_hidden", False):
        some = {"visible": mask.visible_frames()}
    return 3 * (whole - counted(lambda: front_end(wavs, **some)))


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
        self.on_gpu = device.type == "cuda"
        self.marks = []

    def start(self):
        """Starts the clock, once the device has finished its earlier work."""
        timer()
        self.marks = [(None, self._now())]

    def mark(self, name):
        """Attributes the time since the last mark to `name`."""
        self.marks.append((name, self._now()))

    def read(self):
        """Seconds of each part since `start`.

        Returns
        -------
        dict of str to float
        """
        timer()
        seconds = {}
        for (_, begin), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            passed = begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin
            seconds[name] = seconds.get(name, 0.0) + passed
        return seconds

    def _now(self):
        if not self.on_gpu:
            return timer()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


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
        ctypes.CDLL(None).malloc_trim(0)  # give free memory back to the system
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device):
    """Most bytes in use at once since `reset_peak`: of the GPU, else of the process.

    Returns
    -------
    int or None
        None where the system does not tell (Linux and GPUs do).
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


def time_loader(loader, warm_up=2):
    """Seconds of audio per second that a loader delivers.

    The clock starts when the last batch of the warm-up has arrived. Workers finish
    together: the batches of the warm-up, and those measured, must be a multiple of
    their number.

    Arguments
    ---------
    loader : iterable of CropBatch
    warm_up : int
        Batches that do not count, at least 1: processes start, and the system reads
        files into memory.

    Returns
    -------
    float
    """
    seconds = 0.0
    for i, batch in enumerate(loader, 1):
        if i > warm_up:
            seconds += int(batch.lengths.sum()) / SAMPLE_RATE
        elif i == warm_up:
            started = timer()
    return seconds / (timer() - started)
