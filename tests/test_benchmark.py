"""The benchmark: it measures what it says, whatever that comes to."""

import contextlib
import functools
import importlib.util
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from test_pretrain import ROOT, TINY

from encodecmae_sb.lobes import (
    AudioEncoder,
    GapMasker,
    LogMel,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.pipelines import benchmark as bench
from encodecmae_sb.utils.precision import best_precision

_SPEC = importlib.util.spec_from_file_location(
    "benchmark_recipe", ROOT / "recipes/benchmark.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

SIZES = ("dim", "ffn_dim", "num_layers", "num_heads")
CHANGED = ["float32", "plain", "published", "unfused", "checkpointing"]


# base.yaml says auto.
CONFIGURED_PRECISION = {"bf16": "bf16", "fp32": "float32"}[best_precision("cpu")]


def command(output, *options):
    """A small model on a small batch."""
    sizes = [part for key in SIZES for part in (f"--{key}", str(TINY[key]))]
    return [
        str(ROOT / "hparams/mini.yaml"),
        *("--output_folder", str(output), "--device", "cpu", "--codec", "bundled"),
        *("--batch_size", "2", "--seconds", "1", "--steps", "1"),
        *sizes,
        *options,
    ]


@pytest.fixture(scope="module", autouse=True)
def small_products():
    """The rate of a small product: a large one takes minutes where bf16 is emulated."""
    quick = functools.partial(bench.matmul_rate, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "matmul_rate", quick)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a whole benchmark wrote and printed."""
    output = tmp_path_factory.mktemp("benchmark")
    only = ",".join(["step", "embedding", "loader", *CHANGED])
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *a, **k: printed.append(str(a[0])))
        # What is measured in bf16 as well, whatever the machine.
        patch.setattr(recipe, "best_precision", lambda device: "bf16")
        recipe.main(command(output, "--only", only, "--file_seconds", "1,5"))
    return json.loads((output / "benchmark.json").read_text()), "\n".join(printed)


def test_all_of_a_step_is_in_its_parts(run):
    step = run[0]["step"]
    assert set(step["parts"]) == set(bench.PARTS)
    for name, seconds in step["parts"].items():
        # The bundled codec is there, but the codes were given.
        assert seconds > 0 or name == "codec", name
    assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
    expected = step["flops"] / step["seconds"] / run[0]["matmul_flops"]
    assert step["mfu"] == pytest.approx(expected)


def test_every_setting_is_compared_with_the_plain_one(run):
    settings = run[0]["settings"]
    assert list(settings) == [recipe.CONFIGURED, *CHANGED]
    configured = settings[recipe.CONFIGURED]
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
    consumes = 2 / results["settings"][recipe.CONFIGURED]["seconds"]
    assert loader["consumes"] == pytest.approx(consumes)
    assert loader["ratio"] == pytest.approx(loader["delivers"] / consumes)
    machine = results["machine"]
    assert machine["cores"] >= 1
    assert machine["torch"] == torch.__version__
    assert text.index("processor") < text.index("whole") < text.index("Loader")


def test_a_setting_that_runs_out_of_memory_is_reported(tmp_path, monkeypatch, capsys):
    @contextlib.contextmanager
    def greedy(brain):
        yield torch.empty(2**60)

    monkeypatch.setitem(recipe.SETTINGS, "float32", ([greedy], False, "greedy"))
    options = ("--only", "float32,unfused")
    recipe.main(command(tmp_path, *options))
    settings = json.loads((tmp_path / "benchmark.json").read_text())["settings"]
    assert settings["float32"]["seconds"] is None
    assert settings["unfused"]["seconds"] > 0
    assert re.search("float32 +out of memory +greedy", capsys.readouterr().out)


def test_an_interrupted_run_has_written_what_it_measured(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.Benchmark, "embedding", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(command(tmp_path, "--only", "step,embedding"))
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
        frames * 256 * dim
        + transformer(layers, visible)
        + visible * dim * dim
        + transformer(1, frames)
        + frames * dim * 3 * classes
    )
    counted = bench.count_flops(model, GapMasker(), 320 * frames)
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
            for baseline in (bench.dense_attention, bench.torch_attention):
                with baseline(None):
                    theirs = net(x, mask).last
                error = (ours - theirs)[valid].norm() / ours[valid].norm()
                assert error < tolerance


def test_loop_masking_hides_as_many():
    lengths = torch.tensor([300, 101, 7])
    seeds = torch.tensor([1, 2, 3])
    masker = GapMasker(0.5, 15)
    masked = bench.LoopMasker(masker)(lengths, seeds, 300).hidden
    assert torch.equal(masked.sum(1), masker(lengths, seeds, 300).hidden.sum(1))
    assert not masked[1, 101:].any()


def test_loop_masking_counts_as_it_goes(monkeypatch):
    """A baseline that counts a mask anew for every frame is slow on purpose."""
    counted = []

    def counting(values):
        counted.append(1)
        return sum(values)

    monkeypatch.setattr(bench, "sum", counting, raising=False)
    lengths, seeds = torch.tensor([300, 101]), torch.tensor([1, 2])
    bench.LoopMasker(GapMasker(0.5, 15))(lengths, seeds, 300)
    assert len(counted) <= len(lengths)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_loader_is_timed_from_its_last_warm_up_batch(monkeypatch, workers):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def batches(number):
        for i in range(number):
            # Workers are ready at the same time, and hand over one after the other.
            now[0] += 2.0 if i % max(1, workers) == 0 else 0.0
            yield SimpleNamespace(lengths=torch.tensor([24000, 48000]))

    fake = SimpleNamespace(
        args=SimpleNamespace(num_workers=workers, batch_size=2, seconds=4.0),
        open_loader=batches,
    )
    row = recipe.Benchmark.loader(fake, None)
    assert row["delivers"] == pytest.approx(1.5 * max(1, workers))


def test_figures_say_how_float32_was_computed(run):
    results, text = run
    assert results["step"]["precision"] == CONFIGURED_PRECISION
    said = {name: row["precision"] for name, row in results["settings"].items()}
    assert said == {
        recipe.CONFIGURED: CONFIGURED_PRECISION,
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
            assert bench.name_precision(torch.float32, gpu) == f"float32, {said}"
            assert bench.name_precision(torch.bfloat16, gpu) == f"bf16, {said}"
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_the_clock_loses_no_time(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 13.5])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    clock = bench.Clock(torch.device("cpu"))
    clock.start()
    for name in ("a", "b", "a"):
        clock.mark(name)
    assert clock.read() == {"a": 1.5, "b": 2.0}


@pytest.mark.skipif(bench.peak_memory(torch.device("cpu")) is None, reason="Linux")
def test_peak_memory_is_that_since_the_reset():
    device = torch.device("cpu")
    torch.ones(60_000_000)  # 240 MB, gone at once
    before = bench.reset_peak(device)
    torch.ones(20_000_000)  # 80 MB
    assert 70e6 < bench.peak_memory(device) - before < 200e6
    assert math.isfinite(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "stepp"], "stepp: allowed are step, settings"),
        (["--steps", "0"], "steps=0"),
        (["--codec", "nothing.th"], "nothing.th"),
        (["--device", "cuda:99"], "device=cuda:99 cannot be used"),
        (["--file_seconds", "1;4"], "file_seconds=1;4"),
        (["--processes", "1", "4"], "batch_size=2 crops cannot .* 4 proc"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(command(tmp_path, *options))


def test_processes_share_the_crops_of_a_step(tmp_path):
    recipe.main(command(tmp_path, "--only", "processes", "--processes", "2"))
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["processes"]
    assert row["processes"] == 2
    assert row["crops_per_second"] > 0
    assert row["precision"] == CONFIGURED_PRECISION
