"""Memory and time before the first batch grow slowly with the number of files."""

import tracemalloc

import many_files
import pytest

from encodecmae_sb.data.crops import RandomCrops

COUNT = 10_000

# Bytes per file. With 1200 of them two million files take 3 GB, torch and all else
# included.
PEAK = {
    "listing": 350,
    "manifests": 600,
    "from_audio": 180,
    "from_codes": 500,
    "extraction": 600,
    "from_shards": 400,
}
KEPT = {
    "from_audio": 160,
    "from_codes": 200,
    "from_shards": 350,
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    many_files.make(folder, COUNT)
    return folder


@pytest.mark.parametrize("stage", many_files.STAGES, ids=lambda stage: stage.__name__)
def test_memory_per_file(many, stage, monkeypatch):
    monkeypatch.setattr(many_files.audio, "inspect_audio", many_files.assume_headers)
    tracemalloc.start()
    try:
        kept = stage(many)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept
    name = stage.__name__
    assert peak < PEAK[name] * COUNT
    if name in KEPT:
        assert now < KEPT[name] * COUNT


def test_one_long_name_does_not_widen_all(tmp_path):
    with open(tmp_path / "a.csv", "w") as file:
        file.write("ID,duration,wav\n")
        file.writelines(f"{i},1.0,/{i}.wav\n" for i in range(COUNT))
        file.write(f"long,1.0,/{'x' * 4000}.wav\n")
    tracemalloc.start()
    try:
        crops = RandomCrops([tmp_path / "a.csv"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * COUNT
    assert len(crops.paths[0][-1]) == 4005
