"""The HEAR API: what `hear-validator` checks, and what it does not."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encodecmae_sb import hear
from encodecmae_sb.lobes import CodecLatents
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.utils.signal import resample


@pytest.fixture(scope="module")
def model(encoder_folder):
    return hear.load_model(str(encoder_folder))


def noise(sounds, seconds, rate=hear.SAMPLE_RATE):
    return torch.rand(sounds, int(seconds * rate)) * 2 - 1


def test_what_the_validator_checks(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16000, 22050, 44100, 48000)
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)

    embeddings, times = hear.get_timestamp_embeddings(noise(16, 2.0), model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape[0] == 16
    assert embeddings.shape[:2] == times.shape
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = torch.diff(times)
    assert steps.mean() < 50
    assert (steps - steps.mean()).abs().max() < 1e-3

    scenes = hear.get_scene_embeddings(noise(8, 3.74), model)
    assert scenes.dtype == torch.float32
    assert scenes.shape == (8, model.scene_embedding_size)


@torch.no_grad()
def test_embeddings_are_those_of_the_encoder(model):
    audio = noise(2, 5.0)
    embeddings, _ = hear.get_timestamp_embeddings(audio, model)
    wavs = resample(audio, 48000, 24000)
    for ours, want in zip(
        embeddings, encode_in_chunks(model.encoder, wavs), strict=True
    ):
        assert torch.equal(ours, want)
    assert not embeddings.requires_grad
    scenes = hear.get_scene_embeddings(audio, model)
    assert torch.allclose(scenes, embeddings.mean(1))


def test_timestamps_are_the_middles_of_the_frames(model):
    _, times = hear.get_timestamp_embeddings(noise(2, 9.0), model)
    assert torch.equal(times[0], times[1])
    first, second = times[0, 0].item(), times[0, 300].item()
    assert second - first == pytest.approx(4000, abs=1e-6)  # the next chunk of 4 s
    steps = torch.diff(times[0])
    if getattr(model.encoder.front_end, "centered", True):
        assert first == pytest.approx(160 / 24)
        assert (steps - 320 / 24).abs().max() < 1e-6
    else:
        assert first == pytest.approx(637 / 2 / 24)
        within = torch.cat([steps[:299], steps[300:599]])
        assert (within - 318 / 24).abs().max() < 1e-6
        assert steps[299].item() == pytest.approx((96000 - 299 * 318) / 24)


def test_timestamps_find_an_event(model, monkeypatch):
    front_end = model.encoder.front_end
    if isinstance(front_end, CodecLatents):
        pytest.skip("a sample changes many of EnCodec's latents")
    # The front end alone: a transformer spreads what it hears over all frames.
    monkeypatch.setattr(
        hear, "encode_in_chunks", lambda encoder, wavs: list(encoder.front_end(wavs))
    )
    audio = torch.zeros(1, 48000)
    audio[0, 31000] = 1.0
    frames, times = hear.get_timestamp_embeddings(audio, model)
    loudest = frames[0].mean(-1).argmax()
    assert abs(times[0, loudest].item() - 31000 / 48) < 7  # half a frame


@pytest.mark.parametrize("samples", [1, 500, 4 * 48000 + 1, 13 * 48000 + 777])
def test_any_length(model, samples):
    embeddings, times = hear.get_timestamp_embeddings(torch.rand(2, samples), model)
    assert embeddings.shape[1] == times.shape[1] >= 1
    assert torch.isfinite(embeddings).all()
    # What is left out at the end: at most a short tail and a window.
    assert times[0, -1] > 1000 * samples / 48000 - 2048 / 24 - 637 / 24
    assert hear.get_scene_embeddings(torch.rand(2, samples), model).shape[0] == 2


def test_sounds_do_not_depend_on_each_other(model):
    audio = noise(3, 4.5)
    together = hear.get_scene_embeddings(audio, model)
    alone = torch.cat(
        [hear.get_scene_embeddings(sound[None], model) for sound in audio]
    )
    assert (together - alone).abs().max() < 1e-4


def test_bad_input(model, tmp_path):
    with pytest.raises(ValueError, match="no default weights"):
        hear.load_model()
    with pytest.raises(FileNotFoundError, match="mel256-ec-base"):
        hear.load_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="at least one"):
        hear.get_scene_embeddings(torch.zeros(2, 0), model)
    with pytest.raises(ValueError, match="sounds, samples"):
        hear.get_scene_embeddings(torch.zeros(48000), model)


# hearvalidator needs TensorFlow, which nothing else here does. In an environment of
# its own:
#   pip install -e '.[test]' tensorflow-cpu
#   pip install --no-deps hearvalidator==2021.0.2
#   pytest tests/test_hear.py
@pytest.mark.skipif(
    importlib.util.find_spec("hearvalidator") is None,
    reason="hearvalidator is not installed (see the comment above this test)",
)
def test_the_validator_itself(encoder_folder):
    command = [sys.executable, "-m", "hearvalidator.validate", "encodecmae_sb.hear"]
    done = subprocess.run(
        [*command, "-m", str(encoder_folder), "-d", "cpu"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("Looks good!")
