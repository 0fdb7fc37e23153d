"""Tar shards: packing, reading in place, one pass over all items, damage."""

import collections
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import command, environment, execute, results
from killed import run_killed

from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.codes import (
    CodesInfo,
    CodesPart,
    StoredCodes,
    file_stamp,
    prepare_codes,
)
from encodecmae_sb.data.crops import CropCollator, DrawSampler, StepLoader
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.data.shards import reading as shards_module
from encodecmae_sb.data.shards.indexing import index_shards
from encodecmae_sb.data.shards.packing import PackItems, deal
from encodecmae_sb.data.shards.reading import (
    ShardCrops,
    find_packed_codes,
    holds_shards,
    prepare_shards,
)
from encodecmae_sb.data.tars import Member
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pipelines.pack import pack
from encodecmae_sb.pretrained.codec_files import BUNDLED
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv

ROOT = Path(__file__).parent.parent
CROP = 0.5  # seconds
MB = 0.1  # per shard


def write_noise(folder, count, rate=8000, extension="wav", **options):
    """Files of 0.2 to 2.2 s."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        noise = 0.1 * rng.standard_normal(int((0.2 + i % 5 / 2) * rate))
        soundfile.write(folder / f"{i}.{extension}", noise, rate, **options)
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Two corpora, of 60 and 20 files."""
    folder = tmp_path_factory.mktemp("audio")
    return [
        write_noise(folder / "noises", 60),
        write_noise(folder / "others", 20, 44100, "flac"),
    ]


@pytest.fixture(scope="module")
def packed(audio, tmp_path_factory):
    """The folder with their shards."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(folder, audio, MB)
    return folder


@pytest.fixture
def copied(packed, tmp_path):
    """A copy of the shards, to be damaged."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in packed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def train_crops(folder, tmp_path, **options):
    corpora = prepare_shards(folder, tmp_path / "manifests")
    return ShardCrops([corpus.train_csv for corpus in corpora], CROP, **options)


def taken(crops, draws):
    """How often each item is taken by some draws."""
    chosen = [crops.choose(draw, 0, np.random.default_rng(0)) for draw in draws]
    return collections.Counter((corpus, file) for corpus, file, _ in chosen)


def expected(crops):
    """How often each item is taken in a pass."""
    return {
        (corpus, file): max(1, round(seconds / CROP))
        for corpus, durations in enumerate(crops.durations)
        for file, seconds in enumerate(durations)
    }


# Packing


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_audio_is_read_in_place(tmp_path, extension):
    if extension == "mp3" and "MP3" not in soundfile.available_formats():
        pytest.skip("libsndfile without MP3")
    file = write_noise(tmp_path / "audio", 5, 16000, extension) / f"4.{extension}"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("before", f"it.{extension}", "after"):
            tar.add(file, name)
    with tarfile.open(tmp_path / "a.tar") as tar:
        entry = tar.getmember(f"it.{extension}")
    path = Member(str(tmp_path / "a.tar"), entry.name, entry.offset_data, entry.size)
    assert path.read() == file.read_bytes()
    for part in [(), (0.7, 0.9), (1.9, 4.0)]:
        assert torch.equal(
            read_audio(path.path, 24000, *part), read_audio(file, 24000, *part)
        )


