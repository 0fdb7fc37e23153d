r"""What very many files cost before the first batch: memory and seconds of each stage.

    python tests/many_files.py /tmp/many 2000000

makes a tree of so many links to small files, stored codes and an index of shards for
them, and runs each stage in a process of its own. Headers are not read: that takes a
disk's time, not memory. `test_many_files.py` does the same with few and without
processes. The folder may be given again, and should be deleted afterwards.
"""

import csv
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile

from encodecmae_sb.data import audio
from encodecmae_sb.data.codes import CodesInfo, StoredCodes, prepare_codes
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import Corpus, find_audio, prepare_corpora
from encodecmae_sb.data.shards.reading import (
    ShardCrops,
    find_packed_codes,
    prepare_shards,
)
from encodecmae_sb.data.stored import FileChunks
from encodecmae_sb.pipelines.extract import missing_jobs, plan
from encodecmae_sb.utils.identity import data_identity

RATE, SAMPLES = 16000, 1600
FRAMES = SAMPLES * 3 // 2 // 320
PER_FOLDER, PER_SHARD = 1000, 10000


def make(folder, count):
    """All that the stages need."""
    if (folder / "made").exists():
        return
    number = 0
    for first in range(0, count, PER_FOLDER):
        home = folder / f"audio/speaker-{first // PER_FOLDER:05d}/chapter"
        home.mkdir(parents=True)
        one = home / f"utterance-{number:09d}.wav"
        soundfile.write(one, np.zeros(SAMPLES, np.int16), RATE)
        number += 1
        while number < min(count, first + PER_FOLDER):
            os.link(one, home / f"utterance-{number:09d}.wav")
            number += 1
    make_codes(folder, count)
    make_shards(folder, count)
    (folder / "made").touch()


def make_codes(folder, count):
    """Codes of all files; the file of rows has a size but no content."""
    prepare_codes(folder / "codes", CodesInfo("codec", "bundled", "0" * 8, 8, 1024))
    with open(folder / "codes/part-00000.files", "w") as lines:
        for home, _, files in os.walk(folder / "audio"):
            for file in sorted(files):
                path = os.path.join(home, file)
                stat = os.stat(path)
                line = [path, stat.st_size, stat.st_mtime_ns, ""]
                lines.write(json.dumps(line) + "\n")
    (folder / "codes/part-00000.codes").touch()
    os.truncate(folder / "codes/part-00000.codes", 2 * 8 * FRAMES * count)
    np.full(count, FRAMES).tofile(folder / "codes/part-00000.codes.counts")


