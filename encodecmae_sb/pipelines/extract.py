"""Encodes whole corpora once and stores the codes, for any targets.

A file's codes are those of the whole file. A long file is encoded in chunks, each with
the context that its targets ask for. Files are encoded in batches of similar length;
every process has its share of them. A run that was interrupted goes on when it is
started again, with any number of processes.
"""

import contextlib
import functools
import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from encodecmae_sb.data.codes import (
    CodesInfo,
    CodesPart,
    StoredCodes,
    file_stamp,
    prepare_codes,
)
from encodecmae_sb.data.crops import CropCollator, RandomCrops
from encodecmae_sb.data.stored import FileChunks
from encodecmae_sb.utils.digests import without_normalisation
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    load_key,
    main_process_first,
    patient_barrier,
)
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.precision import exact_float32
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.threads import map_on_threads

# EnCodec mirrors the first frames of a signal. The codes of a signal shorter than this
# therefore depend on its padding, and it is encoded alone.
PADDABLE = 7 * HOP
COMPARED_CROPS = 64
LEFT_EDGE = 10  # frames of a crop that miss the most context


def default_batch_seconds(device):
    """Audio of a batch on a `torch.device`, where nothing else is said."""
    return 16 if device.type == "cpu" else 256


class ChunkBatch(NamedTuple):
    """Chunks of files as a batch.

    Padded samples, shape [B, N], and for each chunk: its samples, how many of them are
    context before the chunk, and why it could not be read.
    """

    wavs: torch.Tensor
    lengths: list
    contexts: list
    reasons: list


def collate(chunks):
    """Pads chunks, in the reader's process, so that one tensor is passed on."""
    wavs = [torch.zeros(0) if chunk.wav is None else chunk.wav for chunk in chunks]
    return ChunkBatch(
        torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True),
        [len(wav) for wav in wavs],
        [chunk.context for chunk in chunks],
        [chunk.reason for chunk in chunks],
    )


