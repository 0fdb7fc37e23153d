"""Signals that ask a training to end: save first, then say that it is to go on."""

import os
import signal
import threading

# "A temporary failure: try again later" (EX_TEMPFAIL of sysexits.h).
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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

    def __init__(self):
        self.received = None
        self._before = {}

    def __enter__(self):
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
                # Writing to a network file system goes on after the signal.
                signal.siginterrupt(number, False)
        return self

    def __exit__(self, *_):
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number, _):
        self.received = signal.Signals(number).name


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
