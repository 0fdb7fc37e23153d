r"""Measures speed: where the time of a training step goes, and what each setting costs.

    python recipes/benchmark.py hparams/base.yaml
    python recipes/benchmark.py hparams/base.yaml --device cuda --batch_size 128
    python recipes/benchmark.py hparams/base.yaml --only step,float32,compiled

Weights and codes are random, the audio is the speech in this repository; nothing is
fetched. Five things are measured, all of them unless --only names some:

* `step`: the time of a step by part, from the loader to the optimizer, and the model
  FLOP utilisation: 3 x the counted operations of the forward pass, over the time of
  the step, over the rate of a matrix product (2048 x 2048 x 2048; on a GPU 8192)
  measured between the steps;
* settings: steps with one thing changed, in turn with steps as configured, so that
  whatever else the machine does hits all alike. The ratios are medians over the
  rounds. `--only settings` measures all of them, `--only float32` one;
* `embedding`: seconds of audio per second, by length of file, batch and precision, and
  the error of bf16 against float32;
* `loader`: seconds of audio per second out of FLAC files at 16 kHz, against what the
  step as configured consumes;
* `processes`: crops per second of one process and of several that share the crops of
  a step, as under torchrun. On a CPU they share the cores, too; on GPUs each has one.

Any key of the yaml may be given, too (`--num_layers 20`). Writes `benchmark.json`,
after each of the five anew. A setting that runs out of memory is reported as such.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.encodec import FrozenCodec, build_encodec
from encodecmae_sb.pipelines import benchmark as bench
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    choose_device,
    is_out_of_memory,
    quit_on_user_errors,
)
from encodecmae_sb.utils.files import write_text
from encodecmae_sb.utils.precision import best_precision

CONFIGURED = "as configured"
TOGETHER = "together.json"  # from several processes to the one that started them
REPEATS = {"cuda": 5}  # steps in a row, so that a GPU has its queue filled
SECTIONS = ("step", "settings", "embedding", "loader", "processes")
# What is compared: how to change the brain, whether the codec runs in the step, what
# to say of it.
SETTINGS = {
    "float32": ([bench.in_float32], False, "no bf16"),
    "codec": ([], True, "the codec in the step, no stored codes"),
    "plain": (
        [bench.in_float32, bench.UnfusedOptimizer],
        True,
        "float32, the codec in the step, AdamW not fused",
    ),
    "published": (
        [
            bench.in_float32,
            bench.UnfusedOptimizer,
            bench.dense_attention,
            bench.loop_masking,
        ],
        True,
        "plain, with dense attention masks and Python-loop masking",
    ),
    "dense_mask": ([bench.dense_attention], False, "dense attention masks"),
    "loop_masking": ([bench.loop_masking], False, "masks drawn in Python loops"),
    "torch_attention": ([bench.torch_attention], False, "torch's attention in bf16"),
    "unfused": ([bench.UnfusedOptimizer], False, "AdamW not fused"),
    "checkpointing": ([bench.checkpointed], False, "activation checkpointing"),
    "compiled": ([bench.Compiled], False, "torch.compile"),
}


def parse(argv):
    """The options of this script, and the yaml's keys that stand beside them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hparams", help="a yaml of pretraining, e.g. hparams/base.yaml")
    parser.add_argument("--batch_size", type=int, default=8, help="crops in a step")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a crop")
    parser.add_argument("--steps", type=int, default=3, help="measured per setting")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--num_workers", type=int, default=2, help="of the loader")
    parser.add_argument(
        "--only",
        default=",".join(SECTIONS),
        help=f"from {', '.join(SECTIONS)}, or settings: {', '.join(SETTINGS)}",
    )
    parser.add_argument(
        "--codec",
        default="random_encodec",
        help="random_encodec (EnCodec's architecture, random weights: what it costs "
        "is the real cost), bundled (four times narrower) or a file",
    )
    parser.add_argument("--data_folder", nargs="*", help="audio for the loader")
    parser.add_argument("--file_seconds", default="1,4,10,60", help="to embed")
    parser.add_argument(
        "--processes", type=int, nargs="+", help="default: 1 2; with GPUs one on each"
    )
    parser.add_argument("--output_folder", type=Path, help="for benchmark.json")
    args, keys = parser.parse_known_args(argv)
    if not Path(args.hparams).is_file():
        raise FileNotFoundError(f"No such hyperparameter file: {args.hparams}")
    for name in ("batch_size", "seconds", "steps"):
        if getattr(args, name) <= 0:
            raise UserError(f"{name}={getattr(args, name)}: give a positive number.")
    args.only = args.only.split(",")
    if unknown := set(args.only) - {*SECTIONS, *SETTINGS}:
        raise UserError(
            f"--only {', '.join(sorted(unknown))}: allowed are {', '.join(SECTIONS)} "
            f"and {', '.join(SETTINGS)}."
        )
    try:
        args.file_seconds = [float(seconds) for seconds in args.file_seconds.split(",")]
    except ValueError as error:
        raise UserError(f"file_seconds={args.file_seconds}: {error}.") from error
    device = choose_device(args.device)
    if args.processes is None:
        # A GPU that is named by its number is the only one to use.
        name = args.device or device.type
        most = {"cpu": 2, "cuda": torch.cuda.device_count()}.get(name, 1)
        fitting = [n for n in range(1, most + 1) if args.batch_size % n == 0]
        args.processes = sorted({1, fitting[-1]})
    args.device = str(device)
    for count in args.processes:
        if count < 1 or args.batch_size % count:
            raise UserError(
                f"batch_size={args.batch_size} crops cannot be shared evenly among "
                f"{count} processes: give --processes or --batch_size."
            )
    if args.output_folder is None:
        args.output_folder = Path("results/benchmark") / Path(args.hparams).stem
    return args, keys


