r"""Encodes whole corpora once, so that pretraining need not do it in every step.

    python recipes/extract_codes.py codes --data_folder /data/LibriSpeech
    torchrun --standalone --nproc_per_node=8 recipes/extract_codes.py codes \
        --data_folder "[/data/LibriSpeech, /data/fma]"
    python recipes/pretrain.py hparams/base.yaml --data_folder ... --codes_folder codes

Without a data folder it is a demonstration on the small corpus in this repository and,
unless a codec is named, with the small codec in it. With `--hparams FILE` it stores the
targets that this yaml file names, with `--targets "!name:CLASS [ARGUMENT, ...]"` these.

A run that was interrupted goes on when the same command is given again, with any number
of processes. Later runs encode only what is new or has changed. An hour of audio takes
4.3 MB with 8 codebooks. Codes of files that have changed or gone stay in the folder,
unused; to be rid of them, delete it and extract again.

Codes are those of whole files. At the end it says how many of them differ from those of
a crop alone, as pretraining from audio would encode it.
"""

import argparse
import functools
import shlex
import sys
from pathlib import Path

import yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import StoredCodes, data_folder_option
from encodecmae_sb.data.manifest import check_folders, prepare_corpora
from encodecmae_sb.data.unusable import write_unusable
from encodecmae_sb.lobes import Codec
from encodecmae_sb.nnet.targets import build
from encodecmae_sb.pipelines import extract as pipeline
from encodecmae_sb.pretrained.codec_files import BUNDLED, OFFICIAL, demonstration_codec
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    announce_demonstration,
    choose_device,
    join_processes,
    load_key,
    main_process_first,
    quit_on_user_errors,
)
from encodecmae_sb.utils.files import check_path
from encodecmae_sb.utils.preemption import note_end_in


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("codes_folder", type=Path)
    add("--data_folder", type=yaml.safe_load, help='a folder, or a list "[/a, /b]"')
    add("--codec", help=f"{OFFICIAL} (default), {BUNDLED}, or a checkpoint file")
    add("--n_codebooks", type=int, help="default: 8, or what the yaml says")
    add(
        "--normalise",
        type=yaml.safe_load,
        default=argparse.SUPPRESS,
        help="level: codes of a codec that do not depend on the level; null: they do",
    )
    add("--hparams", help="a yaml file whose key `targets` names what to store")
    add("--targets", help="what it would say: '!name:CLASS [ARGUMENT, ...]'")
    add(
        "--batch_seconds",
        type=float,
        help="of a batch; default: 16 on a CPU, 256 on a GPU",
    )
    add("--device", help="default: cuda where there is one, else cpu")
    add("--num_workers", type=int, default=2, help="readers per process")
    add("--max_unusable", type=float, default=0.05, help="share of the files")
    args = parser.parse_args(argv)
    if args.data_folder is not None:
        check_path("data_folder", args.data_folder, several=True)
    for key in ("batch_seconds", "n_codebooks"):
        if vars(args)[key] is not None and vars(args)[key] <= 0:
            raise UserError(f"{key}={vars(args)[key]}: give a positive number.")
    return args


def choose_targets(args):
    """What builds the targets: a codec, or what a yaml names."""
    given = vars(args)
    given = {k: given[k] for k in ("data_folder", "codec", "n_codebooks") if given[k]}
    if "normalise" in args:  # null, too, says something
        given["normalise"] = args.normalise
    if args.targets:
        return load_hyperpyyaml(f"targets: {args.targets}")["targets"]
    if args.hparams:
        return load_key(args.hparams, "targets", given, demonstration_codec)
    codec = args.codec or (OFFICIAL if args.data_folder else BUNDLED)
    return functools.partial(
        Codec, codec, given.get("n_codebooks", 8), given.get("normalise")
    )


def report(args, targets, corpora, manifests, device):
    """Writes down what could not be read, and says what is there and what is next."""
    folder = args.codes_folder
    stored = StoredCodes(folder)
    codes = stored.of_manifests(manifests, targets.n_codebooks, "the same again")
    unusable = [item for corpus in corpora for item in corpus.unusable]
    unusable += [item for files in codes for item in files.unreadable]
    write_unusable(folder / "unusable_files.csv", unusable)
    files = sum(len(part.frames) for part in codes)
    hours = sum(float(part.seconds.sum()) for part in codes) / 3600
    size = sum(file.stat().st_size for file in folder.glob("part-*"))
    print(
        f"\nCodes of {files} files, {hours:.2f} h; {len(unusable)} files left out or "
        f"cut short (unusable_files.csv).\n{folder} takes {size / 1e6:.1f} MB."
    )
    pipeline.print_differences(targets, manifests, codes, device, args.batch_seconds)
    default = f"hparams/{'base' if args.data_folder else 'mini'}.yaml"
    options = []
    if targets.kind == "codec":
        options = ["--codec", targets.name]
        yaml_file = args.hparams or Path(__file__).parents[1] / default
        options += pipeline.normalise_option(stored.info, yaml_file)
    if args.targets:
        sizes = targets.n_codebooks, targets.codebook_size
        options = ["--n_codebooks", str(sizes[0]), "--codebook_size", str(sizes[1])]
        options += ["--targets", args.targets]
    options = [*data_folder_option(args.data_folder), *options]
    command = [args.hparams or default, *options, "--codes_folder", str(folder)]
    print(f"\nNext:\n  python recipes/pretrain.py {shlex.join(command)}")


def main(argv):
    """Encodes what the command line describes."""
    args = parse(argv)
    folders, folder = args.data_folder or corpus_folders(), args.codes_folder
    check_folders(folders)
    join_processes()
    device = choose_device(args.device)
    args.batch_seconds = args.batch_seconds or pipeline.default_batch_seconds(device)
    if not args.data_folder:
        announce_demonstration("encodes")
    targets = main_process_first(build, choose_targets(args)).to(device)
    pipeline.open_folder(targets, folder)
    note_end_in(folder)
    where, most = folder / "manifests", args.max_unusable
    corpora = main_process_first(prepare_corpora, folders, where, most)
    manifests = [file for c in corpora for file in (c.train_csv, c.valid_csv)]
    settings = args.batch_seconds, args.num_workers, most
    pipeline.extract(targets, manifests, folder, device, *settings)
    if if_main_process():
        report(args, targets, corpora, manifests, device)


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
