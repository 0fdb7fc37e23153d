"""Precisions: which one a device computes fast, and float32 that is float32.

NVIDIA GPUs multiply float32 numbers faster if 13 of their 23 bits may be dropped
(TF32). PyTorch has switches for that, and importing SpeechBrain turns them on.
"""

import contextlib
import platform
from pathlib import Path

import torch

AUTO = "auto"  # in a yaml: `best_precision` of the device that the run is on


def best_precision(device):
    """The default precision of training on a device.

    Arguments
    ---------
    device : str
        Such as "cpu" or "cuda:0".

    Returns
    -------
    str
        "bf16" where it is the faster one, else "fp32". Without instructions for bf16, a
        CPU takes up to 70 times as long in it as in float32.

    Example
    -------
    >>> best_precision("cpu") in ("bf16", "fp32")
    True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = kind == "cpu" and _cpu_is_fast_in_bf16()
    return "bf16" if fast else "fp32"


def _cpu_is_fast_in_bf16():
    """Whether the CPU multiplies bf16 numbers faster than float32 ones.

    AMX does. AVX-512's own instructions do on AMD's processors, by a factor of 3 to 4.
    On Intel's without AMX a matrix product takes 1.8 times as long in bf16, and a step
    of hparams/base.yaml 1.7 times (`python recipes/benchmark.py hparams/base.yaml
    --precision bf16 --only step,float32`).
    """
    words = _words_of_cpuinfo()
    if platform.machine() in ("aarch64", "arm64"):
        return "bf16" in words
    if torch.cpu._is_amx_tile_supported():
        return True
    return "AuthenticAMD" in words and torch.cpu._is_avx512_bf16_supported()


def _words_of_cpuinfo():
    """What Linux says of the CPU; nothing elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


@contextlib.contextmanager
def exact_float32(device_type):
    """Within it, float32 is computed in full precision; TF32 is switched off.

    Afterwards the switches are as before. They belong to the whole process: other
    threads must not compute meanwhile, unless in here, too. Not for compiled code.

    Arguments
    ---------
    device_type : str
        Whose autocast to turn off, such as "cuda".

    Example
    -------
    >>> torch.backends.cudnn.allow_tf32 = True
    >>> with exact_float32("cuda"):
    ...     tf32_allowed()["conv"]
    False
    >>> tf32_allowed()["conv"]
    True
    """
    # PyTorch has older switches for groups of operations and, from 2.9, newer ones for
    # each operation. Set both: it refuses to read an older one that contradicts the
    # newer ones. Leave alone what cannot be read: then the newer ones count.
    older = {name: value for name in _OLDER if (value := _read(name)) is not None}
    newer = [(switch, switch.fp32_precision) for switch in _newer_switches()]
    try:
        for name in older:
            _write(name, _OLDER[name])
        for switch, _ in newer:
            switch.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for name, value in older.items():
            _write(name, value)
        for switch, value in newer:
            switch.fp32_precision = value


def tf32_allowed():
    """Which operations on float32 may use TF32 on an NVIDIA GPU at present.

    Returns
    -------
    dict of str to bool
        `matmul`, `conv` and `rnn`.

    Example
    -------
    >>> sorted(tf32_allowed())
    ['conv', 'matmul', 'rnn']
    """
    names = ("matmul", "conv", "rnn")
    if newer := _newer_switches()[:3]:
        values = [switch.fp32_precision == "tf32" for switch in newer]
    else:
        cudnn = torch.backends.cudnn.allow_tf32
        values = [torch.backends.cuda.matmul.allow_tf32, cudnn, cudnn]
    return dict(zip(names, values, strict=True))


# The older switches, and the values that switch TF32 off.
_OLDER = {"matmul": "highest", "cudnn": False}


def _read(name):
    try:
        if name == "matmul":
            return torch.get_float32_matmul_precision()
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it contradicts the newer switches
        return None


def _write(name, value):
    if name == "matmul":
        torch.set_float32_matmul_precision(value)
    else:
        torch.backends.cudnn.allow_tf32 = value


def _newer_switches():
    """Objects with an attribute `fp32_precision`; none before PyTorch 2.9."""
    cudnn, onednn = torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return []
    on_gpu = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    return [*on_gpu, onednn.matmul, onednn.conv, onednn.rnn]
