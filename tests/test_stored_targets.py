"""What is stored for each frame, and cut out for each crop."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from teachers import make_encoder, noises, store

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
from encodecmae_sb.pipelines.extract import join
from encodecmae_sb.utils.errors import UserError


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


@pytest.mark.parametrize("kept", [0, 1800])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_crops_begin_on_a_frame(tmp_path, rate, kept, monkeypatch):
    """A crop starts at the sample that its targets say, at any rate."""
    monkeypatch.setattr("encodecmae_sb.data.crops._KEPT_SECONDS", kept)
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
    for name in ("a", "b"):  # short audio was read once, other audio is read again
        (tmp_path / f"{name}.wav").unlink()
    if kept:
        assert crops[0]["wav"].shape == (12160,)
    else:
        with pytest.raises(UserError, match="could not be read"):
            crops[0]


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
