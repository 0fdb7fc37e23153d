"""The pretraining recipe as a user runs it, at a size that runs in seconds."""

import json
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
import yaml as yaml_reader
from commands import ROOT, TINY, command, environment, execute, results, run, run_recipe
from killed import run_killed
from speechbrain.inference.interfaces import foreign_class
from teachers import copy_speech

from encodecmae_sb.bundled import codec_file, speech_folder
from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.pretrained.codec_files import checksum, save_codec
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import start_experiment
from encodecmae_sb.utils.precision import best_precision

# What a run that is refused must leave alone.
KEPT = (
    "metrics.json",
    "hyperparams.yaml",
    "encoder/encoder.ckpt",
    "save/identity.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder and what it printed."""
    output = tmp_path_factory.mktemp("pretrain") / "run"
    return output, run(output)


def test_a_run_says_what_it_is_and_what_it_made(finished):
    output, text = finished
    assert text.index("DEMONSTRATION") < text.index("Training on")
    assert "Codec: bundled" in text
    for name in ("metrics.json", "curves.png", "unusable_files.csv", "encoder"):
        assert name in text
        assert (output / name).exists()
    assert "left" in text  # the progress bar shows the time left
    assert "\nspeechbrain==" in (output / "env.log").read_text()
    # What it says to do next would go on with this very run.
    assert f"--output_folder {output} --training_steps 24" in text
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["step"] == TINY["training_steps"]
    for q in range(1, 9):
        assert 0 < metrics[f"masked_ce_{q}"] < 8
        assert 0 < metrics[f"unigram_ce_{q}"] < 8
        assert 0 <= metrics[f"masked_accuracy_{q}"] <= 1
    assert "speech/masked_ce_1" in metrics


def test_it_learns(tmp_path):
    run(
        tmp_path / "run",
        training_steps=120,
        valid_interval=60,
        dim=64,
        lr=0.003,
        batch_size=8,
        crop_seconds=1.0,
        valid_items=16,
        codebooks_per_step="null",  # with few of them 120 steps are too few
    )
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["sound/unigram_ce_1"] - metrics["sound/masked_ce_1"] > 0.2
    assert metrics["speech/unigram_ce_1"] < metrics["unigram_ce_1"]  # of speech alone


# Of the 15 checkpoints of a run, the 14th is that of the last step, before the last
# validation.
@pytest.mark.parametrize(
    ("workers", "kills"), [(0, [(3, 0), (6, 0.01), (5, 0)]), (2, [(5, 0.03), (4, 0)])]
)
def test_killed_and_started_again_it_ends_the_same(finished, tmp_path, workers, kills):
    reference, _ = finished
    options = {"num_workers": workers, "ckpt_interval_minutes": 0}
    options["ckpt_interval_steps"] = 1
    output = tmp_path / "run"
    arguments = command(output, **options)
    for saves, delay in kills:
        run_killed(arguments, saves, delay, cwd=tmp_path, env=environment())
    run(output, **options)
    assert results(output) == results(reference)


def test_killed_before_the_last_validation(finished, tmp_path):
    reference, _ = finished
    options = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    output = tmp_path / "run"
    run_killed(command(output, **options), 14, cwd=tmp_path, env=environment())
    # By time: within a second, names of checkpoints that were removed come again.
    last = max(output.glob("save/CKPT*"), key=lambda path: path.stat().st_mtime_ns)
    state = yaml_reader.safe_load((last / "brain.ckpt").read_text())
    assert state["optimizer_step"] == TINY["training_steps"]
    assert len(json.loads((last / "history.ckpt").read_text())) == 2
    run(output, **options)
    assert results(output) == results(reference)


def test_the_export_is_the_model_in_memory(finished, tmp_path, monkeypatch):
    output, _ = finished
    monkeypatch.chdir(tmp_path)
    encoder = foreign_class(
        source=str(output / "encoder"),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    weights = torch.load(
        max(output.glob("save/CKPT*"), key=lambda path: path.stat().st_mtime_ns)
        / "model.ckpt",
        weights_only=True,
    )
    for name, tensor in encoder.mods.encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"])
    utterance = sorted(speech_folder().rglob("*.flac"))[0]
    tone = 0.5 * np.sin(np.arange(5 * 48000) / 20)
    for rate, channels in [(8000, 1), (16000, 1), (44100, 2)]:
        path = tmp_path / f"{rate}.wav"
        audio = np.stack([tone[: 5 * rate]] * channels, axis=1)
        soundfile.write(path, audio, rate)
        features = encoder.encode_file(path)
        assert features.shape == (375, TINY["dim"])
    wav = read_audio(utterance, 24000)
    with torch.no_grad():
        (expected,) = encode_in_chunks(encoder.mods.encoder, wav[None])
    features = encoder.encode_file(utterance)
    assert torch.equal(features, expected)
    # In a batch, beside a longer item, the features are the same.
    batch = torch.zeros(2, 2 * len(wav))
    batch[0, : len(wav)] = wav
    batch[1] = torch.randn(2 * len(wav), generator=torch.Generator().manual_seed(0))
    together, frames = encoder.encode_batch(batch, torch.tensor([0.5, 1.0]))
    assert frames[0] == len(features)
    assert (together[0, : frames[0]] - features).abs().max() < 1e-4


def test_real_folders_mixed_and_bad_files_reported(tmp_path):
    folder = tmp_path / "noises"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        noise = 0.1 * rng.standard_normal(8000)
        soundfile.write(folder / f"{i}.wav", noise, 8000)
    (folder / "text.wav").write_text("no audio")
    output = tmp_path / "run"
    both = f"[{folder}, {speech_folder()}]"
    text = run(output, data_folder=both, codec="bundled", corpus_weights="[1, 3]")
    assert "DEMONSTRATION" not in text
    listed = (output / "unusable_files.csv").read_text()
    assert "text.wav" in listed
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["unusable_files"] == 1
    assert "noises/masked_ce_1" in metrics
    text = run(
        tmp_path / "strict",
        data_folder=both,
        codec="bundled",
        max_unusable=0,
        expect=1,
    )
    assert "--max_unusable" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_folder": "nowhere"}, "No such folder"),
        ({"codec": "nothing.th"}, "Allowed: encodec_24khz"),
        ({"num_heads": 3}, "not divisible"),
        ({"corpus_weights": "[1]"}, "one number per data_folder"),
    ],
)
def test_bad_settings_end_with_a_message(tmp_path, options, message):
    text = run(tmp_path / "run", expect=1, **options)
    assert message in text


