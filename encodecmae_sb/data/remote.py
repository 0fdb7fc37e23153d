"""Byte ranges of files on a server, kept in a cache on the local disk.

A file on a server has a URL where a local one has a path: `https://host/a.tar`,
`s3://bucket/a.tar`. HTTP needs nothing more; other kinds of storage are those of fsspec
(`pip install 'encodecmae_sb[remote]'` brings the one for S3).

Only the blocks that are asked for are fetched. They are checked against what the server
said of the file when the run began, so bytes of two versions are never mixed.

| environment variable | what | default |
| --- | --- | --- |
| `ENCODECMAE_SB_CACHE` | folder of the cache | `~/.cache/encodecmae_sb` |
| `ENCODECMAE_SB_CACHE_GB` | its size; what was not used for longest goes first | 20 |
"""

import contextlib
import functools
import os
import time
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path

import requests

from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file

BLOCK = 1 << 18  # bytes
# Seconds to wait before a request is tried again.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
TIMEOUT = (10, 30)  # seconds to connect, and between two bytes
_BETWEEN_CLEANINGS = 256  # blocks that a process writes
_CHECK_BYTES = 4  # at the end of a block in the cache


def is_url(path):
    """Whether a path is that of a file on a server.

    Example
    -------
    >>> is_url("s3://bucket/shards"), is_url("/data/shards")
    (True, False)
    """
    return "://" in str(path)


@dataclass(frozen=True)
class Version:
    """What a server says of a file.

    Arguments
    ---------
    size : int
        In bytes.
    tag : str
        Its ETag or, without one, its time of change; empty if neither is known.
    """

    size: int
    tag: str


class _Failed(Exception):
    """A request that may succeed when it is made again."""


def fetch(url, first=0, count=None):
    """Fetches a range of a file, or all of it; tries again after a failure.

    Arguments
    ---------
    url : str
    first : int
        Where to begin.
    count : int, optional
        How many bytes; default: to the end.

    Returns
    -------
    data : bytes
    version : Version
        Of the file that they are from.

    Raises
    ------
    FileNotFoundError
        If the server does not have the file.
    OSError
        If it does not give it, or every try failed.
    UserError
        If the server does not know ranges, or a package is missing.
    """
    read = _fetch_http if url.startswith(("http://", "https://")) else _fetch_fsspec
    for pause in (*PAUSES, None):
        try:
            return read(url, first, count)
        except _Failed as error:
            if pause is None:
                tries = len(PAUSES) + 1
                raise OSError(f"{url}: {error}, in {tries} tries") from error
            time.sleep(pause)


def _fetch_http(url, first, count):
    headers = {"Accept-Encoding": "identity"}
    if count is not None:
        headers["Range"] = f"bytes={first}-{first + count - 1}"
    try:
        with _session(os.getpid()).get(
            url, headers=headers, stream=True, timeout=TIMEOUT
        ) as answer:
            status = answer.status_code
            if status >= 500 or status in (408, 429):
                raise _Failed(f"the server answered {status} {answer.reason}")
            if status >= 400:
                kind = FileNotFoundError if status in (404, 410) else OSError
                raise kind(f"{url}: the server answered {status} {answer.reason}")
            if count is not None and status != 206:
                raise UserError(
                    f"{url}: the server does not know ranges: it answers with the "
                    "whole file. Copy the shards to a local folder, or serve them "
                    "from a server that knows ranges, such as nginx or S3."
                )
            data = answer.content
            length = int(answer.headers.get("Content-Length", len(data)))
            size = answer.headers.get("Content-Range", f"/{length}").rpartition("/")[2]
            if not size.isdigit():
                raise UserError(
                    f"{url}: the server does not say how long the file is "
                    f"(Content-Range: {answer.headers['Content-Range']}). Copy the "
                    "shards to a local folder, or serve them from another server."
                )
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
    except requests.RequestException as error:
        raise _Failed(f"{type(error).__name__}: {error}") from error
    if len(data) != length:
        raise _Failed(f"{len(data)} of {length} bytes came")
    return data, Version(int(size), tag)


@functools.lru_cache(1)
def _session(process):
    """Connections that stay open; a forked process must not share its parent's."""
    return requests.Session()


def _fetch_fsspec(url, first, count):
    files = _file_system(url.partition("://")[0], os.getpid())
    try:
        # Asked each time, since the answer with the bytes does not tell.
        info = files.info(url, refresh=True)
        end = None if count is None else min(first + count, info["size"])
        data = files.cat_file(url, start=first, end=end)
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"{url}: {error}") from error
    except Exception as error:  # each kind of storage has errors of its own
        raise _Failed(f"{type(error).__name__}: {error}") from error
    if len(data) != (info["size"] if end is None else end) - first:
        raise _Failed(f"{len(data)} bytes came, and more were expected")
    tag = str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or "")
    return data, Version(info["size"], tag)


@functools.lru_cache(4)
def _file_system(protocol, process):
    """The file system of fsspec; a forked process needs one of its own."""
    try:
        import fsspec

        return fsspec.filesystem(protocol, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol}:// cannot be read: {error}. For S3: "
            "pip install 'encodecmae_sb[remote]'"
        ) from error


