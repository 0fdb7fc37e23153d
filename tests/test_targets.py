"""Another kind of target: one class and a yaml line, and what is known of targets."""

import functools
import json
import os
import sys

import numpy as np
import pytest
import soundfile
import torch
from commands import ROOT, TINY, execute, run_recipe

from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.crops import CropCollator, RandomCrops
from encodecmae_sb.lobes import Codec
from encodecmae_sb.nnet.targets import Targets, build, identify
from encodecmae_sb.pretrained.codec_files import checksum
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import load_key
from encodecmae_sb.utils.identity import differences, yaml_identity

# All that a contributor writes.
CLASS = '''
import torch
import torch.nn.functional as F

from encodecmae_sb.nnet.targets import Targets


class Loudness(Targets):
    """The peak and the mean level of each frame, in steps."""

    def __init__(self, steps):
        super().__init__(n_codebooks=2, codebook_size=steps)

    def encode(self, wavs, lengths=None):
        wavs = F.pad(wavs, (0, -wavs.shape[1] % self.hop_length))
        frames = wavs.unfold(1, self.hop_length, self.hop_length).abs()  # [B, T, hop]
        levels = torch.stack([frames.amax(-1), 2 * frames.mean(-1)], -1)  # [B, T, 2]
        return (levels * self.codebook_size).long().clamp(max=self.codebook_size - 1)

    def fingerprint(self):
        return f"levels-{self.codebook_size}"
'''
LINES = """targets: !name:my_targets.Loudness
    steps: !ref <codebook_size>
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """That class, a yaml with those lines, and a corpus."""
    (tmp_path / "my_targets.py").write_text(CLASS)
    text = (ROOT / "hparams/mini.yaml").read_text()
    start = text.index("targets: !name")
    text = text[:start] + LINES + text[text.index("\nfront_end:") :]
    text = text.replace("n_codebooks: 8", "n_codebooks: 2")
    text = text.replace("codebook_size: 1024", "codebook_size: 16")
    (tmp_path / "mine.yaml").write_text(text)
    search = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "noises").mkdir()
    rng = np.random.default_rng(0)
    for i in range(25):
        noise = rng.uniform(-1, 1, 24000) * np.linspace(0, 1, 24000) ** 2
        soundfile.write(tmp_path / f"noises/{i}.wav", noise, 24000, "FLOAT")
    yield tmp_path
    sys.modules.pop("my_targets", None)


def run(folder, output, expect=0, **options):
    """Pretrains with that yaml; gives what was printed and measured."""
    given = {
        **TINY,
        "training_steps": 2,
        "valid_interval": 1,
        "data_folder": folder / "noises",
        "output_folder": output,
        "device": "cpu",
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", value)]
    script = [sys.executable, ROOT / "recipes/pretrain.py", folder / "mine.yaml"]
    text = execute([*script, *flags], folder, expect)
    path = output / "metrics.json"
    return text, json.loads(path.read_text()) if path.exists() else None


def test_another_target_is_a_class_and_a_yaml_line(mine):
    text, computed = run(mine, mine / "computed")
    assert "Targets: Loudness" in text
    assert computed["targets"] == "Loudness"
    assert "codec" not in computed
    assert "targets: Loudness." in (mine / "computed/encoder/README.md").read_text()
    identity = json.loads((mine / "computed/save/identity.json").read_text())
    content = {"value": "Loudness", "digest": "levels-16"}
    assert identity["targets_content"] == content
    assert "codec" not in identity

    codes = mine / "codes"
    script = [sys.executable, ROOT / "recipes/extract_codes.py", codes]
    options = ["--hparams", mine / "mine.yaml", "--data_folder", mine / "noises"]
    text = execute([*script, *options, "--device", "cpu"], mine)
    assert "1 s crops: all frames 0.00 %, 0.00 %" in text
    assert f"pretrain.py {mine / 'mine.yaml'} --data_folder" in text
    text, stored = run(mine, mine / "stored", codes_folder=codes)
    assert stored.keys() == computed.keys()
    assert stored["unigram_ce_1"] == pytest.approx(computed["unigram_ce_1"], abs=0.1)

    # A run that stores them itself is the same.
    _, own = run(mine, mine / "own", store_targets="auto")
    assert own == stored
    assert StoredCodes(mine / "own/save/targets").info.fingerprint == "levels-16"

    # Stored codes are the computed ones, to the bit.
    targets = load_key(mine / "mine.yaml", "targets", {})()
    manifest = codes / "manifests/noises_train.csv"
    files = StoredCodes(codes).of_manifests([manifest], 2, "")
    crops = RandomCrops([manifest], 0.5, targets=files)
    batch = CropCollator()([crops[draw] for draw in range(16)])
    assert torch.equal(targets.encode(batch.wavs), batch.targets)
    assert len(batch.targets.unique()) > 8

    # Others are refused.
    for output, options, message in [
        ("stored", {"codebook_size": 8}, "holds codes of targets Loudness (levels-16)"),
        ("other", {"n_codebooks": 3}, "Give --n_codebooks 2"),
    ]:
        text, _ = run(mine, mine / output, 1, codes_folder=codes, **options)
        assert message in text
        assert "Traceback" not in text
    text, _ = run(mine, mine / "other", 1, n_codebooks=3)
    assert "Give --n_codebooks 2 --codebook_size 16" in text


def test_targets_on_another_grid(mine):
    with open(mine / "my_targets.py", "a") as file:
        file.write("    hop_length = 240\n")
    options = ["--output_folder", mine / "run", "--device", "cpu"]
    with pytest.raises(SystemExit, match="(?s)every 240 samples.*every 320 samples"):
        run_recipe("pretrain", mine / "mine.yaml", *options)


def test_codecs_are_known_without_loading_them(monkeypatch):
    monkeypatch.setattr("encodecmae_sb.lobes.codec.load_network", None)
    targets = load_key(ROOT / "hparams/base.yaml", "targets", {"n_codebooks": 4})
    label = identify(targets)
    assert label == ("codec", "encodec_24khz", checksum("encodec_24khz"))
    assert targets.keywords["n_codebooks"] == 4


def test_the_fingerprint_of_a_codec_is_that_of_its_file():
    codec = Codec("bundled", 3)
    assert codec.label == Codec.label_of("bundled", 3)
    assert codec.fingerprint() == checksum("bundled")


def test_targets_stay_in_eval_mode():
    assert not torch.nn.ModuleList([Codec("bundled")]).train()[0].training


class Projection(Targets):
    """Has weights and dropout, which neither learn nor drop."""

    def __init__(self, gain=1.0):
        super().__init__(n_codebooks=1, codebook_size=16)
        self.gain = gain
        generator = torch.Generator().manual_seed(0)
        weights = gain * torch.randn(320, 16, generator=generator)
        self.weights = torch.nn.Parameter(weights)
        self.drop = torch.nn.Dropout(0.5)

    def encode(self, wavs, lengths=None):
        frames = self.drop(wavs.unfold(1, 320, 320))
        return (frames @ self.weights).argmax(-1)[..., None]

    def fingerprint(self):
        return f"projection {self.gain}"


def test_targets_are_built_with_nothing_to_learn_or_to_drop():
    targets = build(Projection)
    assert not any(p.requires_grad for p in targets.parameters())
    wavs = torch.rand(2, 3200)
    assert torch.equal(targets.encode(wavs), targets.encode(wavs))


def test_a_built_object_is_refused():
    with pytest.raises(UserError, match="!name: in place of !new:"):
        identify(Projection())


def test_a_subclass_of_the_codec_has_a_fingerprint_of_its_own():
    class Flipped(Codec):
        def fingerprint(self):
            return "flipped"

    assert identify(functools.partial(Flipped, "bundled")).fingerprint == "flipped"


def test_other_arguments_are_another_training():
    """Even where a fingerprint forgets them."""
    yaml = "targets: !name:mine.Projection\n    gain: {}"
    one, other = (yaml_identity(yaml.format(gain), {}) for gain in (1, 2))
    assert differences(one, other)