@torch.no_grad()
def encode(targets, batch, device):
    """Codes of each chunk's whole frames, uint16, shape [T, Q]."""
    if not batch.wavs.shape[1]:  # none could be read
        return [np.zeros((0, targets.n_codebooks), np.uint16) for _ in batch.lengths]
    try:
        lengths = torch.tensor(batch.lengths, device=device)
        codes = targets.encode(batch.wavs.to(device), lengths)
        codes = codes.cpu().numpy().astype(np.uint16)
    except torch.OutOfMemoryError as error:
        seconds = batch.wavs.numel() / SAMPLE_RATE
        raise UserError(
            f"Out of memory on {device} with {seconds:.0f} s of audio at once: lower "
            "--batch_seconds (in self-training --encode_batch_size; a pretraining has "
            "no such key: store its targets with recipes/extract_codes.py). What is "
            "stored is kept."
        ) from error
    return [
        item[context // HOP : length // HOP]
        for item, length, context in zip(
            codes, batch.lengths, batch.contexts, strict=True
        )
    ]


def _encode_all(targets, batches, device):
    """Pairs of each batch and its codes, in order.

    On a CPU several batches are encoded at once, on one thread each: convolutions of
    few channels gain little from two threads. So codes do not depend on the number of
    threads either.
    """
    if device.type != "cpu":
        yield from ((batch, encode(targets, batch, device)) for batch in batches)
        return
    # Entered here, because what it switches belongs to all threads.
    with exact_float32(device.type):
        run = functools.partial(encode, targets, device=device)
        with contextlib.closing(map_on_threads(run, batches)) as pairs:
            yield from pairs


def plan(lengths, batch_samples):
    """Groups of files that are encoded and stored at once.

    Arguments
    ---------
    lengths : list of int
        Samples of each file at 24 kHz, in ascending order.
    batch_samples : int
        At most this many samples with padding, unless it is one file.

    Returns
    -------
    list of range
        Files of each group. They do not depend on the number of processes. So codes
        do not depend on it either, to the last bit.

    Example
    -------
    >>> plan([9000, 9000, 9600, 24000], batch_samples=30000)
    [range(0, 3), range(3, 4)]
    """
    groups, first = [], 0
    for stop in range(1, len(lengths) + 1):
        full = stop == len(lengths) or (
            lengths[stop] * (stop + 1 - first) > batch_samples
            or lengths[stop - 1] < PADDABLE
        )
        if full:
            groups.append(range(first, stop))
            first = stop
    return groups


class Job(NamedTuple):
    """Files that are encoded and stored at once: numbers, paths, stamps, and the
    numbers of their chunks, batch by batch."""

    files: list
    paths: list
    stamps: list
    batches: list


def missing_jobs(chunks, groups, stored, batch_samples, retry=True):
    """What has to be encoded of groups of files.

    Arguments
    ---------
    chunks : FileChunks
        Of all files.
    groups : list of range
        This process' share of what `plan` gives.
    stored : StoredCodes
        What is there.
    batch_samples : int
        As for `plan`.
    retry : bool
        Encode files again that could not be read to the end.

    Returns
    -------
    list of Job
    """
    jobs = []
    for group in groups:
        files, paths, stamps = [], [], []
        for file in group:
            path = chunks.paths[file]
            if stored.frames(path) is None or (retry and stored.entries[path].reason):
                files.append(file)
                paths.append(path)
                # Take the stamp now: a file that changes later is then encoded again.
                stamps.append(_stamp_of(path))
        if not files:
            continue
        items = [i for f in files for i in range(chunks.first[f], chunks.first[f + 1])]
        most = chunks.chunk_samples + chunks.context_samples
        longest = min(int(chunks.lengths[files[-1]]), most)
        size = max(1, batch_samples // longest)
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        jobs.append(Job(files, paths, stamps, batches))
    return jobs


def _stamp_of(path):
    """A file's stamp; one that fits nothing if the file is gone."""
    try:
        return file_stamp(path)
    except OSError:
        return (0, 0)


def join(chunks, files, encoded):
    """Joins the codes of each file's chunks.

    Arguments
    ---------
    chunks : FileChunks
    files : list of int
    encoded : iterator of (numpy.ndarray, str)
        Codes of each chunk, shape [T, Q], and why it could not be read.

    Yields
    ------
    codes : numpy.ndarray
        Of a file as far as it could be read, shape [T, Q].
    reason : str
        Why not to the end.
    """
    for file in files:
        count = int(chunks.first[file + 1] - chunks.first[file])
        parts, reasons = zip(*(next(encoded) for _ in range(count)), strict=True)
        reason = next(filter(None, reasons), "")
        if reason:  # keep what is before it; the empty chunk itself gives the shape
            parts = parts[: reasons.index(reason) + 1]
        yield np.concatenate(parts), reason


def open_folder(targets, folder):
    """Makes a folder of codes of these targets, or makes sure that it is one.

    Raises
    ------
    UserError
        If it holds other codes, or cannot be written to.
    """
    sizes = targets.n_codebooks, targets.codebook_size
    main_process_first(prepare_codes, folder, CodesInfo(*targets.label, *sizes))


def extract(
    targets,
    manifests,
    folder,
    device,
    batch_seconds,
    num_workers,
    max_unusable,
    retry=True,
    quiet=False,
):
    """Stores the codes of all files that have none yet; each process does its share.

    Arguments
    ---------
    targets : Targets
        On the device.
    manifests : list of str or Path
    folder : str or Path
        Of codes; see `open_folder`.
    device : torch.device
    batch_seconds : float
        Audio of a batch. On a CPU up to 16 batches are encoded at once, as many as
        there are threads.
    num_workers : int
        Readers per process.
    max_unusable : float
        Share of the files that may be unreadable.
    retry : bool
        Look again at files that could not be read. Give False once a training has
        begun: its targets must not change.
    quiet : bool
        No progress bar.

    Raises
    ------
    UserError
        If memory is too small, or if too many files cannot be read. What is stored is
        kept.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    wait = patient_barrier()
    chunks = FileChunks(
        manifests, targets.chunk_samples, targets.context_samples, targets.shortest_tail
    )
    batch_samples = int(batch_seconds * SAMPLE_RATE)
    share = plan(chunks.lengths.tolist(), batch_samples)[rank::world_size]
    jobs = missing_jobs(chunks, share, StoredCodes(folder), batch_samples, retry)
    loader = DataLoader(
        chunks,
        batch_sampler=[batch for job in jobs for batch in job.batches],
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )
    part = CodesPart(folder, targets.n_codebooks)
    unreadable, total = 0, len(chunks.paths)
    seconds = sum(chunks.lengths[group].sum() for group in share) / SAMPLE_RATE
    left = sum(chunks.lengths[job.files].sum() for job in jobs) / SAMPLE_RATE
    if rank == 0 and jobs:
        print(
            f"Targets: {targets.label}, {targets.n_codebooks} codebooks; {total} files,"
            f" {chunks.lengths.sum() / SAMPLE_RATE / 3600:.2f} h; {world_size} x "
            f"{device.type}",
            flush=True,
        )
    bar = open_bar(
        seconds,
        "Encoding" + (f", process 1 of {world_size}" if world_size > 1 else ""),
        "s of audio",
        initial=seconds - left,
        quiet=quiet or not jobs or rank > 0,
    )

    def encoded():
        with contextlib.closing(_encode_all(targets, loader, device)) as pairs:
            for batch, codes in pairs:
                bar.update((sum(batch.lengths) - sum(batch.contexts)) / SAMPLE_RATE)
                yield from zip(codes, batch.reasons, strict=True)

    # Closed also after an error: as long as it is open, threads and precision are
    # other than before.
    with bar, contextlib.closing(encoded()) as stream:
        for job in jobs:
            codes, reasons = zip(*join(chunks, job.files, stream), strict=True)
            files = list(zip(job.paths, job.stamps, reasons, strict=True))
            part.append(files, codes)
            unreadable += sum(map(bool, reasons))
            if unreadable > max_unusable * total:
                path, _, why = next(file for file in files if file[2])
                raise UserError(
                    f"{unreadable} of {total} audio files could not be read, such "
                    f"as {path}: {why}. That is more than max_unusable="
                    f"{max_unusable} allows. Is the disk with the audio still "
                    "there? If so, repair or remove them, or raise --max_unusable."
                )
    wait()


def normalise_option(info, yaml_file):
    """What a pretraining by a yaml must be told to take stored codes.

    Arguments
    ---------
    info : CodesInfo
        Of the codes.
    yaml_file : str or Path

    Returns
    -------
    list of str
        Options for the command line; none if the yaml says it.
    """
    normalise = without_normalisation(info.fingerprint)[1]
    try:
        said = load_key(yaml_file, "normalise", {})
    except UserError:  # a yaml of one's own need not have the key
        said = None
    if info.kind != "codec" or said == normalise:
        return []
    return ["--normalise", normalise or "null"]


@torch.no_grad()
def compare_crops(targets, manifests, codes, seconds, device, batch_seconds):
    """Share of codes that differ between a crop encoded alone and its whole file.

    Arguments
    ---------
    targets : Targets
        On the device.
    manifests : list of Path
    codes : list of FileCodes
        One per manifest.
    seconds : float
        Length of the crops; shorter files are left out.
    device : torch.device
    batch_seconds : float
        Audio encoded at once.

    Returns
    -------
    numpy.ndarray or None
        Shape [T, Q], the share of crops in which a code differs; None if there are
        none of this length.
    """
    crops = RandomCrops(manifests, seconds, SAMPLE_RATE, targets=codes)
    items = [crops[draw] for draw in range(COMPARED_CROPS)]
    wanted = round(seconds * SAMPLE_RATE / HOP)
    items = [item for item in items if len(item["targets"]) == wanted]
    if not items:
        return None
    differ = np.zeros((wanted, targets.n_codebooks))
    size = max(1, int(batch_seconds / seconds))
    for start in range(0, len(items), size):
        batch = CropCollator()(items[start : start + size])
        alone = targets.encode(batch.wavs.to(device), batch.lengths.to(device)).cpu()
        differ += (alone != batch.targets).sum(0).numpy()
    return differ / len(items)


def print_differences(targets, manifests, codes, device, batch_seconds):
    """Prints what `compare_crops` finds for crops of 1 s and of 4 s."""
    header = (
        "\nCodes that differ between a crop alone and its file (codebook 1, all):\n"
    )
    for seconds in (1.0, 4.0):
        differ = compare_crops(
            targets, manifests, codes, seconds, device, batch_seconds
        )
        if differ is None:
            continue
        parts = {
            "all frames": differ,
            f"first {LEFT_EDGE}": differ[:LEFT_EDGE],
            "the others": differ[LEFT_EDGE:],
        }
        shares = [
            f"{name} {100 * part[:, 0].mean():.2f} %, {100 * part.mean():.2f} %"
            for name, part in parts.items()
        ]
        print(f"{header}  {seconds:.0f} s crops: " + "; ".join(shares))
        header = ""
