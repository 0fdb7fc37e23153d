"""Files inside tar files, read in place.

Manifests give such a file a path of its own, `SHARD.tar::NAME@OFFSET+SIZE` (in bytes).
"""

import contextlib
import io
import os
import re
from dataclasses import dataclass

_PATH = re.compile(r"(.+?\.tar)::(.+)@(\d+)\+(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """The place of a file in a tar file.

    Arguments
    ---------
    tar : str
        Path of the tar file.
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
        with open(self.tar, "rb") as file:
            file.seek(self.offset + first)
            left = self.size - first
            return file.read(left if count is None else min(count, left))


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
        self.descriptor = os.open(member.tar, os.O_RDONLY)

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
        data = os.pread(self.descriptor, count, self.member.offset + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self):
        if not self.closed:
            os.close(self.descriptor)
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
    return io.BufferedReader(MemberFile(member), 1 << 16)
