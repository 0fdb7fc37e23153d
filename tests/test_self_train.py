"""Self-training: clusters, stored targets, and the recipe through every stage."""

import hashlib
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, execute, flags, run_recipe

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.codes import (
    CodesInfo,
    CodesPart,
    StoredCodes,
    file_stamp,
    prepare_codes,
)
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.stored import FileChunks, RowFile, read_samples
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.clusters import (
    ClusterTargets,
    _use_all,
    find_clusters,
    nearest,
)
from encodecmae_sb.nnet.targets import on_frames_of
from encodecmae_sb.pipelines import clusters
from encodecmae_sb.pipelines.extract import extract, join, open_folder
from encodecmae_sb.pipelines.students import load_teacher, start_student
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.utils.errors import UserError

# ---------------------------------------------------------------- clusters


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


# ---------------------------------------------------------------- what is stored


def test_a_row_file_goes_on_after_any_kill(tmp_path):
    items = [np.full((i % 4, 2), i, "float32") for i in range(10)]
    whole = RowFile(tmp_path / "whole", "float32", 2)
    assert whole.resume(10, 3) == 0
    for i in range(0, 10, 3):
        whole.append(items[i : i + 3])
    assert whole.resume(10, 3) == 10
    rows, counts = whole.path.read_bytes(), whole.counts_path.read_bytes()
    # Killed with any number of bytes of either file written.
    for rows_left in range(0, len(rows) + 1, 17):
        for counts_left in range(0, len(counts) + 1, 13):
            part = RowFile(tmp_path / "part", "float32", 2)
            part.path.write_bytes(rows[:rows_left])
            part.counts_path.write_bytes(counts[:counts_left])
            done = part.resume(10, 3)
            assert done % 3 == 0 or done == 10
            for i in range(done, 10, 3):
                part.append(items[i : i + 3])
            assert part.path.read_bytes() == rows
            assert part.counts_path.read_bytes() == counts
    assert np.array_equal(whole.rows, np.concatenate(items))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_crops_begin_on_a_frame(tmp_path, rate):
    """A crop starts at the sample that its targets say, at any rate."""
    samples = np.random.default_rng(0).normal(size=3 * rate) * 0.1
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, "FLOAT")
    (corpus,) = prepare_corpora(tmp_path, tmp_path / "save")
    whole = read_audio(tmp_path / "a.wav", 24000)
    chunks = FileChunks(corpus.train_csv, 32000, shortest_tail=2048)
    joined = torch.cat([chunks[i].wav for i in range(len(chunks))])
    assert (joined[: len(whole)] - whole).abs().max() < 1e-5
    # Targets that are the numbers of the frames.
    folder = tmp_path / "codes"
    prepare_codes(folder, CodesInfo("targets", "numbers", "0", 1, 225))
    for name in ("a", "b"):
        path = tmp_path / f"{name}.wav"
        file = (str(path), file_stamp(path), "")
        CodesPart(folder, 1).append([file], [np.arange(225)[:, None]])
    (targets,) = StoredCodes(folder).of_manifests([corpus.train_csv], 1, "")
    crops = RandomCrops([corpus.train_csv], 0.5, seed=rate, targets=[targets])
    firsts = set()
    for draw in range(20):
        item = crops[draw]
        first = int(item["targets"][0])
        firsts.add(first)
        assert item["targets"][:, 0].tolist() == list(range(first, first + 38))
        expected = whole[320 * first : 320 * (first + 38)]
        assert (item["wav"] - expected).abs().max() < 1e-5
    assert len(firsts) > 10
    (item,) = FixedCrops([corpus.train_csv], 1, 0.5, targets=[targets])
    assert item["targets"][0] in (93, 94)  # in the middle
    assert read_samples(tmp_path / "a.wav", rate, 71999, 1).shape == (1,)


def test_targets_of_a_batch_are_padded(tmp_path):
    items = [
        {"wav": torch.ones(320 * n), "targets": torch.full((n,), n)} for n in (8, 10)
    ]
    for item in items:
        item.update(seed=0, corpus=0, unusable=[])
    batch = CropCollator()(items).to("cpu")
    assert batch.targets[..., 0].tolist() == [[8] * 8 + [0] * 2, [10] * 10]
    assert batch.targets.dtype == torch.int64


def test_what_follows_an_unreadable_chunk_is_left_out():
    chunks = SimpleNamespace(first=np.array([0, 3, 4]))
    encoded = [(np.ones((25, 1)), ""), (np.ones((0, 1)), "a bad block")]
    encoded += [(np.full((25, 1), 3), ""), (np.full((25, 1), 4), "")]
    files = join(chunks, [0, 1], iter(encoded))
    (first, reason), (second, none) = files
    assert (reason, none) == ("a bad block", "")
    assert first.tolist() == [[1]] * 25
    assert second.tolist() == [[4]] * 25