def make_shards(folder, count):
    """Shards whose index says that each has many items, all of them the same."""
    shards = folder / "shards"
    shards.mkdir()
    names = []
    header = ["ID", "duration", "wav", "num_samples", "sample_rate"]
    for first in range(0, count, PER_SHARD):
        tar = shards / f"train-{len(names):06d}.tar"
        names.append(tar.name)
        np.save(shards / "it.codes.npy", np.zeros((FRAMES, 8), np.uint16))
        sound = next((folder / "audio").rglob("*.wav"))
        with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as file:
            file.add(sound, "it.wav")
            file.add(shards / "it.codes.npy", "it.codes.npy")
        with tarfile.open(tar) as file:
            wav, codes = file.getmembers()
        with open(f"{tar}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*header, "corpus", "codes", "split"])
            for i in range(first, min(count, first + PER_SHARD)):
                # A few in each are for validation.
                split = "valid" if i % 20 == 0 else "train"
                rows.writerow(
                    [
                        *(f"speaker/chapter/utterance-{i:09d}", SAMPLES / RATE),
                        f"{tar.name}::{i:09d}.wav@{wav.offset_data}+{wav.size}",
                        *(SAMPLES, RATE, "speech"),
                        f"{tar.name}::{i:09d}.codes.npy@{codes.offset_data + 128}"
                        f"+{codes.size - 128}",
                        split,
                    ]
                )
    (shards / "it.codes.npy").unlink()
    info = asdict(CodesInfo("codec", "bundled", "0" * 8, 8, 1024))
    listed = [
        {"name": n, "items": 1, "seconds": 1, "bytes": (shards / n).stat().st_size}
        for n in names
    ]
    index = {"format": 1, "plan": "", "codes": info, "shards": listed}
    (shards / "shards.json").write_text(json.dumps(index))


def first_batch(crops):
    """Eight crops."""
    return CropCollator()([crops[draw] for draw in range(8)])


def listing(folder):
    """The files of a tree."""
    return find_audio(folder / "audio")


def manifests(folder):
    """A new manifest; headers are not read."""
    for state in (folder / "save").glob("audio.json"):
        state.unlink()
    return prepare_corpora(folder / "audio", folder / "save")


def _manifest(folder):
    return [folder / f"save/audio_{split}.csv" for split in ("train", "valid")]


def from_audio(folder):
    """From manifests to the identity of a training and a batch of crops."""
    train, valid = _manifest(folder)
    crops, fixed = RandomCrops([train]), FixedCrops([valid], 4)
    identity = data_identity([Corpus("audio", train, valid, 0, [])])
    return crops, fixed, identity, first_batch(crops)


def from_codes(folder):
    """From manifests and stored codes to a batch of crops with codes."""
    stored = StoredCodes(folder / "codes")
    train, valid = stored.of_manifests(_manifest(folder), 8, "")
    crops = RandomCrops([_manifest(folder)[0]], targets=[train])
    fixed = FixedCrops([_manifest(folder)[1]], 4, targets=[valid])
    return stored, crops, fixed, first_batch(crops)


def extraction(folder):
    """From a manifest to what has to be encoded: nothing, and all files."""
    chunks = FileChunks(_manifest(folder), 96000)
    groups = plan(chunks.lengths.tolist(), 16 * 96000)
    jobs = missing_jobs(chunks, groups, StoredCodes(folder / "codes"), 16 * 96000)
    assert not jobs
    prepare_codes(folder / "none", StoredCodes(folder / "codes").info)
    jobs = missing_jobs(chunks, groups, StoredCodes(folder / "none"), 16 * 96000)
    return chunks, jobs


def from_shards(folder):
    """From shards with codes to a batch of crops with codes."""
    (corpus,) = prepare_shards(folder / "shards", folder / "save")
    packed = find_packed_codes(folder / "shards")
    train, valid = packed.of_manifests([corpus.train_csv, corpus.valid_csv], 8)
    crops = ShardCrops([corpus.train_csv], targets=[train])
    fixed = FixedCrops([corpus.valid_csv], 4, targets=[valid])
    return crops, fixed, first_batch(crops)


STAGES = (listing, manifests, from_audio, from_codes, extraction, from_shards)


def assume_headers(path, **options):
    """Stands in for `inspect_audio`."""
    return audio.AudioInfo(SAMPLES, RATE, 1)


def main(folder, count, *stages):
    """Runs the stages, each in a process of its own."""
    folder = Path(folder)
    make(folder, int(count))
    if stages:
        audio.inspect_audio = assume_headers
        (stage,) = (stage for stage in STAGES if stage.__name__ == stages[0])
        before, started = _peak(), (time.perf_counter(), time.process_time())
        kept = stage(folder)
        seconds = time.perf_counter() - started[0]
        busy = time.process_time() - started[1]
        print(
            f"{stage.__name__:14s}{seconds:8.1f} s ({busy:.1f} s of a core)"
            f"{_peak():8.2f} GB ({before:.2f} GB before it)",
            flush=True,
        )
        del kept
        return
    for stage in STAGES:
        arguments = [sys.executable, __file__, folder, count, stage.__name__]
        subprocess.run(arguments, check=True)


def _peak():
    """Most memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
