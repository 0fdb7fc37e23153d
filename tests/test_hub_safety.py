"""What comes from the hub is never run: no pickle is opened, no tag is followed."""

import os

import pytest
import torch

from encodecmae_sb.inference import load
from encodecmae_sb.lobes import EnCodecMAE, LogMel
from encodecmae_sb.pretrained.hub_folder import load_plain_folder
from encodecmae_sb.pretrained.plain import read_plain
from encodecmae_sb.utils.errors import UserError

NAME = "someone/speech"
PICKLE = b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00true\x85R."
ENCODER = """\
format: 2
encoder: !new:encodecmae_sb.lobes.AudioEncoder
    front_end: !new:encodecmae_sb.lobes.LogMel
    transformer: !new:encodecmae_sb.lobes.ResiDualTransformer
        {dim: 16, num_layers: 1, num_heads: 2, ffn_dim: 8}
"""
FILES = """\
pretrainer: !new:encodecmae_sb.pretrained.hub_folder.FilesPretrainer
    files: {encoder: %s}
"""


@pytest.mark.parametrize(
    "hyperparams", [ENCODER, ENCODER + FILES % "encoder.ckpt", None]
)
def test_pickles_are_never_opened(hub, monkeypatch, hyperparams):
    names = ("encoder.ckpt", "pytorch_model.bin", "model.pt", "model.pkl")
    files = dict.fromkeys(names, PICKLE)
    if hyperparams:
        files["hyperparams.yaml"] = hyperparams.encode()
    hub.commit(NAME, files)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises((UserError, FileNotFoundError), match="pickle|Pickle|refused"):
        EnCodecMAE(NAME)
    assert not [asked for asked in hub.asked if asked.endswith(names)]


def test_a_pickle_under_another_name(hub, monkeypatch):
    text = ENCODER + FILES % "encoder.safetensors"
    hub.commit(NAME, {"hyperparams.yaml": text.encode(), "encoder.safetensors": PICKLE})
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(UserError, match="encoder.safetensors cannot be read"):
        EnCodecMAE(NAME)


EVIL = [
    "encoder: !new:os.system ['touch TOUCHED']",
    "encoder: !apply:os.system ['touch TOUCHED']",
    "encoder: !name:os.system ['touch TOUCHED']",
    "encoder: !module:os",
    "encoder: !include:/etc/passwd",
    "encoder: !!python/object/apply:os.system ['touch TOUCHED']",
    "encoder: !ref <__import__('os').system('touch TOUCHED')>",
    "%TAG !e! !new:os.\n---\nformat: 2\nencoder: !e!system ['touch TOUCHED']",
    ENCODER + "extra: !new:os.system ['touch TOUCHED']",
    ENCODER + "modules: {a: !apply:os.system ['touch TOUCHED']}",
    ENCODER + "pretrainer: !new:subprocess.Popen ['touch TOUCHED']",
    ENCODER.replace("front_end: !new:encodecmae_sb.lobes.LogMel", "front_end: /etc"),
    ENCODER.replace("lobes.LogMel", "lobes.Codec {source: /etc/passwd}"),
    ENCODER + FILES % "../../encoder.safetensors",
    ENCODER + FILES % "[encoder.safetensors]",
    ENCODER + "a: &a [1]\nb: [*a, *a]",
    "format: 3\n" + ENCODER.partition("\n")[2],
]


@pytest.mark.parametrize("text", EVIL)
def test_malicious_yaml_is_refused_before_anything_is_built(
    hub, tmp_path, monkeypatch, text
):
    monkeypatch.chdir(tmp_path)
    if not text.startswith(("format", "%")):
        text = f"format: 2\n{text}"
    hub.commit(NAME, {"hyperparams.yaml": text.encode()})
    built = []
    monkeypatch.setattr(LogMel, "__init__", lambda *_: built.append(1))
    monkeypatch.setattr(os, "system", built.append)
    for source in (EnCodecMAE, load):
        with pytest.raises(UserError, match="read safely"):
            source(NAME)
    assert built == []
    assert not (tmp_path / "TOUCHED").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing", "is empty"),
        # PyYAML takes 0.2 s for 1000 levels of lists, and 9 s for 4000.
        ("format: 2\nencoder: " + 150_000 * "[", "line 2: more than 50 levels"),
        ("format: 2\nencoder: " + 40_000 * "{a: ", "line 2: more than 50 levels"),
        ("x" * 200_001, "more than 200000 bytes"),
    ],
    ids=["empty", "comment", "lists", "dicts", "long"],
)
def test_files_that_would_stop_the_reader(tmp_path, text, message):
    path = tmp_path / "hyperparams.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_plain(path)


def test_the_plain_example_is_not_refused(tmp_path):
    """Else the cases above would show nothing."""
    path = tmp_path / "hyperparams.yaml"
    path.write_text(ENCODER + FILES % "encoder.safetensors")
    assert read_plain(path).files == {"encoder": "encoder.safetensors"}
    with pytest.raises(UserError, match="No weights"):
        load_plain_folder(tmp_path)
