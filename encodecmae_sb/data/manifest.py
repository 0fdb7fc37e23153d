"""Folders of audio become SpeechBrain CSV manifests.

Any folder works: audio is found recursively. A folder laid out in official
parts (LibriSpeech's `train-*`, `dev-*`, `test-*`) keeps them; in any other, one
file in twenty is held out for validation, chosen by a hash of its path so that
the choice never changes. Parts for the test, at any depth, are left out in both
cases. LibriSpeech transcripts, if there are any, become the `wrd` and `spk_id`
columns.
"""

import csv
import functools
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from speechbrain.utils.logger import get_logger

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import check_path, write_csvs, write_text

from .audio import AUDIO_EXTENSIONS, UnusableAudio, inspect_files
from .folders import find_paths, is_folder, list_folder
from .procedural.corpus import PROCEDURAL, is_procedural, write_procedural
from .remote import RemoteFolder, is_url

logger = get_logger(__name__)

_FORMAT = 3  # raise it when the manifest's columns or rules change
_HELD_OUT = 20  # one file in this many, where there is no official split

# How the names of official parts begin. No letter may follow the shorter ones: valves
# are not for validation.
_PARTS = {
    "train": r"train",
    "valid": r"dev|valid|val(?![a-z])",
    "test": r"test|eval(?![a-z])|evaluation",
}


@dataclass(frozen=True)
class Corpus:
    """One corpus, ready to be loaded.

    Arguments
    ---------
    name : str
        Name of the folder, unique among the corpora of a run.
    train_csv, valid_csv : Path
        SpeechBrain manifests with columns ID, duration (s), wav, num_samples,
        sample_rate (Hz) and, for LibriSpeech, spk_id and wrd.
    num_files : int
        Audio files found, unusable ones included.
    unusable : list of (str, str)
        Path and reason of each file left out.
    num_copies : int
        Altered copies among the files to train on.
    """

    name: str
    train_csv: Path
    valid_csv: Path
    num_files: int
    unusable: list
    num_copies: int = 0


def prepare_corpora(data_folders, save_folder, max_unusable=0.05, procedural=False):
    """Builds the manifests of several folders, unless they are up to date.

    A manifest is built again if a file was added, removed or changed (path, size or
    time).

    Arguments
    ---------
    data_folders : str, Path or list of them
        Folders of audio.
    save_folder : str or Path
        Where the manifests go.
    max_unusable : float
        Share of unusable files above which to stop.
    procedural : bool
        Whether the word `procedural` may stand in place of a folder; see
        `data.procedural`.

    Returns
    -------
    list of Corpus

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds no audio.
    UserError
        If too much of a folder is unusable.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> tmp = getfixture("tmp_path")
    >>> corpus, = prepare_corpora(speech_folder(), tmp)
    >>> corpus.name, len(corpus.unusable)
    ('speech', 0)
    """
    corpora, names = [], set()
    for folder in check_folders(data_folders, procedural=procedural):
        name = unique = folder.name
        count = 0
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.add(unique)
        corpora.append(_prepare(folder, unique, Path(save_folder), max_unusable))
    return corpora


def check_folders(data_folders, remote=False, procedural=False):
    """Checks that folders exist; returns them as absolute paths.

    Arguments
    ---------
    data_folders : str, Path or list of them
    remote : bool
        Whether URLs of folders of shards are allowed; the server is not asked yet.
    procedural : bool
        Whether the word `procedural` is allowed. It is returned as it is.

    Returns
    -------
    list of Path or RemoteFolder

    Raises
    ------
    FileNotFoundError
        If one of them does not exist.
    UserError
        If what is given is neither a path nor a list of paths, or a URL or procedural
        audio where only local folders are allowed.
    """
    check_path("data_folder", data_folders, several=True)
    if isinstance(data_folders, (str, os.PathLike)):
        data_folders = [data_folders]
    folders = [_as_folder(folder) for folder in data_folders]
    for folder in folders:
        if folder == PROCEDURAL:
            if not procedural:
                raise UserError(
                    "data_folder=procedural: procedural audio is new in every draw and "
                    "has no files, and here files are needed. recipes/pretrain.py and "
                    "recipes/train_codec.py take it. A folder of that name is "
                    "./procedural."
                )
        elif isinstance(folder, RemoteFolder):
            if not remote:
                raise UserError(
                    f"data_folder={folder}: here only local folders are allowed. From "
                    "a server, recipes/pretrain.py reads tar shards."
                )
        elif not folder.is_dir():
            raise FileNotFoundError(
                f"No such folder: data_folder={folder}. Give the folder that holds "
                "the audio, e.g. --data_folder /data/LibriSpeech"
            )
    return folders


