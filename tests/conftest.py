"""Shared fixtures."""

import pytest
import torch
from hub import Hub, point_at
from huggingface_hub import constants
from teachers import make_encoder

from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    CodecLatents,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.pretrained import hub as hub_module
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.licence import ENCODEC

FRONT_ENDS = {
    "log-mel": LogMel,
    "published log-mel": lambda: LogMel(hop_length=318, centered=False),
    "codec latents": lambda: CodecLatents(Codec("bundled")),
}


def pytest_configure(config):
    """One thread for each of several processes: with more they slow each other."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    """Names that every docstring example may use."""
    doctest_namespace["torch"] = torch
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=FRONT_ENDS)
def encoder_folder(request, tmp_path_factory):
    """The folder of a small encoder, with each of the front ends."""
    torch.manual_seed(0)
    front_end = FRONT_ENDS[request.param]()
    encoder = AudioEncoder(front_end, ResiDualTransformer(32, 2, 2, 48))
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    export_encoder(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def mel_folder(tmp_path_factory):
    """The folder of a small encoder of log-mel frames."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mel") / "encoder"
    export_encoder(AudioEncoder(LogMel(), ResiDualTransformer(16, 2, 2, 24)), folder)
    return folder


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """The exported folder of a random teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "encoder"
    export_encoder(make_encoder(), folder, licence=ENCODEC)
    return folder


@pytest.fixture(scope="module")
def server():
    """A server that speaks the hub's API."""
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """An empty hub, and an empty cache."""
    for kept in (server.commits, server.branches, server.created, server.asked):
        kept.clear()
    monkeypatch.setattr(hub_module, "_commits", {})
    point_at(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return server
