"""Packs folders of audio, with their codes if wanted, in tar shards."""

import shutil

import numpy as np
from torch.utils.data import ConcatDataset

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.shards.index import (
    FORMAT,
    INDEX,
    SPLITS,
    is_whole,
    read_index,
)
from encodecmae_sb.data.shards.indexing import write_index
from encodecmae_sb.data.shards.packing import PackItems, deal, write_shard
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.utils.digests import digest_each
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_text
from encodecmae_sb.utils.progress import open_bar

_PLAN = "plan"  # the file that says what an unfinished folder will hold


def pack(
    folder,
    data_folder=None,
    shard_mb=512,
    flac=False,
    codes_folder=None,
    seed=0,
    max_unusable=0.05,
):
    """Packs corpora, or goes on where an interrupted run has stopped.

    Arguments
    ---------
    folder : Path
        Where the shards go.
    data_folder : str, Path or list of them, optional
        Folders of audio; default: the bundled corpus.
    shard_mb : float
        Audio files per shard, in MB.
    flac : bool
        Packs WAV files of 16 or 24 bits as FLAC.
    codes_folder : Path, optional
        Stored codes to be packed, too; see recipes/extract_codes.py.
    seed : int
        Of the order of the files.
    max_unusable : float
        Share of unusable files above which to stop.

    Returns
    -------
    shards : list of dict
        See `write_index`.
    unusable : UnusableFiles

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds no audio.
    UserError
        If the folder holds other shards, too much is unusable, codes are missing, or
        a shard cannot be written.
    """
    folders = data_folder or corpus_folders()
    corpora = prepare_corpora(folders, folder / "manifests", max_unusable)
    info, codes = _load_codes(codes_folder, data_folder, corpora)
    items = {
        split: ConcatDataset(
            PackItems(corpus.name, getattr(corpus, f"{split}_csv"), stored)
            for corpus, stored in zip(corpora, codes[split], strict=True)
        )
        for split in SPLITS
    }
    files = (
        [item.corpus, item.row, item.size] for split in SPLITS for item in items[split]
    )
    plan = digest_each(files, FORMAT, [shard_mb, flac, seed, str(info)])
    _check_plan(folder, plan)
    unusable = UnusableFiles(
        folder / "unusable_files.csv",
        sum(corpus.num_files for corpus in corpora),
        max_unusable,
        recheck=False,  # a finished shard lacks them, even if they can be read by now
    )
    for corpus in corpora:
        unusable.add(corpus.unusable)
    shards = []
    everything = [part for split in SPLITS for part in items[split].datasets]
    total = sum(part.seconds.sum() for part in everything)
    with open_bar(total, "Packing", "s of audio") as bar:
        for split in SPLITS:
            parts = items[split].datasets
            sizes = np.concatenate([part.sizes for part in parts])
            seconds = np.concatenate([part.seconds for part in parts])
            key = 0
            dealt = deal(sizes, int(shard_mb * 1e6), seed)
            for shard, numbers in enumerate(dealt):
                path = folder / f"{split}-{shard:06d}.tar"
                shards.append(path)
                bar.set_postfix_str(path.name, refresh=False)
                if is_whole(path):  # finished before
                    bar.initial += seconds[numbers].sum()
                    bar.update(seconds[numbers].sum())
                else:
                    some = [items[split][number] for number in numbers]
                    unusable.add(write_shard(path, some, key, flac, bar.update))
                key += len(numbers)
    shards = write_index(folder, shards, info, plan)
    # Another process that packed the same files may have removed it.
    (folder / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / "manifests", ignore_errors=True)
    return shards, unusable


def _load_codes(codes_folder, data_folder, corpora):
    """What the codes are, and by split those of each corpus."""
    if codes_folder is None:
        return None, {split: [None] * len(corpora) for split in SPLITS}
    stored = StoredCodes(codes_folder)
    info = stored.info
    command = stored.extract_command(data_folder)
    return info, {
        split: stored.of_manifests(
            [getattr(corpus, f"{split}_csv") for corpus in corpora],
            info.n_codebooks,
            command,
        )
        for split in SPLITS
    }


def _check_plan(folder, plan):
    """Makes sure that a folder is empty or was begun with the same plan."""
    there = None
    if (folder / INDEX).exists():
        there = read_index(folder).plan
    elif (folder / _PLAN).exists():
        there = (folder / _PLAN).read_text()
    elif any(folder.glob("*.tar")):
        there = ""
    if there not in (None, plan):
        raise UserError(
            f"{folder} holds other shards: of other files, or made with other "
            "settings. Give another folder, or delete it."
        )
    write_text(folder / _PLAN, plan)
