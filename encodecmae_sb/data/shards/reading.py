"""Corpora packed in tar shards (the WebDataset layout), gone through pass by pass.

`recipes/make_shards.py` packs folders, or indexes shards that came from elsewhere.
Beside each `NAME.tar` lies `NAME.tar.csv`, which says where in it each item begins,
and `shards.json` lists the shards. So a crop is read in place, at the cost of a seek,
and a resumed run finds its next crop without reading any shard.
"""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from encodecmae_sb.data.audio import UnusableAudio
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.data.crops import RandomCrops
from encodecmae_sb.data.manifest import Corpus, check_folders, find_audio
from encodecmae_sb.data.procedural.corpus import PROCEDURAL
from encodecmae_sb.data.remote import RemoteFolder
from encodecmae_sb.data.stored import StoredTargets
from encodecmae_sb.data.tars import Member
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csvs, write_text
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .index import (
    FORMAT,
    INDEX,
    SPLITS,
    read_index,
    read_table,
    rows_of,
    size_of,
    why_lost,
)

# Number of shards whose crops are mixed: few enough to stay in the system's file cache
# (2 GB at the default size of make_shards).
_MIXED = 4


def holds_shards(data_folders):
    """Whether data folders are folders of shards.

    Arguments
    ---------
    data_folders : str, Path or list of them

    Returns
    -------
    bool

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    UserError
        If some hold shards and others do not.
    """
    folders = check_folders(data_folders, remote=True, procedural=True)
    with_shards = [folder for folder in folders if _is_shards(folder)]
    if with_shards and len(with_shards) < len(folders):
        other = next(folder for folder in folders if folder not in with_shards)
        if other == PROCEDURAL:
            raise UserError(
                f"data_folder: {with_shards[0]} holds tar shards, which are gone "
                "through in passes, and procedural audio has no end. Give folders of "
                "audio beside procedural."
            )
        raise UserError(
            f"data_folder: {with_shards[0]} holds tar shards and {other} does not. "
            "Give either folders of audio or folders of shards; pack the former with "
            f"recipes/make_shards.py SHARDS_FOLDER --data_folder {other}"
        )
    return bool(with_shards)


def _is_shards(folder):
    if isinstance(folder, RemoteFolder):
        return True
    if folder == PROCEDURAL:
        return False
    if (folder / INDEX).exists():
        return True
    if not any(folder.glob("*.tar")):
        return False
    try:  # an unpacked download may lie beside its tar file
        find_audio(folder)
    except FileNotFoundError:
        return True
    return False


def prepare_shards(data_folders, save_folder):
    """Builds the manifests of the shards of several folders.

    This is the counterpart of `prepare_corpora`: the files are members of tar files
    (see `data.tars`). A shard that is cut off, changed or missing raises no error; its
    lost items are listed as unusable.

    Arguments
    ---------
    data_folders : str, Path or list of them
        Folders of shards.
    save_folder : str or Path
        Where the manifests go.

    Returns
    -------
    list of Corpus

    Raises
    ------
    UserError
        If a folder has no usable index, or a corpus no items for one of the splits.
    """
    corpora, names = [], set()
    for folder in check_folders(data_folders, remote=True):
        index = read_index(folder)
        counts, lost, content = {}, {}, hashlib.sha256()
        tars = [folder / shard["name"] for shard in index.shards]
        with ThreadPoolExecutor(8) as pool:  # a server answers many at once
            sizes = list(pool.map(size_of, tars))
        for tar, size, shard in zip(tars, sizes, index.shards, strict=True):
            table = read_table(tar)
            for row in rows_of(tar, table):
                corpus = row["corpus"]
                counts.setdefault(corpus, dict.fromkeys(SPLITS, 0))[row["split"]] += 1
                if size == shard["bytes"]:
                    continue
                if reason := why_lost(row, size, shard["bytes"]):
                    lost.setdefault(corpus, []).append((row["wav"], reason))
            content.update(os.fsencode(tar) + table)
        stale = {}
        for corpus, count in counts.items():
            # The name becomes part of file names: replace what is not allowed there.
            name = unique = re.sub(r"[/\\\x00-\x1f]", "_", corpus)[:60]
            number = 0
            while unique in names:
                number += 1
                unique = f"{name}_{number}"
            names.add(unique)
            for split in SPLITS:
                if not count[split]:
                    raise UserError(
                        f"The shards in {folder} hold nothing of {corpus} for the "
                        f"split {split}. Pack the corpus again, or index the shards "
                        f"again: python recipes/make_shards.py {folder} --index"
                    )
            files = [Path(save_folder) / f"{unique}_{split}.csv" for split in SPLITS]
            key = digest([FORMAT, corpus, content.hexdigest()])
            state = Path(save_folder) / f"{unique}_train.key"
            if not _is_current(state, key, files):
                stale[corpus] = (state, key, files)
            num_files = sum(count.values())
            corpora.append(Corpus(unique, *files, num_files, lost.get(corpus, [])))
        if stale:
            _write_manifests(folder, index, stale)
    return corpora


