"""Steps of several processes that share the crops; torchrun starts this module.

torchrun -m encodecmae_sb.pipelines.benchmark.together OPTIONS_FILE RESULT_FILE
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import speechbrain as sb
import torch

from encodecmae_sb.utils.experiment import quit_on_user_errors
from encodecmae_sb.utils.files import write_text

from .brain import batch_for, build
from .measure import time_call
from .options import Options


def run_together(options, count, folder):
    """Runs steps in several processes.

    Arguments
    ---------
    options : Options
    count : int
        Number of processes.
    folder : Path
        For files between the processes.

    Returns
    -------
    dict
        `processes`, and the `crops_per_second` of all together, None if they failed.
    """
    given, result = folder / f"{count}_options.json", folder / f"{count}_result.json"
    keys = list(options.keys)
    if options.device == "cpu":
        keys += ["--distributed_backend", "gloo"]
    write_text(given, json.dumps({**asdict(options), "keys": keys}, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", "-m", __name__, str(given), str(result)]
    threads = max(1, torch.get_num_threads() // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        print(ended.stderr, file=sys.stderr)
        return {"processes": count, "crops_per_second": None}
    return json.loads(result.read_text(encoding="utf-8"))


def measure_share(options, folder):
    """Runs this process's share of the crops of every step; returns the result."""
    brain = build(options, folder)
    brain.share_gradients()
    count = brain.world_size
    batch = batch_for(brain, options, options.batch_size // count, brain.rank or 0)
    batch = batch.to(torch.device(brain.device))

    def steps(number):
        torch.distributed.barrier()
        for _ in range(number):
            brain.run_step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        torch.distributed.barrier()

    steps(2)  # of warm-up
    number = options.steps * options.repeats
    seconds = time_call(lambda: steps(number))
    return {
        "processes": count,
        "crops_per_second": number * options.batch_size / seconds,
        "precision": brain.name_precision(),
    }


def main(options_file, result_file):
    """Measures, and writes the result in the main process."""
    options = json.loads(Path(options_file).read_text(encoding="utf-8"))
    result = measure_share(Options(**options), Path(result_file).parent)
    if sb.utils.distributed.if_main_process():
        write_text(result_file, json.dumps(result))


if __name__ == "__main__":
    with quit_on_user_errors():
        main(*sys.argv[1:])
