r"""Self-training: what an encoder has learnt becomes the target of the next one.

    python recipes/self_train.py hparams/self_train_mini.yaml
    python recipes/self_train.py hparams/self_train_base.yaml \
        --data_folder /data/LibriSpeech --teacher results/base/1234/encoder

The teacher embeds clips; k-means finds clusters in its last layer's activations; for
each 320 samples of the corpus the cluster of the teacher's nearest frame is computed
once and stored; a student, which goes on from the teacher's weights where it is built
alike, is pretrained to tell the clusters of hidden frames. A teacher with published
log-mel weights has 318 samples from frame to frame: with `--student teacher` the
student has, too, and goes on from it; otherwise it starts fresh, with 320.

Makes, in the output folder: `encoder/`, which `foreign_class` loads; `metrics.json`;
`centroids.npz`; `curves.png`; `unusable_files.csv`; targets and checkpoints in
`save/`. A run that was interrupted, at any stage, goes on when the same command is
given again.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.brains.pretrain import draw_curves
from encodecmae_sb.brains.self_train import (
    SelfTrainBrain,
    embed_clips,
    load_teacher,
    start_student,
    store_targets,
    wait_until,
)
from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import file_stamp
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import check_folders, prepare_corpora
from encodecmae_sb.data.stored import HOP, SAMPLE_RATE, RowFile
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.nnet.chunks import PIECE
from encodecmae_sb.nnet.clusters import find_clusters
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.digests import digest, digest_each, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    main_process_first,
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.files import whole_file
from encodecmae_sb.utils.identity import data_identity, named

_TARGETS = 2  # raise it when the rules by which targets are computed change
# What centroids depend on, besides the teacher's weights and the data.
_CLUSTER_KEYS = ("layer", "n_clusters", "cluster_clips", "cluster_passes", "seed")


def files_digest(manifest):
    """A name for the files of a manifest as they are now."""
    (paths,) = read_columns(manifest, wav=str)
    return digest_each([path, *file_stamp(path)] for path in paths)


def prepare_data(hparams, output):
    """Manifests, and the account of files that cannot be used."""
    folders = hparams["data_folder"]
    if folders:
        check_folders(folders)
    else:
        folders = corpus_folders()
        if if_main_process():
            print(
                "DEMONSTRATION: no --data_folder was given, so this run trains on the\n"
                "small synthetic corpus in this repository. For a real model:\n"
                "--data_folder FOLDER, any folder of audio.",
                flush=True,
            )
    corpora = main_process_first(
        prepare_corpora, folders, hparams["save_folder"], hparams["max_unusable"]
    )
    unusable = UnusableFiles(
        output / "unusable_files.csv",
        sum(corpus.num_files for corpus in corpora),
        hparams["max_unusable"],
    )
    if if_main_process():
        for corpus in corpora:
            unusable.add(corpus.unusable)
    return corpora, unusable


def prepare_centroids(hparams, teacher, corpora, output, options):
    """The centroids, from `centroids.npz` or else from the teacher."""
    path = output / "centroids.npz"
    settings = [hparams[key] for key in _CLUSTER_KEYS]
    data = data_identity(corpora)["digest"]
    key = digest([weights_key(teacher), settings, data, hparams["corpus_weights"]])
    if not if_main_process():
        wait_until(path.exists)
    if not path.exists():
        manifests = [corpus.train_csv for corpus in corpora]
        rate, weights = hparams["sample_rate"], hparams["corpus_weights"]
        crops = RandomCrops(manifests, PIECE / rate, rate, hparams["seed"], weights)
        name = digest([key, weights, [files_digest(file) for file in manifests]])
        features = RowFile(
            Path(hparams["save_folder"]) / f"features-{name}", "float16", teacher.dim
        )
        embed_clips(
            teacher,
            hparams["layer"],
            crops,
            hparams["cluster_clips"],
            features,
            **options,
        )
        clusters = find_clusters(
            features.rows,
            hparams["n_clusters"],
            hparams["cluster_passes"],
            seed=hparams["seed"],
            quiet=options["quiet"],
        )
        with whole_file(path) as scratch, open(scratch, "wb") as file:
            np.savez(
                file,
                centroids=clusters.centroids.numpy(),
                counts=clusters.counts.numpy(),
                reseeded=clusters.reseeded,
                key=key,
            )
    if if_main_process():
        for left in Path(hparams["save_folder"]).glob("features-*"):
            left.unlink()
    with np.load(path) as saved:
        if str(saved["key"]) != key:
            raise UserError(
                f"{path} was made with another teacher, with other data, or with "
                f"another {', '.join(_CLUSTER_KEYS)}: targets would change in the "
                "middle of a training. Give another --output_folder."
            )
        return torch.from_numpy(saved["centroids"]), int(saved["reseeded"]), key


def prepare_targets(hparams, teacher, corpora, centroids, key, unusable, options):
    """Stored targets for the training and validation files of every corpus."""
    targets = {"train": [], "valid": []}
    for corpus in corpora:
        for part, manifest in (
            ("train", corpus.train_csv),
            ("valid", corpus.valid_csv),
        ):
            parts = [key, files_digest(manifest), _TARGETS]
            name = f"{manifest.stem}-{digest(parts)}"
            stored = RowFile(Path(hparams["save_folder"]) / "targets" / name, "uint16")
            targets[part].append(
                store_targets(
                    teacher,
                    hparams["layer"],
                    centroids,
                    manifest,
                    stored,
                    unusable,
                    retry=not hparams["checkpointer"].list_checkpoints(),
                    **options,
                )
            )
    return targets


def build_crops(hparams, corpora, targets):
    """Random crops to train on, fixed ones to validate on, with their targets."""
    seconds, rate = hparams["crop_seconds"], hparams["sample_rate"]
    train = RandomCrops(
        [corpus.train_csv for corpus in corpora],
        seconds,
        rate,
        hparams["seed"],
        hparams["corpus_weights"],
        targets["train"],
    )
    valid = FixedCrops(
        [corpus.valid_csv for corpus in corpora],
        hparams["valid_items"],
        seconds,
        rate,
        hparams["seed"],
        targets["valid"],
    )
    return train, valid


def describe_student(encoder, teacher, continued):
    """What the student starts from, and whose frames its targets are."""
    hop, teachers_hop = (x.front_end.hop_length for x in (encoder, teacher))
    if continued:
        text = "The student goes on from the teacher's weights, with its front end "
        return text + f"({hop} samples from frame to frame) and a new decoder and head."
    text = "The student has new weights."
    if hop != teachers_hop:
        text += (
            f" It has {hop} samples from frame to frame, the teacher {teachers_hop}: "
            "its targets are those of the teacher's nearest frames. With --student "
            "teacher it goes on from the teacher, with its front end, if all else is "
            "alike."
        )
    return text


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv)
    output = Path(hparams["output_folder"])
    model = hparams["model"]
    front_end = model.encoder.front_end
    check_grid(front_end, hparams["sample_rate"], SAMPLE_RATE, HOP)
    teacher = load_teacher(hparams["teacher"], hparams["layer"])
    continued = start_student(model.encoder, teacher, hparams["student"])
    corpora, unusable = prepare_data(hparams, output)
    if if_main_process():
        print(
            f"Teacher: {hparams['teacher']}, layer {hparams['layer']}, "
            f"{hparams['n_clusters']} clusters. "
            + describe_student(model.encoder, teacher, continued),
            flush=True,
        )

    brain = SelfTrainBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        unusable=unusable,
        corpora=[corpus.name for corpus in corpora],
    )
    teacher.to(brain.device)
    options = {
        "batch_size": hparams["encode_batch_size"],
        "num_workers": hparams["num_workers"],
        "quiet": brain.noprogressbar or not if_main_process(),
    }
    centroids, reseeded, key = prepare_centroids(
        hparams, teacher, corpora, output, options
    )
    targets = prepare_targets(
        hparams, teacher, corpora, centroids, key, unusable, options
    )
    del teacher
    train, valid = build_crops(hparams, corpora, targets)
    if if_main_process():
        unusable.add(valid.unusable)
        print(
            f"Training on {train.num_files} files, {train.total_seconds / 3600:.2f} h; "
            f"validating on {len(valid)}; {len(unusable)} files left out.",
            flush=True,
        )
    frames = [int(part.frames.sum()) for parts in targets.values() for part in parts]
    brain.identify(
        data=data_identity(corpora),
        targets=named(f"clusters of {hparams['teacher']}", digest([key, frames])),
        student="goes on from the teacher" if continued else "fresh",
    )
    brain.fit_crops(train, valid)
    if if_main_process() and brain.history.rows:
        finish(brain, continued, reseeded, output)


def finish(brain, continued, reseeded, output):
    """Writes metrics, curves and the encoder, and says what to do next."""
    row, hparams = brain.history.rows[-1], brain.hparams
    metrics = {
        **row,
        "teacher": str(hparams.teacher),
        "precision": brain.precision,
        "student_continued": continued,
        "student_hop_length": hparams.model.encoder.front_end.hop_length,
        "n_clusters": hparams.n_clusters,
        "reseeded_clusters": reseeded,
        "unusable_files": len(brain.unusable),
    }
    write_metrics(output, metrics)
    draw_curves(brain.history, output / "curves.png")
    folder = output / "encoder"
    export_encoder(
        hparams.model.encoder,
        folder,
        f"Self-trained for {int(row['step'])} steps on {', '.join(brain.corpora)}; "
        f"targets: {hparams.n_clusters} clusters of {hparams.teacher}, layer "
        f"{hparams.layer}; it {'goes on from' if continued else 'starts apart from'} "
        "the teacher's weights.",
        row,
    )
    print(
        "\nHidden frames of the validation set:\n"
        f"  accuracy                  {100 * row['masked_accuracy_1']:6.1f} %\n"
        f"  best constant answer      {100 * row['majority_accuracy']:6.1f} %\n"
        f"  cross-entropy             {row['masked_ce_1']:8.3f} nats\n"
        f"  unigram cross-entropy     {row['unigram_ce_1']:8.3f} nats\n"
        f"Clusters in use             {100 * row['clusters_used']:6.1f} % of "
        f"{hparams.n_clusters}, perplexity {row['cluster_perplexity']:.1f}, in all of "
        f"the validation set; {reseeded} re-seeded\n"
        f"\nMade in {output}:\n"
        f"  encoder/             the student, for foreign_class\n"
        f"  metrics.json         the figures above\n"
        f"  centroids.npz        the clusters\n"
        f"  curves.png           how the figures came about\n"
        f"  unusable_files.csv   {len(brain.unusable)} files left out\n"
        "Next:\n"
        f"  python recipes/embed.py {folder} AUDIO_FILE          features of a file"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
