"""Clusters of a teacher's activations: clips are embedded, centroids found and kept."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import DataLoader

from encodecmae_sb.data.codes import file_stamp
from encodecmae_sb.data.columns import read_columns
from encodecmae_sb.data.crops import RandomCrops
from encodecmae_sb.data.stored import RowFile
from encodecmae_sb.nnet.chunks import CHUNK
from encodecmae_sb.nnet.clusters import embed, find_clusters
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.utils.digests import digest, digest_each
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import patient_barrier
from encodecmae_sb.utils.files import whole_file
from encodecmae_sb.utils.identity import data_identity
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar

# What centroids depend on, besides the teacher's weights and the data.
_KEYS = ("layer", "n_clusters", "cluster_clips", "cluster_passes", "seed")


def store_frames(frames_of, crops, num_clips, stored, batch_size, workers, quiet):
    """Stores frames of random clips; goes on after an interruption.

    Arguments
    ---------
    frames_of : callable
        Of padded samples [B, N] and their lengths, a list of int, it gives the frames
        of each item, a list of tensors [T, D].
    crops : RandomCrops
        The first of its draws are used.
    num_clips : int
        How many.
    stored : RowFile
        Filled: an item per clip, a row per frame.
    batch_size : int
        Clips embedded at once.
    workers : int
        Processes that read clips.
    quiet : bool
        No progress bar.
    """
    done = stored.resume(num_clips, batch_size)
    draws = range(done, num_clips)
    batches = [
        list(draws[i : i + batch_size]) for i in range(0, len(draws), batch_size)
    ]
    loader = DataLoader(
        crops,
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=ignore_signals,
    )
    quiet = quiet or not batches
    with open_bar(num_clips, "Embedding", "clips", done, quiet) as bar:
        for items in loader:
            wavs = [item["wav"] for item in items]
            lengths = [len(wav) for wav in wavs]
            padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
            frames = frames_of(padded, lengths)
            stored.append([item.cpu().numpy() for item in frames])
            bar.update(len(items))


def prepare_centroids(hparams, teacher, corpora, path, quiet=False):
    """The centroids, read from a file or else computed and written to it.

    With several processes the main one computes, and the others wait.

    Arguments
    ---------
    hparams : dict
        Of hparams/self_train_*.yaml.
    teacher : AudioEncoder
        On the device.
    corpora : list of Corpus
    path : Path
        An .npz file with `centroids`, `counts`, `reseeded` and `key`.
    quiet : bool
        No progress bars.

    Returns
    -------
    centroids : torch.Tensor
        float32, shape [K, D].
    reseeded : int
        How often a centroid without frames was moved.

    Raises
    ------
    UserError
        If the file is of another teacher, other data or other settings, or if the
        features cannot be clustered.
    """
    wait = patient_barrier()
    settings = [hparams[key] for key in _KEYS]
    data, weights = data_identity(corpora)["digest"], hparams["corpus_weights"]
    key = digest([module_key(teacher), settings, data, weights])
    if if_main_process():
        if not path.exists():
            _write_centroids(hparams, teacher, corpora, path, key, quiet)
        for left in Path(hparams["save_folder"]).glob("features-*"):
            left.unlink()
    wait()
    with np.load(path) as saved:
        if str(saved["key"]) != key:
            raise UserError(
                f"{path} was made with another teacher, with other data, or with "
                f"another {', '.join(_KEYS)}: targets would change in the "
                "middle of a training. Give another --output_folder."
            )
        return torch.from_numpy(saved["centroids"]), int(saved["reseeded"])


def _write_centroids(hparams, teacher, corpora, path, key, quiet):
    """Embeds clips, finds clusters, and writes them."""
    manifests = [corpus.train_csv for corpus in corpora]
    seed, rate = hparams["seed"], hparams["sample_rate"]
    weights = hparams["corpus_weights"]
    crops = RandomCrops(manifests, CHUNK / rate, rate, seed, weights)
    # Features are only resumed if the files are still the same.
    name = digest([key, weights, [files_digest(file) for file in manifests]])
    features = RowFile(
        Path(hparams["save_folder"]) / f"features-{name}", "float16", teacher.dim
    )
    store_frames(
        partial(embed, teacher, hparams["layer"]),
        crops,
        hparams["cluster_clips"],
        features,
        hparams["encode_batch_size"],
        hparams["num_workers"],
        quiet,
    )
    clusters = find_clusters(
        features.rows,
        hparams["n_clusters"],
        hparams["cluster_passes"],
        seed=seed,
        quiet=quiet,
    )
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        np.savez(
            file,
            centroids=clusters.centroids.numpy(),
            counts=clusters.counts.numpy(),
            reseeded=clusters.reseeded,
            key=key,
        )


def files_digest(manifest):
    """A name for the files of a manifest as they are now."""
    (paths,) = read_columns(manifest, wav=str)
    return digest_each([path, *file_stamp(path)] for path in paths)
