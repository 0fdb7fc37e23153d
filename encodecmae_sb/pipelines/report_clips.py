"""Measures the validation clips of a pretraining again, one by one."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.corpora import find_clips
from encodecmae_sb.data.crops import CropCollator, FixedCrops
from encodecmae_sb.evaluation.reconstruct import (
    codec_normalisation,
    load_newest,
    read_hparams,
)
from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.chunks import encode_in_chunks
from encodecmae_sb.nnet.encodec import FrozenCodec
from encodecmae_sb.nnet.targets import build, on_frames_of
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import load_key
from encodecmae_sb.utils.progress import open_bar

_BATCH = 8


@dataclass
class LoadedRun:
    """A run, ready to predict.

    Arguments
    ---------
    hparams : dict
        With the trained model, in eval mode.
    checkpoint : Path
    targets : Targets or None
        None if they are clusters, which are always stored.
    stored : bool
        Whether it was trained on stored targets.
    """

    hparams: dict
    checkpoint: Path
    targets: torch.nn.Module | None
    stored: bool


@dataclass
class MeasuredClip:
    """A validation clip, and what the model made of it.

    Arguments
    ---------
    name, corpus, label : str
    wav : torch.Tensor
        Samples, shape [N].
    hidden : torch.Tensor
        bool, shape [T], whole frames.
    codes, filled : torch.Tensor
        True codes, and the most probable ones where hidden, shape [T, Q].
    ce : float
        Mean cross-entropy over hidden frames and codebooks, in nats.
    accuracy : float
        Share of hidden frames whose most probable first code is right.
    vector : torch.Tensor
        Mean frame of the encoder, which sees the whole clip, shape [D].
    """

    name: str
    corpus: str
    label: str
    wav: torch.Tensor
    hidden: torch.Tensor
    codes: torch.Tensor
    filled: torch.Tensor
    ce: float
    accuracy: float
    vector: torch.Tensor


def load_model(folder, identity, codec=None):
    """Loads the newest checkpoint of a pretraining or self-training, and its targets.

    A run that goes on deletes old checkpoints: if one goes while it is read, the next
    one is taken.

    Arguments
    ---------
    folder : Path
    identity : dict
        The run's save/identity.json, which it writes with its first checkpoint.
    codec : str, optional
        Where the codec is, if it is not where the run found it.

    Returns
    -------
    LoadedRun

    Raises
    ------
    UserError
        If the folder holds no such run or no checkpoint.
    """
    hparams = read_hparams(folder)
    model = hparams["model"]
    for attempt in range(3):
        try:
            checkpoint = load_newest(folder, model)
            break
        except UserError as error:
            if attempt == 2 or not isinstance(error.__cause__, FileNotFoundError):
                raise
    source = codec or identity.get("codec", {}).get("value")
    targets = None
    if "teacher" not in hparams:
        if source is not None:
            normalise = codec_normalisation(identity)
            targets = Codec(source, hparams["n_codebooks"], normalise)
        else:
            targets = build(load_key(folder / "hyperparams.yaml", "targets", {}))
    if isinstance(model.encoder.front_end, CodecLatents):
        front = identity.get("front_end_codec", {}).get("value", source)
        model.encoder.front_end.use(Codec(front))
    model.eval()
    stored = isinstance(identity.get("codes"), dict)
    return LoadedRun(hparams, checkpoint, targets, stored)


@torch.no_grad()
def measure_clips(run, folder, corpora, labels, device="cpu", quiet=False):
    """Cross-entropy, filled-in codes and mean frame of every validation clip.

    Crops, masks and loss are those of the validation.

    Arguments
    ---------
    run : LoadedRun
    folder : Path
        The run's output folder.
    corpora : list of str
        Names of manifests, `save/NAME_valid.csv`.
    labels : dict of str to str
        Path of a file -> its label; else the speaker, or the class of ESC-50.
    device : torch.device or str
    quiet : bool
        Show no progress.

    Returns
    -------
    clips : list of MeasuredClip
    notes : list of str
        What was left out.
    """
    hparams, notes, items = run.hparams, [], []
    for corpus in corpora:
        path = folder / "save" / f"{corpus}_valid.csv"
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        settings = hparams["crop_seconds"], hparams["sample_rate"], hparams["seed"]
        try:
            stored, targets = None, folder / "save" / "targets"
            if run.targets is None or (run.stored and targets.exists()):
                codes = StoredCodes(targets)
                stored = codes.of_manifests([path], hparams["n_codebooks"], "the run")
            crops = FixedCrops([path], hparams["valid_items"], *settings, stored)
        except UserError as error:
            first = str(error).partition("\n")[0]
            notes.append(f"No clips of {corpus}: {first}")
            continue
        if crops.unusable:
            name = Path(crops.unusable[0][0]).name
            notes.append(
                f"{len(crops.unusable)} validation clips of {corpus} are left out: "
                f"their files cannot be read, such as {name}."
            )
        named = {**_esc50_labels(rows), **labels}
        for item, number in zip(crops.items, crops.rows, strict=True):
            row = rows[number]
            label = named.get(row["wav"]) or row.get("label") or ""
            if not label and row.get("spk_id"):
                label = f"speaker {row['spk_id']}"
            items.append((item, row["ID"], corpus, label))

    model = hparams["model"].to(device)
    for module in (hparams["masker"], hparams["loss_fn"], run.targets):
        if module is not None:
            module.to(device)
    clips = []
    with open_bar(len(items), "Measuring", "clips", quiet=quiet) as bar:
        for start in range(0, len(items), _BATCH):
            some = items[start : start + _BATCH]
            clips += _measure(run, model, some, device)
            bar.update(len(some))
    return clips, notes


def _measure(run, model, items, device):
    batch = CropCollator()([item for item, *_ in items]).to(device)
    codes = batch.targets
    if codes is None:
        codes = run.targets.encode(batch.wavs, batch.lengths)
    front_end = model.encoder.front_end
    wavs, codes = on_frames_of(front_end, batch.wavs, codes)
    masker = run.hparams["masker"]
    mask = masker(batch.num_frames, batch.seeds, codes.shape[1], padded=not batch.full)
    logits = model(wavs, mask)
    loss = run.hparams["loss_fn"](logits, codes, mask)
    best = torch.where(mask.hidden[..., None], logits.argmax(-1), codes)
    lengths = batch.lengths.tolist()
    frames = encode_in_chunks(model.encoder, batch.wavs, lengths)
    for i, (_, name, corpus, label) in enumerate(items):
        count = int(batch.num_frames[i])
        hidden = mask.hidden[i, :count]
        yield MeasuredClip(
            *(name, corpus, label),
            wav=batch.wavs[i, : lengths[i]].cpu(),
            hidden=hidden.cpu(),
            codes=codes[i, :count],
            filled=best[i, :count],
            ce=loss.ce[i, :count][hidden].mean().item(),
            accuracy=loss.right[i, :count, 0][hidden].double().mean().item(),
            vector=frames[i].float().mean(0).cpu(),
        )


def _esc50_labels(rows):
    """Labels of files in ESC-50's layout: path -> label."""
    folder = Path(rows[0]["wav"]).parent.parent if rows else Path()
    if not any(folder.glob("meta/*.csv")):
        return {}
    try:
        return {str(clip.wav): clip.labels[0] for clip in find_clips("esc50", folder)}
    except (UserError, FileNotFoundError):
        return {}


def decoder_of(run):
    """The codec that turns codes into sound; None for other targets."""
    return run.targets if isinstance(run.targets, FrozenCodec) else None
