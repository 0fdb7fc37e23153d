"""Fitted targets of a small corpus: what their tests share.

A test file imports each fixture by the name of its function.
"""

from functools import partial

import pytest
from teachers import copy_speech

from encodecmae_sb.lobes import (
    Clusters,
    Codec,
    MelRVQ,
    RandomProjection,
    SeveralTargets,
)
from encodecmae_sb.pipelines.fit_targets import (
    Clips,
    fit_clusters,
    fit_mel_rvq,
    fit_random_projection,
)

SIZES = {"n_codebooks": 4, "codebook_size": 32, "n_mels": 24, "stack": 2}


@pytest.fixture(scope="module", name="corpus")
def some_speech(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    return copy_speech(tmp_path_factory.mktemp("corpus") / "speech")


@pytest.fixture(scope="module", name="fitted")
def fitted_targets(corpus, teacher_folder, tmp_path_factory):
    """The folder of a file of each kind, and what was fitted, by the kind."""
    folder = tmp_path_factory.mktemp("targets")
    clips = Clips(corpus, 12, quiet=True)
    return folder, {
        "mel_rvq": fit_mel_rvq(folder / "mel_rvq", clips, **SIZES, passes=3),
        "random_projection": fit_random_projection(
            folder / "random_projection", clips, **SIZES, dim=8
        ),
        "clusters": fit_clusters(
            folder / "clusters", clips, teacher_folder, "last_no_norm", 16, 3
        ),
    }


def named(folder, kind):
    """What a yaml would give."""
    if kind == "several":
        parts = [partial(Codec, "bundled", 2), named(folder, "mel_rvq")]
        return partial(SeveralTargets, [*parts, named(folder, "clusters")])
    classes = {"mel_rvq": MelRVQ, "random_projection": RandomProjection}
    return partial(classes.get(kind, Clusters), folder / kind)


KINDS = ["mel_rvq", "random_projection", "clusters", "several"]
MEL_KINDS = KINDS[:2]
