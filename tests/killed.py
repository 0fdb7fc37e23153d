"""Runs a script and kills it as SIGKILL does, at a moment that does not depend on
the speed of the machine.

    killed.py SAVES DELAY SCRIPT [ARGUMENT ...]

The process dies DELAY seconds after it has saved its SAVES-th checkpoint.
"""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from preloaded import run_preloaded


def run_killed(command, saves, delay=0.0, *, cwd, env):
    """Runs a command, a list that begins with the interpreter, until it dies.

    Arguments
    ---------
    command : list
        Interpreter, script, arguments.
    saves : int
        Checkpoints it saves.
    delay : float
        Seconds it has left then; in them it may end by itself.
    cwd, env
        Folder and environment of the process.
    """
    _, *arguments = command
    code, text = run_preloaded(__file__, [saves, delay, *arguments], cwd, env, 120)
    allowed = {-signal.SIGKILL} if not delay else {-signal.SIGKILL, 0}
    assert code in allowed, text


def die(*_):
    """Ends the process at once; nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(saves, delay, script, *arguments):
    """Runs the script under watch."""
    from encodecmae_sb.utils.checkpointer import AtomicCheckpointer

    saves, delay = int(saves), float(delay)
    save, count = AtomicCheckpointer.save_checkpoint, 0

    def watched(*args, **kwargs):
        nonlocal count
        saved = save(*args, **kwargs)
        count += 1
        if count == saves:
            die() if not delay else threading.Timer(delay, die).start()
        return saved

    AtomicCheckpointer.save_checkpoint = watched
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
