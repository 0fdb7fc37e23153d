"""Clusters of features: k-means whose centroids all are in use."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import exact_float32

MOST_CLUSTERS = 65535  # indices are stored as 2-byte integers
_ROUNDS = 50
_CHUNK = 8192  # frames whose distances to all centroids are in memory at once


@dataclass
class Clusters:
    """What `find_clusters` found.

    Arguments
    ---------
    centroids : torch.Tensor
        float32, shape [K, D].
    counts : torch.Tensor
        Frames of each cluster, int64, shape [K].
    reseeded : int
        How often a centroid without a frame was moved to one.
    """

    centroids: torch.Tensor
    counts: torch.Tensor
    reseeded: int


def find_clusters(
    features, num_clusters, passes=10, batch_size=4096, seed=0, quiet=True
):
    """K-means on mini-batches of frames, which may lie on disk.

    A centroid that no frame is nearest to is moved to the frame farthest from its
    own centroid, until there is no such centroid.

    Arguments
    ---------
    features : numpy.ndarray
        Frames, a memory map for instance, shape [N, D].
    num_clusters : int
        K.
    passes : int
        How often each frame is used.
    batch_size : int
        Frames per mini-batch.
    seed : int
        The same seed and features give the same centroids.
    quiet : bool
        No progress bar.

    Returns
    -------
    Clusters

    Raises
    ------
    ValueError
        If there are fewer (different) frames than clusters, or a frame is not
        finite.

    Example
    -------
    >>> frames = np.random.default_rng(0).normal(size=(500, 4))
    >>> clusters = find_clusters(frames, num_clusters=8)
    >>> clusters.centroids.shape, int(clusters.counts.sum())
    (torch.Size([8, 4]), 500)
    """
    if not 2 <= num_clusters <= MOST_CLUSTERS:
        raise UserError(f"n_clusters={num_clusters}: 2 to {MOST_CLUSTERS} are allowed.")
    if len(features) < num_clusters:
        raise UserError(
            f"{len(features)} frames are fewer than n_clusters={num_clusters}. Embed "
            "more clips (cluster_clips), or ask for fewer clusters."
        )
    # The first batch is where the centroids start.
    batch_size = max(batch_size, 3 * num_clusters)
    kmeans = MiniBatchKMeans(num_clusters, random_state=seed, batch_size=batch_size)
    batches = max(1, len(features) // batch_size)
    rng = np.random.default_rng(seed)
    with tqdm(
        total=passes * batches,
        desc="Clustering",
        unit=" batches",
        dynamic_ncols=True,
        disable=quiet,
    ) as bar:
        for _ in range(passes):
            for rows in np.array_split(rng.permutation(len(features)), batches):
                rows.sort()  # neighbours on disk are read together
                kmeans.partial_fit(_finite(features[rows]))
                bar.update()
    centroids = torch.from_numpy(kmeans.cluster_centers_).float()
    return _use_all(features, centroids)


def _use_all(features, centroids):
    """Moves centroids without a frame to frames, farthest first."""
    reseeded = 0
    for _ in range(_ROUNDS):
        index, distance = _nearest_of_all(features, centroids)
        counts = torch.bincount(index, minlength=len(centroids))
        empty = (counts == 0).nonzero()[:, 0].tolist()
        if not empty:
            return Clusters(centroids, counts, reseeded)
        # Twice the same frame would leave one of its centroids empty again.
        places, seen = [], set()
        for row in distance.argsort(descending=True, stable=True).tolist():
            frame = _finite(features[row])
            if len(places) == len(empty) or distance[row] <= 0:
                break
            if frame.tobytes() not in seen:
                seen.add(frame.tobytes())
                places.append(frame)
        for k, frame in zip(empty, places, strict=False):
            centroids[k] = torch.from_numpy(frame)
        reseeded += len(places)
        if not places:
            break
    raise UserError(
        f"{len(empty)} of {len(centroids)} clusters stay empty: the clips have fewer "
        f"different frames than n_clusters={len(centroids)}. Embed more clips "
        "(cluster_clips), or ask for fewer clusters."
    )


def _nearest_of_all(features, centroids):
    parts = [
        nearest(torch.from_numpy(_finite(features[i : i + _CHUNK])), centroids)
        for i in range(0, len(features), _CHUNK)
    ]
    return (torch.cat(values) for values in zip(*parts, strict=True))


def _finite(frames):
    """Frames as float32 in memory."""
    frames = np.array(frames, dtype=np.float32)
    if not np.isfinite(frames).all():
        raise UserError(
            "Features to cluster are not finite (NaN or Inf): is the teacher's "
            "training gone wrong?"
        )
    return frames


def nearest(frames, centroids):
    """The nearest centroid of each frame.

    Arguments
    ---------
    frames : torch.Tensor
        float32, shape [N, D].
    centroids : torch.Tensor
        float32, shape [K, D].

    Returns
    -------
    index : torch.Tensor
        int64, shape [N].
    distance : torch.Tensor
        Squared, float32, shape [N].

    Example
    -------
    >>> nearest(torch.tensor([[0.0], [4.0]]), torch.tensor([[3.0], [0.5]]))
    (tensor([1, 0]), tensor([0.2500, 1.0000]))
    """
    # |x|^2 is the same for all centroids; the exact distance is taken at the end,
    # where a difference of large numbers would not do.
    with exact_float32(frames.device.type):
        scores = centroids.square().sum(1) - 2 * frames @ centroids.T  # [N, K]
    index = scores.argmin(1)
    return index, (frames - centroids[index]).square().sum(1)
