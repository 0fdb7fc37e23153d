r"""Packs corpora in tar shards, for disks and networks on which many files are slow.

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
import shlex
import sys
from pathlib import Path

import yaml

from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.manifest import check_folders
from encodecmae_sb.data.shards.indexing import index_shards
from encodecmae_sb.pipelines.extract import normalise_option
from encodecmae_sb.pipelines.pack import pack
from encodecmae_sb.pretrained.codec_files import BUNDLED
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    announce_demonstration,
    quit_on_user_errors,
)
from encodecmae_sb.utils.files import check_path, check_writable


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("shards_folder", type=Path, help="where the shards go")
    add("--data_folder", type=yaml.safe_load, help='a folder, or a list "[/a, /b]"')
    add("--shard_mb", type=float, default=512, help="of audio files; default: 512")
    add("--flac", action="store_true", help="pack 16- and 24-bit WAV as FLAC, exactly")
    add("--codes_folder", type=Path, help="codes to pack, of recipes/extract_codes.py")
    add("--seed", type=int, default=0, help="of the order of the files")
    add("--max_unusable", type=float, default=0.05, help="share of the files")
    add("--index", action="store_true", help="pack nothing, index the tar files there")
    args = parser.parse_args(argv)
    if args.data_folder is not None:
        check_path("data_folder", args.data_folder, several=True)
    if args.seed < 0 or not args.shard_mb > 0:
        raise UserError(
            f"seed={args.seed}, shard_mb={args.shard_mb}: a seed of 0 or more and a "
            "size above 0 are allowed."
        )
    return args


def main(argv):
    """Packs or indexes, and says what is there."""
    args = parse(argv)
    demonstration = args.data_folder is None and not args.index
    if args.index:
        check_folders(args.shards_folder)
    check_writable(args.shards_folder)
    if demonstration:
        announce_demonstration("packs")
    if args.index:
        shards, unusable = index_shards(args.shards_folder, args.max_unusable)
    else:
        options = args.flac, args.codes_folder, args.seed, args.max_unusable
        folders = args.shards_folder, args.data_folder
        shards, unusable = pack(*folders, args.shard_mb, *options)
    size = sum(shard["bytes"] for shard in shards)
    hours = sum(shard["seconds"] for shard in shards) / 3600
    yaml_file = f"hparams/{'mini' if demonstration else 'base'}.yaml"
    command = [
        *("python", "recipes/pretrain.py", yaml_file),
        *("--data_folder", str(args.shards_folder)),
        *(("--codec", BUNDLED) if demonstration else ()),
    ]
    if args.codes_folder is not None:
        repository = Path(__file__).parents[1]
        info = StoredCodes(args.codes_folder).info
        command += normalise_option(info, repository / yaml_file)
    print(
        f"\n{len(shards)} shards with {sum(shard['items'] for shard in shards)} files, "
        f"{hours:.2f} h, {size / 1e6:.1f} MB; {len(unusable)} files left out "
        f"(unusable_files.csv).\nNext:\n  {shlex.join(command)}"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