def _as_folder(folder):
    if is_procedural(folder):
        return PROCEDURAL
    return (
        RemoteFolder(folder) if is_url(folder) else Path(folder).expanduser().resolve()
    )


def find_audio(folder):
    """Finds audio files below a folder, links to folders included.

    Arguments
    ---------
    folder : str or Path
        Where to look.

    Returns
    -------
    list of (str, int, int)
        Path relative to the folder, size in bytes and time of change in
        nanoseconds of each file, sorted by path.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or holds no audio.
    UserError
        If a folder in it cannot be read.
    """
    (folder,) = check_folders(folder)
    found, nowhere, visited, waiting = [], [], set(), [""]
    while waiting:
        inside = waiting.pop()
        real = os.path.realpath(folder / inside)
        if real in visited:  # a link back to a parent would never end
            continue
        visited.add(real)
        folders = []
        for entry in list_folder(folder / inside):
            path = os.path.join(inside, entry.name)
            if is_folder(entry):
                folders.append(path)
            elif entry.name.lower().endswith(AUDIO_EXTENSIONS):
                if not entry.name.startswith("."):
                    found.append((path, *_size_and_time(entry)))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                nowhere.append(entry.path)
        waiting += reversed(folders)
    if nowhere:
        logger.warning(
            f"{nowhere[0]} leads nowhere"
            + (f", and {len(nowhere) - 1} more links" if nowhere[1:] else "")
            + ". If it stands for a folder, is the disk there? Its audio is missing."
        )
    if not found:
        raise FileNotFoundError(
            f"No audio in data_folder={folder}: no file below it ends in "
            f"{', '.join(AUDIO_EXTENSIONS)}."
        )
    return sorted(found)


def _size_and_time(entry):
    """Size of a file in bytes, and its time of change in nanoseconds."""
    try:
        stat = entry.stat()
    except OSError:  # a link that leads nowhere: reported when it is inspected
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def prepare_split(folder, save_folder, max_unusable=0.05):
    """Builds one manifest of a whole folder, unless it is up to date.

    Arguments
    ---------
    folder : str or Path
        One part of a corpus, such as `LibriSpeech/dev-clean`.
    save_folder : str or Path
        Where the manifest goes, under the folder's name.
    max_unusable : float
        Share of unusable files above which to stop.

    Returns
    -------
    csv_file : Path
    unusable : list of (str, str)
        Path and reason of each file left out.

    Raises
    ------
    FileNotFoundError, UserError
        As `prepare_corpora`.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> path, _ = prepare_split(speech_folder() / "dev", getfixture("tmp_path"))
    >>> path.name, len(read_manifest(path))
    ('dev.csv', 84)
    """
    (folder,) = check_folders(folder)
    path = Path(save_folder) / f"{folder.name}.csv"
    state = path.with_suffix(".json")

    def deal(rows, files):
        row = None
        for row in rows:
            yield 0, row
        if row is None:
            raise UserError(f"No usable audio in {folder}.")

    _, unusable = _up_to_date(folder, state, [path], deal, max_unusable)
    return path, unusable


def _prepare(folder, name, save_folder, max_unusable):
    train_csv = save_folder / f"{name}_train.csv"
    valid_csv = save_folder / f"{name}_valid.csv"
    if folder == PROCEDURAL:
        write_procedural(train_csv, valid_csv)
        return Corpus(name, train_csv, valid_csv, num_files=0, unusable=[])

    def deal(rows, files):
        part_of = _part_of([path for path, _, _ in files], folder)
        for part, row in deal_rows(rows, part_of):
            yield ("train", "valid").index(part), row

    files, state = [train_csv, valid_csv], save_folder / f"{name}.json"
    num_files, unusable = _up_to_date(folder, state, files, deal, max_unusable)
    return Corpus(name, train_csv, valid_csv, num_files, unusable)


