"""The one progress bar of this package."""

import sys

from tqdm import tqdm

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} "
    "[{elapsed}, {remaining} left{postfix}]"
)


def open_bar(total, what="Training", unit="steps", initial=0, quiet=False):
    """A progress bar; in a log file it writes a line every 10 s at most.

    Arguments
    ---------
    total : int or float
        Units of the whole work.
    what : str
        What is being done.
    unit : str
        What is counted, in the plural.
    initial : int or float
        Units done before, by a run that was interrupted.
    quiet : bool
        Show nothing.

    Returns
    -------
    tqdm.tqdm
        Also a context manager that closes it.

    Example
    -------
    >>> with open_bar(10, "Embedding", "files", quiet=True) as bar:
    ...     bar.update(10)
    """
    if isinstance(total, float):
        total += 1e-3  # rounded parts may add up to more, of which tqdm would warn
    return tqdm(
        # A run may have gone further before: tqdm would then drop the total.
        total=max(total, initial),
        initial=initial,
        desc=what,
        unit=f" {unit}",
        bar_format=_BAR,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        smoothing=0.1,
        disable=quiet,
    )


def track(items, what, unit, total=None):
    """Yields items and shows the progress through them; see `open_bar`.

    Arguments
    ---------
    items : iterable
    what, unit : str
    total : int, optional
        How many there are; default: `len(items)`.

    Example
    -------
    >>> list(track("ab", "Reading", "letters"))
    ['a', 'b']
    """
    with open_bar(len(items) if total is None else total, what, unit) as bar:
        for item in items:
            yield item
            bar.update()
