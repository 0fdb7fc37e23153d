"""Runs scripts in processes that have imported the package already.

An import takes about four seconds, and the suite runs hundreds of command lines. Here
one process imports what all recipes need, and each command line is a fork of it: with
its own arguments, folder, environment, output and end, as in a new interpreter.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

_IMPORTED = [
    "encodecmae_sb.brains.classify",
    "encodecmae_sb.brains.codec",
    "encodecmae_sb.brains.ctc",
    "encodecmae_sb.brains.pretrain",
    "encodecmae_sb.pipelines.compare",
    "encodecmae_sb.pipelines.pretrain",
    "encodecmae_sb.xares",
    "torch.distributed.run",
]


def run_preloaded(script, arguments, cwd, env, timeout):
    """Runs a script; returns its exit status and what it printed, errors last."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder, name) for name in ("out", "err")]
        job = str(script), [str(a) for a in arguments], str(cwd), env, texts
        process = _context().Process(target=_main, args=job)
        # The process that imports has one thread, too.
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            process.start()
        process.join(timeout)
        late = process.is_alive()
        # Workers of a loader outlive a process that was killed; they go with the group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if late:
            raise subprocess.TimeoutExpired([script, *arguments], timeout)
        text = "".join(path.read_text(errors="replace") for path in texts)
        return process.exitcode, text


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _main(script, arguments, cwd, env, texts):
    """Becomes the process that `python SCRIPT ARGUMENT ...` would have started."""
    for number, path in enumerate(texts, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [script, *arguments]
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(script).parent), *filter(None, paths)]
    runpy.run_path(script, run_name="__main__")
