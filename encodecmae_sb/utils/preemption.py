"""Signals that ask a run to end: save first, then say that it is to go on."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

# "A temporary failure: try again later" (EX_TEMPFAIL of sysexits.h).
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_END = "ended"  # a file in the output folder
_output = None


class Preempted(SystemExit):
    """A training has saved a checkpoint and ends, since a signal asked for it.

    Arguments
    ---------
    message : str
    """

    def __init__(self, message):
        super().__init__(EXIT_CODE)
        self.message = message


class SignalWatch:
    """Takes note of SIGTERM and SIGUSR1 within a block, and does nothing else.

    So a signal interrupts nothing, neither a step nor a checkpoint, and a second one
    changes nothing. After the block signals do what they did before. In a thread that
    is not the main one, signals stay as they are.

    Attributes
    ----------
    received : str or None
        The name of the last signal.

    Example
    -------
    >>> with SignalWatch() as watch:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     watch.received
    'SIGUSR1'
    """

    interrupts = False  # reading and writing; a network file system, for example

    def __init__(self):
        self.received = None
        self._before = {}

    def __enter__(self):
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
                signal.siginterrupt(number, self.interrupts)
        return self

    def __exit__(self, *_):
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number, _):
        self.received = signal.Signals(number).name


class SignalEnd(SignalWatch):
    """Ends the process at SIGTERM or SIGUSR1 within a block, with `EXIT_CODE`.

    At once, as a kill would: threads and readers are not waited for. Within it
    a `SignalWatch` comes first.
    """

    interrupts = True

    def __enter__(self):
        self._process = os.getpid()
        return super().__enter__()

    def _note(self, number, _):
        if os.getpid() != self._process:  # a fork of it, which ends by itself
            os._exit(128 + number)
        name = signal.Signals(number).name
        text = (
            f"\nStopped by {name}. What is finished is kept: give the same command.\n"
        )
        note_end("preempted")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # it may be in the middle of a line
                stream.flush()
        os.write(2, text.encode())
        os._exit(EXIT_CODE)


def note_end_in(folder):
    """Names the folder whose file `ended` shall say how a run ended; none is there yet.

    Arguments
    ---------
    folder : str, Path or None
        Of a run that begins, shared by its processes. None: nowhere.
    """
    global _output
    _output = folder and Path(folder)
    if folder and os.environ.get("RANK", "0") == "0":
        (_output / _END).unlink(missing_ok=True)


def note_end(how):
    """Writes how the run ended, for scripts; torchrun's exit code does not say it.

    The first process counts: torchrun ends the others with a signal.

    Arguments
    ---------
    how : str
        "preempted" or "failed".
    """
    if _output is not None:
        with contextlib.suppress(OSError), open(_output / _END, "x") as file:
            file.write(f"{how}\n")


def ignore_signals(worker=None):
    """Lets a process ignore SIGTERM and SIGUSR1: the `worker_init_fn` of our loaders.

    A scheduler sends its signal to all processes. A worker that died of it would end
    the training before the checkpoint. SIGTERM of the process that it serves ends it.

    Arguments
    ---------
    worker : int, optional
        The number of the worker; not used.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=[os.getppid()], daemon=True).start()


def _obey(parent):
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
