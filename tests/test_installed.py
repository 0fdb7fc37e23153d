"""The wheel, unpacked outside the repository: what is in it, and its commands."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from classification import tiny_encoder
from commands import ROOT, environment

from encodecmae_sb.bundled import sound_folder
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.inference.classifier import export_classifier
from encodecmae_sb.inference.recogniser import export_recogniser
from encodecmae_sb.lobes import CTCHead, EnCodecMAE
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
from encodecmae_sb.pretrained.folder import export_encoder

BUILT_FROM = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
# Runs several command lines in one process: its imports take seconds.
DRIVER = """
import contextlib, io, json, runpy, sys
import encodecmae_sb
done = [encodecmae_sb.__file__]
for words in json.loads(sys.argv[1]):
    sys.argv = ["-m", *words]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module("encodecmae_sb", run_name="__main__", alter_sys=False)
            status = 0
        except SystemExit as end:
            status = end.code
    done.append([status, said.getvalue()])
print("\\n" + json.dumps(done))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network, from what a clone has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("encodecmae_sb", "hparams"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    build += ["--no-build-isolation", "--wheel-dir", folder, source]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel):
    """The folder that a user's Python would find it in."""
    folder = wheel.parent / "site-packages"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A user's folder, with exported models and a manifest of clips."""
    folder = tmp_path_factory.mktemp("elsewhere")
    export_encoder(tiny_encoder(), folder / "encoder")
    torch.manual_seed(0)
    lobe = LogMelFrames()
    head = ClipHead(lobe.dim, 3, pooling="mean_std")
    export_classifier(ClipClassifier(lobe, head), ["a", "b", "c"], folder / "classes")
    tokens = Tokens.of_characters(["ONE TWO"])
    head = CTCHead(32, len(tokens), hidden_size=8)
    lobe = EnCodecMAE(tiny_encoder(), input_sample_rate=24000)
    export_recogniser(lobe, head, tokens, {"beam_size": 4}, folder / "asr", "", {})
    rows = [
        f"{i},{path},{i % 2},{i % 3}"
        for i, path in enumerate(sorted(sound_folder().rglob("*.flac"))[:12])
    ]
    (folder / "clips.csv").write_text("\n".join(["ID,wav,label,fold", *rows, ""]))
    return folder


def python(unpacked, cwd, *arguments, expect=0):
    """Runs Python outside the repository, with the unpacked wheel on its path."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env=environment(PYTHONPATH=str(unpacked)),
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for path in (ROOT / "hparams").glob("*.yaml"):
        assert f"encodecmae_sb/bundled/hparams/{path.name}" in names
    inside = [*(ROOT / "encodecmae_sb").rglob("*.py")]
    inside += [*(ROOT / "encodecmae_sb/bundled/corpus").rglob("*")]
    inside += [ROOT / "encodecmae_sb/bundled/codec.safetensors"]
    inside += [*(ROOT / "encodecmae_sb/evaluation").glob("*.csv")]
    missing = {str(p.relative_to(ROOT)) for p in inside if p.is_file()} - names
    assert not missing
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert not any(name.startswith(("tests", "recipes", "hparams")) for name in names)
    assert wheel.stat().st_size < 20e6  # docs/install.md says how large it is


def test_the_list_of_commands_imports_no_torch(unpacked, tmp_path):
    said, times = python(unpacked, tmp_path, "-X", "importtime", "-m", "encodecmae_sb")
    assert "torch" not in times
    for path in (unpacked / "encodecmae_sb/commands").glob("[a-z]*.py"):
        (line,) = [s for s in said.splitlines() if s.startswith(f"  {path.stem} ")]
        assert len(line) <= 88
        assert line.endswith((".", "?"))
    version, _ = python(unpacked, tmp_path, "-m", "encodecmae_sb", "--version")
    assert version.startswith("encodecmae_sb 0.")
    asked = ("-m", "encodecmae_sb", "clasify")
    _, said = python(unpacked, tmp_path, *asked, expect=1)
    assert "no command clasify. Did you mean classify?" in said


def test_the_commands_outside_the_repository(unpacked, elsewhere):
    corpus = unpacked / "encodecmae_sb/bundled/corpus"
    sounds = sorted(str(path) for path in (corpus / "sound").rglob("*.flac"))[:2]
    probing = "probe hparams/probe_mini.yaml --device cpu --noprogressbar".split()
    probing += (
        "--repeats 1 --number_of_epochs 1 --hidden_layers [0] --lrs [0.01]".split()
    )
    probing += "--encoders [logmel,encoder] --num_workers 0 --output_folder out".split()
    said, _ = python(
        unpacked,
        elsewhere,
        "-c",
        DRIVER,
        json.dumps(
            [
                ["embed", "encoder", sounds[0], "--output_folder", "features"],
                ["classify", "classes", *sounds, "none.wav", "--top", "0"],
                ["classify", "hparams/classify_mini.yaml"],
                ["transcribe", "asr", sounds[0]],
                ["transcribe", "encoder", sounds[0]],
                [*probing, "--csv", "clips.csv"],
                ["probe", "hparams/nothing.yaml"],
            ]
        ),
    )
    home, embed, classify, train, transcribe, wrong, probe, nothing = json.loads(
        said.splitlines()[-1]
    )
    assert home.startswith(str(unpacked))
    assert embed[0] == 0, embed
    assert list((elsewhere / "features").rglob("*.npy"))
    assert classify[0] == 1, classify
    lines = [line.split("\t") for line in classify[1].splitlines() if "\t" in line]
    assert [line[0] for line in lines] == sounds
    for _, label, *classes in lines:
        shares = [float(share.split()[1]) for share in classes]
        assert classes[0].split()[0] == label
        assert {share.split()[0] for share in classes} == {"a", "b", "c"}
        assert sum(shares) == pytest.approx(1, abs=0.002)
    assert "none.wav: left out" in classify[1]
    assert "python recipes/classify.py hparams/classify_mini.yaml" in train[0]
    assert transcribe[0] == 0, transcribe
    assert f"{sounds[0]}\t" in transcribe[1]
    assert "holds another kind of model: encoder" in wrong[0]
    assert probe[0] == 0, probe
    assert "of the package is used" in probe[1]
    assert "encoder/linear/accuracy" in (elsewhere / "out/metrics.json").read_text()
    assert "No such hyperparameter file: hparams/nothing.yaml" in nothing[0]
