"""All that is known of the labelled clips of an experiment."""

from dataclasses import dataclass
from pathlib import Path

import torch

from encodecmae_sb.utils.errors import UserError

from .clips import (
    all_labels,
    inspect_clips,
    make_folds,
    read_manifests,
    targets_of,
    write_manifest,
)
from .corpora import find_clips, load_corpus
from .unusable import UnusableFiles

AUTO = "auto"
# Yaml keys that may be "auto": what the corpus module calls it, and the default.
_FACTS = {
    "corpus_rate": ("RATE", None),
    "multi_label": ("MULTI_LABEL", False),
    "valid_share": ("VALID_SHARE", None),
    "max_unusable": ("MAX_UNUSABLE", 0.0),
}


@dataclass(frozen=True)
class ClipData:
    """Labelled clips and their folds.

    Arguments
    ---------
    clips : list of Clip
        Those that can be used.
    folds : list of Fold
    labels : list of str
        In the order of the targets.
    multi_label : bool
        Whether a clip may have several labels.
    unusable : int
        Files that were left out.
    """

    clips: list
    folds: list
    labels: list
    multi_label: bool
    unusable: int

    @property
    def tested(self):
        """The test clips of all folds, one fold after another."""
        return [clip for fold in self.folds for clip in fold.test]

    def targets(self, clips):
        """See `clips.targets_of`."""
        return targets_of(clips, self.labels, self.multi_label)

    def most_frequent_class(self):
        """Share of the test clips that have the most frequent label; single-label."""
        targets = self.targets(self.tested)
        return torch.bincount(targets).max().item() / len(targets)

    def describe(self):
        """One line on the clips that were found."""
        hours = sum(clip.duration for clip in self.clips) / 3600
        folds = f"{len(self.folds)} folds" if len(self.folds) > 1 else "one split"
        return (
            f"{len(self.clips)} clips, {hours:.2f} h, {len(self.labels)} classes, "
            f"{folds}; {self.unusable} files left out."
        )


def folder_of_data(hparams, given):
    """Where results go by default: a folder named after the user's own data.

    Arguments
    ---------
    hparams : dict
        Values of the yaml's keys.
    given : collection of str
        The keys that the user gave.

    Returns
    -------
    dict
        An override of the yaml. Empty for a corpus of this package, and where the user
        gave a folder.

    Example
    -------
    >>> hparams = {"corpus": "esc50", "csv": "my/birds.csv", "seed": 1}
    >>> folder_of_data(hparams, ["csv"])
    {'output_folder': 'results/classify_birds/1'}
    """
    corpus = str(hparams.get("corpus"))
    own = hparams.get("csv") or hparams.get("train_csv")
    own = own or (corpus if corpus.endswith(".py") else None)
    if own is None or "output_folder" in given:
        return {}
    return {"output_folder": f"results/classify_{Path(own).stem}/{hparams['seed']}"}


def find_data(hparams, output):
    """Finds clips, in a corpus or in manifests, and leaves out unusable files.

    Arguments
    ---------
    hparams : dict
        Reads `corpus`, `data_folder`, `csv`, `train_csv`, `valid_csv`, `test_csv`,
        `corpus_rate`, `multi_label`, `valid_share` and `max_unusable`. In each of the
        last four it replaces "auto" by what the corpus module says. With manifests
        "auto" means: any rate, one label, the next fold, no unusable file.
    output : Path
        Folder for `clips.csv` and `unusable_files.csv`.

    Returns
    -------
    ClipData

    Raises
    ------
    UserError
        If there is no such corpus, something is missing or does not fit, or too many
        files are unusable.
    FileNotFoundError
        If there is no such folder or manifest.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> keys = ("csv", "train_csv", "valid_csv", "test_csv", "corpus_rate")
    >>> hparams = {key: None for key in keys}
    >>> hparams |= {"corpus": "esc50", "data_folder": sound_folder()}
    >>> hparams |= dict.fromkeys(("multi_label", "valid_share", "max_unusable"), "auto")
    >>> data = find_data(hparams, getfixture("tmp_path"))
    >>> data.describe()
    '200 clips, 0.08 h, 10 classes, 5 folds; 0 files left out.'
    >>> hparams["multi_label"]
    False
    """
    clips, unusable = find_usable(hparams, output)
    folds = make_folds(clips, hparams["valid_share"])
    write_manifest(output / "clips.csv", clips)
    labels, multi_label = all_labels(clips), hparams["multi_label"]
    return ClipData(clips, folds, labels, multi_label, unusable)


def find_usable(hparams, output):
    """The clips of `find_data`, before they are split into folds.

    Arguments
    ---------
    hparams : dict
        As for `find_data`; `multi_label` and `valid_share` may be absent.
    output : Path
        Folder for `unusable_files.csv`.

    Returns
    -------
    clips : list of Clip
        Those that can be used.
    unusable : int
        Files that were left out.

    Raises
    ------
    FileNotFoundError, UserError
        As `find_data`.
    """
    manifests = {
        key: hparams[key] for key in ("csv", "train_csv", "valid_csv", "test_csv")
    }
    corpus = None if any(manifests.values()) else load_corpus(hparams["corpus"])
    for key, (name, default) in _FACTS.items():
        if hparams.get(key) == AUTO:
            hparams[key] = getattr(corpus, name, default)
    multi_label = hparams.get("multi_label", False)
    if multi_label not in (False, True):
        raise UserError(f"multi_label={multi_label}: allowed are auto, False, True.")
    if corpus is None:
        clips = read_manifests(multi_label, **manifests)
    else:
        clips = find_clips(corpus, hparams["data_folder"])
    found = len(clips)
    clips, bad = inspect_clips(clips, hparams["corpus_rate"])
    listed = output / "unusable_files.csv"
    listed.unlink(missing_ok=True)
    UnusableFiles(listed, found, hparams["max_unusable"]).add(bad)
    return clips, len(bad)
