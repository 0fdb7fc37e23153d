"""The way published weights come in: by name, by file, by command."""

import time
from pathlib import Path

import pytest
import torch
from commands import import_command
from huggingface_hub import constants
from parity import published_checkpoint, reference_arrays, self_trained, wave

from encodecmae_sb.lobes import Codec, EnCodecMAE
from encodecmae_sb.pretrained.published import (
    PUBLISHED,
    REPOSITORY,
    fetch_published,
    import_published,
    load_published,
)


class Runs:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("code was run",))


def test_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        load_published(tmp_path / "bad.pt")
    assert "code was run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="plain tensors"):
        Codec(tmp_path / "bad.pt")


def test_self_trained_weights_have_no_codec(tmp_path):
    for name, checkpoint in [
        ("first", published_checkpoint("tiny_mel")),
        ("second", self_trained()),
    ]:
        torch.save(checkpoint, tmp_path / f"{name}.pt")
        # The second time over the folder of the first.
        published = import_published(tmp_path / f"{name}.pt", tmp_path / "encoder")
        has_codec = name == "first"
        assert published.model.n_codebooks == (8 if has_codec else 1)
        assert (published.codec is not None) == has_codec
        assert (tmp_path / "encoder/codec.safetensors").exists() == has_codec


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub's that holds one published file, in a folder."""
    path = tmp_path / "hub"
    repository = path / f"models--{REPOSITORY.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit / "models"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    torch.save(self_trained(), snapshot / "mel256-ec-base_st.pt")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    # Nothing listens here.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return path


def test_a_name_as_the_source_of_the_lobe(cache):
    expected = reference_arrays("tiny_mel")
    wavs = wave(expected["long_pcm16"])[None]
    lobe = EnCodecMAE("mel256-ec-base_st", input_sample_rate=24000)
    want = torch.from_numpy(expected["extract_last"])
    assert (lobe(wavs) - want).abs().max() < 1e-4
    torch.manual_seed(0)
    fresh = EnCodecMAE("mel256-ec-base_st", input_sample_rate=24000, pretrained=False)
    assert fresh(wavs).shape == want.shape
    assert (fresh(wavs) - want).abs().max() > 0.1


def test_a_folder_comes_before_a_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mel256-ec-base_st").mkdir()
    with pytest.raises(ValueError, match="not an exported folder"):
        EnCodecMAE("mel256-ec-base_st")


def test_a_name_without_a_network(cache):
    started = time.monotonic()
    with pytest.raises(ValueError, match="127.0.0.1.*give the file"):
        fetch_published("mel256-ec-base")
    assert time.monotonic() - started < 5  # the hub's own client tries for 23 s


def test_a_wrong_name_answers_with_the_list(tmp_path):
    for source, error in [
        (lambda name: import_published(name, tmp_path / "encoder"), ValueError),
        (EnCodecMAE, FileNotFoundError),
    ]:
        with pytest.raises(error) as caught:
            source("mel256-ec-bass")
        assert all(name in str(caught.value) for name in PUBLISHED)
    assert not (tmp_path / "encoder").exists()


def test_the_command_itself(tmp_path):
    listed = import_command("--list")
    assert all(name in listed for name in PUBLISHED)
    text = import_command("mel256-ec-bass", tmp_path / "encoder", expect=1)
    assert "Error: mel256-ec-bass" in text
    assert "Traceback" not in text


def test_other_folders_are_left_alone(tmp_path):
    checkpoint = tmp_path / "model.pt"
    torch.save(self_trained(), checkpoint)
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="left as it is"):
        import_published(checkpoint, other)
    assert [path.name for path in other.iterdir()] == ["README.md"]
    assert (other / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="left as it is"):
        import_published(checkpoint, checkpoint)
    with pytest.raises(ValueError, match="cannot be written"):
        import_published(checkpoint, checkpoint / "encoder")


def test_files_that_are_no_published_checkpoints(tmp_path):
    path = tmp_path / "bad.pt"
    cut, odd, heads = self_trained(), self_trained(), self_trained()
    del cut["state_dict"]["visible_encoder.encoder_layers.1.norm1.weight"]
    odd["state_dict"]["visible_encoder.encoder_layers.0.att_layer.wk.weight"] = 3
    heads["config"] = "NUM_ENCODER_HEADS = 5"
    for content, message in [
        ([1, 2], "no state_dict"),
        ({"state_dict": {"weight": torch.zeros(2)}}, "no head.layer.weight"),
        ({"state_dict": [torch.zeros(2)]}, "not a published"),
        (cut, "norm1.weight"),
        (odd, "not a published"),
        (heads, "5 heads"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            import_published(path, tmp_path / "encoder")
    path.write_bytes(b"\x00\x01 not a checkpoint")
    with pytest.raises(ValueError, match="bad.pt.*plain tensors"):
        import_published(path, tmp_path / "encoder")
    torch.save({"state_dict": Runs()}, path)
    text = import_command(path, tmp_path / "encoder", expect=1)
    assert "plain tensors" in text
    assert "code was run" not in text
    assert not (tmp_path / "encoder").exists()
