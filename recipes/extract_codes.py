r"""Encodes whole corpora once, so that pretraining need not do it in every step.

    python recipes/extract_codes.py codes --data_folder /data/LibriSpeech
    torchrun --standalone --nproc_per_node=8 recipes/extract_codes.py codes \
        --data_folder "[/data/LibriSpeech, /data/fma]"
    python recipes/pretrain.py hparams/base.yaml --data_folder ... --codes_folder codes

Without a data folder it is a demonstration on the small corpus in this repository
and, unless a codec is named, with the small codec in it.

Files are encoded in batches of like length, by every process its share. A run that
was interrupted goes on when the same command is given again, with any number of
processes; later runs encode only what is new or has changed. An hour of audio takes
4.3 MB with 8 codebooks. Codes of files that have since changed or gone stay in the
folder, unused: to be rid of them, delete it and extract again.

A file's codes are those of the whole file. Files of more than a minute are encoded
minute by minute, each with the 4 s before it. EnCodec's convolutions see less than
that, its LSTM in theory everything: with the bundled codec, of 90 000 codes of a
recording of 3 minutes 320 differed from those of the whole with 0.5 s before each
piece, 173 with 1 s, 1 with 2 s, none with 4 s.

At the end it says how many codes differ between stored ones and those of a crop
alone, as pretraining from audio would encode it.
"""

import argparse
import math
import os
import shlex
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch.utils.data import DataLoader
from tqdm import tqdm

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import (
    CodesInfo,
    CodesPart,
    StoredCodes,
    data_folder_option,
    file_stamp,
    prepare_codes,
)
from encodecmae_sb.data.crops import CropCollator, RandomCrops
from encodecmae_sb.data.manifest import check_folders, prepare_corpora
from encodecmae_sb.data.stored import HOP, SAMPLE_RATE, FilePieces
from encodecmae_sb.data.unusable import write_unusable
from encodecmae_sb.lobes import Codec
from encodecmae_sb.pretrained.codec_files import BUNDLED, OFFICIAL, checksum
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    choose_device,
    main_process_first,
    quit_on_user_errors,
)
from encodecmae_sb.utils.files import check_path

PIECE = 60 * SAMPLE_RATE
CONTEXT = 4 * SAMPLE_RATE
# EnCodec mirrors the first frames of a signal: in a shorter one, they depend on
# where it ends. From this length on, padding changes nothing before it.
PADDABLE = 7 * HOP
COMPARED_CROPS = 64
LEFT_EDGE = 10  # frames of a crop that miss the most context

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
    "[{elapsed}, {remaining} left,{rate_noinv_fmt}]"
)


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("codes_folder", type=Path)
    parser.add_argument(
        "--data_folder",
        type=yaml.safe_load,
        help='a folder of audio, or a list: "[/data/a, /data/b]"',
    )
    parser.add_argument(
        "--codec", help=f"{OFFICIAL} (default), {BUNDLED}, or a checkpoint file"
    )
    parser.add_argument("--n_codebooks", type=int, default=8)
    parser.add_argument(
        "--batch_seconds",
        type=float,
        help="audio encoded at once (EnCodec takes about 20 MB of memory per second); "
        "default: 16 on a CPU, where less is faster, else 320",
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="readers per process"
    )
    parser.add_argument(
        "--max_unusable",
        type=float,
        default=0.05,
        help="stop when a larger share of the files is unusable",
    )
    args = parser.parse_args(argv)
    if args.data_folder is not None:
        check_path("data_folder", args.data_folder, several=True)
    if args.batch_seconds is not None and args.batch_seconds <= 0:
        raise UserError(f"batch_seconds={args.batch_seconds}: give a positive number.")
    args.demonstration = not args.data_folder
    args.codec = args.codec or (BUNDLED if args.demonstration else OFFICIAL)
    args.folders = args.data_folder or corpus_folders()
    return args


class PieceBatch(NamedTuple):
    """Pieces of files: padded samples [B, N], and of each the numbers of samples and
    of those among them that lie before the piece, and why it could not be read."""

    wavs: torch.Tensor
    lengths: list
    contexts: list
    reasons: list


def collate(pieces):
    """Pads pieces, in the reader, so that one tensor crosses to this process."""
    wavs = [torch.zeros(0) if piece.wav is None else piece.wav for piece in pieces]
    return PieceBatch(
        torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True),
        [len(wav) for wav in wavs],
        [piece.context for piece in pieces],
        [piece.reason for piece in pieces],
    )


