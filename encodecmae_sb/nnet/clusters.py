"""Clusters of a teacher's features: k-means, and targets made of the clusters.

B items, N samples, T frames, D channels, K clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch.nn.utils.rnn import pad_sequence

from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import exact_float32
from encodecmae_sb.utils.progress import open_bar

from .chunks import (
    CHUNK,
    FRAMES_VERSION,
    SHORTEST_TAIL,
    chunk_sizes,
    encode_in_chunks,
    frame_middle,
    frame_starts,
    shortest_item,
)
from .targets import Targets, nearest_places, target_middles

MOST_CLUSTERS = 65535  # indices are stored as 2-byte integers
_ROUNDS = 50
_MORE = (
    "Take more clips (cluster_clips; of fit_targets.py --clips), or fewer clusters "
    "(n_clusters; --codebook_size)."
)
_FRAMES_AT_ONCE = 8192  # frames whose distances to all centroids are in memory at once


@dataclass
class Clusters:
    """What `find_clusters` finds.

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
    """K-means on mini-batches of frames, which may be on disk.

    A centroid without frames is moved to the frame that is farthest from its own
    centroid. This is repeated until each centroid has frames.

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
    UserError
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
            f"{len(features)} frames are fewer than n_clusters={num_clusters}. {_MORE}"
        )
    # The centroids start from the first batch.
    batch_size = max(batch_size, 3 * num_clusters)
    kmeans = MiniBatchKMeans(num_clusters, random_state=seed, batch_size=batch_size)
    batches = max(1, len(features) // batch_size)
    rng = np.random.default_rng(seed)
    with open_bar(passes * batches, "Clustering", "batches", quiet=quiet) as bar:
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
        # Of two centroids at the same frame one would be empty again.
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
        f"different frames than n_clusters={len(centroids)}. {_MORE}"
    )


def _nearest_of_all(features, centroids):
    parts = [
        nearest(torch.from_numpy(_finite(features[i : i + _FRAMES_AT_ONCE])), centroids)
        for i in range(0, len(features), _FRAMES_AT_ONCE)
    ]
    return (torch.cat(values) for values in zip(*parts, strict=True))


def _finite(frames):
    """Frames as float32 in memory."""
    frames = np.array(frames, dtype=np.float32)
    if not np.isfinite(frames).all():
        raise UserError(
            "The features to cluster are not finite (NaN or Inf). Has the teacher's "
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
    # |x|^2 is the same for all centroids, so it is left out. The distance is computed
    # anew at the end: this difference of large numbers is not exact enough.
    with exact_float32(frames.device.type):
        scores = centroids.square().sum(1) - 2 * frames @ centroids.T  # [N, K]
    index = scores.argmin(1)
    return index, (frames - centroids[index]).square().sum(1)


class ClusterTargets(Targets):
    """Clusters of a teacher's activations as targets.

    A target is the cluster of the teacher's frame whose middle is nearest to its own.
    The teacher's frames may be nearer to each other than targets: 318 samples in
    published weights.

    Arguments
    ---------
    teacher : AudioEncoder
    layer : int or str
        Which activations; see `encode_in_chunks`.
    centroids : torch.Tensor
        float32, shape [K, D].
    teacher_name : str
        For labels.
    teacher_key : str
        Tells teachers of another architecture apart; see
        `encodecmae_sb.pretrained.describe.module_key`. Weights are looked at anyway.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> teacher = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> targets = ClusterTargets(teacher, "last_no_norm", torch.randn(10, 64))
    >>> targets.encode(torch.zeros(2, 24000)).shape
    torch.Size([2, 75, 1])
    """

    chunk_samples = CHUNK
    shortest_tail = SHORTEST_TAIL

    def __init__(
        self, teacher, layer, centroids, teacher_name="a teacher", teacher_key=""
    ):
        name = f"{len(centroids)} clusters of {teacher_name}"
        super().__init__(1, len(centroids), name)
        self.teacher = teacher.requires_grad_(False)
        self.layer = layer
        self.teacher_key = teacher_key
        self.register_buffer("centroids", centroids)
        self.train(False)

    def fingerprint(self):
        """A digest of teacher, layer and centroids."""
        return digest([FRAMES_VERSION, self.layer, self.teacher_key, weights_key(self)])

    @torch.no_grad()
    def encode(self, wavs, lengths=None):
        """Clusters, shape [B, T, 1]; see `Targets.encode`."""
        batch, samples = wavs.shape
        lengths = [samples] * batch if lengths is None else lengths.tolist()
        codes = torch.zeros(batch, -(-samples // self.hop_length), dtype=torch.int64)
        front_end = self.teacher.front_end
        with exact_float32(wavs.device.type):
            items = embed(self.teacher, self.layer, wavs, lengths)
        for row, frames, length in zip(codes, items, lengths, strict=True):
            index, _ = nearest(frames, self.centroids)
            numbers = torch.arange(len(index), dtype=torch.float64)
            there = frame_starts(front_end, numbers) + frame_middle(front_end)
            wanted = target_middles(-(-length // self.hop_length))
            row[: len(wanted)] = index.cpu()[nearest_places(wanted, there)]
        return codes[..., None].to(wavs.device)


@torch.no_grad()
def embed(teacher, layer, wavs, lengths):
    """A teacher's activations of each item of a batch.

    With `normalise: level` each piece of 4 s has a level of its own, as it has where a
    file is cut into such pieces before. So both ways give the same.

    Arguments
    ---------
    teacher : AudioEncoder
        In eval mode.
    layer : int or str
    wavs : torch.Tensor
        Shape [B, N].
    lengths : list of int
        Samples of each item. One that is too short for a frame is continued with
        silence.

    Returns
    -------
    list of torch.Tensor
        float32, each of shape [T, D].

    Raises
    ------
    UserError
        If they are not finite.
    """
    shortest = shortest_item(teacher.front_end)
    lengths = [max(length, shortest) for length in lengths]
    wavs = F.pad(wavs, (0, max(0, shortest - wavs.shape[1])))
    sizes = [chunk_sizes(length) for length in lengths]
    items = zip(wavs, sizes, strict=True)
    pieces = [piece for wav, own in items for piece in wav[: sum(own)].split(CHUNK)]
    batch, counts = pad_sequence(pieces, batch_first=True), [len(p) for p in pieces]
    frames = iter(encode_in_chunks(teacher, batch, counts, layer, batch_size=None))
    items = [torch.cat([next(frames) for _ in own]) for own in sizes]
    if not all(torch.isfinite(item).all() for item in items):
        raise UserError(
            "The teacher gives features that are not finite (NaN or Inf). Has its "
            "training gone wrong? Give another teacher."
        )
    return [item.float() for item in items]
