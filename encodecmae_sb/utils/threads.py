"""Work that is shared among threads, one thread of PyTorch in each."""

import collections
import contextlib
from concurrent.futures import ThreadPoolExecutor

import torch

_MOST_AT_ONCE = 16  # each takes memory


def map_on_threads(function, items):
    """Results for items, in order; several at once, each on one thread of PyTorch.

    As many at once as PyTorch has threads, but at most 16. Results do not depend on
    the number. Close the generator, or exhaust it: until then PyTorch has one thread.

    Arguments
    ---------
    function : callable
    items : iterable
        Read on the thread that asks for results, a few ahead of them.

    Yields
    ------
    (object, object)
        Each item and its result.

    Example
    -------
    >>> list(map_on_threads(abs, [-1, -2]))
    [(-1, 1), (-2, 2)]
    """
    threads, waiting = torch.get_num_threads(), collections.deque()
    at_once = min(threads, _MOST_AT_ONCE)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=[1])
    # With several threads, the one that reads items would hinder the others.
    torch.set_num_threads(1)
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > at_once:
                    item, result = waiting.popleft()
                    yield item, result.result()
            while waiting:
                item, result = waiting.popleft()
                yield item, result.result()
    finally:
        torch.set_num_threads(threads)
