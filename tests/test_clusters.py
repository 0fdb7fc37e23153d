"""Clusters of frames, and the targets they give."""

import numpy as np
import pytest
import soundfile
import torch
from teachers import PUBLISHED, copy_speech, make_encoder, noises, store

from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.clusters import ClusterTargets, _use_all, find_clusters, nearest
from encodecmae_sb.pipelines.students import load_teacher
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    return copy_speech(tmp_path_factory.mktemp("corpus") / "speech")


def blobs():
    """300 frames around 6 places."""
    rng = np.random.default_rng(0)
    places = 10 * rng.normal(size=(6, 5))
    return (places[np.arange(300) % 6] + 0.1 * rng.normal(size=(300, 5))).astype("f4")


def test_clusters_are_found_again():
    frames = blobs()
    clusters = find_clusters(frames, 6)
    index, distance = nearest(torch.from_numpy(frames), clusters.centroids)
    assert clusters.counts.tolist() == [50] * 6
    assert all(len(set(index[i::6].tolist())) == 1 for i in range(6))
    assert distance.max() < 1
    again = find_clusters(frames, 6)
    assert torch.equal(clusters.centroids, again.centroids)


def test_empty_clusters_are_reseeded_and_counted():
    frames = blobs()
    centroids = torch.full((6, 5), 1e4)
    centroids[0] = torch.from_numpy(frames.mean(0))
    clusters = _use_all(frames, centroids)
    assert clusters.reseeded >= 5
    assert (clusters.counts > 0).all()
    assert clusters.counts.sum() == 300
    assert find_clusters(frames, 6).reseeded == 0


@pytest.mark.parametrize(
    ("frames", "clusters", "message"),
    [
        (blobs()[:5], 6, "5 frames are fewer than n_clusters=6"),
        (np.repeat(blobs()[:4], 9, 0), 6, "2 of 6 clusters stay empty"),
        (np.full((50, 5), np.nan), 6, "not finite"),
        (blobs(), 70000, "2 to 65535"),
        (blobs(), 1, "2 to 65535"),
    ],
)
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_frames_that_cannot_be_clustered(frames, clusters, message):
    with pytest.raises(UserError, match=message):
        find_clusters(frames, clusters)


def test_stored_targets_are_those_of_the_layer_without_the_norm(
    teacher_folder, corpus, tmp_path
):
    teacher = load_teacher(teacher_folder, "last_no_norm")
    (prepared,) = prepare_corpora(corpus, tmp_path)
    centroids = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    targets = store(teacher, prepared.valid_csv, tmp_path / "targets", centroids)
    values = targets.parts[0]
    assert isinstance(values, np.memmap)
    assert values.itemsize == 2
    for file, path in enumerate(targets.paths):
        wav = read_audio(path, 24000)
        crop = targets.cut(file, 0.0, 1e6)
        assert len(crop["targets"]) == len(wav) // 320
        with torch.no_grad():
            (frames,) = encode_in_chunks(teacher, wav[None], layer="last_no_norm")
            plain = teacher(wav[None, :96000]).layers[-1][0]
        assert (frames[:300] - plain[: len(frames)]).abs().max() < 1e-4
        expected = nearest(frames, centroids)[0][: len(wav) // 320]
        assert (expected == crop["targets"][:, 0]).double().mean() > 0.98
    assert len(np.unique(values)) > 3


def test_targets_are_those_of_the_nearest_frame_of_a_published_teacher(tmp_path):
    teacher = make_encoder(**PUBLISHED).eval()
    (prepared,) = prepare_corpora(noises(tmp_path / "noises", 1), tmp_path)
    wav = read_audio(tmp_path / "noises/dev/0.wav", 24000)
    with torch.no_grad():
        (frames,) = encode_in_chunks(teacher, wav[None], layer="last_no_norm")
    centroids = frames[::7]
    targets = store(teacher, prepared.valid_csv, tmp_path / "targets", centroids)
    crop = targets.cut(0, 0.0, 1e6)
    # Two chunks of 4 s and one of 1 s: the middle of every window, and of every target.
    starts = np.repeat([0, 96000, 192000], [300, 300, 74])
    within = np.concatenate([np.arange(300), np.arange(300), np.arange(74)])
    middles = starts + 318 * within + 318
    wanted = 320 * np.arange(len(wav) // 320) + 159.5
    assert len(crop["targets"]) == len(wanted) == 675
    chunk = wanted // 96000
    distance = np.abs(wanted[:, None] - middles)
    distance[chunk[:, None] != starts // 96000] = np.inf  # chunks are apart
    expected = nearest(frames[distance.argmin(1)], centroids)[0]
    assert (expected == crop["targets"][:, 0]).double().mean() > 0.98
    # With as many frames a chunk as targets, their numbers would do, but they drift.
    assert (expected[:600] != nearest(frames[:600], centroids)[0]).sum() > 60


def test_each_piece_has_a_level_of_its_own(tmp_path):
    """Cut from the file or encoded with it, as beside targets that need more."""
    samples = np.random.default_rng(0).normal(size=9 * 24000 + 2000)
    samples[96000 : 2 * 96000] *= 0.01
    for part in ("train", "dev"):
        (tmp_path / "uneven" / part).mkdir(parents=True)
        soundfile.write(tmp_path / f"uneven/{part}/0.wav", 0.1 * samples, 24000)
    (prepared,) = prepare_corpora(tmp_path / "uneven", tmp_path)
    wav = read_audio(tmp_path / "uneven/dev/0.wav", 24000)
    teacher = make_encoder(normalise="level").eval()
    with torch.no_grad():
        (frames,) = encode_in_chunks(teacher, wav[None], layer="last_no_norm")
    centroids = frames[::7]
    stored = store(teacher, prepared.valid_csv, tmp_path / "targets", centroids)
    codes = torch.as_tensor(stored.cut(0, 0.0, 1e6)["targets"])
    targets = ClusterTargets(teacher, "last_no_norm", centroids)
    whole = targets.encode(wav[None])[0, : len(codes)]
    assert (codes != whole).double().mean() < 0.005
    assert len(codes[300:600].unique()) > 20
