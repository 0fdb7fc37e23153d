"""Sharing: no network, servers that do not answer, caches full or broken."""

import socket
import time

import pytest
import torch
from hub import NAME, frames_of, point_at, small_encoder
from huggingface_hub import constants

from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.pretrained import hub as hub_module
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.hub import push_folder
from encodecmae_sb.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    export_encoder(small_encoder(shared_ffn=True), tmp_path / "encoder", "Of a test.")
    return tmp_path / "encoder"


def test_no_network_and_a_full_cache(hub, folder, monkeypatch):
    commit = push_folder(folder, NAME).commit
    want = frames_of(NAME)
    # Nothing listens here.
    monkeypatch.setattr(hub_module, "_commits", {})
    point_at(monkeypatch, "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be reached.*HF_HUB_OFFLINE"):
        EnCodecMAE(NAME)
    with pytest.raises(UserError, match="could not be reached"):
        push_folder(folder, NAME)
    assert time.monotonic() - started < 30
    # A whole commit needs no network, and no variable.
    assert torch.equal(frames_of(f"{NAME}@{commit}"), want)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(frames_of(NAME), want)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        EnCodecMAE("someone/else")


def test_a_server_that_never_answers(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point_at(monkeypatch, url)
        monkeypatch.setattr(hub_module, "_ANSWER_SECONDS", 1)  # it is 10
        started = time.monotonic()
        with pytest.raises(UserError, match="could not be reached.*timed out"):
            EnCodecMAE(NAME)
        assert time.monotonic() - started < 5


def test_a_server_that_gives_no_file(hub, folder, monkeypatch):
    """Its page answers at once, its files never."""
    push_folder(folder, NAME)
    monkeypatch.setattr(hub_module, "_commits", {})
    monkeypatch.setattr(hub_module, "_ANSWER_SECONDS", 1)  # it is 10
    answer = hub.answer

    def stall(method, url, body):
        if "/resolve/" in url.path:
            time.sleep(3)
        return answer(method, url, body)

    monkeypatch.setattr(hub, "answer", stall)
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be reached.*timed out"):
        EnCodecMAE(NAME)
    assert time.monotonic() - started < 3


def test_a_name_that_cannot_be(hub):
    with pytest.raises(UserError, match="user/na--me is not a name on the hub"):
        EnCodecMAE("user/na--me")


def test_a_cache_that_cannot_be_used(hub, folder, tmp_path, monkeypatch):
    push_folder(folder, NAME)
    monkeypatch.setattr(hub_module, "_commits", {})
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cache .*file cannot be used.*HF_HUB_CACHE"):
        EnCodecMAE(NAME)
