"""The index of a folder of shards: `shards.json`, and `NAME.tar.csv` for each shard.

The folder may lie on a server.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from encodecmae_sb.data.codes import CodesInfo
from encodecmae_sb.data.remote import RemoteFolder, is_url, look_at, read_file
from encodecmae_sb.data.tars import Member
from encodecmae_sb.utils.errors import UserError

INDEX = "shards.json"
FORMAT = 1  # raise it when the columns or their meaning change
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class ShardFolder:
    """The content of the index of a folder of shards.

    Arguments
    ---------
    folder : Path or RemoteFolder
    shards : list of dict
        Of each shard `name`, `items`, `seconds`, `bytes`.
    codes : CodesInfo or None
        What the codes in the shards are, if there are any.
    plan : str
        Key of what was packed; empty if the shards came from elsewhere.
    """

    folder: Path
    shards: list
    codes: CodesInfo | None
    plan: str


def read_index(folder):
    """The index of a folder of shards.

    Arguments
    ---------
    folder : str, Path or RemoteFolder

    Returns
    -------
    ShardFolder

    Raises
    ------
    UserError
        If there is none, or one of another version.

    Example
    -------
    >>> read_index(getfixture("tmp_path"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    encodecmae_sb.utils.errors.UserError: ...no shards.json...
    """
    folder = RemoteFolder(folder) if is_url(folder) else Path(folder)
    path = folder / INDEX
    again = f"python recipes/make_shards.py {folder}"
    if is_url(path):
        again = "python recipes/make_shards.py FOLDER_ON_THE_SERVER"
    elif not path.exists():
        raise UserError(
            f"The tar files in {folder} have no index: there is no {INDEX}. If they "
            "were being packed, give the same command again: it goes on where it was "
            f"stopped. If they came from elsewhere: {again} --index"
        )
    try:
        index = json.loads(read_file(path))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}, not {FORMAT}")
        codes = index["codes"] and CodesInfo(**index["codes"])
        return ShardFolder(folder, index["shards"], codes, index["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be used ({error}). Make it again: {again} --index"
        ) from error


def is_whole(tar):
    """Whether a shard has an index and everything that stands in it.

    Arguments
    ---------
    tar : Path

    Returns
    -------
    bool
    """
    if not tar.exists() or not Path(f"{tar}.csv").exists():
        return False
    size = tar.stat().st_size
    return not any(why_lost(row, size, size) for row in rows_of(tar, read_table(tar)))


def size_of(tar):
    """Bytes of a shard, here or on a server; None if it is not there."""
    try:
        return look_at(tar).size if is_url(tar) else tar.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"The shard {tar} cannot be read: {error}. Give the command again when it "
            "can be."
        ) from error


def read_table(tar):
    """The table of a shard's items, `NAME.tar.csv`, as bytes."""
    path = f"{tar}.csv"
    try:
        return read_file(path)
    except OSError as error:
        where = "FOLDER_ON_THE_SERVER" if is_url(tar) else tar.parent
        raise UserError(
            f"{path} is missing, or cannot be read ({error}). It says what lies where "
            "in the shard. Make it again: "
            f"python recipes/make_shards.py {where} --index"
        ) from error


def rows_of(tar, table):
    """Yields the rows of a shard's table, with whole paths."""
    folder = str(tar).rpartition("/")[0]
    text = io.TextIOWrapper(io.BytesIO(table), encoding="utf-8", newline="")
    for row in csv.DictReader(text):
        for column in ("wav", "codes"):
            if row.get(column):
                row[column] = f"{folder}/{row[column]}"
        yield row


def why_lost(row, size, expected):
    """Why an item cannot be read, or an empty string."""
    if size is None:
        return "its shard is missing"
    if size > expected:
        return f"its shard has changed: {size} bytes instead of {expected}"
    columns = [column for column in ("wav", "codes") if row.get(column)]
    members = [Member.at(row[column]) for column in columns]
    if any(member.offset + member.size > size for member in members):
        return f"its shard is cut off: {size} bytes instead of {expected}"
    return ""
