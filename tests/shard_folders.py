"""Fixtures: folders of shards.

A test file imports each by the name of its function, and those that it takes as well.
"""

import numpy as np
import pytest
import soundfile

from encodecmae_sb.data.codes import CodesInfo, CodesPart, file_stamp, prepare_codes
from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pipelines.pack import pack
from encodecmae_sb.pretrained.codec_files import BUNDLED

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


@pytest.fixture(scope="module", name="audio")
def two_corpora(tmp_path_factory):
    """Two corpora, of 60 and 20 files."""
    folder = tmp_path_factory.mktemp("audio")
    return [
        write_noise(folder / "noises", 60),
        write_noise(folder / "others", 20, 44100, "flac"),
    ]


@pytest.fixture(scope="module", name="packed")
def packed_shards(audio, tmp_path_factory):
    """The folder with their shards."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(folder, audio, MB)
    return folder


@pytest.fixture(name="copied")
def copied_shards(packed, tmp_path):
    """A copy of the shards, to be damaged."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in packed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module", name="with_codes")
def coded_shards(audio, tmp_path_factory):
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
