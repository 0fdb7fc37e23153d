"""Packing corpora into tar shards."""

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, execute
from shard_folders import MB, packed_shards, two_corpora, write_noise  # noqa: F401

from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.codes import CodesInfo
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.data.shards import reading as shards_module
from encodecmae_sb.data.shards.packing import PackItems, deal
from encodecmae_sb.data.shards.reading import prepare_shards
from encodecmae_sb.data.tars import Member
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pipelines.extract import normalise_option
from encodecmae_sb.pipelines.pack import pack
from encodecmae_sb.utils.errors import UserError


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
    assert len(sizes) > 2 * shards_module._MIXED  # else test_shards.py shows little
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


def test_what_a_pretraining_must_be_told_to_take_codes(tmp_path):
    plain, level = (
        CodesInfo(*Codec.label_of("bundled", normalise=normalise), 8, 1024)
        for normalise in (None, "level")
    )
    yamls = {None: "normalise: null", "level": "normalise: level"}
    for name, text in yamls.items():
        yamls[name] = tmp_path / f"{name}.yaml"
        yamls[name].write_text(text)
    assert normalise_option(plain, yamls["level"]) == ["--normalise", "null"]
    assert normalise_option(level, yamls["level"]) == []
    assert normalise_option(plain, yamls[None]) == []
    assert normalise_option(level, yamls[None]) == ["--normalise", "level"]
    yamls["level"].write_text("seed: 1")
    assert normalise_option(plain, yamls["level"]) == []
    assert normalise_option(CodesInfo("mel_rvq", "a", "b", 8, 9), yamls["level"]) == []
