r"""Packs corpora in tar shards, for disks and networks that many files are slow on.

    python recipes/make_shards.py SHARDS_FOLDER --data_folder /data/LibriSpeech
    python recipes/make_shards.py SHARDS_FOLDER --data_folder "[/data/a, /data/b]" \
        --flac --codes_folder codes
    python recipes/pretrain.py hparams/base.yaml --data_folder SHARDS_FOLDER

Without a data folder it packs the small corpus in this repository. Training and
validation files, the same that pretraining would take, go to shards of their own,
`train-000000.tar`, ... and `valid-000000.tar`, ..., in random order, so that all
shards are alike. Audio files are packed as they are. Any program that reads the
WebDataset layout reads the shards; pretraining reads them in place, from a disk or a
network file system that is mounted.

`--index` indexes shards that came from elsewhere: tar files in which the files of an
item have one name, and one of them is WAV, FLAC, OGG or MP3. Of shards that were
packed here it makes the indexes again.

Makes, in the shards folder: the shards; an index beside each, `NAME.tar.csv`;
`shards.json`; `unusable_files.csv`. A run that was interrupted goes on when the same
command is given again.
"""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from tqdm import tqdm

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.manifest import check_folders, prepare_corpora, read_manifest
from encodecmae_sb.data.shards.packing import (
    PackItem,
    deal,
    index_shards,
    write_index,
    write_shard,
)
from encodecmae_sb.data.shards.reading import (
    FORMAT,
    INDEX,
    SPLITS,
    is_whole,
    read_index,
)
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.pretrained.codec_files import BUNDLED
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import quit_on_user_errors
from encodecmae_sb.utils.files import check_path, check_writable, write_text

_PLAN = "plan"  # the file that says what an unfinished folder will hold

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
    "[{elapsed}, {remaining} left{postfix}]"
)


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards_folder", type=Path, help="where the shards go")
    parser.add_argument(
        "--data_folder",
        type=yaml.safe_load,
        help='a folder of audio, or a list: "[/data/a, /data/b]"; default: the small '
        "corpus in this repository",
    )
    parser.add_argument(
        "--shard_mb",
        type=float,
        default=512,
        help="audio files per shard, in MB as they are found; default: %(default)s",
    )
    parser.add_argument(
        "--flac",
        action="store_true",
        help="pack WAV files of 16 or 24 bits as FLAC: half the size, nothing lost",
    )
    parser.add_argument(
        "--codes_folder",
        type=Path,
        help="pack the codes that recipes/extract_codes.py has stored there, too",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the files")
    parser.add_argument(
        "--max_unusable",
        type=float,
        default=0.05,
        help="stop when a larger share of the files is unusable; default: %(default)s",
    )
    parser.add_argument(
        "--index",
        action="store_true",
        help="pack nothing: index the tar files that are in the folder",
    )
    args = parser.parse_args(argv)
    if args.data_folder is not None:
        check_path("data_folder", args.data_folder, several=True)
    if args.seed < 0 or not args.shard_mb > 0:
        raise UserError(
            f"seed={args.seed}, shard_mb={args.shard_mb}: a seed of 0 or more and a "
            "size above 0 are allowed."
        )
    return args


def list_items(corpora, codes):
    """What is to be packed, per split."""
    items = {split: [] for split in SPLITS}
    for corpus, of_train, of_valid in zip(corpora, *codes, strict=True):
        for split, file, stored in zip(
            SPLITS,
            (corpus.train_csv, corpus.valid_csv),
            (of_train, of_valid),
            strict=True,
        ):
            for number, row in enumerate(read_manifest(file)):
                read = stored and (
                    lambda n=number, stored=stored: stored.read(n, 0, stored.frames[n])
                )
                size = os.stat(row["wav"]).st_size
                items[split].append(PackItem(corpus.name, row, size, read))
    return items


def load_codes(args, corpora):
    """What the codes are, and those of each corpus, training and validation."""
    if args.codes_folder is None:
        nothing = [None] * len(corpora)
        return None, (nothing, nothing)
    stored = StoredCodes(args.codes_folder)
    info = stored.info
    codes = [
        stored.of_manifests(
            [getattr(corpus, f"{split}_csv") for corpus in corpora],
            info.n_codebooks,
            stored.extract_command(args.data_folder),
        )
        for split in SPLITS
    ]
    return info, codes


def check_plan(folder, plan):
    """Makes sure that a folder is empty, or what was begun there is what is wanted."""
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


def pack(args):
    """Packs what the command line describes."""
    folder = args.shards_folder
    if args.data_folder is None:
        print(
            "DEMONSTRATION: no --data_folder was given, so this run packs the small\n"
            "synthetic corpus in this repository. For a real one: --data_folder "
            "FOLDER.",
            flush=True,
        )
    folders = args.data_folder or corpus_folders()
    corpora = prepare_corpora(folders, folder / "manifests", args.max_unusable)
    info, codes = load_codes(args, corpora)
    items = list_items(corpora, codes)
    every = [item for split in SPLITS for item in items[split]]
    files = [[item.corpus, item.row, item.size] for item in every]
    settings = [args.shard_mb, args.flac, args.seed, str(info)]
    plan = digest([FORMAT, settings, files])
    check_plan(folder, plan)
    unusable = UnusableFiles(
        folder / "unusable_files.csv",
        sum(corpus.num_files for corpus in corpora),
        args.max_unusable,
        recheck=False,  # what a finished shard lacks it lacks, readable again or not
    )
    for corpus in corpora:
        unusable.add(corpus.unusable)
    shards = []
    with tqdm(
        total=sum(float(item.row["duration"]) for item in every),
        desc="Packing",
        bar_format=_BAR,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    ) as bar:
        for split in SPLITS:
            key = 0
            dealt = deal(items[split], int(args.shard_mb * 1e6), args.seed)
            for number, some in enumerate(dealt):
                path = folder / f"{split}-{number:06d}.tar"
                shards.append(path)
                bar.set_postfix_str(path.name, refresh=False)
                if is_whole(path):  # finished before
                    seconds = sum(float(item.row["duration"]) for item in some)
                    bar.initial += seconds
                    bar.update(seconds)
                else:
                    unusable.add(write_shard(path, some, key, args.flac, bar.update))
                key += len(some)
    shards = write_index(folder, shards, info, plan)
    # Missing if the same was packed by another process at the same time.
    (folder / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / "manifests", ignore_errors=True)
    return shards, unusable


def main(argv):
    """Packs or indexes, and says what is there."""
    args = parse(argv)
    if args.index:
        check_folders(args.shards_folder)
    check_writable(args.shards_folder)
    if args.index:
        shards, unusable = index_shards(args.shards_folder, args.max_unusable)
    else:
        shards, unusable = pack(args)
    size = sum(shard["bytes"] for shard in shards)
    hours = sum(shard["seconds"] for shard in shards) / 3600
    demonstration = args.data_folder is None and not args.index
    command = [
        *("python", "recipes/pretrain.py"),
        f"hparams/{'mini' if demonstration else 'base'}.yaml",
        *("--data_folder", str(args.shards_folder)),
        *(("--codec", BUNDLED) if demonstration else ()),
    ]
    print(
        f"\n{len(shards)} shards with {sum(shard['items'] for shard in shards)} files, "
        f"{hours:.2f} h, {size / 1e6:.1f} MB; {len(unusable)} files left out "
        f"(unusable_files.csv).\nNext:\n  {shlex.join(command)}"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
