"""From probabilities of frames to sound events, and how good the events are.

The scores are those of sed_eval (Mesaros, Heittola, Virtanen: Metrics for Polyphonic
Sound Event Detection, 2016) with the settings of HEAR. They are sums of counts, one row
for each file, so that files can be drawn anew for an interval.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching


def find_events(
    probabilities, times, median_filter_ms=0, min_duration=0, threshold=0.5
):
    """Makes events of the probabilities of frames.

    Arguments
    ---------
    probabilities : numpy.ndarray
        Shape [T, labels].
    times : numpy.ndarray
        Of the frames, ascending, in ms, shape [T].
    median_filter_ms : float
        Width of a median filter over time; 0: none.
    min_duration : float
        Shorter events are left out, in ms. An event lasts from its first frame to its
        last one.
    threshold : float
        A label is present where its probability is above.

    Returns
    -------
    list of (int, float, float)
        Number of the label, start and end in ms, in the order of labels.

    Example
    -------
    >>> frames = np.array([[0.9], [0.9], [0.2], [0.7]])
    >>> find_events(frames, np.array([0.0, 100.0, 200.0, 300.0]), min_duration=50)
    [(0, 0.0, 100.0)]
    """
    if median_filter_ms and len(times) > 1:
        width = round(median_filter_ms / np.diff(times).mean())
        if width:
            probabilities = median_filter(probabilities, size=(width, 1))
    active = np.pad(probabilities > threshold, ((1, 1), (0, 0))).astype(np.int8)
    edges = np.diff(active, axis=0).T  # [labels, T + 1]: 1 begins, -1 is after the end
    labels, first = np.nonzero(edges > 0)
    _, after = np.nonzero(edges < 0)
    starts, ends = times[first], times[after - 1]
    kept = ends - starts >= min_duration
    columns = (column[kept].tolist() for column in (labels, starts, ends))
    return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class EventScore:
    """Finds for each reference event one estimated event of its label, at most.

    Arguments
    ---------
    collar : float
        Greatest distance of the onsets, in seconds.
    offset_share : float, optional
        The offsets must fit, too: within the collar or this share of the length of the
        reference event. Default: only onsets.

    Example
    -------
    >>> score = EventScore(collar=0.2)
    >>> reference = [(0, 100.0, 300.0), (1, 0.0, 50.0)]
    >>> counts = score.counts(reference, [(0, 250.0, 400.0)], 2)
    >>> counts, score.scores(counts)["recall"]
    (array([1., 2., 1.]), 0.5)
    """

    collar: float
    offset_share: float = None
    main = "f_measure"
    smaller_is_better = False

    def counts(self, reference, estimated, num_labels):
        """Events found, reference events, and estimated events of a file, [3]."""
        tables = [
            np.array(events).reshape(-1, 3) / (1, 1000, 1000)
            for events in (reference, estimated)
        ]
        found = 0
        for label in range(num_labels):
            want, have = (table[table[:, 0] == label, 1:] for table in tables)
            if not len(want) or not len(have):
                continue
            distance = np.abs(want[:, None] - have[None])  # [reference, estimated, 2]
            fits = distance[..., 0] <= self.collar
            if self.offset_share is not None:
                share = self.offset_share * (want[:, 1] - want[:, 0])
                fits &= distance[..., 1] <= np.maximum(self.collar, share)[:, None]
            matches = maximum_bipartite_matching(csr_matrix(fits))
            found += (matches >= 0).sum()
        return np.array([found, len(reference), len(estimated)], dtype=float)

    @staticmethod
    def scores(counts):
        """`f_measure`, `precision` and `recall` of counts [..., 3].

        Without events they are 0.
        """
        found, reference, estimated = np.moveaxis(counts, -1, 0)
        return {
            "f_measure": _share(2 * found, reference + estimated),
            "precision": _share(found, estimated),
            "recall": _share(found, reference),
        }


@dataclass(frozen=True)
class SegmentScore:
    """Compares which labels are present in segments of equal length.

    Arguments
    ---------
    resolution : float
        Length of a segment, in seconds.

    Example
    -------
    >>> score = SegmentScore(resolution=1.0)
    >>> counts = score.counts([(0, 0.0, 2000.0)], [(0, 500.0, 900.0)], 1)
    >>> score.scores(counts)
    {'error_rate': 0.5, 'f_measure': 0.6666666666666666}
    """

    resolution: float
    main = "error_rate"
    smaller_is_better = True

    def counts(self, reference, estimated, num_labels):
        """Right labels of segments, reference labels, estimated labels, errors, [4]."""
        ends = [event[2] / 1000 for event in (*reference, *estimated)]
        segments = int(np.ceil(max(ends, default=0) / self.resolution))
        want, have = np.zeros((2, segments, num_labels), dtype=bool)
        for roll, events in ((want, reference), (have, estimated)):
            for label, start, end in events:
                first = int(np.floor(start / 1000 / self.resolution))
                last = int(np.ceil(end / 1000 / self.resolution))
                roll[first:last, label] = True
        right = (want & have).sum(1)
        # Substitutions, deletions and insertions together.
        errors = np.maximum(want.sum(1), have.sum(1)) - right
        sums = (right.sum(), want.sum(), have.sum(), errors.sum())
        return np.array(sums, dtype=float)

    @staticmethod
    def scores(counts):
        """`error_rate` and `f_measure` of counts [..., 4]."""
        right, reference, estimated, errors = np.moveaxis(counts, -1, 0)
        return {
            "error_rate": _share(errors, reference),
            "f_measure": _share(2 * right, reference + estimated),
        }


def _share(part, whole):
    """A quotient; 0 where the whole is 0."""
    quotient = np.divide(part, np.where(whole > 0, whole, 1)) * (whole > 0)
    return quotient if np.ndim(quotient) else float(quotient)