def _is_current(state, key, files):
    return (
        state.exists() and state.read_text() == key and all(f.exists() for f in files)
    )


def _write_manifests(folder, index, stale):
    """Writes the manifests of corpora; a killed run leaves none that counts as current.

    Reads the indexes a second time, row by row, instead of holding millions of rows.
    """
    paths, places = [], {}
    for corpus, (state, _, files) in stale.items():
        state.parent.mkdir(parents=True, exist_ok=True)
        state.unlink(missing_ok=True)
        for split, file in zip(SPLITS, files, strict=True):
            places[corpus, split] = len(paths)
            paths.append(file)

    def rows():
        for shard in index.shards:
            tar = folder / shard["name"]
            for row in rows_of(tar, read_table(tar)):
                place = places.get((row.pop("corpus"), row.pop("split")))
                if place is not None:
                    yield place, row

    write_csvs(paths, rows())
    for state, key, _ in stale.values():
        write_text(state, key)


class ShardCrops(RandomCrops):
    """Endless crops that go through shards pass by pass.

    In a pass every item gives max(1, round(duration / crop_seconds)) crops, one at
    random in each of as many equal stretches of it. Shards come in another order in
    each pass, and the crops of a few at a time are mixed, so that what is read lies
    close together. All this depends on (seed, number of the draw) alone: a resumed run,
    or one with other numbers of workers or processes, neither repeats nor loses an
    item.

    An item that cannot be read is reported; a random other crop replaces it.

    Arguments
    ---------
    manifests : list of str or Path
        One per corpus, as `prepare_shards` writes them.
    crop_seconds, sample_rate, seed, targets
        As for `RandomCrops`.
    weights : None
        The share of each corpus was settled when it was packed.

    Raises
    ------
    UserError
        If weights are given.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.data.manifest import prepare_split
    >>> from encodecmae_sb.data.shards.indexing import write_index
    >>> from encodecmae_sb.data.shards.packing import PackItems, write_shard
    >>> tmp = getfixture("tmp_path")
    >>> manifest, _ = prepare_split(speech_folder() / "dev", tmp)
    >>> items = list(PackItems("dev", manifest))
    >>> shards = [tmp / "train-000000.tar", tmp / "valid-000000.tar"]
    >>> [write_shard(path, items[:9], first_key=0) for path in shards]
    [[], []]
    >>> _ = write_index(tmp, shards, None)
    >>> corpus, = prepare_shards(tmp, tmp / "manifests")
    >>> crops = ShardCrops([corpus.train_csv], crop_seconds=0.5)
    >>> crops[10**6]["wav"].shape
    torch.Size([12000])
    >>> taken = [crops.choose(draw, 0, np.random.default_rng(0))[1] for draw in
    ...          range(crops.crops_per_pass)]
    >>> sorted(set(taken)) == list(range(9))
    True
    """

    def __init__(
        self,
        manifests,
        crop_seconds=4.0,
        sample_rate=SAMPLE_RATE,
        seed=0,
        weights=None,
        targets=None,
    ):
        if weights is not None:
            raise UserError(
                f"corpus_weights={weights}: shards are gone through in passes, "
                "each item once. Leave corpus_weights out, or give folders of audio."
            )
        super().__init__(
            manifests, crop_seconds, sample_rate, seed, weights, targets=targets
        )
        corpora = [np.full(len(paths), i) for i, paths in enumerate(self.paths)]
        files = [np.arange(len(paths)) for paths in self.paths]
        shard = _shard_numbers(path for paths in self.paths for path in paths)
        order = np.argsort(shard, kind="stable")
        self.corpus = np.concatenate(corpora)[order]
        self.file = np.concatenate(files)[order]
        durations = np.concatenate(self.durations)[order]
        counts = np.maximum(1, np.round(durations / crop_seconds).astype(np.int64))
        # The first crop of each item and of each shard, and the end.
        self.first = np.concatenate([[0], np.cumsum(counts)])
        items = np.searchsorted(shard[order], np.arange(shard.max() + 2))
        self.shard_first = self.first[items]
        # The pass of the last draw, and the shards that were mixed for it.
        self._pass = (None, None, None)
        self._mixed = (None, None)

    @property
    def crops_per_pass(self):
        """How many crops a pass has."""
        return int(self.first[-1])

    @property
    def num_shards(self):
        """How many shards there are."""
        return len(self.shard_first) - 1

    def choose(self, draw, attempt, rng):
        """Maps a draw to the next crop of the pass or, on a retry, to a random one."""
        crop = self._crop(draw)
        if attempt:
            crop = int(rng.integers(self.crops_per_pass))
        item = int(np.searchsorted(self.first, crop, side="right")) - 1
        stretches = self.first[item + 1] - self.first[item]
        position = (crop - self.first[item] + rng.random()) / stretches
        return int(self.corpus[item]), int(self.file[item]), float(position)

    def _crop(self, draw):
        """The number of the crop, in the order of the shards, that a draw takes."""
        number, place = divmod(draw, self.crops_per_pass)
        if self._pass[0] != number:
            shards = self._shuffled(self.num_shards, number)
            ends = np.cumsum(np.diff(self.shard_first)[shards])[_MIXED - 1 :: _MIXED]
            self._pass = (number, shards, ends)
        _, shards, ends = self._pass
        group = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[group - 1]) if group else 0
        if self._mixed[0] != (number, group):
            mixed = shards[group * _MIXED : (group + 1) * _MIXED]
            crops = np.concatenate(
                [np.arange(*self.shard_first[shard : shard + 2]) for shard in mixed]
            )
            order = self._shuffled(len(crops), number, group + 1)
            self._mixed = ((number, group), crops[order])
        return int(self._mixed[1][place])

    def _shuffled(self, count, *key):
        return np.random.default_rng([self.seed, *key]).permutation(count)


