"""Speech of recipes/make_corpus.py, where the program espeak-ng is not installed."""

import importlib
import importlib.util
import shutil
import sys

import pytest
import soundfile
from commands import ROOT, execute


@pytest.fixture
def make_corpus(monkeypatch):
    """The script as a module, on a machine without the program."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return importlib.import_module("make_corpus")


def test_without_espeak_it_says_what_to_install(make_corpus, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install espeakng-loader"):
        make_corpus.espeak_version()


def test_without_the_program_python_speaks(make_corpus, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert make_corpus.espeak() == [sys.executable, str(ROOT / "recipes/espeak.py")]


def test_the_library_says_the_same_twice(tmp_path):
    """Its noise goes on from text to text, so each text has its own process."""
    pytest.importorskip("espeakng_loader")
    script, spoken = str(ROOT / "recipes/espeak.py"), []
    for voice in ("en-gb+m3", "en-gb+f1", "en-gb+m3"):
        wav, options = tmp_path / "a.wav", ["-v", voice, "-m", "-p", "45", "-s", "160"]
        execute([sys.executable, script, *options, "-w", str(wav), "hello"], tmp_path)
        samples, rate = soundfile.read(wav)
        assert 0.3 < len(samples) / rate < 3
        spoken.append(samples.tolist())
    assert spoken[0] == spoken[2] != spoken[1]