# ---------------------------------------------------------------- teacher, student


def make_encoder(dim=16, seed=0, **front_end):
    torch.manual_seed(seed)
    transformer = ResiDualTransformer(dim, 2, 2, 32, shared_ffn=False)
    return AudioEncoder(LogMel(**front_end), transformer)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "encoder"
    export_encoder(make_encoder(), folder)
    return folder


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


PUBLISHED = {"hop_length": 318, "centered": False}  # the log-mel of published weights


def noises(folder, count=3, seconds=9):
    """White noise, whose clusters change from frame to frame."""
    rng = np.random.default_rng(0)
    for part in ("train", "dev"):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            samples = 0.1 * rng.normal(size=24000 * seconds)
            soundfile.write(folder / part / f"{i}.wav", samples, 24000)
    return folder


def store(teacher, manifest, folder, centroids, **options):
    """Targets of a manifest."""
    targets = ClusterTargets(teacher, "last_no_norm", centroids)
    open_folder(targets, folder)
    settings = torch.device("cpu"), 8, 0, 1.0
    extract(targets, [manifest], folder, *settings, quiet=True, **options)
    (codes,) = StoredCodes(folder).of_manifests([manifest], 1, "")
    return codes


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


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    (prepared,) = prepare_corpora(noises(tmp_path / "noises"), tmp_path)
    centroids = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    given = make_encoder().eval(), prepared.train_csv
    whole = store(*given, tmp_path / "whole", centroids)
    real = read_samples

    def broken(path, file_rate, first, count):
        if path == whole.paths[1] and first == 96000:
            raise UnusableAudio("the disk is away")
        return real(path, file_rate, first, count)

    part = tmp_path / "part", centroids
    with monkeypatch.context() as patch:
        patch.setattr("encodecmae_sb.data.stored.read_samples", broken)
        for _ in range(2):
            codes = store(*given, *part)
            assert codes.frames.tolist() == [675, 300, 675]
            assert codes.unreadable == [(whole.paths[1], "the disk is away")]
        patch.setattr(RowFile, "append", None)
        # Once a training has begun, nothing is computed again, readable or not.
        assert store(*given, *part, retry=False).frames[1] == 300
        patch.setattr("encodecmae_sb.data.stored.read_samples", real)
        assert store(*given, *part, retry=False).frames[1] == 300
    codes = store(*given, *part)
    assert codes.frames.tolist() == whole.frames.tolist() == [675, 675, 675]
    for file in range(3):
        assert np.array_equal(codes.read(file, 0, 675), whole.read(file, 0, 675))


def test_a_student_of_a_published_teacher(self_train, tmp_path, capsys):
    export_encoder(make_encoder(**PUBLISHED), tmp_path / "teacher")
    options = {"teacher": tmp_path / "teacher", "training_steps": 2}
    _, metrics = self_train(tmp_path / "new", **options)
    assert metrics["student_continued"] is False
    assert metrics["student_hop_length"] == 320
    said = capsys.readouterr().out
    assert "nearest" in said
    assert "--student teacher" in said
    _, metrics = self_train(tmp_path / "on", **options, student="teacher")
    assert metrics["student_continued"] is True
    assert metrics["student_hop_length"] == 318
    assert "goes on from the teacher's weights, with its front end" in (
        capsys.readouterr().out
    )
    front_end = load_encoder_folder(tmp_path / "on/encoder").front_end
    assert (front_end.hop_length, front_end.centered) == (318, False)
    for name in ("new", "on"):
        readme = (tmp_path / name / "encoder/README.md").read_text()
        assert ("goes on from" in readme) == (name == "on")


@pytest.mark.parametrize("seconds", [0.5, 4.0, 9.0])
def test_frames_of_a_student_as_published_get_the_nearest_target(seconds):
    """There are as many frames as targets, and each has the target of its window."""
    frames = int(75 * seconds)
    batch = CropCollator()(
        [
            {
                "wav": torch.rand(320 * frames),
                "targets": torch.arange(frames),
                "seed": 0,
                "corpus": 0,
                "unusable": [],
            }
        ]
    )
    front_end = LogMel(**PUBLISHED)
    wavs, targets = on_frames_of(front_end, batch.wavs, batch.targets)
    assert front_end(wavs).shape[1] == targets.shape[1] == frames
    middles = 318 * np.arange(frames) + 318
    wanted = np.abs(middles[:, None] - (320 * np.arange(frames) + 159.5)).argmin(1)
    assert targets[0, :, 0].tolist() == wanted.tolist()
    whole = 318 * (frames - 1) + 637
    assert torch.equal(wavs[:, : 320 * frames], batch.wavs[:, :whole])
    same = on_frames_of(LogMel(), batch.wavs, batch.targets)
    assert same[0] is batch.wavs
    assert same[1] is batch.targets


