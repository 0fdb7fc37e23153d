r"""Pretrains EnCodecMAE: hide half of the audio, predict its codes.

    python recipes/pretrain.py hparams/mini.yaml
    python recipes/pretrain.py hparams/base.yaml --data_folder /data/LibriSpeech
    torchrun --standalone --nproc_per_node=8 recipes/pretrain.py hparams/base.yaml \
        --data_folder "[/data/LibriSpeech, /data/fma]"

Without a data folder the run is a demonstration on the small corpus in this
repository and, unless a codec is named, with the small codec in it. With
`--codes_folder`, which recipes/extract_codes.py makes, codes are read instead of
computed again in every step. A data folder may also hold tar shards, which
recipes/make_shards.py makes.

Makes, in the output folder: `encoder/`, which `foreign_class` loads;
`metrics.json`; `curves.png`; `unusable_files.csv`; checkpoints. A run that was
interrupted goes on when the same command is given again.
"""

import shlex
import sys
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.brains.pretrain import PretrainBrain, draw_curves
from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import check_folders, prepare_corpora
from encodecmae_sb.data.shards.reading import (
    ShardCrops,
    find_packed_codes,
    holds_shards,
    prepare_shards,
)
from encodecmae_sb.data.stored import HOP, SAMPLE_RATE
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.pretrained.codec_files import BUNDLED, OFFICIAL, checksum
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    main_process_first,
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.identity import data_identity, named


def choose_codec(hparams, given):
    """The codec's source.

    Only a demonstration, and only where no codec was named, uses the bundled one.
    """
    if hparams["data_folder"] or "codec" in given or hparams["codec"] != OFFICIAL:
        return hparams["codec"]
    return BUNDLED


def announce(hparams, source):
    """Says at once what kind of run this is."""
    if hparams["codes_folder"]:
        print(f"Codes: read from {hparams['codes_folder']}", flush=True)
    if hparams["data_folder"]:
        print(f"Codec: {source}")
        return
    print(
        "DEMONSTRATION: no --data_folder was given, so this run trains on the small\n"
        "synthetic corpus in this repository (speech of 10 synthetic voices, and\n"
        f"sounds). Codec: {source}"
        + (" (small, trained for this repository)." if source == BUNDLED else ".")
        + "\nFor a real model: --data_folder FOLDER, any folder of audio.",
        flush=True,
    )


def open_codes(hparams, source):
    """The stored codes, once it is sure that they are the targets asked for."""
    folders, codes_folder = hparams["data_folder"], hparams["codes_folder"]
    if folders and holds_shards(folders):
        if codes_folder:
            raise UserError(
                f"codes_folder={codes_folder}, but codes for shards lie in the shards. "
                "Leave codes_folder out, or pack the codes: python "
                "recipes/make_shards.py ANOTHER_FOLDER --data_folder FOLDER "
                f"--codes_folder {codes_folder}"
            )
        stored = find_packed_codes(folders)
        if stored is not None and if_main_process():
            print("Codes: read from the shards", flush=True)
    else:
        stored = StoredCodes(codes_folder) if codes_folder else None
    if stored is None:
        return None
    sizes = hparams["n_codebooks"], hparams["codebook_size"]
    stored.check(source, checksum(source), *sizes)
    return stored


def build_data(hparams, output, source, stored):
    """Manifests, random crops to train on, fixed ones to validate on."""
    folders = hparams["data_folder"] or corpus_folders()
    save, max_unusable = hparams["save_folder"], hparams["max_unusable"]
    if holds_shards(folders):
        random_crops = ShardCrops
        corpora = main_process_first(prepare_shards, folders, save)
    else:
        random_crops = RandomCrops
        corpora = main_process_first(prepare_corpora, folders, save, max_unusable)
    unusable = UnusableFiles(
        output / "unusable_files.csv",
        sum(corpus.num_files for corpus in corpora),
        max_unusable,
    )
    manifests = {
        "train": [corpus.train_csv for corpus in corpora],
        "valid": [corpus.valid_csv for corpus in corpora],
    }
    codes, unreadable = {"train": None, "valid": None}, []
    if stored is not None:
        opened = stored.of_manifests(
            manifests["train"] + manifests["valid"],
            hparams["n_codebooks"],
            stored.extract_command(hparams["data_folder"], source),
        )
        codes = {"train": opened[: len(corpora)], "valid": opened[len(corpora) :]}
        unreadable = [item for files in opened for item in files.unreadable]
    train = random_crops(
        manifests["train"],
        hparams["crop_seconds"],
        hparams["sample_rate"],
        hparams["seed"],
        hparams["corpus_weights"],
        codes["train"],
    )
    valid = FixedCrops(
        manifests["valid"],
        hparams["valid_items"],
        hparams["crop_seconds"],
        hparams["sample_rate"],
        hparams["seed"],
        codes["valid"],
    )
    left_out = [corpus.unusable for corpus in corpora]
    for items in [*left_out, unreadable, valid.unusable]:
        if if_main_process():
            unusable.add(items)
    return corpora, train, valid, unusable