def build(args, keys, scratch):
    """The Brain of pretraining as the yaml describes it, and its hyperparameters."""
    # Checkpoints are not written, but their folder is made.
    keys = [*keys, "--output_folder", str(scratch / "run")]
    file, run_opts, overrides = sb.parse_arguments(
        [args.hparams, "--device", args.device, "--noprogressbar", *keys]
    )
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(file, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, overrides)
    if args.codec == "random_encodec":
        codec = FrozenCodec(build_encodec(), "random_encodec")
    else:
        codec = Codec(args.codec, hparams["n_codebooks"])
    front_end = hparams["model"].encoder.front_end
    if isinstance(front_end, CodecLatents):
        front_end.use(codec)
    hparams["grad_accumulation_factor"] = 1
    brain = bench.BenchmarkBrain(
        modules={**hparams["modules"], "targets": codec},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
    )
    return brain, hparams


def make_batch(args, hparams, size, seed=0):
    """Random crops as long as the command line says."""
    return bench.random_batch(
        size,
        int(args.seconds * hparams["sample_rate"]),
        hparams["n_codebooks"],
        hparams["codebook_size"],
        seed,
    )


def step_together(args, keys, scratch):
    """What each process does under torchrun: its share of the crops of every step.

    Returns
    -------
    dict
        `processes`, and the `crops_per_second` of all of them together.
    """
    brain, hparams = build(args, keys, scratch)
    brain.share_gradients()
    device, count = torch.device(brain.device), brain.world_size
    batch = make_batch(args, hparams, args.batch_size // count, brain.rank or 0)
    batch = batch.to(device)

    def steps(number):
        torch.distributed.barrier()
        for _ in range(number):
            brain.run_step(batch)
        bench.synchronize(device)
        torch.distributed.barrier()

    steps(2)  # of warm-up
    number = args.steps * REPEATS.get(device.type, 1)
    seconds = bench.time_call(lambda: steps(number), device)
    return {
        "processes": count,
        "crops_per_second": number * args.batch_size / seconds,
        "precision": bench.name_precision(bench.autocast_dtype(brain), device),
    }


class Benchmark:
    """All measurements of one run.

    Arguments
    ---------
    argv : list of str
        What `args` were made of.
    args : argparse.Namespace
    brain : BenchmarkBrain
    hparams : dict
    scratch : Path
        For files that are needed in between.
    """

    def __init__(self, argv, args, brain, hparams, scratch):
        self.argv, self.args = argv, args
        self.brain, self.hparams = brain, hparams
        self.scratch = scratch
        self.device = torch.device(brain.device)
        self.samples = int(args.seconds * hparams["sample_rate"])
        self.batch = make_batch(args, hparams, args.batch_size)
        self.repeats = REPEATS.get(self.device.type, 1)
        self.rates = []
        self.precisions = {}  # of the settings
        self.flops = args.batch_size * bench.count_flops(
            hparams["model"], hparams["masker"], self.samples
        )

    @property
    def rate(self):
        """Operations per second of a matrix product, the median of this run."""
        return statistics.median(self.rates)

    def precision(self):
        """What a step of the Brain as it is now computes in."""
        return bench.name_precision(bench.autocast_dtype(self.brain), self.device)

    def measure_rate(self):
        """Measures the matrix product once more: machines do not stay as they are."""
        dtype = bench.autocast_dtype(self.brain)
        self.rates.append(bench.matmul_rate(self.device, dtype))

    def folders(self):
        """Folders of audio for the loader."""
        if self.args.data_folder:
            return self.args.data_folder
        folder = self.scratch / "audio"
        if not folder.exists():
            bench.write_long_files(folder)
        return [folder]

    def open_loader(self, batches):
        """See `benchmark.open_loader`."""
        return bench.open_loader(
            self.folders(),
            self.scratch / "manifests",
            self.args.batch_size,
            self.args.seconds,
            self.args.num_workers,
            batches,
        )

    def step(self):
        """Steps as configured, by part."""
        warm_up = 2
        rows = []
        loader = iter(self.open_loader(warm_up + self.args.steps * self.repeats))
        with self.brain.timed() as clock:
            for i in tqdm(range(warm_up + self.args.steps * self.repeats), desc="step"):
                if i % self.repeats == 0:
                    self.measure_rate()
                clock.start()
                batch = next(loader)
                frames = -(-batch.wavs.shape[1] // 320)
                targets = self.batch.targets[:, :frames]
                clock.mark("loader")
                self.brain.run_step(replace(batch, targets=targets))
                clock.mark("other")
                if i >= warm_up:
                    rows.append(clock.read())
        seconds = statistics.median(sum(row.values()) for row in rows)
        parts = {
            name: statistics.mean(row.get(name, 0.0) for row in rows)
            for name in bench.PARTS
        }
        whole = sum(parts.values())
        return {
            "seconds": seconds,
            "parts": {name: seconds * part / whole for name, part in parts.items()},
            "flops": self.flops,
            "precision": self.precision(),
        }

    def settings(self, names):
        """Steps with one thing changed, in turn with steps as configured."""
        prepared = {CONFIGURED: ([], self.batch)}
        # Those that are classes prepare something, once.
        ready = functools.cache(lambda c: c(self.brain) if isinstance(c, type) else c)
        for name in names:
            changes, with_codec, _ = SETTINGS[name]
            changes = [ready(change) for change in changes]
            batch = bench.without_codes(self.batch) if with_codec else self.batch
            prepared[name] = (changes, batch)
        seconds = {name: [] for name in prepared}
        memory, too_large = {}, set()
        # The first round warms up. Memory has the last to itself, for its measurement
        # gives back what the next step would have to ask for again.
        last = 1 + self.args.steps
        bar = tqdm(total=(1 + last) * len(prepared), desc="settings")
        for turn in range(1 + last):
            self.measure_rate()
            for name, (changes, batch) in prepared.items():
                bar.set_postfix_str(name)
                if name not in too_large:
                    before = bench.reset_peak(self.device) if turn == last else None
                    took = self.step_with(name, changes, batch)
                    if took is None:
                        too_large.add(name)
                    elif turn == last:
                        peak = bench.peak_memory(self.device)
                        memory[name] = (peak, peak and before and peak - before)
                    elif turn:
                        seconds[name].append(took)
                bar.update()
        bar.close()
        rows = {}
        for name, took in seconds.items():
            row = rows[name] = {"what": SETTINGS[name][2] if name in SETTINGS else ""}
            if name in too_large:
                row["seconds"] = None
                continue
            row["precision"] = self.precisions[name]
            pairs = zip(took, seconds[CONFIGURED], strict=True)
            row["seconds"] = statistics.median(took)
            row["ratio"] = statistics.median(a / b for a, b in pairs)
            row["peak_bytes"], row["peak_bytes_of_the_step"] = memory[name]
        return rows

    def step_with(self, name, changes, batch):
        """Seconds of a step in a setting, or None if its memory does not suffice."""
        try:
            with contextlib.ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change(self.brain))
                self.precisions[name] = self.precision()
                return bench.time_call(
                    lambda: self.brain.run_step(batch), self.device, self.repeats
                )
        except Exception as error:
            if name == CONFIGURED or not is_out_of_memory(error):
                raise
        # Not before the error is forgotten, which holds on to what the step had.
        self.brain.optimizer.zero_grad(set_to_none=True)
        bench.reset_peak(self.device)
        return None

    @torch.no_grad()
    def embedding(self):
        """Times real time by length, batch and precision; the error of bf16.

        Without bf16 where the device has no instructions for it: it would take hours.
        """
        encoder = self.hparams["model"].encoder.eval()
        rows = []
        dtypes = [torch.float32]
        if best_precision(self.device) == "bf16":
            dtypes.append(torch.bfloat16)
        lengths = self.args.file_seconds
        cases = [(seconds, size) for seconds in lengths for size in (1, 16)]
        for seconds, size in tqdm(cases, desc="embedding"):
            row = {"file_seconds": seconds, "batch": size, "precisions": {}}
            features = {}
            for dtype in dtypes:
                name = str(dtype).removeprefix("torch.")
                row["precisions"][name] = bench.name_precision(dtype, self.device)
                row[name], features[name] = bench.time_embedding(
                    encoder, seconds, size, dtype, self.device
                )
            if features["float32"] is not None and "bfloat16" in features:
                error = (features["bfloat16"] - features["float32"]).norm()
                row["relative_error"] = float(error / features["float32"].norm())
            rows.append(row)
        encoder.train()
        return rows

    def loader(self, step_seconds):
        """What the loader delivers and the step consumes, in seconds per second."""
        workers = max(1, self.args.num_workers)
        rounds = -(-max(10, 160 // self.args.batch_size) // workers)
        loader = self.open_loader((2 + rounds) * workers)
        delivers = bench.time_loader(tqdm(loader, desc="loader"), 2 * workers)
        row = {"workers": self.args.num_workers, "delivers": delivers}
        if step_seconds:
            row["consumes"] = self.args.batch_size * self.args.seconds / step_seconds
            row["ratio"] = delivers / row["consumes"]
        return row

    def processes(self):
        """Crops per second by number of processes."""
        rows = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the processes need it
        for count in tqdm(self.args.processes, desc="processes"):
            output = self.scratch / f"{count}_processes"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={count}", __file__, *self.argv]
            command += ["--output_folder", str(output)]
            if self.device.type == "cpu":
                command += ["--distributed_backend", "gloo"]
            threads = max(1, torch.get_num_threads() // count)
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True
            )
            if ended.returncode:
                print(ended.stderr, file=sys.stderr)
                rows.append({"processes": count, "crops_per_second": None})
            else:
                rows.append(json.loads((output / TOGETHER).read_text(encoding="utf-8")))
        return rows

    def run(self, path):
        """Measures everything that was asked for.

        Arguments
        ---------
        path : Path
            The JSON file of the results so far.

        Returns
        -------
        dict
        """
        only = self.args.only
        self.measure_rate()
        results = {
            "machine": bench.describe_machine(self.device),
            "hparams": self.args.hparams,
            "command": " ".join(sys.argv),
            "batch_size": self.args.batch_size,
            "seconds": self.args.seconds,
            "precision": self.brain.precision,
            "codec": self.args.codec,
            "parameters": sum(p.numel() for p in self.hparams["model"].parameters()),
        }

        def measured(name, result):
            results[name] = result
            # All by the same rate, the median over the whole run.
            for row in (results.get("step"), *results.get("settings", {}).values()):
                if row is not None and row["seconds"] is not None:
                    row["mfu"] = self.flops / row["seconds"] / self.rate
            results["matmul_flops"] = self.rate
            results["matmul_precision"] = self.precision()
            results["matmul_flops_lowest_highest"] = [min(self.rates), max(self.rates)]
            write(path, results)
            return result

        step_seconds = None
        if "step" in only:
            step_seconds = measured("step", self.step())["seconds"]
        names = [name for name in SETTINGS if name in only or "settings" in only]
        if names:
            rows = measured("settings", self.settings(names))
            step_seconds = rows[CONFIGURED]["seconds"]
        if "embedding" in only:
            measured("embedding", self.embedding())
        if "loader" in only:
            measured("loader", self.loader(step_seconds))
        if "processes" in only:
            measured("processes", self.processes())
        return results


def tables(results):
    """The results as text for people."""
    lines = ["", "Machine"]
    for name, value in results["machine"].items():
        if isinstance(value, list):
            value = ", ".join(value)
        lines.append(f"  {name:18s} {value}")
    low, high = (rate / 1e9 for rate in results["matmul_flops_lowest_highest"])
    lines.append(
        f"  {'matrix product':18s} {results['matmul_flops'] / 1e9:.0f} GFLOP/s in "
        f"{results['matmul_precision']} "
        f"({low:.0f} to {high:.0f} during this run)"
    )
    lines.append(
        f"\n{results['hparams']}: {results['parameters'] / 1e6:.1f} M parameters, "
        f"{results['batch_size']} crops of {results['seconds']:g} s, "
        f"{results['precision']}, codec {results['codec']}"
    )
    if step := results.get("step"):
        lines.append(
            f"\nA step as configured, {step['precision']}\n"
            f"  {'part':30s}  seconds   share"
        )
        for name, seconds in step["parts"].items():
            share = seconds / step["seconds"]
            lines.append(f"  {name:30s} {seconds:8.3f} {100 * share:6.1f} %")
        lines.append(f"  {'whole':30s} {step['seconds']:8.3f}")
        lines.append(
            f"  model FLOP utilisation {100 * step['mfu']:.1f} % "
            f"({step['flops'] / 1e9:.0f} GFLOP)"
        )
    if settings := results.get("settings"):
        wide = max(len(row.get("precision", "")) for row in settings.values())
        lines.append(
            "\nSettings            seconds   ratio   MFU %   step's memory (MiB)   "
            "precision"
        )
        for name, row in settings.items():
            if row["seconds"] is None:
                lines.append(f"  {name:15s} {'out of memory':>40s}   {row['what']}")
                continue
            what = f"{row['precision']:{wide}}   {row['what']}"
            memory = row["peak_bytes_of_the_step"]
            memory = "?" if memory is None else f"{memory / 2**20:.0f}"
            lines.append(
                f"  {name:15s} {row['seconds']:9.3f} {row['ratio']:7.2f} "
                f"{100 * row['mfu']:7.1f} {memory:>12s}   {what.rstrip()}"
            )
    if embedding := results.get("embedding"):
        lines.append(
            f"\nEmbedding, float32 is {embedding[0]['precisions']['float32']}\n"
            "  times real time               float32      bf16   error of bf16"
        )
        for row in embedding:
            error = row.get("relative_error")
            error = "" if error is None else f"{100 * error:.2f} %"
            rounded = f"{row['bfloat16']:.1f}" if "bfloat16" in row else "-"
            lines.append(
                f"  {row['file_seconds']:5g} s, batch {row['batch']:2d}"
                f"{row['float32']:19.1f} {rounded:>9s} {error:>12s}"
            )
    if loader := results.get("loader"):
        lines.append(
            f"\nLoader, {loader['workers']} workers: {loader['delivers']:.0f} s of "
            "audio a second"
        )
        if "ratio" in loader:
            lines[-1] += (
                f", {loader['ratio']:.1f} times the {loader['consumes']:.1f} that the "
                "step consumes"
            )
    if processes := results.get("processes"):
        lines.append(
            "\nProcesses that share a step   crops a second   ratio   precision"
        )
        for row in processes:
            speed, one = row["crops_per_second"], processes[0]["crops_per_second"]
            ratio = f"{speed / one:7.2f}" if speed and one else ""
            speed = f"{speed:41.2f}" if speed else f"{'failed, see above':>41s}"
            line = f"  {row['processes']:2d} {speed} {ratio:>7s}"
            lines.append(f"{line}   {row.get('precision', '')}".rstrip())
    return "\n".join(lines)


def write(path, results):
    """A file of results that is whole or not there."""
    write_text(path, json.dumps(results, indent=2) + "\n")


def main(argv):
    """Measures and writes what the command line asks for."""
    args, keys = parse(argv)
    args.output_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if "RANK" in os.environ:  # one of the processes that `processes` starts
            together = step_together(args, keys, scratch)
            if sb.utils.distributed.if_main_process():
                write(args.output_folder / TOGETHER, together)
            return
        brain, hparams = build(args, keys, scratch)
        path = args.output_folder / "benchmark.json"
        results = Benchmark(argv, args, brain, hparams, scratch).run(path)
    print(tables(results))
    print(f"\nWritten to {path}")


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
