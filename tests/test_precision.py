"""Some computations stay in float32, even where TF32 is allowed."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from encodecmae_sb.lobes import Codec, CodecLatents, LogMel
from encodecmae_sb.nnet.clusters import nearest
from encodecmae_sb.utils import precision
from encodecmae_sb.utils.precision import exact_float32, tf32_allowed

NEW = hasattr(torch.backends.cudnn, "conv")  # PyTorch 2.9


def reset():
    """The switches as SpeechBrain leaves them."""
    if NEW:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    if NEW:
        for switch in ("matmul", "conv", "rnn"):
            getattr(torch.backends.mkldnn, switch).fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture(autouse=True)
def switches():
    reset()
    yield
    reset()


def everything():
    """The state of PyTorch's TF32 switches; an error counts as a state."""
    backends = torch.backends
    owners = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    if NEW:
        owners += [(backends, "fp32_precision"), (backends.cudnn, "fp32_precision")]
        for owner in (backends.cudnn, backends.mkldnn):
            owners += [(owner.conv, "fp32_precision"), (owner.rnn, "fp32_precision")]
        for owner in (backends.cuda, backends.mkldnn):
            owners += [(owner.matmul, "fp32_precision")]
    told = []
    for owner, name in owners:
        try:
            told.append(getattr(owner, name))
        except RuntimeError:
            told.append("refused")
    try:
        told.append(torch.get_float32_matmul_precision())
    except RuntimeError:
        told.append("refused")
    return told


def untouched():
    pass


def off():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def medium():
    torch.set_float32_matmul_precision("medium")


def matmul_by_the_new():
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def tf32_by_the_new():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def convolutions_by_the_new():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def all_by_the_new():
    off()
    torch.backends.fp32_precision = "tf32"


SETTINGS = [untouched, off, medium]
if NEW:
    SETTINGS += [matmul_by_the_new, tf32_by_the_new]
    SETTINGS += [convolutions_by_the_new, all_by_the_new]


@pytest.mark.parametrize("setting", SETTINGS)
def test_switches_are_off_inside_and_as_before_afterwards(setting):
    setting()
    before, allowed = everything(), tf32_allowed()
    with exact_float32("cpu"):
        assert not any(tf32_allowed().values())
        if "refused" not in before:  # nor does PyTorch find that they disagree
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.backends.cudnn.allow_tf32 is False
    assert everything() == before
    with pytest.raises(ZeroDivisionError), exact_float32("cpu"):
        1 / 0  # noqa: B018
    assert everything() == before
    assert tf32_allowed() == allowed
    if setting is untouched:
        assert all(allowed.values())


def test_before_pytorch_2_9(monkeypatch):
    before = everything()
    monkeypatch.setattr(precision, "_newer_switches", list)
    assert all(tf32_allowed().values())
    with exact_float32("cpu"):
        assert not any(tf32_allowed().values())
    assert all(tf32_allowed().values())
    monkeypatch.undo()
    assert all(tf32_allowed().values())
    # Only what the older switches move along.
    assert everything()[:2] == before[:2]


ROUNDED = ("convolution", "mm", "addmm", "bmm", "baddbmm", "lstm", "mkldnn_rnn_layer")


class Watched(TorchDispatchMode):
    """What TF32 may be used for in each operation that can use it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ROUNDED:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            dtypes = {x.dtype for x in tensors}
            self.seen.append((name, any(tf32_allowed().values()), dtypes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "least"),
    [("latents", 10), ("encode", 18), ("decode", 10), ("front end", 10)],
)
def test_the_codec_never_uses_tf32(name, least):
    codec = Codec("bundled")
    wavs = torch.rand(1, 3200) - 0.5
    front_end = CodecLatents(codec)
    run = {
        "latents": lambda: codec.latents(wavs),
        "encode": lambda: codec.encode(wavs),
        "decode": lambda: codec.decode(torch.zeros(1, 10, 8, dtype=torch.int64)),
        "front end": lambda: front_end(wavs),
    }[name]
    with Watched() as watched, torch.autocast("cpu", torch.bfloat16):
        torch.mm(wavs, wavs.T)  # elsewhere it is allowed
        run()
    assert watched.seen[0][1]
    assert len(watched.seen) > least
    assert not any(allowed for _, allowed, _ in watched.seen[1:])
    assert all(dtypes == {torch.float32} for _, _, dtypes in watched.seen[1:])


def test_clusters_never_use_tf32():
    with Watched() as watched:
        nearest(torch.rand(5, 3), torch.rand(4, 3))
    assert [allowed for _, allowed, _ in watched.seen] == [False]


@pytest.mark.parametrize(
    ("device", "dtype"), [("meta", torch.float64), ("cpu", torch.float32)]
)
def test_log_mel_elsewhere_than_on_a_cpu_cannot_use_tf32(monkeypatch, device, dtype):
    # Without values, "meta" stands for a GPU. Autocast does not know it.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    front_end, wavs = LogMel().to(device), torch.zeros(2, 24000, device=device)
    with Watched() as watched:
        frames = front_end(wavs)
    assert frames.shape == (2, 75, 256)
    assert frames.dtype == torch.float32
    assert {x for _, _, dtypes in watched.seen for x in dtypes} == {dtype}