def encode(codec, batch, device):
    """Codes of each piece's whole frames, uint16, shape [T, Q]."""
    if not batch.wavs.shape[1]:  # none could be read
        return [np.zeros((0, codec.n_codebooks), np.uint16) for _ in batch.lengths]
    try:
        codes = codec.encode(batch.wavs.to(device)).cpu().numpy().astype(np.uint16)
    except torch.OutOfMemoryError as error:
        seconds = batch.wavs.numel() / SAMPLE_RATE
        raise UserError(
            f"Out of memory on {device} with {seconds:.0f} s of audio at once: lower "
            "--batch_seconds. What is stored is kept."
        ) from error
    return [
        item[context // HOP : length // HOP]
        for item, length, context in zip(
            codes, batch.lengths, batch.contexts, strict=True
        )
    ]


def plan(lengths, batch_samples):
    """Groups of files that are encoded and stored at once.

    Arguments
    ---------
    lengths : list of int
        Samples of each file at 24 kHz, in ascending order.
    batch_samples : int
        At most so many samples with padding, unless it is one file.

    Returns
    -------
    list of range
        Files of each group. They do not depend on how many processes there are, so
        that the codes do not either, to the last bit.
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
    """Files that are encoded and stored at once, with their paths and stamps, and
    their pieces, batch by batch."""

    files: list
    paths: list
    stamps: list
    batches: list


def missing_jobs(pieces, groups, stored, batch_samples):
    """What is left of groups of files.

    Arguments
    ---------
    pieces : FilePieces
        Of all files.
    groups : list of range
        This process' share of what `plan` gives.
    stored : StoredCodes
        What is there.
    batch_samples : int

    Returns
    -------
    list of Job
    """
    jobs = []
    for group in groups:
        files, paths, stamps = [], [], []
        for file in group:
            path = pieces.paths[file]
            # What could not be read may be back.
            if stored.frames(path) is None or stored.entries[path].reason:
                files.append(file)
                paths.append(path)
                # Now: a file that changes after this will be found to have changed.
                stamps.append(stamp_of(path))
        if not files:
            continue
        items = [i for f in files for i in range(pieces.first[f], pieces.first[f + 1])]
        longest = min(int(pieces.lengths[files[-1]]), PIECE + CONTEXT)
        size = max(1, batch_samples // longest)
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        jobs.append(Job(files, paths, stamps, batches))
    return jobs


def join(pieces, files, encoded):
    """Puts the pieces of files together again.

    Arguments
    ---------
    pieces : FilePieces
    files : list of int
    encoded : iterator of (numpy.ndarray, str)
        Codes of each piece, shape [T, Q], and why it could not be read.

    Yields
    ------
    codes : numpy.ndarray
        Of a file as far as it could be read, shape [T, Q].
    reason : str
        Why not to the end.
    """
    for file in files:
        count = int(pieces.first[file + 1] - pieces.first[file])
        parts, reasons = zip(*(next(encoded) for _ in range(count)), strict=True)
        reason = next(filter(None, reasons), "")
        if reason:  # what stands before is of use; the empty piece gives the shape
            parts = parts[: reasons.index(reason) + 1]
        yield np.concatenate(parts), reason


def extract(codec, pieces, args, device, rank=0, world_size=1):
    """Encodes this process' share of the files that have no codes yet.

    Arguments
    ---------
    codec : Codec
        On the device.
    pieces : FilePieces
        Of all files, shorter ones first.
    args : argparse.Namespace
        See `parse`.
    device : torch.device
    rank, world_size : int
        This process and how many there are.
    """
    batch_samples = int(args.batch_seconds * SAMPLE_RATE)
    share = plan(pieces.lengths.tolist(), batch_samples)[rank::world_size]
    stored = StoredCodes(args.codes_folder)
    jobs = missing_jobs(pieces, share, stored, batch_samples)
    loader = DataLoader(
        pieces,
        batch_sampler=[batch for job in jobs for batch in job.batches],
        collate_fn=collate,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
    )
    part, unreadable = CodesPart(args.codes_folder, codec.n_codebooks), 0
    samples = sum(pieces.lengths[group].sum() for group in share)
    done = samples - sum(pieces.lengths[job.files].sum() for job in jobs)
    with open_bar(samples, done, rank, world_size, quiet=not jobs) as bar:

        def encoded():
            for batch in loader:
                codes = encode(codec, batch, device)
                bar.update((sum(batch.lengths) - sum(batch.contexts)) / SAMPLE_RATE)
                yield from zip(codes, batch.reasons, strict=True)

        stream = encoded()
        for job in jobs:
            codes, reasons = zip(*join(pieces, job.files, stream), strict=True)
            files = list(zip(job.paths, job.stamps, reasons, strict=True))
            part.append(files, codes)
            unreadable += sum(map(bool, reasons))
            total = len(pieces.paths)
            if unreadable > args.max_unusable * total:
                path, _, why = next(file for file in files if file[2])
                raise UserError(
                    f"{unreadable} of {total} audio files could not be read, such "
                    f"as {path}: {why}. That is more than max_unusable="
                    f"{args.max_unusable} allows. Is the disk with the audio still "
                    "there? If so, repair or remove them, or raise --max_unusable."
                )


def open_bar(samples, done, rank, world_size, quiet):
    """A progress bar over the seconds of audio of a process; the first one's shows."""
    return tqdm(
        total=math.ceil(samples / SAMPLE_RATE),
        initial=done / SAMPLE_RATE,
        desc="Encoding" + (f", process 1 of {world_size}" if world_size > 1 else ""),
        unit=" s",
        bar_format=_BAR,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        smoothing=0.1,
        disable=quiet or rank > 0,
    )


def stamp_of(path):
    """A file's stamp; one that fits nothing if it has gone."""
    try:
        return file_stamp(path)
    except OSError:
        return (0, 0)


@torch.no_grad()
def compare_crops(codec, manifests, targets, seconds, device, batch_seconds):
    """Share of codes that differ between a crop encoded alone and its whole file.

    Arguments
    ---------
    codec : Codec
    manifests : list of Path
    targets : list of FileCodes
        One per manifest.
    seconds : float
        Length of the crops; where files are shorter, they are left out.
    device : torch.device
    batch_seconds : float

    Returns
    -------
    numpy.ndarray or None
        Shape [T, Q], the share of crops in which a code differs; None if there are
        none of this length.
    """
    crops = RandomCrops(manifests, seconds, SAMPLE_RATE, targets=targets)
    items = [crops[draw] for draw in range(COMPARED_CROPS)]
    wanted = round(seconds * SAMPLE_RATE / HOP)
    items = [item for item in items if len(item["targets"]) == wanted]
    if not items:
        return None
    differ = np.zeros((wanted, codec.n_codebooks))
    size = max(1, int(batch_seconds / seconds))
    for start in range(0, len(items), size):
        batch = CropCollator()(items[start : start + size])
        codes = codec.encode(batch.wavs.to(device)).cpu()
        differ += (codes != batch.targets).sum(0).numpy()
    return differ / len(items)


def report(args, codec, corpora, device):
    """Writes down what could not be read, and says what is there and what is next."""
    folder = args.codes_folder
    manifests = [file for c in corpora for file in (c.train_csv, c.valid_csv)]
    stored = StoredCodes(folder)
    codes = stored.of_manifests(manifests, args.n_codebooks, "the same again")
    unusable = [item for corpus in corpora for item in corpus.unusable]
    unusable += [item for targets in codes for item in targets.unreadable]
    write_unusable(folder / "unusable_files.csv", unusable)
    files = sum(len(targets.frames) for targets in codes)
    hours = sum(float(targets.seconds.sum()) for targets in codes) / 3600
    size = sum(file.stat().st_size for file in folder.glob("part-*"))
    print(
        f"\nCodes of {files} files, {hours:.2f} h; {len(unusable)} files left out or "
        f"cut short (unusable_files.csv).\n{folder} takes {size / 1e6:.1f} MB."
    )
    header = "\nCodes that differ between a crop alone and its file (codebook 1, all):"
    for seconds in (1.0, 4.0):
        differ = compare_crops(
            codec, manifests, codes, seconds, device, args.batch_seconds
        )
        if differ is None:
            continue
        if header:
            print(header)
            header = ""
        print(f"  {seconds:.0f} s crops: " + "; ".join(shares(differ)))
    options = ["--codec", args.codec, "--codes_folder", str(folder)]
    command = [*data_folder_option(args.data_folder), *options]
    print(
        "\nNext:\n  python recipes/pretrain.py hparams/"
        f"{'mini' if args.demonstration else 'base'}.yaml {shlex.join(command)}"
    )


def shares(differ):
    """Parts of a crop, and the share of their codes that differ, as text."""
    for name, part in (
        ("all frames", differ),
        (f"first {LEFT_EDGE}", differ[:LEFT_EDGE]),
        ("the others", differ[LEFT_EDGE:]),
    ):
        yield f"{name} {100 * part[:, 0].mean():.2f} %, {100 * part.mean():.2f} %"


def main(argv):
    """Encodes what the command line describes."""
    args = parse(argv)
    check_folders(args.folders)
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        # Only to wait for one another, at the beginning and the end, however long.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    device = choose_device(args.device)
    args.batch_seconds = args.batch_seconds or (16 if device.type == "cpu" else 320)
    if if_main_process() and args.demonstration:
        print(
            "DEMONSTRATION: no --data_folder was given, so this run encodes the\n"
            "small synthetic corpus in this repository. For a real one: --data_folder\n"
            "FOLDER, any folder of audio.",
            flush=True,
        )
    codec = main_process_first(Codec, args.codec, args.n_codebooks).to(device)
    info = CodesInfo(
        args.codec, checksum(args.codec), codec.n_codebooks, codec.codebook_size
    )
    main_process_first(prepare_codes, args.codes_folder, info)
    corpora = main_process_first(
        prepare_corpora,
        args.folders,
        args.codes_folder / "manifests",
        args.max_unusable,
    )
    manifests = [file for c in corpora for file in (c.train_csv, c.valid_csv)]
    pieces = FilePieces(manifests, PIECE, HOP - 1, CONTEXT, by_length=True)
    if if_main_process():
        hours = pieces.lengths.sum() / SAMPLE_RATE / 3600
        print(
            f"Codec: {args.codec}, {codec.n_codebooks} codebooks; {len(pieces.paths)} "
            f"files, {hours:.2f} h; {world_size} x {device.type}",
            flush=True,
        )
    extract(codec, pieces, args, device, rank, world_size)
    ddp_barrier()
    if if_main_process():
        report(args, codec, corpora, device)


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