def training_identity(source, corpora, train):
    """What the training depends on besides the yaml."""
    codes = "computed for each crop"
    if train.targets is not None:
        # How much of each corpus has codes: draws depend on it.
        codes = named("stored", digest([int(x.frames.sum()) for x in train.targets]))
    return {
        "data": data_identity(corpora),
        "codec": named(source, checksum(source)),
        "codes": codes,
    }


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, given = start_experiment(argv)
    output = Path(hparams["output_folder"])
    front_end = hparams["model"].encoder.front_end
    check_grid(front_end, hparams["sample_rate"], SAMPLE_RATE, HOP)
    source = choose_codec(hparams, given)
    if if_main_process():
        announce(hparams, source)
    if hparams["data_folder"]:
        check_folders(hparams["data_folder"])

    stored = open_codes(hparams, source)
    modules = dict(hparams["modules"])
    needs_codec = isinstance(front_end, CodecLatents)
    if stored is None or needs_codec:
        codec = main_process_first(Codec, source, hparams["n_codebooks"])
        if needs_codec:
            front_end.use(codec)
        if stored is None:
            modules["codec"] = codec
    corpora, train, valid, unusable = build_data(hparams, output, source, stored)
    if if_main_process():
        print(
            f"Training on {train.num_files} files, {train.total_seconds / 3600:.2f} h; "
            f"validating on {len(valid)}; {len(unusable)} files left out."
        )

    brain = PretrainBrain(
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        unusable=unusable,
        corpora=[corpus.name for corpus in corpora],
    )
    brain.identify(**training_identity(source, corpora, train))
    brain.fit_crops(train, valid)
    if if_main_process() and brain.history.rows:
        finish(brain, source, output, argv)


def longer(argv, steps):
    """The same command line, for more steps."""
    if "--training_steps" in argv:
        at = argv.index("--training_steps")
        argv = argv[:at] + argv[at + 2 :]
    return shlex.join([*argv, "--training_steps", str(steps)])


def finish(brain, source, output, argv):
    """Writes metrics, curves and the encoder, and says what to do next."""
    row = brain.history.rows[-1]
    metrics = {
        **row,
        "codec": source,
        "precision": brain.precision,
        "unusable_files": len(brain.unusable),
    }
    write_metrics(output, metrics)
    draw_curves(brain.history, output / "curves.png")
    folder = output / "encoder"
    export_encoder(
        brain.hparams.model.encoder,
        folder,
        f"Pretrained with {Path(argv[0]).name} for {int(row['step'])} steps on "
        f"{', '.join(brain.corpora)}; targets: codec {source}.",
        row,
    )
    n_codebooks = brain.hparams.n_codebooks
    print("\nHidden frames of the validation set (nats; accuracy in %):")
    print("  codebook   cross-entropy   unigram   accuracy")
    for q in range(1, n_codebooks + 1):
        print(
            f"  {q:8d}   {row[f'masked_ce_{q}']:13.3f}   {row[f'unigram_ce_{q}']:7.3f}"
            f"   {100 * row[f'masked_accuracy_{q}']:8.1f}"
        )
    print(
        f"\nMade in {output}:\n"
        f"  encoder/             the encoder, for foreign_class\n"
        f"  metrics.json         the figures above\n"
        f"  curves.png           how they came about\n"
        f"  unusable_files.csv   {len(brain.unusable)} files left out\n"
        "Next:\n"
        f"  python recipes/embed.py {folder} AUDIO_FILE          features of a file\n"
        f"  python recipes/pretrain.py {longer(argv, 2 * int(row['step']))}   train on"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
