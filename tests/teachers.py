"""What the tests of self-training share."""

import shutil

import numpy as np
import soundfile
import torch

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.nnet.clusters import ClusterTargets
from encodecmae_sb.pipelines.extract import extract, open_folder

PUBLISHED = {"hop_length": 318, "centered": False}  # the log-mel of published weights


def make_encoder(dim=16, seed=0, **front_end):
    torch.manual_seed(seed)
    transformer = ResiDualTransformer(dim, 2, 2, 32, shared_ffn=False)
    return AudioEncoder(LogMel(**front_end), transformer)


def copy_speech(folder):
    """Copies a few of the bundled files, in official parts."""
    for part, count in (("train", 8), ("dev", 3)):
        (folder / part).mkdir(parents=True)
        for path in sorted((speech_folder() / part).rglob("*.flac"))[:count]:
            shutil.copy(path, folder / part)
    return folder


def noises(folder, count=3, seconds=9):
    """White noise, whose clusters change from frame to frame."""
    rng = np.random.default_rng(0)
    for part in ("train", "dev"):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            samples = 0.1 * rng.normal(size=24000 * seconds)
            soundfile.write(folder / part / f"{i}.wav", samples, 24000)
    return folder


def store(teacher, manifest, folder, centroids, **options):
    """Targets of a manifest."""
    targets = ClusterTargets(teacher, "last_no_norm", centroids)
    open_folder(targets, folder)
    settings = torch.device("cpu"), 8, 0, 1.0
    extract(targets, [manifest], folder, *settings, quiet=True, **options)
    (codes,) = StoredCodes(folder).of_manifests([manifest], 1, "")
    return codes
