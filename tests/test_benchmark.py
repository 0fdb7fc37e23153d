"""The benchmark measures what it says; how fast it is, is not asserted."""

import contextlib
import functools
import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, TINY, execute

from encodecmae_sb.lobes import (
    AudioEncoder,
    GapMasker,
    LogMel,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.pipelines.benchmark import measure, sections, variants
from encodecmae_sb.pipelines.benchmark.brain import PARTS
from encodecmae_sb.pipelines.benchmark.options import Options
from encodecmae_sb.pipelines.benchmark.report import tables
from encodecmae_sb.pipelines.benchmark.sections import CONFIGURED, Benchmark
from encodecmae_sb.utils.precision import best_precision

SIZES = ("dim", "ffn_dim", "num_layers", "num_heads")
CHANGED = ["float32", "plain", "published", "unfused", "checkpointing"]


# base.yaml says auto.
CONFIGURED_PRECISION = {"bf16": "bf16", "fp32": "float32"}[best_precision("cpu")]


def options(output, **given):
    """A small model on a small batch."""
    small = {"device": "cpu", "codec": "bundled", "batch_size": 2, "steps": 1}
    keys = [part for key in SIZES for part in (f"--{key}", str(TINY[key]))]
    yaml = str(ROOT / "hparams/mini.yaml")
    given = {**small, "seconds": 1.0, "output_folder": output, **given}
    return Options(yaml, keys, **given)


def measured(output, **given):
    """What a benchmark returns, and what it wrote."""
    results = Benchmark(options(output, **given), output).run()
    return results, json.loads((output / "benchmark.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def small_products():
    """The rate of a small product: a large one takes minutes where bf16 is emulated."""
    quick = functools.partial(measure.matmul_rate, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "matmul_rate", quick)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a benchmark wrote and would print."""
    output = tmp_path_factory.mktemp("benchmark")
    only = ",".join(["step", "embedding", "loader", *CHANGED])
    with pytest.MonkeyPatch.context() as patch:
        # Embedding is measured in bf16, too, whatever the machine.
        patch.setattr(sections, "best_precision", lambda device: "bf16")
        results, written = measured(output, only=only, file_seconds="1,5")
    return written, tables(results)


def test_all_of_a_step_is_in_its_parts(run):
    step = run[0]["step"]
    assert set(step["parts"]) == set(PARTS)
    for name, seconds in step["parts"].items():
        # The bundled codec is there, but the codes were given.
        assert seconds > 0 or name == "codec", name
    assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
    expected = step["flops"] / step["seconds"] / run[0]["matmul_flops"]
    assert step["mfu"] == pytest.approx(expected)


def test_every_setting_is_compared_with_the_plain_one(run):
    settings = run[0]["settings"]
    assert list(settings) == [CONFIGURED, *CHANGED]
    configured = settings[CONFIGURED]
    assert configured["ratio"] == 1
    for row in settings.values():
        # One round: the ratio of medians is the median of ratios.
        ratio = row["seconds"] / configured["seconds"]
        assert row["ratio"] == pytest.approx(ratio)
        assert row["peak_bytes"] is None or row["peak_bytes"] > 1e6


def test_embedding_and_loader(run):
    results, text = run
    cases = [(row["file_seconds"], row["batch"]) for row in results["embedding"]]
    assert cases == [(1, 1), (1, 16), (5, 1), (5, 16)]
    for row in results["embedding"]:
        assert row["float32"] > 0
        assert row["bfloat16"] > 0
        if row["batch"] == 1:
            assert 0 < row["relative_error"] < 0.02
    loader = results["loader"]
    consumes = 2 / results["settings"][CONFIGURED]["seconds"]
    assert loader["consumes"] == pytest.approx(consumes)
    assert loader["ratio"] == pytest.approx(loader["delivers"] / consumes)
    machine = results["machine"]
    assert machine["cores"] >= 1
    assert machine["torch"] == torch.__version__
    assert text.index("processor") < text.index("whole") < text.index("Loader")


def test_a_setting_that_runs_out_of_memory_is_reported(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def greedy(brain):
        yield torch.empty(2**60)

    monkeypatch.setitem(variants.SETTINGS, "float32", ([greedy], False, "greedy"))
    results, written = measured(tmp_path, only="float32,unfused")
    settings = written["settings"]
    assert settings["float32"]["seconds"] is None
    assert settings["unfused"]["seconds"] > 0
    assert re.search("float32 +out of memory +greedy", tables(results))


def test_an_interrupted_run_has_written_what_it_measured(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Benchmark, "embedding", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, only="step,embedding")
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["step"]["mfu"] > 0
    assert "embedding" not in written


def test_operations_are_counted_right():
    dim, layers, ffn, classes, frames = 24, 3, 40, 5, 75
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(dim, layers, 4, ffn))
    decoder = ResiDualTransformer(dim, 1, 4, ffn)
    model = MaskedCodecModel(encoder, decoder, 3, classes)
    visible = frames - frames // 2

    def transformer(depth, length):
        linear = 4 * dim * dim + 2 * dim * ffn
        attention = 2 * length * dim  # queries by keys, weights by values
        return depth * length * (linear + attention)

    products = (
        visible * 256 * dim
        + transformer(layers, visible)
        + visible * dim * dim
        + transformer(1, frames)
        + frames * dim * 3 * classes
    )
    counted = measure.count_flops(model, GapMasker(), 320 * frames)
    assert counted == 3 * 2 * products


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_baselines_compute_the_same(dtype):
    net = ResiDualTransformer(48, 2, 3, 64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 48, generator=generator)
    valid = torch.arange(40) < torch.tensor([[40], [23]])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for mask in (None, valid):
            ours = net(x, mask).last
            for baseline in (variants.dense_attention, variants.torch_attention):
                with baseline(None):
                    theirs = net(x, mask).last
                error = (ours - theirs)[valid].norm() / ours[valid].norm()
                assert error < tolerance


def test_loop_masking_hides_as_many():
    lengths = torch.tensor([300, 101, 7])
    seeds = torch.tensor([1, 2, 3])
    masker = GapMasker(0.5, 15)
    masked = variants.LoopMasker(masker)(lengths, seeds, 300).hidden
    assert torch.equal(masked.sum(1), masker(lengths, seeds, 300).hidden.sum(1))
    assert not masked[1, 101:].any()


def test_loop_masking_counts_as_it_goes(monkeypatch):
    """The loop baseline counts as it goes; counting the whole mask for each frame
    would make it slower than it has to be."""
    counted = []

    def counting(values):
        counted.append(1)
        return sum(values)

    monkeypatch.setattr(variants, "sum", counting, raising=False)
    lengths, seeds = torch.tensor([300, 101]), torch.tensor([1, 2])
    variants.LoopMasker(GapMasker(0.5, 15))(lengths, seeds, 300)
    assert len(counted) <= len(lengths)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_loader_is_timed_from_its_last_warm_up_batch(monkeypatch, workers):
    now = [0.0]
    monkeypatch.setattr(measure, "timer", lambda: now[0])

    def batches(number):
        for i in range(number):
            # Workers are ready at the same time, and hand over one after the other.
            now[0] += 2.0 if i % max(1, workers) == 0 else 0.0
            yield SimpleNamespace(lengths=torch.tensor([24000, 48000]))

    fake = SimpleNamespace(
        options=SimpleNamespace(num_workers=workers, batch_size=2, seconds=4.0),
        open_loader=batches,
    )
    row = Benchmark.loader(fake, None)
    assert row["delivers"] == pytest.approx(1.5 * max(1, workers))


def test_figures_say_how_float32_was_computed(run):
    results, text = run
    assert results["step"]["precision"] == CONFIGURED_PRECISION
    said = {name: row["precision"] for name, row in results["settings"].items()}
    assert said == {
        CONFIGURED: CONFIGURED_PRECISION,
        "float32": "float32",
        "plain": "float32",
        "published": "float32",
        "unfused": CONFIGURED_PRECISION,
        "checkpointing": CONFIGURED_PRECISION,
    }
    for row in results["embedding"]:
        assert row["precisions"] == {"float32": "float32", "bfloat16": "bf16"}
    assert re.search("published .* float32 +plain, with", text)


def test_on_a_gpu_they_say_whether_tf32_was_allowed():
    gpu = torch.device("cuda")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for allowed, said in (
            ((True, True), "TF32 for products and convolutions"),
            ((False, True), "TF32 for convolutions"),
            ((False, False), "no TF32"),
        ):
            matmul.allow_tf32, cudnn.allow_tf32 = allowed
            assert measure.name_precision(torch.float32, gpu) == f"float32, {said}"
            assert measure.name_precision(torch.bfloat16, gpu) == f"bf16, {said}"
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_the_clock_loses_no_time(monkeypatch):
    # Before it starts and before it is read it waits for the device.
    now = iter([9.0, 10.0, 11.0, 13.0, 13.5, 14.0])
    monkeypatch.setattr(measure, "timer", lambda: next(now))
    clock = measure.Clock(torch.device("cpu"))
    clock.start()
    for name in ("a", "b", "a"):
        clock.mark(name)
    assert clock.read() == {"a": 1.5, "b": 2.0}


@pytest.mark.skipif(measure.peak_memory(torch.device("cpu")) is None, reason="Linux")
def test_peak_memory_is_that_since_the_reset():
    device = torch.device("cpu")
    torch.ones(60_000_000)  # 240 MB, gone at once
    before = measure.reset_peak(device)
    torch.ones(20_000_000)  # 80 MB
    assert 70e6 < measure.peak_memory(device) - before < 200e6
    assert math.isfinite(before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": "stepp"}, "stepp: allowed are step, settings"),
        ({"steps": 0}, "steps=0"),
        ({"codec": "nothing.th"}, "nothing.th"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used"),
        ({"file_seconds": "1;4"}, "file_seconds=1;4"),
        ({"processes": [1, 4]}, "batch_size=2 crops cannot .* 4 proc"),
    ],
)
def test_bad_options(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        measured(tmp_path, **given)


def test_processes_share_the_crops_of_a_step(tmp_path):
    """From the shell, with keys of the yaml."""
    flags = "--device cpu --codec bundled --batch_size 2 --seconds 1 --steps 1"
    flags += " --only processes --processes 2 --output_folder out"
    flags += "".join(f" --{key} {TINY[key]}" for key in SIZES)
    recipe = [sys.executable, ROOT / "recipes/benchmark.py", ROOT / "hparams/mini.yaml"]
    text = execute([*recipe, *flags.split()], tmp_path)
    assert "Processes that share a step" in text
    (row,) = json.loads((tmp_path / "out/benchmark.json").read_text())["processes"]
    assert row["processes"] == 2
    assert row["crops_per_second"] > 0
    assert row["precision"] == CONFIGURED_PRECISION
