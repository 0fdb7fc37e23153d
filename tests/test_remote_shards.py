"""Shards on a server: the bytes of local ones, whatever goes wrong on the way."""

import re
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from commands import command, execute, results
from shard_folders import CROP, copied_shards, packed_shards, two_corpora  # noqa: F401

from encodecmae_sb.data import remote
from encodecmae_sb.data.manifest import check_folders
from encodecmae_sb.data.shards.reading import ShardCrops, prepare_shards
from encodecmae_sb.pretrained.codec_files import BUNDLED
from encodecmae_sb.utils.errors import UserError


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges and, as a test asks, badly."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults = []  # of the next answers with bytes of a shard
        self.ranges, self.sent, self.lock = True, 0, threading.Lock()
        self.tagged, self.length = True, None

    def handle_error(self, *_):
        """A connection that a test cuts is no error of the server."""


class Handler(SimpleHTTPRequestHandler):
    """Knows ranges, and gives each version of a file another ETag."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Quiet."""

    def do_GET(self):
        try:
            with open(self.translate_path(self.path), "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        length, tag, status = self.server.length or len(data), f'"{hash(data)}"', 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            first, last = map(int, wanted.groups())
            data, status = data[first : last + 1], 206
        fault = None
        with self.server.lock:
            if self.server.faults and self.path.endswith(".tar"):
                fault = self.server.faults.pop(0)
            self.server.sent += len(data)
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "slow":
            time.sleep(0.3)
        self.send_response(status)
        if self.server.tagged:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{length}")
        self.end_headers()
        if fault == "dropped":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(data)


@pytest.fixture
def server(copied, tmp_path, monkeypatch):
    """Serves a copy of shards; the cache is empty, and pauses are short."""
    monkeypatch.setenv("ENCODECMAE_SB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))
    monkeypatch.setattr(remote, "TIMEOUT", (1, 0.2))
    monkeypatch.setattr(remote, "BLOCK", 1 << 14)
    monkeypatch.setattr(remote, "_expected", {})
    server = Server(copied)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def crops_of(folder, save):
    """Training crops of a folder of shards."""
    corpora = prepare_shards(folder, save)
    return ShardCrops([corpus.train_csv for corpus in corpora], CROP), corpora


def same(crops, others, draws):
    return all(torch.equal(crops[i]["wav"], others[i]["wav"]) for i in draws)


def test_the_bytes_of_local_shards_through_faults(server, copied, tmp_path):
    here, _ = crops_of(copied, tmp_path / "here")
    there, corpora = crops_of(server.url, tmp_path / "there")
    assert not any(corpus.unusable for corpus in corpora)
    server.faults = ["dropped", 503, "slow", None, 429, None, "dropped", "slow", 500]
    assert same(here, there, range(40))
    assert not server.faults
    # What was fetched once is not fetched again, not even by another process.
    sent = server.sent
    assert same(here, there, range(40))
    assert server.sent == sent


def test_only_what_is_needed_is_fetched(server, copied, tmp_path):
    there, _ = crops_of(server.url, tmp_path / "there")
    server.sent = 0
    there[0]
    assert (
        0 < server.sent < sum(path.stat().st_size for path in copied.glob("*.tar")) / 4
    )


def test_the_cache_stays_below_its_limit(server, copied, tmp_path, monkeypatch):
    here, _ = crops_of(copied, tmp_path / "here")
    there, _ = crops_of(server.url, tmp_path / "there")
    monkeypatch.setenv("ENCODECMAE_SB_CACHE_GB", str(5e-5))
    monkeypatch.setattr(remote, "_BETWEEN_CLEANINGS", 1)
    assert same(here, there, range(40))
    kept = (tmp_path / "cache").rglob("*")
    assert sum(path.stat().st_size for path in kept if path.is_file()) <= 5e4
    monkeypatch.setenv("ENCODECMAE_SB_CACHE_GB", "much")
    with pytest.raises(UserError, match="ENCODECMAE_SB_CACHE_GB=much"):
        remote.cache_bytes()


def test_a_file_that_changes_is_an_error(server, copied, tmp_path):
    there, _ = crops_of(server.url, tmp_path / "there")
    for path in copied.glob("train*.tar"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="has changed on the server"):
        [there[i] for i in range(40)]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges = False
    with pytest.raises(UserError, match="does not know ranges"):
        prepare_shards(server.url, tmp_path)


def test_a_shard_that_is_gone_is_reported(server, copied, tmp_path):
    gone = sorted(copied.glob("train*.tar"))[0]
    gone.unlink()
    _, corpora = crops_of(server.url, tmp_path / "there")
    lost = [item for corpus in corpora for item in corpus.unusable]
    assert lost
    assert all(gone.name in path and "missing" in reason for path, reason in lost)


def test_a_server_that_fails_for_long(server, tmp_path):
    there, _ = crops_of(server.url, tmp_path / "there")
    server.faults = [503] * 10_000
    with pytest.raises(UserError, match="503.*in 4 tries. The run ends here"):
        there[0]


def test_a_block_of_the_cache_that_is_damaged(server, copied, tmp_path):
    """After a power cut a block may be short, empty or zeros: it is fetched again."""
    here, _ = crops_of(copied, tmp_path / "here")
    there, _ = crops_of(server.url, tmp_path / "there")
    assert same(here, there, range(20))
    blocks = sorted((tmp_path / "cache").glob("*/[0-9]*"))
    assert len(blocks) > 3
    for number, path in enumerate(blocks):
        data = path.read_bytes()
        path.write_bytes((data[:1000], b"", bytes(len(data)))[number % 3])
    sent = server.sent
    assert same(here, there, range(20))
    assert server.sent > sent


def test_a_cache_that_others_own(server, copied, tmp_path, monkeypatch):
    """Its blocks cannot be marked as used; they are read all the same."""
    there, _ = crops_of(server.url, tmp_path / "there")
    first = there[0]["wav"]
    sent = server.sent

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(remote.os, "utime", refuse)
    assert torch.equal(there[0]["wav"], first)
    assert there[0]["unusable"] == []
    assert server.sent == sent


def test_a_server_without_tags_is_not_cached(server, copied, tmp_path):
    """The next version of a file could not be told from this one."""
    server.tagged = False
    here, _ = crops_of(copied, tmp_path / "here")
    there, _ = crops_of(server.url, tmp_path / "there")
    assert same(here, there, range(5))
    assert not list((tmp_path / "cache").glob("*/[0-9]*"))


def test_a_server_that_does_not_know_the_length(server, tmp_path):
    server.length = "*"
    with pytest.raises(UserError, match="does not say how long the file is"):
        prepare_shards(server.url, tmp_path)


def test_a_server_that_fails_at_the_start(server, tmp_path):
    """Its shards are not called missing."""
    server.faults = [503] * 10_000
    with pytest.raises(UserError, match="cannot be read: .*503.*in 4 tries"):
        prepare_shards(server.url, tmp_path)


@pytest.mark.parametrize("name", ["nothing", "train-000000.tar"])
def test_no_such_folder(server, tmp_path, name):
    with pytest.raises(UserError, match=f"{name}/shards.json cannot be used.*404"):
        prepare_shards(f"{server.url}/{name}", tmp_path)


def test_other_recipes_want_a_local_folder():
    with pytest.raises(UserError, match="only local folders"):
        check_folders("https://host/shards")


def test_storage_that_fsspec_knows(copied, tmp_path, server):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in copied.iterdir():
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    here, _ = crops_of(copied, tmp_path / "here")
    there, _ = crops_of("memory://shards", tmp_path / "there")
    assert same(here, there, range(10))
    with pytest.raises(UserError, match="nosuch:// cannot be read"):
        remote.fetch("nosuch://a/b")


def test_pretraining_from_a_server(server, copied, tmp_path):
    options = {"codec": BUNDLED, "training_steps": 4, "crop_seconds": CROP}
    for name, folder in (("here", copied), ("there", server.url)):
        arguments = command(
            tmp_path / name, data_folder=folder, num_workers=2, **options
        )
        execute(arguments, tmp_path)
    assert results(tmp_path / "here") == results(tmp_path / "there")