def test_everything_is_packed_and_others_can_read_it(audio, packed, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    corpora = prepare_corpora(audio, tmp_path)
    for split in ("train", "valid"):
        rows = [
            (corpus.name, row["ID"], Path(row["wav"]).read_bytes())
            for corpus in corpora
            for row in read_manifest(getattr(corpus, f"{split}_csv"))
        ]
        tars = sorted(map(str, packed.glob(f"{split}-*.tar")))
        found = []
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            known = json.loads(sample["json"])
            content = sample.get("wav") or sample["flac"]
            found.append((known["corpus"], known["ID"], content))
            info = soundfile.info(io.BytesIO(content))
            assert known["num_samples"] == info.frames
            assert known["sample_rate"] == info.samplerate
        assert sorted(found) == sorted(rows)
    index = json.loads((packed / "shards.json").read_text())["shards"]
    sizes = [shard["bytes"] for shard in index if shard["name"].startswith("train")]
    assert len(sizes) > 2 * shards_module._MIXED  # else the tests below show little
    # All alike, but for the size of one file.
    assert max(sizes) - min(sizes) < 0.2e6
    assert not list(packed.glob("plan")) + list(packed.glob("*.tmp"))


def test_packing_goes_on_where_it_was_stopped(audio, packed, tmp_path):
    folder = tmp_path / "shards"
    both = f"[{audio[0]}, {audio[1]}]"
    arguments = ["--data_folder", both, "--shard_mb", str(MB)]
    stop = tmp_path / "stop.py"
    # As killed while it writes the fourth shard.
    stop.write_text(
        "import os, runpy, sys\n"
        "from encodecmae_sb.data.shards import packing\n"
        "write, count = packing._members, 0\n"
        "def watched(*args):\n"
        "    global count\n"
        "    count += 1\n"
        "    os._exit(9) if count == 20 else None\n"
        "    return write(*args)\n"
        "packing._members = watched\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    recipe = ROOT / "recipes/make_shards.py"
    execute([sys.executable, stop, recipe, folder, *arguments], tmp_path, expect=9)
    done = sorted(folder.glob("*.tar"))
    assert 0 < len(done) < len(list(packed.glob("*.tar")))
    times = [path.stat().st_mtime_ns for path in done]
    with pytest.raises(UserError, match="give the same command again"):
        prepare_shards(folder, tmp_path)
    with pytest.raises(UserError, match="holds other shards"):
        pack(folder, audio, 1)
    pack(folder, audio, MB)
    assert [path.stat().st_mtime_ns for path in done] == times
    for path in packed.glob("*.tar"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    # A shard that was damaged is made again, and it alone.
    os.truncate(done[0], 3000)
    pack(folder, audio, MB)
    assert done[0].read_bytes() == (packed / done[0].name).read_bytes()
    assert done[1].stat().st_mtime_ns == times[1]


def test_packing_takes_little_memory_per_file(tmp_path):
    count = 5000
    (tmp_path / "a.wav").write_bytes(bytes(100))
    with open(tmp_path / "a.csv", "w") as file:
        file.write("ID,duration,wav,num_samples,sample_rate\n")
        for i in range(count):
            file.write(f"speaker/chapter/{i},1.5,{tmp_path}/a.wav,12000,8000\n")
    tracemalloc.start()
    try:
        items = PackItems("corpus", tmp_path / "a.csv")
        dealt = deal(items.sizes, 10_000, seed=0)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 350 * count
    assert sorted(np.concatenate(dealt)) == list(range(count))
    assert {len(numbers) for numbers in dealt} == {100}
    assert items[7].row["ID"] == "speaker/chapter/7"


def test_flac_loses_nothing(tmp_path):
    audio = tmp_path / "audio"
    for subtype in ("PCM_16", "PCM_24", "FLOAT"):
        write_noise(audio / subtype, 3, subtype=subtype)
    pack(tmp_path / "shards", audio, flac=True)
    for corpus in prepare_shards(tmp_path / "shards", tmp_path):
        rows = read_manifest(corpus.train_csv) + read_manifest(corpus.valid_csv)
        assert len(rows) == 9
        for row in rows:
            packed = "wav" if row["ID"].startswith("FLOAT") else "flac"
            assert Member.at(row["wav"]).name.endswith(packed)
            original = read_audio(audio / f"{row['ID']}.wav", 24000)
            assert torch.equal(read_audio(row["wav"], 24000), original)


def test_shards_from_elsewhere(audio, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    files = sorted(audio[0].glob("*.wav"))
    for number in range(3):
        with tarfile.open(folder / f"part{number}.tar", "w") as tar:
            for i, file in enumerate(files[20 * number : 20 * (number + 1)]):
                text = tarfile.TarInfo(f"some/sample{i}.txt")
                text.size = 5
                tar.addfile(text, io.BytesIO(b"hello"))
                tar.add(file, f"some/sample{i}.wav")
    os.truncate(folder / "part2.tar", (folder / "part2.tar").stat().st_size // 2)
    with pytest.raises(UserError, match="--index"):
        prepare_shards(folder, tmp_path)
    with pytest.raises(UserError, match="--max_unusable"):
        index_shards(folder, max_unusable=0.01)
    assert not (folder / "shards.json").exists()
    index_shards(folder)
    (corpus,) = prepare_shards(folder, tmp_path)
    assert corpus.name == "foreign"
    valid = read_manifest(corpus.valid_csv)
    rows = read_manifest(corpus.train_csv) + valid
    assert 0 < len(valid) < 10
    assert 45 < len(rows) < 55
    by_samples = {row["num_samples"] for row in rows}
    assert by_samples == {str(soundfile.info(file).frames) for file in files}


def test_shards_for_the_test_are_named(audio, tmp_path, caplog):
    folder = tmp_path / "foreign"
    folder.mkdir()
    with tarfile.open(folder / "test-0.tar", "w") as tar:
        tar.add(audio[0] / "0.wav", "0.wav")
    with pytest.raises(UserError, match=r"test-0\.tar.*another name"):
        index_shards(folder)
    with tarfile.open(folder / "more.tar", "w") as tar:
        for i in range(3):
            tar.add(audio[0] / f"{i}.wav", f"{i}.wav")
    index_shards(folder)
    (record,) = [r for r in caplog.records if "for the test" in r.getMessage()]
    assert record.getMessage().endswith("test-0.tar")
    (corpus,) = prepare_shards(folder, tmp_path)
    names = (corpus.train_csv, corpus.valid_csv)
    assert sum(len(read_manifest(name)) for name in names) == 3


def add(tar, name, content):
    """Adds a file to a tar file."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


# Of each item of a foreign shard its JSON, and the corpus and ID that come of it.
ODD = [
    (b'["a", "list"]', "foreign", "0"),
    (b'{"ID": broken', "foreign", "1"),
    (b"\xff\xfe", "foreign", "2"),
    (b'{"ID": 77}', "foreign", "77"),
    (b'{"ID": ["x"], "corpus": null}', "foreign", "4"),
    (b'{"ID": "\\ud800", "corpus": ""}', "foreign", "\\ud800"),
    (b'{"corpus": "../a/b\\u0000"}', ".._a_b_", "6"),
    (b'{"corpus": "C:\\\\a, (b)", "ID": 8.5}', "C:_a, (b)", "8.5"),
    (b'{"corpus": 12}', "foreign", "8"),
    (b'{"corpus": "' + 300 * b"x" + b'"}', 60 * "x", "9"),
    (b'{"corpus": "' + 300 * b"x" + b'y"}', 60 * "x", "10"),
    (b"[" * 100000, "foreign", "11"),
]


def test_odd_items_of_shards_from_elsewhere(audio, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    content = (audio[0] / "0.wav").read_bytes()
    for part in ("train", "val"):  # each corpus in both
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i, (known, *_) in enumerate([*ODD, *ODD]):
                # A name that is not Unicode, once.
                name = "caf\udce9" if i == 0 else str(i % len(ODD))
                add(tar, f"{part}/{i}/{name}.json", known)
                add(tar, f"{part}/{i}/{name}.wav", content)
    index_shards(folder)
    corpora = prepare_shards(folder, tmp_path / "manifests")
    found = collections.Counter()
    for corpus in corpora:
        train = read_manifest(corpus.train_csv)
        assert corpus.train_csv.parent == tmp_path / "manifests"
        assert len(train) == len(read_manifest(corpus.valid_csv))
        assert all("/train/" not in row["ID"] for row in train)
        for row in train:
            name = corpus.name.removesuffix("_1")
            found[name, row["ID"].rpartition("/")[2]] += 1
    expected = collections.Counter((corpus, ID) for _, corpus, ID in [*ODD, *ODD])
    expected["foreign", "0"] -= 1
    expected["foreign", "caf\\udce9"] += 1
    assert found == expected
    crops = ShardCrops([corpus.train_csv for corpus in corpora], CROP)
    for draw in range(crops.crops_per_pass):
        assert not crops[draw]["unusable"]


# Passes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_takes_every_item_once(packed, tmp_path, workers):
    crops = train_crops(packed, tmp_path)
    wanted = expected(crops)
    size, total = 4, crops.crops_per_pass
    assert total == sum(wanted.values())
    by_seed = {crops[draw]["seed"]: draw for draw in range(total + size)}
    seen = {}
    for ranks in (1, 2):
        seen[ranks] = [[] for _ in range(ranks)]
        for rank in range(ranks):
            batches = -(-total // size)
            steps = range(batches)
            sampler = DrawSampler(size, size // ranks, rank, ranks, steps)
            for (batch,) in StepLoader(crops, sampler, num_workers=workers):
                draws = [by_seed[int(seed)] for seed in batch.seeds]
                seen[ranks][rank].append(draws)
    (alone,), (first, second) = seen[1], seen[2]
    assert taken(crops, [d for draws in alone for d in draws][:total]) == wanted
    # Two processes take the very same, half of each batch each: nothing is left to
    # what a shard per worker holds.
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert together == alone[: len(together)]


def test_passes_differ_and_cover_items_evenly(packed, tmp_path):
    crops = train_crops(packed, tmp_path)
    total = crops.crops_per_pass
    passes = [[crops._crop(p * total + i) for i in range(total)] for p in range(3)]
    for order in passes:
        assert sorted(order) == list(range(total))
    assert passes[0] != passes[1] != passes[2]
    # Neighbours come from a few shards, and not in the order of the shards.
    shard = np.searchsorted(crops.shard_first, passes[0], side="right")
    assert len(set(shard[: total // 8])) <= shards_module._MIXED
    assert len(set(shard[:16])) > 1
    positions = collections.defaultdict(list)
    for draw in range(total):
        corpus, file, position = crops.choose(draw, 0, np.random.default_rng(draw))
        positions[corpus, file].append(position)
    for found in positions.values():
        stretches = [int(position * len(found)) for position in sorted(found)]
        assert stretches == list(range(len(found)))
    other = train_crops(packed, tmp_path, seed=1)
    assert [other._crop(i) for i in range(total)] != passes[0]


def test_passes_are_those_of_earlier_versions(tmp_path):
    """Shards count in the order of their names, not in that of the manifest."""
    with open(tmp_path / "a.csv", "w") as file:
        file.write("ID,duration,wav\n")
        for i in range(40):
            tar = f"/shards/train-{7 * i % 11:06d}.tar"
            file.write(f"{i},{0.5 + i % 3},{tar}::{i}@1+2\n")
    crops = ShardCrops([tmp_path / "a.csv"], 1.0, seed=3)
    drawn = [crops.choose(draw, 0, np.random.default_rng(0))[1] for draw in range(12)]
    assert drawn == [34, 12, 5, 38, 17, 38, 28, 1, 11, 16, 34, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_at_any_step(packed, tmp_path, workers):
    def loader(first=0):
        crops = train_crops(packed, tmp_path)
        return torch.utils.data.DataLoader(
            crops,
            batch_sampler=DrawSampler(3, 3, steps=range(first, 120)),
            collate_fn=CropCollator(),
            num_workers=workers,
        )

    def content(batch):
        return batch.seeds.tolist(), hashlib.sha256(batch.wavs.numpy()).digest()

    unbroken = [content(batch) for batch in loader()]
    rng = random.Random(workers)
    for _ in range(2):
        count = rng.randrange(1, 119)
        assert [content(batch) for batch in loader(count)] == unbroken[count:]


# Damage


def damage(folder):
    """Cuts a shard in half, replaces one, deletes one; returns what is lost of each."""
    cut, changed, gone = sorted(folder.glob("train-*.tar"))[:3]
    rows = [read_manifest(f"{path}.csv") for path in (cut, changed, gone)]
    half = cut.stat().st_size // 2
    os.truncate(cut, half)
    with open(changed, "ab") as file:
        file.write(bytes(10240))
    gone.unlink()
    members = [Member.at(row["wav"]) for row in rows[0]]
    lost = sum(member.offset + member.size > half for member in members)
    assert 0 < lost < len(rows[0])
    return {
        "cut off": lost,
        "has changed": len(rows[1]),
        "is missing": len(rows[2]),
    }


def test_damaged_shards_are_reported_and_passed_over(copied, tmp_path):
    whole = train_crops(copied, tmp_path / "whole")
    before = [whole[draw] for draw in range(whole.crops_per_pass)]
    lost = damage(copied)
    corpora = prepare_shards(copied, tmp_path / "manifests")
    reported = dict(item for corpus in corpora for item in corpus.unusable)
    for reason, count in lost.items():
        assert sum(reason in given for given in reported.values()) == count
    crops = ShardCrops([corpus.train_csv for corpus in corpora], CROP)
    replaced = 0
    for draw, item in enumerate(before):
        again = crops[draw]
        bad = {path for path, _ in again["unusable"]}
        # A changed shard may still be read where nothing has moved.
        assert bad <= reported.keys()
        replaced += bool(bad)
        if not bad:
            assert torch.equal(again["wav"], item["wav"])
    assert replaced >= lost["cut off"] + lost["is missing"]
    # More of it than is allowed stops a run.
    total = sum(corpus.num_files for corpus in corpora)
    account = UnusableFiles(tmp_path / "unusable.csv", total, max_share=0.05)
    with pytest.raises(UserError, match="--max_unusable"):
        account.add(reported.items())


def test_bad_input(packed, copied, audio, tmp_path):
    assert holds_shards(str(packed))
    assert not holds_shards(audio)
    with pytest.raises(UserError, match="others does not"):
        holds_shards([packed, audio[1]])
    with pytest.raises(UserError, match="corpus_weights=.*Leave"):
        train_crops(packed, tmp_path, weights=[1, 1])
    (copied / "train-000001.tar.csv").unlink()
    with pytest.raises(UserError, match="train-000001.tar.csv is missing"):
        prepare_shards(copied, tmp_path)
    (copied / "shards.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="format 0, not 1"):
        prepare_shards(copied, tmp_path)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        pack(copied, "nowhere")


# Codes


@pytest.fixture(scope="module")
def with_codes(audio, tmp_path_factory):
    """Codes of the corpora, and shards that hold them."""
    folder = tmp_path_factory.mktemp("codes")
    codes, shards = folder / "codes", folder / "shards"
    prepare_codes(codes, CodesInfo(*Codec.label_of(BUNDLED), 8, 1024))
    part, rng = CodesPart(codes, 8), np.random.default_rng(0)
    for corpus in prepare_corpora(audio, codes / "manifests"):
        for file in (corpus.train_csv, corpus.valid_csv):
            for row in read_manifest(file):
                stamp = file_stamp(row["wav"])
                frames = rng.integers(0, 1024, (int(float(row["duration"]) * 75), 8))
                part.append([(row["wav"], stamp, "")], [frames])
    pack(shards, audio, MB, codes_folder=codes)
    return codes, shards


def test_codes_in_the_shards(audio, packed, with_codes, tmp_path):
    codes, shards = with_codes
    stored, here = StoredCodes(codes), find_packed_codes(shards)
    here.check(Codec.label_of(BUNDLED), 8, 1024)
    with pytest.raises(UserError, match="--codec bundled"):
        here.check(Codec.label_of("encodec_24khz"), 8, 1024)
    for plain, corpus in zip(
        prepare_corpora(audio, tmp_path / "manifests"),
        prepare_shards(shards, tmp_path / "in_shards"),
        strict=True,
    ):
        (of_files,) = stored.of_manifests([plain.train_csv], 3, "")
        (of_shards,) = here.of_manifests([corpus.train_csv], 3)
        number = {row["ID"]: i for i, row in enumerate(read_manifest(plain.train_csv))}
        for i, row in enumerate(read_manifest(corpus.train_csv)):
            for position in (0.0, 0.3, 0.99):
                crop = of_shards.cut(i, position, CROP)
                same = of_files.cut(number[row["ID"]], position, CROP)
                assert crop["targets"].shape[1] == 3
                assert torch.equal(crop["wav"], same["wav"])
                assert torch.equal(crop["targets"], same["targets"])
    assert find_packed_codes(packed) is None
    with pytest.raises(UserError, match="holds no codes"):
        find_packed_codes([packed, shards])


def test_indexing_again_forgets_nothing(with_codes, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(with_codes[1], folder)
    for path in folder.glob("*.tar.csv"):
        path.unlink()
    recipe = ROOT / "recipes/make_shards.py"
    execute([sys.executable, recipe, folder, "--index"], tmp_path)
    for path in with_codes[1].glob("*.tar.csv"):
        rows, again = read_manifest(path), read_manifest(folder / path.name)
        assert [row["codes"] for row in rows] == [row["codes"] for row in again]
    index = (with_codes[1] / "shards.json").read_text()
    assert (folder / "shards.json").read_text() == index


def npy(array, version=None):
    """The content of a NumPy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def test_items_without_codes_among_coded_ones(audio, with_codes, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(with_codes[1], folder)
    content = (audio[0] / "1.wav").read_bytes()
    frames = int(soundfile.info(audio[0] / "1.wav").duration * 75)
    codes = np.zeros((frames, 8), np.uint16)
    unfit = {
        "none": None,
        "other_type": npy(codes.astype(np.int64)),
        "other_width": npy(codes[:, :4]),
        "other_order": npy(np.asfortranarray(codes)),
        "no_array": b"junk",
        "other_version": npy(codes, (2, 0)),
    }
    known = json.dumps({"corpus": "noises"}).encode()
    with tarfile.open(folder / "train-more.tar", "w") as tar:
        for name, made in {**unfit, "fit": npy(codes)}.items():
            add(tar, f"{name}.json", known)
            add(tar, f"{name}.wav", content)
            if made is not None:
                add(tar, f"{name}.codes.npy", made)
    index_shards(folder, max_unusable=0.2)
    reported = {
        Member.at(row["path"]).name: row["reason"]
        for row in read_manifest(folder / "unusable_files.csv")
    }
    assert set(reported) == {f"{name}.wav" for name in unfit}
    assert all("no codes of 8 codebooks" in why for why in reported.values())
    (corpus, _) = prepare_shards(folder, tmp_path / "manifests")
    (stored,) = find_packed_codes(folder).of_manifests([corpus.train_csv], 3)
    crops = ShardCrops([corpus.train_csv], CROP, targets=[stored])
    for draw in range(crops.crops_per_pass):
        item = crops[draw]
        assert item["targets"].shape[1] == 3
        assert not item["unusable"]
    # An index of before, in which they stand.
    table = read_manifest(folder / "train-more.tar.csv")
    assert [row["ID"] for row in table] == ["fit"]
    write_csv(folder / "train-more.tar.csv", [{**table[0], "codes": ""}])
    (corpus, _) = prepare_shards(folder, tmp_path / "manifests")
    with pytest.raises(UserError, match="1 of .*have no codes.*--index"):
        find_packed_codes(folder).of_manifests([corpus.train_csv], 3)


# The recipe


LOGGED = """
import os, runpy, sys
from encodecmae_sb.brains.pretrain import PretrainBrain

start = PretrainBrain.on_fit_batch_start

def logged(self, batches, should_step):
    with open(self.hparams.output_folder + ".log", "a") as file:
        for batch in batches:
            print(*batch.seeds.tolist(), file=file)
    start(self, batches, should_step)

PretrainBrain.on_fit_batch_start = logged
outputs, (recipe, *arguments) = sys.argv[1].split(","), sys.argv[2:]
for output in outputs:
    sys.argv = [recipe, *(output if a == "OUTPUT" else a for a in arguments)]
    runpy.run_path(recipe, run_name="__main__")
"""


def test_pretraining_killed_and_resumed_takes_every_item_once(with_codes, tmp_path):
    _, shards = with_codes
    script = tmp_path / "logged.py"
    script.write_text(LOGGED)
    crops = train_crops(shards, tmp_path, seed=1234)
    total = crops.crops_per_pass
    options = {
        "data_folder": shards,
        "codec": BUNDLED,
        "crop_seconds": CROP,
        "batch_size": 16,
        "training_steps": -(-3 * total // 32),  # a pass and a half
        "valid_interval": 10,
        "num_workers": 2,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 2,
    }

    def arguments(*names):
        python, *rest = command("OUTPUT", **options)
        outputs = ",".join(str(tmp_path / name) for name in names)
        return [python, script, outputs, *rest]

    def drawn(name):
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        return [int(seed) for line in lines for seed in line.split()]

    run_killed(arguments("killed"), saves=3, cwd=tmp_path, env=environment())
    before = len(drawn("killed"))
    assert 0 < before < total
    text = execute(arguments("killed", "unbroken"), tmp_path)
    assert f"{crops.num_files} files" in text
    assert "Codes: read from the shards" in text
    assert results(tmp_path / "killed") == results(tmp_path / "unbroken")
    assert drawn("killed") == drawn("unbroken")
    # Nothing is repeated or lost: 0 items, where a shard per worker would be allowed.
    by_seed = {crops[draw]["seed"]: draw for draw in range(2 * total)}
    draws = [by_seed[seed] for seed in drawn("killed")]
    assert taken(crops, draws[:total]) == expected(crops)
    rest = taken(crops, draws[total:])
    assert all(count <= expected(crops)[item] for item, count in rest.items())


def test_pretraining_from_damaged_shards(copied, tmp_path):
    damage(copied)
    options = {"training_steps": 4, "max_unusable": 0.5}
    output = tmp_path / "run"
    execute(command(output, data_folder=copied, codec=BUNDLED, **options), tmp_path)
    listed = (output / "unusable_files.csv").read_text()
    for reason in ("cut off", "has changed", "is missing"):
        assert reason in listed
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["unusable_files"] == len(listed.splitlines()) - 1
