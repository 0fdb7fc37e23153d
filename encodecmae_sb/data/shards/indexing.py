"""Indexes tar shards: says what lies where in them."""

import contextlib
import json
import tarfile
from dataclasses import asdict

import numpy as np
import soundfile
from speechbrain.utils.logger import get_logger

from encodecmae_sb.data.audio import AUDIO_EXTENSIONS
from encodecmae_sb.data.manifest import part_named, read_manifest, split_rows
from encodecmae_sb.data.tars import Member, open_source
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv, write_text

from .index import FORMAT, INDEX, read_index

logger = get_logger(__name__)

_AUDIO = tuple(extension.lstrip(".") for extension in AUDIO_EXTENSIONS)


def read_shard(path, n_codebooks=None):
    """Finds the items of a shard, and the places of their files.

    Arguments
    ---------
    path : Path
        A tar file in the WebDataset layout; of each item, one file is audio.
    n_codebooks : int, optional
        Codes per frame that each item must have; default: none need be there.

    Returns
    -------
    rows : list of dict
        Of each item ID, duration (s), wav (relative to the shard's folder, see
        `data.tars`), num_samples, sample_rate (Hz), corpus, codes (where the rows
        of its codes lie, or empty).
    unusable : list of (str, str)
        Path and reason of each item that cannot be used.
    """
    groups, unusable = {}, []
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if entry.isfile():
                    folder, _, name = entry.name.rpartition("/")
                    key, _, extension = name.partition(".")
                    member = Member(
                        str(path), _printable(entry.name), entry.offset_data, entry.size
                    )
                    groups.setdefault((folder, key), {})[extension.lower()] = member
    except tarfile.TarError as error:
        unusable.append((str(path), f"the rest of the shard is unreadable: {error}"))
    rows, size, unknown = [], path.stat().st_size, 0
    for members in groups.values():
        audio = next((members[name] for name in _AUDIO if name in members), None)
        if audio is None:
            continue
        if any(entry.offset + entry.size > size for entry in members.values()):
            unusable.append((audio.path, "cut off with its shard"))
            continue
        known = _known(members["json"]) if "json" in members else {}
        if known is None:
            known, unknown = {}, unknown + 1
        try:
            with open_source(audio.path) as file, soundfile.SoundFile(file) as sound:
                length, rate = sound.frames, sound.samplerate
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            unusable.append((audio.path, f"unreadable: {error}"))
            continue
        codes = _codes_rows(members.get("codes.npy"), n_codebooks)
        if n_codebooks is not None and codes is None:
            why = f"it has no codes of {n_codebooks} codebooks, as others in its folder"
            unusable.append((audio.path, why))
            continue
        # The JSON of shards from elsewhere may hold anything.
        name, corpus = known.get("ID"), known.get("corpus")
        if not isinstance(name, (str, int, float)) or name == "":
            name = audio.name.rpartition(".")[0]
        if not isinstance(corpus, str) or not corpus:
            corpus = path.parent.name
        rows.append(
            {
                "ID": _printable(str(name)),
                "duration": f"{length / rate:.6f}",
                "wav": _relative(audio, path),
                "num_samples": length,
                "sample_rate": rate,
                "corpus": _printable(corpus),
                "codes": _relative(codes, path) if codes else "",
            }
        )
    if unknown:
        logger.warning(
            f"{path}: {unknown} of its .json files hold no JSON object: their items "
            "are called by the names of their files"
        )
    return rows, unusable


