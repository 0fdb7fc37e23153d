"""Files inside tar files, read in place; the tar file may lie on a server.

Manifests give such a file a path of its own, `SHARD.tar::NAME@OFFSET+SIZE` (in bytes).
"""

import contextlib
import io
import os
import re
from dataclasses import dataclass

from encodecmae_sb.utils.errors import UserError

from .remote import RemoteFile, is_url

_PATH = re.compile(r"(.+?\.tar)::(.+)@(\d+)\+(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """The place of a file in a tar file.

    Arguments
    ---------
    tar : str
        Path of the tar file, or its URL.
    name : str
        Name of the file in it.
    offset, size : int
        Its content, in bytes of the tar file.

    Example
    -------
    >>> member = Member("/data/train-000000.tar", "000000007.flac", 1536, 40960)
    >>> member.path
    '/data/train-000000.tar::000000007.flac@1536+40960'
    >>> Member.at(member.path) == member
    True
    >>> Member.at("/data/plain.flac") is None
    True
    """

    tar: str
    name: str
    offset: int
    size: int

    @property
    def path(self):
        """The path of this file in manifests."""
        return f"{self.tar}::{self.name}@{self.offset}+{self.size}"

    @classmethod
    def at(cls, path):
        """The member that a path names; None for a plain file."""
        path = str(path)
        # Nearly every path is that of a plain file: this test is much faster.
        match = _PATH.fullmatch(path) if ".tar::" in path else None
        if match is None:
            return None
        tar, name, offset, size = match.groups()
        return cls(tar, name, int(offset), int(size))

    def read(self, first=0, count=None):
        """Some of its bytes; fewer if the tar file is cut off.

        Arguments
        ---------
        first : int
            Where to begin.
        count : int, optional
            How many; default: to its end.

        Returns
        -------
        bytes
        """
        left = self.size - first
        count = left if count is None else min(count, left)
        with contextlib.closing(_open(self.tar)) as file:
            return file.read_at(self.offset + first, count)


class _LocalFile:
    """A tar file here, with the methods of `RemoteFile`."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def read_at(self, offset, count):
        return os.pread(self.descriptor, count, offset)

    def close(self):
        os.close(self.descriptor)


def _open(tar):
    return RemoteFile(tar) if is_url(tar) else _LocalFile(tar)


class MemberFile(io.RawIOBase):
    """A member as a file object; reads only the requested bytes.

    Arguments
    ---------
    member : Member

    Raises
    ------
    OSError
        If there is no such tar file.
    """

    def __init__(self, member):
        self.member = member
        self.position = 0
        self.error = None
        self.file = _open(member.tar)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self.position,
            os.SEEK_END: self.member.size,
        }[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self):
        return self.position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self.member.size - self.position))
        if self.error is not None:
            return 0
        try:
            data = self.file.read_at(self.member.offset + self.position, count)
        except (OSError, UserError) as error:
            # libsndfile calls this and would drop the error: `open_source` raises it.
            self.error = error
            return 0
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self):
        if not self.closed:
            self.file.close()
        super().close()


def open_source(path):
    """Gives libsndfile something to open, in a `with` statement.

    Arguments
    ---------
    path : str or Path
        Of a file, or of a member of a tar file.

    Returns
    -------
    context manager
        Gives the path, or a file object.
    """
    member = Member.at(path)
    if member is None:
        return contextlib.nullcontext(str(path))
    return _opened(member)


@contextlib.contextmanager
def _opened(member):
    """A member for libsndfile; raises what went wrong while it was read."""
    with MemberFile(member) as file:
        try:
            yield io.BufferedReader(file, 1 << 16)
        finally:
            if file.error is not None:
                raise file.error