@pytest.mark.parametrize("name", ["pretrain", "self_train"])
def test_front_end_and_targets_on_different_grids(tmp_path, name):
    yaml = "mini" if name == "pretrain" else "self_train_mini"
    text = (ROOT / f"hparams/{yaml}.yaml").read_text()
    assert text.count("hop_length: 320") == 1
    other = text.replace("hop_length: 320", "hop_length: 240")
    (tmp_path / "other.yaml").write_text(other)
    options = ["--output_folder", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(SystemExit, match="(?s)every 240 samples.*every 320 samples"):
        run_recipe(name, tmp_path / "other.yaml", *options)
    assert not list((tmp_path / "run").glob("save/*"))  # before any work


def test_official_weights_out_of_reach(tmp_path):
    started = time.time()
    text = run(
        tmp_path / "run",
        data_folder=speech_folder(),
        expect=1,
        # Neither a cache nor a way out.
        launcher=(
            "env",
            f"TORCH_HOME={tmp_path}",
            "HTTPS_PROXY=http://127.0.0.1:9",
            sys.executable,
        ),
    )
    assert time.time() - started < 60
    assert "--codec bundled" in text
    assert "--codec FILE" in text


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    text = run(tmp_path / "file", expect=1)
    assert "Cannot write to output_folder" in text


def test_checkpoints_of_another_training(finished, tmp_path):
    output, _ = finished
    before = {name: (output / name).read_bytes() for name in KEPT}
    other = tmp_path / "codec.safetensors"
    save_codec(build_encodec(2, 8), other)
    options = {"data_folder": speech_folder(), "codec": other, "mask_gap": 5, "lr": 1}
    here = best_precision("cpu")
    precision = "bf16" if here == "fp32" else "fp32"
    text = run(output, **options, expect=1, precision=precision)
    for line in (
        "data: 364 files of speech, 200 files of sound (",
        "codec: bundled (",
        f"({checksum(other)}-level)",
        "mask_gap: 15 -> 5",
        "lr: 0.0005 -> 1",
        f"precision: {here} -> {precision}",
        "give another --output_folder",
    ):
        assert line in text
    assert "crops_per_step" not in text
    assert "Traceback" not in text
    assert {name: (output / name).read_bytes() for name in KEPT} == before


def test_what_does_not_change_a_training_may_change(finished, tmp_path):
    output, _ = finished
    before = results(output)
    copy = tmp_path / "codec.safetensors"
    copy.write_bytes(codec_file().read_bytes())
    shares = {"batch_size": 2, "grad_accumulation_factor": 2, "num_workers": 1}
    run(output, codec=copy, ckpt_interval_minutes=7, valid_interval=5, **shares)
    weights, metrics = results(output)
    assert (weights, {**metrics, "codec": "bundled"}) == before


def test_two_processes(tmp_path):
    output = tmp_path / "run"
    launcher = (sys.executable, "-m", "torch.distributed.run")
    launcher += ("--standalone", "--nproc_per_node=2")
    text = run(
        output,
        launcher=launcher,
        distributed_backend="gloo",
        batch_size=2,
        num_workers=1,
        data_folder=copy_speech(tmp_path / "speech"),
        codec="bundled",
        store_targets="auto",
    )
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["step"] == TINY["training_steps"]
    assert text.count("Codes: read from") == 1


@pytest.mark.parametrize("yaml", ["small", "base", "base_ec", "large"])
def test_the_papers_configurations_train(tmp_path, yaml):
    sizes = {"dim": 48, "num_heads": 4, "ffn_dim": 64}
    if yaml == "large":
        sizes["head_dim"] = 11
    output = tmp_path / "run"
    run(output, yaml, **sizes, training_steps=1, grad_accumulation_factor=2)
    assert (output / "encoder/encoder.ckpt").exists()
    run(output, yaml, **sizes, training_steps=2, grad_accumulation_factor=2)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["step"] == 2


def test_a_debug_run_leaves_what_was_made_alone(tmp_path):
    for _ in range(2):  # the second begins anew
        text = execute([*command(tmp_path / "run"), "--debug"], tmp_path)
        assert "step 2:" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["debug"]
    assert (tmp_path / "run/debug/encoder/encoder.ckpt").exists()


def test_misspelt_keys_and_folders_that_cannot_be(tmp_path):
    yaml = str(ROOT / "hparams/probe_mini.yaml")
    with pytest.raises(UserError, match="--seed is given 2 times"):
        start_experiment([yaml, "--seed", "1", "--lr", "1", "--seed", "2"])
    with pytest.raises(UserError, match="--data_foldr: .* Is it --data_folder"):
        start_experiment([yaml, "--data_foldr", "x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to output_folder="):
        start_experiment([yaml, "--output_folder", str(tmp_path / "file/x")])


def test_embedding_from_the_shell(finished, tmp_path):
    output, _ = finished
    utterance = sorted(speech_folder().rglob("*.flac"))[0]

    embed = [sys.executable, ROOT / "recipes/embed.py"]
    flags = ["--output_folder", tmp_path]
    execute([*embed, output / "encoder", utterance, *flags], tmp_path)
    features = np.load(tmp_path / f"{utterance.stem}.npy")
    assert features.shape[1] == TINY["dim"]
    for arguments, message in [
        ((tmp_path, utterance), "is not an exported folder"),
        ((output / "encoder", "none.wav"), "No such audio file"),
        ((output / "encoder", utterance, "--layer", "9"), "0 to 1"),
    ]:
        text = execute([*embed, *arguments], tmp_path, expect=1)
        assert message in text
        assert "Traceback" not in text
