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
import sys
import tempfile
from pathlib import Path

from encodecmae_sb.pipelines.benchmark.options import SECTIONS, Options
from encodecmae_sb.pipelines.benchmark.report import tables
from encodecmae_sb.pipelines.benchmark.sections import Benchmark
from encodecmae_sb.pipelines.benchmark.variants import SETTINGS
from encodecmae_sb.utils.experiment import quit_on_user_errors
from encodecmae_sb.utils.files import check_writable


def parse(argv):
    """The options of this script, and the yaml's keys that stand beside them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, sections = parser.add_argument, ", ".join(SECTIONS)
    add("hparams", help="a yaml of pretraining, e.g. hparams/base.yaml")
    add("--batch_size", type=int, help="crops in a step; default: 8")
    add("--seconds", type=float, help="of a crop; default: 4")
    add("--steps", type=int, help="measured per setting; default: 3")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--num_workers", type=int, help="of the loader; default: 2")
    add("--only", help=f"from {sections}, or settings: {', '.join(SETTINGS)}")
    add("--codec", help="random_encodec (default), bundled (narrower), or a file")
    add("--data_folder", nargs="*", help="audio for the loader")
    add("--file_seconds", help="to embed; default: 1,4,10,60")
    add("--processes", type=int, nargs="+", help="default: 1 2; one on each GPU")
    add("--output_folder", type=Path, help="for benchmark.json")
    args, keys = parser.parse_known_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None}
    return Options(**given, keys=keys)


def main(argv):
    """Measures and writes what the command line asks for."""
    options = parse(argv)
    check_writable(options.output_folder)
    with tempfile.TemporaryDirectory() as folder:
        results = Benchmark(options, Path(folder)).run()
    print(tables(results))
    print(f"\nWritten to {options.output_folder / 'benchmark.json'}")


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