def cache_folder():
    """Where blocks are kept."""
    default = Path.home() / ".cache/encodecmae_sb"
    return Path(os.environ.get("ENCODECMAE_SB_CACHE") or default).expanduser()


def cache_bytes():
    """How large the cache may grow.

    Raises
    ------
    UserError
        If the variable is no number.
    """
    given = os.environ.get("ENCODECMAE_SB_CACHE_GB", "20")
    try:
        return int(float(given) * 1e9)
    except ValueError as error:
        raise UserError(
            f"ENCODECMAE_SB_CACHE_GB={given}: a number of gigabytes is allowed."
        ) from error


# What this process, and those forked from it, expect of files.
_expected = {}


def look_at(url):
    """Asks the server for the size and version of a file; readers then expect these.

    Arguments
    ---------
    url : str

    Returns
    -------
    Version

    Raises
    ------
    OSError, UserError
        As `fetch`.
    """
    _expected[url] = fetch(url, 0, 1)[1]
    return _expected[url]


class RemoteFile:
    """A file on a server, read at any position through the cache.

    Arguments
    ---------
    url : str

    Raises
    ------
    OSError, UserError
        As `fetch`.
    """

    def __init__(self, url):
        self.url = url
        self.version = _expected.get(url) or look_at(url)
        self.place = cache_folder() / digest([url, *astuple(self.version)])
        self.latest = None, b""  # libsndfile reads a block in small steps

    def close(self):
        """Nothing is held open."""

    def read_at(self, offset, count):
        """Bytes from an offset on; fewer at the end of the file.

        Raises
        ------
        UserError
            If they cannot be fetched, if the file has changed on the server, or if the
            cache cannot be written.
        """
        end = min(offset + count, self.version.size)
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        data = b"".join(map(self._block, blocks))
        skip = offset % BLOCK
        return data[skip : skip + max(0, end - offset)]

    def _block(self, number):
        if self.latest[0] != number:
            self.latest = number, self._cached(number) or self._fetched(number)
        return self.latest[1]

    def _size_of(self, number):
        return min(BLOCK, self.version.size - number * BLOCK)

    def _cached(self, number):
        """A block of the cache; None if it is not there, or not whole."""
        path = self.place / str(number)
        try:
            kept = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # a cache that others may only read
            os.utime(path)  # says when it was used
        data, check = kept[:-_CHECK_BYTES], kept[-_CHECK_BYTES:]
        whole = len(data) == self._size_of(number) and check == _checksum(data)
        return data if whole else None

    def _fetched(self, number):
        """A block of the server, which is then in the cache."""
        try:
            data, version = fetch(self.url, number * BLOCK, self._size_of(number))
        except OSError as error:
            # Another item in its place would change what is trained on.
            raise UserError(
                f"{error}. The run ends here. Give the same command again when the "
                "server answers: it goes on where it stopped."
            ) from error
        if version != self.version:
            raise UserError(
                f"{self.url} has changed on the server since this run began (it was "
                f"{self.version}, it is {version}). Index the shards there again if "
                "they were replaced on purpose, and give the command again with "
                "another --output_folder."
            )
        if version.tag:  # else the next version may look the same
            self._keep(number, data)
        return data

    def _keep(self, number, data):
        try:
            with whole_file(self.place / str(number), sync=False) as scratch:
                scratch.write_bytes(data + _checksum(data))
            _clean_now_and_then(os.getpid())
        except OSError as error:
            raise UserError(
                f"The cache {cache_folder()} cannot be written: {error}. Set "
                "ENCODECMAE_SB_CACHE to a folder on another disk, or "
                "ENCODECMAE_SB_CACHE_GB to less."
            ) from error


def _checksum(data):
    """Blocks are written without a sync: after a power cut one may hold anything."""
    return zlib.crc32(data).to_bytes(_CHECK_BYTES, "big")


_written = {}


def _clean_now_and_then(process):
    """Keeps the cache below its limit; looks at all of it after some blocks only."""
    _written[process] = _written.get(process, -1) + 1
    if _written[process] % _BETWEEN_CLEANINGS == 0:
        clean()


def clean():
    """Removes the blocks that were not used for longest, if the cache is too large."""
    blocks = []
    for path in cache_folder().glob("*/[0-9]*"):
        with contextlib.suppress(FileNotFoundError):  # another process cleans, too
            stat = path.stat()
            blocks.append((stat.st_mtime_ns, stat.st_size, path))
    excess = sum(size for _, size, _ in blocks) - cache_bytes()
    for _, size, path in sorted(blocks):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


class RemoteFolder:
    """A folder on a server, of which the files are known by name.

    Arguments
    ---------
    url : str

    Example
    -------
    >>> RemoteFolder("https://host/shards/") / "a.tar"
    'https://host/shards/a.tar'
    """

    def __init__(self, url):
        self.url = str(url).rstrip("/")

    def __str__(self):
        return self.url

    def __truediv__(self, name):
        return f"{self.url}/{name}"


def read_file(path):
    """All bytes of a file here or on a server.

    Raises
    ------
    OSError, UserError
        If there is no such file, and as `fetch`.
    """
    return fetch(str(path))[0] if is_url(path) else Path(path).read_bytes()
