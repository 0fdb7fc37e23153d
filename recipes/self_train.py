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

from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.manifest import check_folders
from encodecmae_sb.nnet.clusters import ClusterTargets
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.pipelines.clusters import prepare_centroids
from encodecmae_sb.pipelines.pretrain import (
    build_crops,
    make_brain,
    prepare_data,
    training_identity,
    write_results,
)
from encodecmae_sb.pipelines.store import extract_for
from encodecmae_sb.pipelines.students import (
    describe_student,
    load_teacher,
    start_student,
)
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.pretrained.pretraining import note_licence
from encodecmae_sb.pretrained.published import encoder_licence, source_name
from encodecmae_sb.utils.experiment import (
    announce_demonstration,
    quit_on_user_errors,
    start_experiment,
)


def store_targets(hparams, brain, teacher, corpora, output):
    """Stores clusters of all files; gives codes, label and count of re-seeded ones."""
    path, folder = output / "centroids.npz", Path(hparams["save_folder"]) / "targets"
    centroids, reseeded = prepare_centroids(
        hparams, teacher, corpora, path, brain.noprogressbar
    )
    names = source_name(hparams["teacher"], teacher), module_key(teacher)
    targets = ClusterTargets(teacher, hparams["layer"], centroids, *names)
    seconds = hparams["encode_batch_size"] * targets.chunk_samples / targets.sample_rate
    extract_for(brain, targets, corpora, folder, seconds)
    return StoredCodes(folder), targets.label, reseeded


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv)
    output = Path(hparams["output_folder"])
    model = hparams["model"]
    grid = ClusterTargets.sample_rate, ClusterTargets.hop_length
    check_grid(model.encoder.front_end, hparams["sample_rate"], *grid)
    teacher = load_teacher(hparams["teacher"], hparams["layer"])
    licence = encoder_licence(hparams["teacher"])
    continued = start_student(model.encoder, teacher, hparams["student"])
    if hparams["data_folder"]:
        check_folders(hparams["data_folder"])
    else:
        announce_demonstration("trains on")
    corpora, unusable = prepare_data(hparams, output / "unusable_files.csv")
    if if_main_process():
        print(
            f"Teacher: {hparams['teacher']}, layer {hparams['layer']}, "
            f"{hparams['n_clusters']} clusters. "
            + describe_student(model.encoder, teacher, continued),
            flush=True,
        )
    brain = make_brain(hparams, run_opts, hparams["modules"], corpora, unusable)
    teacher.to(brain.device)
    stored, label, reseeded = store_targets(hparams, brain, teacher, corpora, output)
    del teacher
    train, valid = build_crops(hparams, corpora, unusable, stored, "the same again")
    start = "goes on from the teacher" if continued else "fresh"
    brain.identify(
        **training_identity(hparams, label, corpora, train, valid), student=start
    )
    if if_main_process():
        note_licence(hparams["save_folder"], licence)
    brain.licence = licence
    brain.fit_crops(train, valid)
    if if_main_process() and brain.history.rows:
        finish(brain, continued, reseeded, output)


def finish(brain, continued, reseeded, output):
    """Writes metrics, curves and the encoder, and says what to do next."""
    hparams = brain.hparams
    labels = {
        "teacher": str(hparams.teacher),
        "student_continued": continued,
        "student_hop_length": hparams.model.encoder.front_end.hop_length,
        "n_clusters": hparams.n_clusters,
        "reseeded_clusters": reseeded,
    }
    start = "goes on from" if continued else "starts apart from"
    targets = f"{hparams.n_clusters} clusters of {hparams.teacher}, layer "
    targets += f"{hparams.layer}; it {start} the teacher's weights"
    row = write_results(brain, output, labels, "Self-trained", targets)
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
        f"  python recipes/embed.py {output}/encoder AUDIO_FILE   features of a file"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
