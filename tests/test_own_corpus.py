"""A corpus of clips is chosen by its name, or is a module of one's own."""

import json
import re
import shlex

import numpy as np
import pytest
import soundfile
from classification import RATE, ROOT, keys_of, load
from commands import run_recipe

from encodecmae_sb.data import corpora
from encodecmae_sb.data.corpora import corpus_names

CORPUS = '''
"""Beeps: two pitches, in three folds."""

from encodecmae_sb.data.clips import Clip

RATE = 8000
LAYOUT = "  FOLD/low_0.wav"


def find_clips(folder):
    clips = []
    for path in sorted(folder.glob("*/*_*.wav")):
        fold, labels = path.parent.name, (path.stem.split("_")[0],)
        clips.append(Clip(f"{fold}/{path.stem}", str(path), labels, fold))
    return clips
'''


@pytest.mark.parametrize("by_name", [True, False])
def test_a_corpus_is_one_file(by_name, tmp_path, monkeypatch):
    """A contributor's whole diff: one module, in the folder of corpora or elsewhere."""
    text = CORPUS
    if not by_name:
        text = text.replace('"_")[0],)', '"_")[0], "beep")') + "MULTI_LABEL = True\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/beeps.py").write_text(text)
    for fold in range(3):
        for i, hz in enumerate((300, 310, 2000, 2100)):
            path = tmp_path / f"data/{fold}/{'low' if hz < 1000 else 'high'}_{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wav = 0.3 * np.sin(2 * np.pi * hz * np.arange(RATE // 4) / RATE)
            soundfile.write(path, wav, RATE)
    corpus = tmp_path / "modules/beeps.py"
    if by_name:
        corpus = "beeps"
        places = [*corpora.__path__, str(tmp_path / "modules")]
        monkeypatch.setattr(corpora, "__path__", places)
    given = {"corpus": corpus, "data_folder": tmp_path / "data", "features": "logmel"}
    given |= {"output_folder": tmp_path / "run", "number_of_epochs": 2}
    given |= {"num_workers": 0}
    flags = [part for key, value in given.items() for part in (f"--{key}", value)]
    yaml = ROOT / "hparams/classify.yaml"
    run_recipe("classify", yaml, "--device", "cpu", *flags)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["folds"], metrics["clips"]) == (3, 12)
    assert ("accuracy" if by_name else "mAP") in metrics
    labels = load(tmp_path / "run/classifier").labels
    assert labels == (["high", "low"] if by_name else ["beep", "high", "low"])
    # Its rate is checked.
    soundfile.write(path, wav, 16000)
    with pytest.raises(SystemExit, match="has 16000 Hz, but corpus_rate=8000"):
        run_recipe("classify", yaml, *flags)


def test_an_unknown_corpus_names_the_known_ones(tmp_path):
    yaml = ROOT / "hparams/classify.yaml"
    given = ["--corpus", "esc51", "--output_folder", tmp_path]
    with pytest.raises(SystemExit, match="corpus=esc51: there are crema_d, esc10, "):
        run_recipe("classify", yaml, *given)


def test_the_yaml_says_what_each_corpus_needs():
    """The options in its header are keys, and no corpus is left out."""
    path = ROOT / "hparams/classify.yaml"
    header = path.read_text().split("\nseed:")[0].replace("\\\n#", "")
    table = re.findall(r"(?m)^#   (\w+) *((?: +--.*)?)$", header)
    assert sorted([name for name, _ in table] + ["esc50"]) == corpus_names()
    keys = keys_of(path)
    for _, options in table:
        words = shlex.split(options)
        assert all(word in keys for word in (word[2:] for word in words[::2]))
