r"""Pretrains EnCodecMAE: hide half of the audio, predict its codes.

    python recipes/pretrain.py hparams/mini.yaml
    python recipes/pretrain.py hparams/base.yaml --data_folder /data/LibriSpeech
    torchrun --standalone --nproc_per_node=8 recipes/pretrain.py hparams/base.yaml \
        --data_folder "[/data/LibriSpeech, /data/fma]"

Without a data folder the run is a demonstration on the small corpus in this
repository and, unless a codec is named, with the small codec in it. With
`--altered_copies` it trains on altered copies of the files, too, which go to
`save/altered`. The codes of at most 4 h of audio are stored first, in `save/targets`
(`--store_targets True`: of any audio). With `--codes_folder` they are those that
recipes/extract_codes.py has stored. A data folder may also hold tar shards, which
recipes/make_shards.py makes. With `--init` the run starts from weights that are there.

Makes, in the output folder: `encoder/`, which `foreign_class` loads;
`metrics.json`; `curves.png`; `unusable_files.csv`; checkpoints. A run that was
interrupted goes on when the same command is given again.
"""

import shlex
import sys
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.data.codes import targets_option
from encodecmae_sb.data.manifest import check_folders
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.nnet.targets import check_named, identify
from encodecmae_sb.pipelines.pretrain import (
    build_crops,
    build_targets,
    find_licence,
    make_brain,
    open_codes,
    prepare_data,
    training_identity,
    write_results,
)
from encodecmae_sb.pipelines.start import start_from
from encodecmae_sb.pipelines.store import (
    check_store_targets,
    is_to_store,
    store_targets,
)
from encodecmae_sb.pretrained.codec_files import demonstration_codec
from encodecmae_sb.utils.experiment import (
    announce_demonstration,
    main_process_first,
    quit_on_user_errors,
    start_experiment,
)


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv, choose=demonstration_codec)
    output = Path(hparams["output_folder"])
    front_end = hparams["model"].encoder.front_end
    kind = check_named(hparams["targets"])
    grid = kind.sample_rate, kind.hop_length
    # Published log-mel weights, from which a run may start, have shorter frames.
    exact = hparams.get("init") is None
    check_grid(front_end, hparams["sample_rate"], *grid, exact)
    if hparams["data_folder"]:
        check_folders(hparams["data_folder"], remote=True, procedural=True)
    else:
        announce_demonstration("trains on")
    label = main_process_first(identify, hparams["targets"])
    if if_main_process():
        print(f"{label.kind.capitalize()}: {label.name}", flush=True)
    stored = open_codes(hparams, label, targets_option(argv))
    check_store_targets(hparams, stored)
    modules = dict(hparams["modules"])
    targets = build_targets(hparams, label, stored)
    start = start_from(hparams, label)
    corpora, unusable = prepare_data(hparams, output / "unusable_files.csv", True)
    to_store = targets is not None and is_to_store(hparams, corpora)
    if targets is not None and not to_store:
        modules["targets"] = targets
    brain = make_brain(hparams, run_opts, modules, corpora, unusable)
    command = stored and stored.extract_command(
        hparams["data_folder"], label, targets_option(argv)
    )
    if to_store:
        identity = {**training_identity(hparams, label, corpora), **start}
        stored = store_targets(brain, targets, corpora, identity)
        command = "the same again"
    del targets
    train, valid = build_crops(hparams, corpora, unusable, stored, command)
    content = training_identity(hparams, label, corpora, train, valid)
    brain.identify(**content, **start)
    brain.licence = find_licence(hparams, label)
    brain.fit_crops(train, valid)
    if if_main_process() and brain.history.rows:
        finish(brain, label, output, argv)


def longer(argv, steps):
    """The same command line, for more steps."""
    if "--training_steps" in argv:
        at = argv.index("--training_steps")
        argv = argv[:at] + argv[at + 2 :]
    return shlex.join([*argv, "--training_steps", str(steps)])


def finish(brain, label, output, argv):
    """Writes metrics, curves and the encoder, and says what to do next."""
    how, labels = f"Pretrained with {Path(argv[0]).name}", {label.kind: label.name}
    whole = label if getattr(brain.hparams, "export_pretraining", False) else None
    row = write_results(brain, output, labels, how, str(label), whole)
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
        f"  python recipes/embed.py {output}/encoder AUDIO_FILE   features of a file\n"
        f"  python recipes/pretrain.py {longer(argv, 2 * int(row['step']))}   train on"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