def test_a_student_goes_on_from_a_teacher_of_its_kind():
    teacher, student = make_encoder(seed=1), make_encoder(seed=2)
    before = student.projection.weight.clone()
    assert not start_student(student, teacher, "fresh")
    assert torch.equal(student.projection.weight, before)
    assert start_student(student, teacher, "auto")
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name])
    larger = make_encoder(dim=32)
    assert not start_student(larger, teacher, "auto")
    with pytest.raises(UserError, match="--student fresh"):
        start_student(larger, teacher, "teacher")
    with pytest.raises(UserError, match="auto, teacher, fresh"):
        start_student(student, teacher, "large")
    published = make_encoder(**PUBLISHED)
    assert not start_student(student, published, "auto")
    assert student.front_end.hop_length == 320
    assert start_student(student, published, "teacher")
    assert (student.front_end.hop_length, student.front_end.centered) == (318, False)
    assert start_student(make_encoder(**PUBLISHED), published, "auto")
    with pytest.raises(UserError, match="every 240 samples"):
        start_student(make_encoder(hop_length=240), teacher, "fresh")


def test_teachers_that_are_none(teacher_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such encoder folder"):
        load_teacher(tmp_path / "none", "last_no_norm")
    with pytest.raises(UserError, match="not an exported folder"):
        load_teacher(tmp_path, "last_no_norm")
    for layer, message in [
        ("last_norm", "last_no_norm"),
        ("all", "one layer"),
        (2, "0"),
    ]:
        with pytest.raises(UserError, match=message):
            load_teacher(teacher_folder, layer)
    folder = tmp_path / "encoder"
    shutil.copytree(teacher_folder, folder)
    yaml = folder / "hyperparams.yaml"
    good = yaml.read_text()
    yaml.write_text(good.replace("        ffn_dim: 32\n", ""))
    with pytest.raises(UserError, match="cannot be built"):
        load_teacher(folder, "last_no_norm")
    yaml.write_text("format: 2\nencoder: !new:torch.nn.Linear [2, 2]\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "encoder.ckpt")
    with pytest.raises(UserError, match="holds a Linear"):
        load_teacher(folder, "last_no_norm")


# ---------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    for part, count in (("train", 8), ("dev", 3)):
        (folder / part).mkdir(parents=True)
        for path in sorted((speech_folder() / part).rglob("*.flac"))[:count]:
            shutil.copy(path, folder / part)
    return folder


class Killed(Exception):
    """Stands for the end of a process."""


SETTINGS = {
    "dim": 16,
    "ffn_dim": 32,
    "n_clusters": 8,
    "cluster_clips": 6,
    "encode_batch_size": 2,
    "training_steps": 4,
    "valid_interval": 2,
    "ckpt_interval_minutes": 0,
    "ckpt_interval_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def self_train(corpus, teacher_folder):
    """Runs the recipe; returns what two runs must agree on, bit for bit."""

    def run(output, **options):
        given = {"data_folder": corpus, "teacher": teacher_folder}
        given |= {**SETTINGS, **options}
        yaml = str(ROOT / "hparams/self_train_mini.yaml")
        run_recipe("self_train", yaml, *flags(output, **given), "--noprogressbar")
        weights = (output / "encoder/encoder.ckpt").read_bytes()
        metrics = json.loads((output / "metrics.json").read_text())
        return hashlib.sha256(weights).hexdigest(), metrics

    return run


@pytest.fixture(scope="module")
def finished(self_train, tmp_path_factory):
    output = tmp_path_factory.mktemp("self_train") / "run"
    return output, self_train(output)


def test_what_a_run_reports(finished, corpus):
    output, (_, metrics) = finished
    assert metrics["step"] == 4
    assert metrics["student_continued"] is True
    for name in ("masked_ce_1", "masked_accuracy_1", "unigram_ce_1"):
        assert 0 <= metrics[name] < 8
    assert 1 / 8 <= metrics["majority_accuracy"] <= 1
    # Counted again from what is stored: clusters on the validation crops.
    manifest = output / "save/speech_valid.csv"
    targets = StoredCodes(output / "save/targets").of_manifests([manifest], 1, "")
    crops = FixedCrops([manifest], 4, 0.5, targets=targets)
    codes = torch.cat([item["targets"][:, 0] for item in crops])
    counts = torch.bincount(codes, minlength=8)
    shares = counts[counts > 0] / counts.sum()
    assert metrics["clusters_used"] == (counts > 0).double().mean()
    perplexity = (-(shares * shares.log()).sum()).exp().item()
    assert metrics["cluster_perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert not list(output.glob("save/features*"))  # gigabytes, in earnest
    with np.load(output / "centroids.npz") as saved:
        assert saved["centroids"].shape == (8, 16)
        assert saved["counts"].min() > 0
    assert load_encoder_folder(output / "encoder").dim == 16
    assert (output / "curves.png").exists()


def test_killed_at_every_stage_it_ends_the_same(
    self_train, finished, tmp_path, monkeypatch
):
    output = tmp_path / "run"

    def killed_when(owner, name, calls):
        """Runs until the method is called for the n-th time."""
        original = getattr(owner, name)
        left = [calls]

        def method(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, method)
            with pytest.raises(Killed):
                self_train(output)

    killed_when(RowFile, "append", 2)  # embedding
    assert list(output.glob("save/features-*"))
    killed_when(clusters, "find_clusters", 1)  # clustering
    assert not (output / "centroids.npz").exists()
    killed_when(RowFile, "append", 2)  # computing targets
    assert (output / "centroids.npz").exists()
    assert len(StoredCodes(output / "save/targets").entries) > 1
    killed_when(RowFile, "append", 1)
    killed_when(PretrainBrain, "compute_forward", 4)  # training
    assert list(output.glob("save/CKPT*"))
    assert self_train(output) == finished[1]


def test_two_processes_store_the_targets_of_one(
    finished, corpus, teacher_folder, tmp_path
):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    yaml = ROOT / "hparams/self_train_mini.yaml"
    given = {
        **SETTINGS,
        "data_folder": corpus,
        "teacher": teacher_folder,
        "distributed_backend": "gloo",
        "batch_size": 2,
        "training_steps": 1,
    }
    options = flags(tmp_path / "run", **given)
    script = ROOT / "recipes/self_train.py"
    text = execute([sys.executable, *launcher, script, yaml, *options], tmp_path)
    assert text.count("Next:") == 1
    stored, other = (
        StoredCodes(output / "save/targets")
        for output in (finished[0], tmp_path / "run")
    )
    assert stored.info.fingerprint == other.info.fingerprint
    assert len(other.parts) == 2
    manifests = [finished[0] / f"save/speech_{part}.csv" for part in ("train", "valid")]
    for one, two in zip(
        stored.of_manifests(manifests, 1, ""),
        other.of_manifests(manifests, 1, ""),
        strict=True,
    ):
        for file, frames in enumerate(one.frames):
            both = (codes.read(file, 0, frames) for codes in (one, two))
            assert np.array_equal(*both)


def test_another_student_of_the_same_clusters(self_train, finished, tmp_path):
    _, metrics = self_train(tmp_path / "run", dim=32, training_steps=1)
    assert metrics["student_continued"] is False
    for name in ("majority_accuracy", "clusters_used", "cluster_perplexity"):
        assert metrics[name] == finished[1][1][name]


def test_targets_do_not_change_in_the_middle(self_train, finished):
    output, results = finished
    with pytest.raises(SystemExit, match="another teacher"):
        self_train(output, n_clusters=9)
    with pytest.raises(SystemExit, match="another teacher"):
        self_train(output, layer="last")
    assert self_train(output) == results


def test_bad_teachers_and_settings(self_train, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.projection.weight[0, 0] = torch.nan
    export_encoder(encoder, tmp_path / "nan")
    for options, message in [
        ({"teacher": tmp_path / "nan"}, "not finite"),
        ({"n_clusters": 5000}, "fewer than n_clusters=5000"),
        ({"student": "teacher", "dim": 32}, "--student fresh"),
    ]:
        with pytest.raises(SystemExit, match=message):
            self_train(tmp_path / "run", **options)


def test_the_papers_configuration(self_train, tmp_path, teacher_folder):
    yaml = str(ROOT / "hparams/self_train_base.yaml")
    with open(yaml) as file:
        text = file.read()
    assert "n_clusters: 1024" in text
    assert "cluster_clips: 10000" in text
    sizes = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "num_layers": 2}
    tiny = {"cluster_clips": 4, "n_clusters": 8, "training_steps": 1}
    options = flags(tmp_path / "run", **sizes, **tiny, teacher=teacher_folder)
    folder = tmp_path / "noises"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.normal(size=30000), 24000)
    options += ["--data_folder", str(folder), "--noprogressbar"]
    run_recipe("self_train", yaml, *options)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["student_continued"] is False  # shared feed-forwards