def _shard_numbers(paths):
    """Numbers the shards by name within their folder; returns that of each item."""
    # Do not sort whole paths: draws must stay the same when a folder is moved.
    folders, shards = {}, {}
    found = []
    for path in paths:
        tar = path.split("::")[0]
        if tar not in shards:
            folder, name = os.path.split(tar)
            place = folders.setdefault(folder, len(folders)), name
            shards[tar] = (len(shards), place)
        found.append(shards[tar][0])
    places = [place for _, place in shards.values()]
    rank = {place: number for number, place in enumerate(sorted(places))}
    return np.array([rank[place] for place in places])[found]


class PackedCodes(StoredCodes):
    """The codes that lie in shards beside the audio, with the methods of `StoredCodes`.

    Arguments
    ---------
    folder : Path
        Of shards with codes.
    info : CodesInfo
        What the codes are.
    """

    def __init__(self, folder, info):
        self.folder = folder
        self.info = info

    def of_manifests(self, manifests, n_codebooks, command=""):
        """Codes of the items of several manifests, as `StoredCodes`.

        Returns
        -------
        list of ShardCodes
            One per manifest.
        """
        stored = self.info.n_codebooks
        return [ShardCodes(manifest, n_codebooks, stored) for manifest in manifests]


def find_packed_codes(data_folders):
    """The codes in folders of shards.

    Arguments
    ---------
    data_folders : str, Path or list of them

    Returns
    -------
    PackedCodes or None
        None if there are none.

    Raises
    ------
    UserError
        If the folders do not have the same codes.
    """
    indices = [
        read_index(folder) for folder in check_folders(data_folders, remote=True)
    ]
    first = indices[0]
    for other in indices[1:]:
        if other.codes != first.codes:
            raise UserError(
                f"data_folder: {first.folder} holds {first.codes or 'no codes'}, "
                f"{other.folder} {other.codes or 'no codes'}. Pack one of them again, "
                "with the codes of the other, or none."
            )
    return first.codes and PackedCodes(first.folder, first.codes)


class ShardCodes(StoredTargets):
    """Codes in shards, for `ShardCrops` and `FixedCrops`.

    Arguments
    ---------
    manifest : str or Path
        As `prepare_shards` writes it.
    n_codebooks : int
        How many are wanted.
    stored : int
        How many there are.
    """

    unreadable = ()  # the shards themselves say what cannot be read

    def __init__(self, manifest, n_codebooks, stored):
        paths, rates, self.codes = read_columns(
            manifest, wav=str, sample_rate=int, codes=str
        )
        if bare := [i for i, codes in enumerate(self.codes) if not codes]:
            folder = Path(Member.at(paths[bare[0]]).tar).parent
            raise UserError(
                f"{len(bare)} of {len(paths)} items of {manifest} have no codes, and "
                f"others have, the first of them {paths[bare[0]]}. Index the shards "
                "again, which leaves them out: python recipes/make_shards.py "
                f"{folder} --index"
            )
        self.n_codebooks = n_codebooks
        self.row_bytes = 2 * stored
        sizes = (Member.at(path).size for path in self.codes)
        frames = np.fromiter(sizes, np.int64, len(paths)) // self.row_bytes
        super().__init__(paths, rates, frames)

    def read(self, file, first, count):
        """Codes of an item's frames, uint16, shape [count, Q]."""
        member = Member.at(self.codes[file])
        data = member.read(first * self.row_bytes, count * self.row_bytes)
        if len(data) < count * self.row_bytes:
            raise UnusableAudio("its codes are cut off")
        codes = np.frombuffer(data, np.uint16).reshape(count, -1)
        return codes[:, : self.n_codebooks]
