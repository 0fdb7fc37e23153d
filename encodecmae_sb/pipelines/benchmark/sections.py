"""The measurements of a benchmark, section by section."""

import contextlib
import functools
import json
import statistics
import sys
from dataclasses import replace

import torch
from speechbrain.utils.autocast import TorchAutocast
from torch.utils.data import DataLoader

from encodecmae_sb.data.crops import CropCollator, DrawSampler, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.utils.experiment import is_out_of_memory
from encodecmae_sb.utils.files import write_text
from encodecmae_sb.utils.grid import HOP
from encodecmae_sb.utils.precision import best_precision
from encodecmae_sb.utils.progress import track

from . import measure
from .audio import spoken, write_long_files
from .brain import PARTS, batch_for, build, without_codes
from .together import run_together
from .variants import SETTINGS

CONFIGURED = "as configured"


class Benchmark:
    """All measurements of one run.

    Arguments
    ---------
    options : Options
    folder : Path
        For files that are needed in between.
    """

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.brain = build(options, folder)
        self.device = torch.device(options.device)
        self.batch = batch_for(self.brain, options, options.batch_size)
        self.model = self.brain.hparams.model
        self.rates = []
        self.precisions = {}  # of the settings
        sampler, masker = self.brain.codebook_sampler, self.brain.hparams.masker
        self.flops = options.batch_size * measure.count_flops(
            *(self.model, masker, self.batch.wavs.shape[1]), sampler and sampler.count
        )

    def run(self):
        """Measures everything that was asked for, and writes `benchmark.json`.

        Returns
        -------
        dict
        """
        options = self.options
        self.measure_rate()
        results = {
            "machine": measure.describe_machine(self.device),
            "hparams": options.hparams,
            "command": " ".join(sys.argv),
            "batch_size": options.batch_size,
            "seconds": options.seconds,
            "precision": self.brain.precision,
            "codec": options.codec,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

        def note(name, result):
            results[name] = result
            rate = statistics.median(self.rates)
            # Use one rate for all, the median over the whole run.
            for row in (results.get("step"), *results.get("settings", {}).values()):
                if row is not None and row["seconds"] is not None:
                    row["mfu"] = self.flops / row["seconds"] / rate
            results["matmul_flops"] = rate
            results["matmul_precision"] = self.brain.name_precision()
            results["matmul_flops_lowest_highest"] = [min(self.rates), max(self.rates)]
            text = json.dumps(results, indent=2) + "\n"
            write_text(options.output_folder / "benchmark.json", text)
            return result

        step_seconds = None
        if "step" in options.names:
            step_seconds = note("step", self.step())["seconds"]
        names = [n for n in SETTINGS if {n, "settings"} & set(options.names)]
        if names:
            rows = note("settings", self.settings(names))
            step_seconds = rows[CONFIGURED]["seconds"]
        if "embedding" in options.names:
            note("embedding", self.embedding())
        if "loader" in options.names:
            note("loader", self.loader(step_seconds))
        if "processes" in options.names:
            note("processes", self.processes())
        return results

    def measure_rate(self):
        """Measures the matrix product once more: the speed of a machine varies."""
        dtype = self.brain.autocast_dtype()
        self.rates.append(measure.matmul_rate(self.device, dtype))

    def open_loader(self, batches):
        """Random crops as pretraining loads them."""
        options = self.options
        folders = options.data_folder
        if not folders:
            folders = [self.folder / "audio"]
            if not folders[0].exists():
                write_long_files(folders[0])
        corpora = prepare_corpora(folders, self.folder / "manifests", procedural=True)
        size = options.batch_size
        return DataLoader(
            RandomCrops([corpus.train_csv for corpus in corpora], options.seconds),
            batch_sampler=DrawSampler(size, size, steps=range(batches)),
            collate_fn=CropCollator(),
            num_workers=options.num_workers,
        )

    def step(self):
        """Steps as configured, by part."""
        warm_up, repeats = 2, self.options.repeats
        count = warm_up + self.options.steps * repeats
        rows = []
        loader = iter(self.open_loader(count))
        with self.brain.timed() as clock:
            for i in track(range(count), "step", "steps"):
                if i % repeats == 0:
                    self.measure_rate()
                clock.start()
                batch = next(loader)
                targets = self.batch.targets[:, : -(-batch.wavs.shape[1] // HOP)]
                clock.mark("loader")
                self.brain.run_step(replace(batch, targets=targets))
                clock.mark("other")
                if i >= warm_up:
                    rows.append(clock.read())
        seconds = statistics.median(sum(row.values()) for row in rows)
        parts = {
            name: statistics.mean(row.get(name, 0.0) for row in rows) for name in PARTS
        }
        whole = sum(parts.values())
        return {
            "seconds": seconds,
            "parts": {name: seconds * part / whole for name, part in parts.items()},
            "flops": self.flops,
            "precision": self.brain.name_precision(),
        }

    def settings(self, names):
        """Steps with one thing changed, in turn with steps as configured."""
        prepared = {CONFIGURED: ([], self.batch)}
        for name in names:
            changes, with_codec, _ = SETTINGS[name]
            batch = without_codes(self.batch) if with_codec else self.batch
            prepared[name] = (changes, batch)
        seconds = {name: [] for name in prepared}
        memory, too_large = {}, set()
        # The first round warms up. The last round measures memory and no time: the
        # measurement frees memory that the next step must allocate again.
        last = 1 + self.options.steps
        turns = [(turn, name) for turn in range(1 + last) for name in prepared]
        for turn, name in track(turns, "settings", "steps"):
            if name == CONFIGURED:
                self.measure_rate()
            if name in too_large:
                continue
            before = measure.reset_peak(self.device) if turn == last else None
            took = self.step_with(name, *prepared[name])
            if took is None:
                too_large.add(name)
            elif turn == last:
                peak = measure.peak_memory(self.device)
                memory[name] = (peak, peak and before and peak - before)
            elif turn:
                seconds[name].append(took)
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
                self.precisions[name] = self.brain.name_precision()
                return measure.time_call(
                    lambda: self.brain.run_step(batch), self.options.repeats
                )
        except Exception as error:
            if name == CONFIGURED or not is_out_of_memory(error):
                raise
        # Free memory only here: inside `except`, the error holds what the step used.
        self.brain.optimizer.zero_grad(set_to_none=True)
        measure.reset_peak(self.device)
        return None

    @torch.no_grad()
    def embedding(self):
        """Times real time by length, batch and precision; the error of bf16.

        Without bf16 where the device is not made for it: it might take hours.
        """
        encoder = self.model.encoder.eval()
        dtypes = {"float32": torch.float32}
        if best_precision(self.device) == "bf16":
            dtypes["bfloat16"] = torch.bfloat16
        lengths = self.options.file_lengths
        cases = [(seconds, size) for seconds in lengths for size in (1, 16)]
        rows = []
        for seconds, size in track(cases, "embedding", "cases"):
            row = {"file_seconds": seconds, "batch": size, "precisions": {}}
            features = {}
            wavs = spoken(int(seconds * encoder.front_end.sample_rate)).repeat(size, 1)
            for name, dtype in dtypes.items():
                row["precisions"][name] = measure.name_precision(dtype, self.device)
                with TorchAutocast(device_type=self.device.type, dtype=dtype):
                    embed = functools.partial(encode_in_chunks, encoder, wavs)
                    took = measure.median_time(embed, seconds=1)
                    if size == 1:
                        features[name] = embed()[0].float()
                row[name] = seconds * size / took
            if len(features) == 2:
                error = (features["bfloat16"] - features["float32"]).norm()
                row["relative_error"] = float(error / features["float32"].norm())
            rows.append(row)
        encoder.train()
        return rows

    def loader(self, step_seconds):
        """What the loader delivers and the step consumes, in seconds per second."""
        options = self.options
        workers = max(1, options.num_workers)
        rounds = -(-max(10, 160 // options.batch_size) // workers)
        batches = (2 + rounds) * workers
        loader = track(self.open_loader(batches), "loader", "batches", batches)
        delivers = measure.time_loader(loader, 2 * workers)
        row = {"workers": options.num_workers, "delivers": delivers}
        if step_seconds:
            row["consumes"] = options.batch_size * options.seconds / step_seconds
            row["ratio"] = delivers / row["consumes"]
        return row

    def processes(self):
        """Crops per second by number of processes."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the processes need it
        return [
            run_together(self.options, count, self.folder)
            for count in track(self.options.processes, "processes", "cases")
        ]
