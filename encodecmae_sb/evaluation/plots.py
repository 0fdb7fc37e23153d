"""Pictures, drawn without a screen and written whole."""

import contextlib

from encodecmae_sb.utils.files import whole_file


@contextlib.contextmanager
def picture(path, rows=1, columns=1, **options):
    """A figure that becomes a PNG file when the block ends.

    Arguments
    ---------
    path : str or Path
        The file to write.
    rows, columns : int
        Of axes.
    **options
        Of `matplotlib.pyplot.subplots`, such as `figsize`, in inches.

    Yields
    ------
    figure : matplotlib.figure.Figure
    axes : matplotlib.axes.Axes or numpy.ndarray of them

    Example
    -------
    >>> path = getfixture("tmp_path") / "line.png"
    >>> with picture(path, figsize=(4, 3)) as (figure, axes):
    ...     lines = axes.plot([0, 1])
    >>> path.exists()
    True
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, layout="constrained", **options)
    try:
        yield figure, axes
        with whole_file(path) as scratch:
            figure.savefig(scratch, format="png", dpi=100)
    finally:
        pyplot.close(figure)