def _up_to_date(folder, state_file, csv_files, deal, max_unusable):
    """Writes manifests unless the folder has not changed since they were written.

    `deal(rows, files)` yields, row by row, the number of the CSV file and the row. The
    rows are never held in a list: there may be millions.

    Returns the number of files, and those left out.
    """
    files = find_audio(folder)
    fingerprint = _fingerprint(folder, files)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state = {}
    if all(file.exists() for file in (state_file, *csv_files)):
        try:
            state = dict(json.loads(state_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            logger.warning(f"{state_file} is damaged: the manifest is built again")
        if state.get("fingerprint", fingerprint) != fingerprint:
            logger.info(f"{folder} has changed: its manifest is built again")

    def dealt(rows):
        yield from deal(rows, files)
        # Delete the state before the manifests are replaced: it describes the old ones.
        state_file.unlink(missing_ok=True)

    if state.get("fingerprint") != fingerprint:
        unusable = []
        rows = _scan(folder, [path for path, _, _ in files], unusable, max_unusable)
        write_csvs(csv_files, dealt(rows))
        state = {"fingerprint": fingerprint, "unusable": unusable}
        write_text(state_file, json.dumps(state))
    unusable = [tuple(item) for item in state["unusable"]]
    _check_share(folder, len(files), unusable, max_unusable)
    return len(files), unusable


def _fingerprint(folder, files):
    """A digest that changes when the files of a folder change."""
    key = hashlib.sha256(json.dumps([_FORMAT, str(folder)]).encode())
    for first in range(0, len(files), 1000):
        key.update(json.dumps(files[first : first + 1000]).encode())
    return key.hexdigest()


def _scan(folder, paths, unusable, max_unusable):
    """Yields rows of the usable files; appends (path, reason) of the others to a list.

    At the end it makes sure that not too many are unusable.
    """
    transcripts = _read_transcripts({os.path.dirname(path) for path in paths}, folder)
    whole = (os.path.join(folder, path) for path in paths)
    results = inspect_files(whole, len(paths), f"Reading {folder.name}")
    for path, name, result in zip(paths, _names(paths), results, strict=True):
        wav = os.path.join(folder, path)
        if isinstance(result, UnusableAudio):
            shown = wav.encode("utf-8", "backslashreplace").decode()
            unusable.append((shown, str(result)))
            continue
        row = {
            "ID": name,
            "duration": f"{result.duration:.6f}",
            "wav": wav,
            "num_samples": result.num_samples,
            "sample_rate": result.sample_rate,
        }
        if transcripts:
            stem = os.path.splitext(os.path.basename(path))[0]
            row["spk_id"] = stem.split("-")[0]
            row["wrd"] = transcripts.get(stem, "")
        yield row
    _check_share(folder, len(paths), unusable, max_unusable)


def _names(paths):
    """Yields the ID of each file: its path, without the ending where that is unique."""
    stems = Counter(os.path.splitext(path)[0] for path in paths)
    shared = {stem for stem, count in stems.items() if count > 1}
    del stems
    for path in paths:
        stem = os.path.splitext(path)[0]
        yield path if stem in shared else stem


def _read_transcripts(folders, root):
    """LibriSpeech's `<speaker>-<chapter>.trans.txt` files, as ID -> text."""
    transcripts, pattern = {}, "*.trans.txt"
    for file in (f for folder in folders for f in find_paths(root / folder, pattern)):
        for line in file.read_text(encoding="utf-8").splitlines():
            utterance, _, text = line.partition(" ")
            transcripts[utterance] = text.strip()
    return transcripts


def _check_share(folder, num_files, unusable, max_unusable):
    if len(unusable) > max_unusable * num_files:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in unusable[:10])
        more = f"\n  and {len(unusable) - 10} more" if len(unusable) > 10 else ""
        raise UserError(
            f"{len(unusable)} of {num_files} audio files in {folder} are unusable "
            f"({len(unusable) / num_files:.1%}; max_unusable={max_unusable} allows "
            f"{max_unusable:.1%}):\n{listed}{more}\n"
            "Repair or remove them, or raise --max_unusable."
        )


@functools.lru_cache(1 << 16)
def part_named(name):
    """The part of a corpus that a folder or file is, by its name.

    Arguments
    ---------
    name : str

    Returns
    -------
    str
        "train", "valid", "test", or "" if it is not named as any of them.

    Example
    -------
    >>> [part_named(name) for name in ("train-clean-100", "val", "Test", "valves")]
    ['train', 'valid', 'test', '']
    """
    for part, beginning in _PARTS.items():
        if re.match(beginning, name, re.IGNORECASE):
            return part
    return ""


def training_files(folder):
    """The files of a folder that a pretraining on it trains on.

    A folder with only one file counts as a part to train on. Files are not opened, so
    those that cannot be read are among them.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    list of Path
        In the order of `find_audio`.

    Raises
    ------
    FileNotFoundError, UserError
        As `find_audio`.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> {path.relative_to(speech_folder()).parts[0]
    ...  for path in training_files(speech_folder())}
    {'train'}
    """
    (folder,) = check_folders(folder)
    paths = [path for path, _, _ in find_audio(folder)]
    part_of = _part_of(paths)
    named = zip(_names(paths), paths, strict=True)
    rows = [{"ID": name, "wav": folder / path} for name, path in named]
    rows = [row for row in rows if part_of(row)]
    rows = split_rows(rows, part_of)[0] if len(rows) > 1 else rows
    return [row["wav"] for row in rows]


def _part_of(paths, folder=None):
    """Makes a function that maps a row to "train", "valid" or "" (neither).

    With a folder it also says which parts for the test are left out of it.
    """
    examples = {path.rpartition(os.sep)[0]: path for path in paths}  # one a folder
    tests = {_test_part(path) for path in examples.values()}
    usable = [path for path in examples.values() if not _test_part(path)]
    tops = {part_named(path.partition(os.sep)[0]) for path in usable if os.sep in path}
    official = {"train", "valid"} <= tops
    # A part for the test beside official others is left out without a warning.
    test = sorted(part for part in tests if part and (not official or os.sep in part))
    if test and folder is not None:
        listed = ", ".join(test[:10])
        listed += f" and {len(test) - 10} more" if test[10:] else ""
        if not usable:
            raise UserError(
                f"{folder} holds nothing but parts for the test ({listed}). To train "
                f"on one of them nevertheless: --data_folder {folder / test[0]}"
            )
        split = (
            f"{folder} has no parts both to train and to validate on: one file in "
            f"{_HELD_OUT} is held out. "
        )
        logger.warning(
            ("" if official else split) + f"Left out of {folder}, since it is named as "
            f"a part for the test: {listed}"
        )

    def part_of(row):
        if _test_part(row["ID"]):
            return ""
        if not official:
            return held_out(row)
        top, separator, _ = row["ID"].partition(os.sep)
        return part_named(top) if separator else ""

    return part_of


def _test_part(path):
    """The outermost folder of a path that is named as a part for the test, or ""."""
    names = path.split(os.sep)[:-1]
    for depth, name in enumerate(names, 1):
        if part_named(name) == "test":
            return os.sep.join(names[:depth])
    return ""


def held_out(row):
    """Holds out one row in twenty, always the same ones: "valid", else "train"."""
    digest = hashlib.sha256(row["ID"].encode()).digest()
    return "valid" if digest[0] * 256 + digest[1] < 65536 // _HELD_OUT else "train"


def split_rows(rows, part_of=held_out):
    """Splits rows in two.

    Arguments
    ---------
    rows : list of dict
    part_of : callable
        Gives "train", "valid" or "" for a row.

    Returns
    -------
    train, valid : list of dict
        Neither is empty.

    Raises
    ------
    UserError
        If there are fewer than two rows.
    """
    parts = {"train": [], "valid": []}
    for part, row in deal_rows(rows, part_of):
        parts[part].append(row)
    return parts["train"], parts["valid"]


def deal_rows(rows, part_of=held_out):
    """As `split_rows`, but row by row.

    Arguments
    ---------
    rows : iterable of dict
    part_of : callable
        Gives "train", "valid" or "" for a row.

    Yields
    ------
    part : str
        "train" or "valid".
    row : dict

    Raises
    ------
    UserError
        If there are fewer than two rows.
    """
    counts, last = Counter(), {}  # the last row of a part waits for the end
    for row in rows:
        part = part_of(row)
        if not part:
            continue
        if part in last:
            yield part, last[part]
        last[part] = row
        counts[part] += 1
    if counts.total() < 2:
        raise UserError(
            f"{counts.total()} usable audio file: at least 2 are needed, "
            "one to train on and one to validate on. Cut the file, or add others."
        )
    if len(last) == 1:  # a handful of files may all hash to one side
        (part,) = last
        last = {"valid" if part == "train" else "train": last[part]}
    yield from last.items()


def read_manifest(path):
    """Reads a manifest back as a list of dicts of strings, in file order."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
