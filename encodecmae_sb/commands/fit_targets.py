"""Fits targets for pretraining: mel_rvq, random_projection, clusters.

    python recipes/fit_targets.py mel_rvq results/targets/mel_rvq.safetensors
    python recipes/fit_targets.py random_projection FILE --data_folder /data/speech
    python recipes/fit_targets.py clusters FILE --encoder_folder ENCODER_FOLDER

Takes random clips of the corpora, without a data folder of the small corpus in this
package, and writes one file. `docs/targets.md` says what the targets are. The file must
stay as it is for as long as a training uses it.
"""

import argparse
import json
import shlex
from pathlib import Path

import yaml

from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.commands import LAYERS, layer
from encodecmae_sb.data.codes import data_folder_option
from encodecmae_sb.data.manifest import check_folders
from encodecmae_sb.pipelines.fit_targets import (
    Clips,
    fit_clusters,
    fit_mel_rvq,
    fit_random_projection,
)
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import announce_demonstration, choose_device
from encodecmae_sb.utils.files import check_path, check_writable

# For each kind: what fits it, what a yaml calls it, and its options with their
# defaults. An option without a default must be given.
_MEL = {"n_codebooks": 8, "codebook_size": 1024, "n_mels": 64, "stack": 3}
_KINDS = {
    "mel_rvq": (fit_mel_rvq, "MelRVQ", {**_MEL, "passes": 10}),
    "random_projection": (
        fit_random_projection,
        "RandomProjection",
        {**_MEL, "dim": 16},
    ),
    "clusters": (
        fit_clusters,
        "Clusters",
        {
            "encoder_folder": None,
            "layer": "last_no_norm",
            "codebook_size": 256,
            "passes": 10,
        },
    ),
}


def parse(argv):
    """The command line: general options, and those of the kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=list(_KINDS))
    add("file", type=Path, help="to write, such as results/targets/mel_rvq.safetensors")
    add("--data_folder", type=yaml.safe_load, help='a folder, or a list "[/a, /b]"')
    add("--clips", type=int, default=400, help="of 4 s at most")
    add("--seed", type=int, default=0)
    add("--n_codebooks", type=int, help="default: 8; clusters have one")
    add("--codebook_size", type=int, help="default: 1024; of clusters 256")
    add("--n_mels", type=int, help="mel bins; default: 64")
    add("--stack", type=int, help="frames side by side; default: 3")
    add("--passes", type=int, help="of k-means over all frames; default: 10")
    add("--dim", type=int, help="of random projections; default: 16")
    add("--encoder_folder", help="whose frames are clustered: a folder, or a name")
    add(
        "--layer",
        type=layer,
        help=f"{LAYERS}; default: last_no_norm".replace("all, ", ""),
    )
    add("--device", help="default: cuda where there is one, else cpu")
    add("--num_workers", type=int, default=2, help="processes that read audio")
    add("--max_unusable", type=float, default=0.05, help="share of the files")
    args = parser.parse_args(argv)
    return args, _options_of_kind(args)


def _options_of_kind(args):
    """Options that the kind has, with defaults; any other one is an error."""
    every = {name for _, _, options in _KINDS.values() for name in options}
    own = _KINDS[args.kind][2]
    for name in sorted(every - own.keys()):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name}: {args.kind} has no such option. It has "
                + ", ".join(f"--{option}" for option in own)
            )
    options = {}
    for name, default in own.items():
        given = getattr(args, name)
        options[name] = default if given is None else given
        if options[name] is None:
            raise UserError(f"{args.kind} needs --{name}: give it.")
    for name, value in {**options, "clips": args.clips}.items():
        if name != "layer" and isinstance(value, int) and value < 1:
            raise UserError(f"--{name} {value}: give a whole number of at least 1.")
    return options


def main(argv):
    """Fits what the command line describes; returns the exit status."""
    args, options = parse(argv)
    fit, name, _ = _KINDS[args.kind]
    if args.data_folder is not None:
        check_path("data_folder", args.data_folder, several=True)
        check_folders(args.data_folder)
    if args.file.exists():
        raise UserError(
            f"{args.file} is there already. A training may need it as it is: give "
            "another name, or delete it first."
        )
    check_writable(args.file.parent)
    if not args.data_folder:
        announce_demonstration("takes clips of")
    settings = args.clips, args.seed, args.num_workers, args.max_unusable
    clips = Clips(args.data_folder or corpus_folders(), *settings)
    size = options["codebook_size"]
    if "encoder_folder" in options:
        options["encoder"] = options.pop("encoder_folder")
    fitted = fit(args.file, clips, **options, device=choose_device(args.device))
    print(
        f"\n{args.kind} of {fitted.num_frames} frames ({args.clips} clips), "
        f"fingerprint {fitted.fingerprint}, in {args.file}:\n{fitted.table()}"
    )
    words = [f"!name:encodecmae_sb.lobes.{name} [{json.dumps(str(args.file))}]"]
    words += ["--n_codebooks", str(len(fitted.counts)), "--codebook_size", str(size)]
    words += data_folder_option(args.data_folder)
    default = f"hparams/{'base' if args.data_folder else 'mini'}.yaml"
    command = shlex.join([default, "--targets", *words])
    print(f"\nNext:\n  python recipes/pretrain.py {command}")
    return 0