def _known(member):
    """The JSON object of an item, a dict, or None if it is no JSON object."""
    try:
        known = json.loads(member.read())
    except (ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None


def _printable(text):
    """Text that can be written in UTF-8, with escapes for what cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _codes_rows(member, n_codebooks):
    """The place of the codes in a NumPy file; None if the format is not ours."""
    if member is None:
        return None
    with open_source(member.path) as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            return None
        header = file.tell()
    fits = version == (1, 0) and dtype == np.uint16 and len(shape) == 2
    if not fits or by_column or n_codebooks not in (None, shape[1]):
        return None
    return Member(member.tar, member.name, member.offset + header, member.size - header)


def _relative(member, shard):
    return Member(shard.name, member.name, member.offset, member.size).path


def index_shards(folder, max_unusable=0.05):
    """Makes the indexes of shards that were not packed here.

    Shards named as a part for validation (`valid*`, `dev*`, `val`) are used for it;
    those named as a part for the test (`test*`, `eval`) are left out. Without shards
    for validation, one item in twenty is held out.

    Arguments
    ---------
    folder : Path
    max_unusable : float
        Share of unusable items above which to stop.

    Returns
    -------
    shards : list of dict
        As `write_index`.
    unusable : UnusableFiles

    Raises
    ------
    UserError
        If nothing, or too little, can be used.
    """
    # Keep what is known of shards packed here. Codes from elsewhere do not say which
    # codec made them.
    codes, plan = None, ""
    if (folder / INDEX).exists():
        with contextlib.suppress(UserError):
            known = read_index(folder)
            codes, plan = known.codes, known.plan
    unusable, tables, test = [], {}, []
    for path in sorted(folder.glob("*.tar")):
        if part_named(path.name) == "test":
            test.append(path.name)
            continue
        tables[path], odd = read_shard(path, codes and codes.n_codebooks)
        unusable += odd
    rows = [row for table in tables.values() for row in table]
    left_out = ", ".join(test[:10])
    left_out += f" and {len(test) - 10} more" if test[10:] else ""
    if not rows:
        why = f", such as {unusable[0][0]}: {unusable[0][1]}" if unusable else ""
        raise UserError(
            f"No audio that can be used in the tar files in {folder}, or no tar "
            f"files{why}."
            + (
                f" Left out, since it is named as a part for the test: {left_out}. To "
                "use it, give it another name."
                if test
                else ""
            )
        )
    if test:
        logger.warning(
            f"Left out of {folder}, since it is named as a part for the test: "
            f"{left_out}"
        )
    listed = folder / "unusable_files.csv"
    listed.unlink(missing_ok=True)
    account = UnusableFiles(listed, len(rows) + len(unusable), max_unusable)
    account.add(unusable)
    for path, table in tables.items():
        split = "valid" if part_named(path.name) == "valid" else "train"
        for row in table:
            row["split"] = split
    if all(row["split"] == "train" for row in rows):
        _, valid = split_rows(rows)
        for row in valid:
            row["split"] = "valid"
    shards = [path for path, table in tables.items() if table]
    for path in shards:
        write_csv(f"{path}.csv", tables[path])
    if codes is None and any(row["codes"] for row in rows):
        logger.warning(
            f"The shards in {folder} hold codes, but no {INDEX} says of which codec: "
            "they are not used. To use them, pack the corpus again."
        )
    return write_index(folder, shards, codes, plan), account


def write_index(folder, shards, codes, plan=""):
    """Writes `shards.json`; with it a folder of shards is finished.

    Arguments
    ---------
    folder : Path
    shards : list of Path
    codes : CodesInfo or None
    plan : str
        Key of the packed files and settings, if they were packed here.

    Returns
    -------
    list of dict
        Of each shard `name`, `items`, `seconds`, `bytes`.
    """
    listed = []
    for path in shards:
        rows = read_manifest(f"{path}.csv")
        listed.append(
            {
                "name": path.name,
                "items": len(rows),
                "seconds": round(sum(float(row["duration"]) for row in rows), 3),
                "bytes": path.stat().st_size,
            }
        )
    content = {
        "format": FORMAT,
        "plan": plan,
        "codes": codes and asdict(codes),
        "shards": listed,
    }
    write_text(folder / INDEX, json.dumps(content, indent=1) + "\n")
    return listed
