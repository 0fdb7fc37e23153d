"""Targets that a training stores in its own folder before its first step.

`recipes/extract_codes.py` stores targets for many trainings; this is for one.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.data.codes import CodesInfo, StoredCodes, read_info
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.data.shards.reading import holds_shards
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.identity import named

from .extract import default_batch_seconds, extract, open_folder
from .pretrain import COMPUTED, holds_procedural

AUTO = "auto"
AUTO_HOURS = 4.0  # `auto` stores the targets of at most so much audio


def check_store_targets(hparams, stored):
    """Refuses a value of `store_targets` that is not allowed, before any work.

    Arguments
    ---------
    hparams : dict
    stored : StoredCodes or None
        Targets that were stored before the run.

    Raises
    ------
    UserError
        If it is none of auto, True and False, or True for shards without codes or for
        procedural audio.
    """
    choice, folders = hparams.get("store_targets", False), hparams["data_folder"]
    if choice != AUTO and not isinstance(choice, bool):
        raise UserError(
            f"store_targets={choice}: allowed are auto (at most {AUTO_HOURS:g} h of "
            "audio), True and False."
        )
    if choice is True and stored is None and folders and holds_shards(folders):
        raise UserError(
            "store_targets=True, but targets of shards are stored in the shards. Give "
            "--store_targets False, or pack the codes: python recipes/make_shards.py "
            "ANOTHER_FOLDER --data_folder FOLDER --codes_folder CODES_FOLDER"
        )
    if choice is True and folders and holds_procedural(folders):
        raise UserError(
            "store_targets=True, but procedural audio is new in every draw. Give "
            "--store_targets False."
        )


def is_to_store(hparams, corpora):
    """Whether a run is to store the targets that it would compute in each step.

    Arguments
    ---------
    hparams : dict
        `auto` means at most 4 h of audio in all. A run whose checkpoints come from
        targets that were computed goes on so.
    corpora : list of Corpus

    Returns
    -------
    bool
    """
    choice, folders = hparams.get("store_targets", False), hparams["data_folder"]
    if choice != AUTO:
        return choice
    if folders and (holds_shards(folders) or holds_procedural(folders)):
        return False
    if hparams["checkpointer"].recorded("codes") == COMPUTED:
        return False
    (seconds,) = read_columns(manifests_of(corpora), duration=float)
    return float(seconds.sum()) <= AUTO_HOURS * 3600


def manifests_of(corpora):
    """The manifests of corpora: all files to train and to validate on."""
    return [file for c in corpora for file in (c.train_csv, c.valid_csv)]


def store_targets(brain, targets, corpora, identity):
    """Stores the targets of all files, or goes on with it; each process does its share.

    What is there is used, unless it is of other targets: then it is made anew. Before
    that, checkpoints of another training are refused.

    Arguments
    ---------
    brain : PretrainBrain
        Of the run.
    targets : Targets
    corpora : list of Corpus
    identity : dict
        Of the training, but for `codes`; for `ResumableBrain.identify`.

    Returns
    -------
    StoredCodes
    """
    before = brain.checkpointer.recorded("codes")
    codes = before if isinstance(before, dict) else named("stored", "")
    brain.identify(**{**identity, "codes": codes})
    folder = Path(brain.hparams.save_folder) / "targets"
    if not brain.checkpointer.list_checkpoints():
        info = CodesInfo(*targets.label, targets.n_codebooks, targets.codebook_size)
        if if_main_process():
            _discard_others(folder, info)
        # The others wait in `extract_for` until the main process has made the folder.
    extract_for(brain, targets, corpora, folder)
    if if_main_process():
        choice = brain.hparams.store_targets
        print(f"Codes: read from {folder} (store_targets: {choice})", flush=True)
    return StoredCodes(folder)


def extract_for(brain, targets, corpora, folder, batch_seconds=None):
    """Extracts the targets of all files of a training that are missing in a folder.

    Once the training has begun, files that could not be read stay left out.

    Arguments
    ---------
    brain : PretrainBrain
        Of the training.
    targets : Targets
    corpora : list of Corpus
    folder : Path
        Of codes.
    batch_seconds : float, optional
        Audio of a batch; default: 16 on a CPU, 256 on a GPU.
    """
    device, hparams = torch.device(brain.device), brain.hparams
    targets.to(device)
    open_folder(targets, folder)
    extract(
        targets,
        manifests_of(corpora),
        folder,
        device,
        batch_seconds or default_batch_seconds(device),
        hparams.num_workers,
        hparams.max_unusable,
        retry=not brain.checkpointer.list_checkpoints(),
        quiet=brain.noprogressbar,
    )


def _discard_others(folder, info):
    """Removes a folder of codes that are of another kind, or cannot be read."""
    if not folder.exists():
        return
    try:
        there = replace(read_info(folder), name=info.name)
    except UserError:
        there = None
    if there != info:
        shutil.rmtree(folder)
