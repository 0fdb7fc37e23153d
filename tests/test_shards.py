"""Tar shards: reading in place, one pass over all items, damage, codes."""

import collections
import hashlib
import json
import os
import random
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from commands import command, environment, execute, results
from killed import run_killed
from shard_folders import (  # noqa: F401
    CROP,
    coded_shards,
    copied_shards,
    packed_shards,
    two_corpora,
    write_noise,
)

from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.crops import CropCollator, DrawSampler, StepLoader
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.data.shards import reading as shards_module
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


# Reading


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
        "normalise": "null",  # as the stored codes
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
