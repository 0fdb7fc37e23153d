"""Features of clips from a frozen encoder: computed once, kept in files."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from encodecmae_sb.data.clip_batches import LabelledClips
from encodecmae_sb.pretrained.hub import is_hub_name
from encodecmae_sb.pretrained.published import PUBLISHED, find_model
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file, write_text
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar


def in_fold(source, fold):
    """The encoder for a fold: its name replaces {fold} in the path."""
    return str(source).replace("{fold}", fold.name)


def check_encoder(source, folds, key="encoder_folder"):
    """Makes sure that there is an encoder for every fold, before any work.

    Arguments
    ---------
    source : str
        See `find_model`, with {fold} for the name of a fold.
    folds : list of Fold
    key : str
        The yaml key that names it, for the message.

    Raises
    ------
    UserError
        If it is neither.
    """
    for each in dict.fromkeys(in_fold(source, fold) for fold in folds):
        check_source(each, key)


def check_source(source, key):
    """Makes sure that there is an encoder, before any work; see `check_encoder`."""
    try:
        find_model(source)
    except FileNotFoundError as error:
        if is_hub_name(source):
            raise UserError(f"{key}={source}: {error}") from error
        raise UserError(
            f"There is no encoder in {key}={source} (from {Path.cwd()}). Make that "
            "of the demonstration with\n"
            "  python recipes/pretrain.py hparams/mini.yaml\n"
            f"or name another one with --{key}: a folder that a recipe exported, "
            f"published weights: {', '.join(PUBLISHED)}, or user/name on the hub."
        ) from error


def clips_key(clips):
    """A short name for a list of clips; another one when a file was replaced."""
    rows = []
    for clip in clips:
        stat = os.stat(clip.wav)
        rows.append([clip.id, clip.labels, stat.st_size, stat.st_mtime_ns])
    return digest(rows)


def draws_seed(clips):
    """A seed that follows from the test clips: all encoders have the same draws."""
    return int(digest([clip.id for clip in clips]), 16)


class StoredSummaries:
    """Pooled vectors, or frames, of clips, read from a file.

    Arguments
    ---------
    path : str or Path
        Written by `store_summaries`.
    """

    def __init__(self, path):
        path = Path(path)
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.places = notes["places"]
        self.values = np.memmap(
            path, mode="r", dtype=notes["dtype"], shape=tuple(notes["shape"])
        )

    def __getitem__(self, clip_id):
        place = self.places[clip_id]
        rows = slice(*place) if isinstance(place, list) else place
        return torch.from_numpy(np.array(self.values[rows]))

    def __contains__(self, clip_id):
        return clip_id in self.places

    def __len__(self):
        return len(self.places)


@torch.no_grad()
def store_summaries(classifier, clips, path, batch_size, num_workers, device, quiet):
    """Computes what a classifier's head starts from, for every clip.

    Pooled vectors are kept in float32, frames in float16. If the file is already there,
    nothing is computed.

    Arguments
    ---------
    classifier : ClipClassifier
        On the device.
    clips : list of Clip
    path : str or Path
        The file. Its name must be another one for every other encoder, pooling and list
        of clips.
    batch_size, num_workers : int
    device : str or torch.device
    quiet : bool
        No progress bar.

    Returns
    -------
    StoredSummaries

    Raises
    ------
    UserError
        If features are not finite, or a file cannot be read.
    """
    path = Path(path)
    notes_path = path.with_suffix(".json")
    if notes_path.exists():
        return StoredSummaries(path)
    # Clips of similar length together, the longest first.
    clips = sorted(clips, key=lambda clip: -clip.duration)
    data = LabelledClips(clips, torch.zeros(len(clips)))
    loader = DataLoader(
        data,
        batch_size=batch_size,
        collate_fn=data.collate,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
    )
    frames = classifier.head.keeps_frames
    classifier.eval()
    places, rows = {}, 0
    bar = open_bar(len(loader), "Encoding", "batches", quiet=quiet)
    with bar, whole_file(path) as scratch, open(scratch, "wb") as file:
        for batch in loader:
            wavs = batch.inputs.to(device)
            summary, num_frames = classifier.summarise(wavs, batch.lengths)
            if not torch.isfinite(summary).all():
                bad = ~torch.isfinite(summary).flatten(1).all(1).cpu()
                clip = clips[batch.index[bad][0]]
                raise UserError(
                    "The encoder gives features that are not finite (NaN or Inf), "
                    f"first of {clip.wav}: its weights are damaged. Pretrain it again "
                    "or name another one."
                )
            summary = summary.half() if frames else summary.float()
            items = summary.cpu().numpy()  # [B, T, L, D] or [B, L, W]
            for i, item, count in zip(
                batch.index.tolist(), items, num_frames.tolist(), strict=True
            ):
                places[clips[i].id] = [rows, rows + count] if frames else rows
                rows += count if frames else 1
                file.write((item[:count] if frames else item).tobytes())
            bar.update(1)
    notes = {
        "shape": [rows, *items.shape[-2:]],
        "dtype": str(items.dtype),
        "places": places,
    }
    # Write the notes last: a file without notes is computed anew.
    write_text(notes_path, json.dumps(notes))
    return StoredSummaries(path)
