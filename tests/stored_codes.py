"""Codes of a small corpus: what the tests of stored codes share.

A test file imports each fixture by the name of its function, and those that it takes as
well.
"""

import shutil

import pytest
from commands import run_recipe

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pipelines import extract as pipeline


class Killed(Exception):
    """Stands for the end of a process."""


def killed_when(monkeypatch, run, owner, name, calls):
    """Runs until a method is called for the n-th time, which ends it."""
    original, left = getattr(owner, name), [calls]

    def method(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, method)
        with pytest.raises(Killed):
            run()


def extract(folder, corpus, *options):
    """Runs extract_codes.py and returns what it stored."""
    given = ["--data_folder", str(corpus), "--codec", "bundled", "--device", "cpu"]
    given += ["--num_workers", "0", "--batch_seconds", "8", *map(str, options)]
    run_recipe("extract_codes", folder, *given)
    return StoredCodes(folder)


@pytest.fixture(scope="module", name="few_compared")
def few_crops_compared():
    """Two crops instead of 64, which take a second in every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "COMPARED_CROPS", 2)
        yield


@pytest.fixture(scope="module", name="codec")
def bundled_codec():
    return Codec("bundled")


@pytest.fixture(scope="module", name="corpus")
def some_speech(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    for part, count in (("train", 10), ("dev", 3)):
        (folder / part).mkdir(parents=True)
        for path in sorted((speech_folder() / part).rglob("*.flac"))[:count]:
            shutil.copy2(path, folder / part)
    return folder


@pytest.fixture(scope="module", name="extracted")
def extracted_codes(corpus, few_compared, tmp_path_factory):
    """A folder of codes of that corpus."""
    folder = tmp_path_factory.mktemp("codes") / "codes"
    extract(folder, corpus)
    return folder


@pytest.fixture(name="mine")
def own_codes(corpus, extracted, tmp_path):
    """A copy of the corpus to change, and a folder of its codes."""
    shutil.copytree(corpus, tmp_path / "speech")
    folder = tmp_path / "codes"
    extract(folder, tmp_path / "speech")
    return tmp_path / "speech", folder
