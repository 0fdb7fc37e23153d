"""Labelled clips: from a corpus or a manifest to runs, labels and batches."""

import csv
import re
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv

from .audio import UnusableAudio, inspect_files, read_audio

PARTS = ("train", "valid", "test")
SEPARATOR = ";"  # between the labels of a clip, in manifests of multi-label corpora


@dataclass(frozen=True)
class Clip:
    """A recording and what is known of it.

    Arguments
    ---------
    id : str
        Unique in its corpus.
    wav : str or Path
        The audio file.
    labels : tuple of str
        One label, or, in a multi-label corpus, any number from one.
    part : str
        "train", "valid" or "test", or, for cross-validation, the name of a fold.
    duration : float
        Length in seconds; 0 until `inspect_clips` has read it.
    """

    id: str
    wav: str
    labels: tuple
    part: str
    duration: float = 0.0


@dataclass(frozen=True)
class Run:
    """One training with its validation and test: a fold, or an official split.

    Arguments
    ---------
    name : str
        The fold held out for the test, or "test".
    train, valid, test : list of Clip
    """

    name: str
    train: list
    valid: list
    test: list


def read_manifests(multi_label=False, **manifests):
    r"""Reads clips from CSV files.

    Columns: ID, wav (absolute, or relative to the CSV file), label, and, in a
    single `csv`, fold: names of folds, or train, valid and test. Others, such as
    duration, may be there; the files themselves say how long they are. Labels of a
    clip in a multi-label manifest are separated by ";".

    Arguments
    ---------
    multi_label : bool
        Whether a clip may have several labels.
    **manifests : str or Path or None
        Either `csv`, or all of `train_csv`, `valid_csv` and `test_csv`.

    Returns
    -------
    list of Clip

    Raises
    ------
    ValueError
        If manifests, columns or values are missing or IDs occur twice.
    FileNotFoundError
        If there is no such file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "clips.csv"
    >>> _ = path.write_text("ID,wav,duration,label,fold\na,a.wav,1.0,dog,1\n")
    >>> clip, = read_manifests(csv=path)
    >>> clip.labels, clip.part
    (('dog',), '1')
    """
    given = {name: path for name, path in manifests.items() if path}
    split = {f"{part}_csv": part for part in PARTS}
    if set(given) != {"csv"} and set(given) != set(split):
        raise UserError(
            f"Manifests given: {', '.join(sorted(given)) or 'none'}. Give either csv "
            f"(with a column fold) or all of {', '.join(split)}."
        )
    clips = []
    for name, path in given.items():
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"No such manifest: {name}={path}")
        clips += _read_manifest(path, split.get(name), multi_label)
    return clips


def _read_manifest(path, part, multi_label):
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    needed = {"ID", "wav", "label"} | ({"fold"} if part is None else set())
    missing = needed - set(rows[0] if rows else {})
    if missing:
        raise UserError(
            f"{path} {'lacks the columns ' if rows else 'is empty; it needs columns '}"
            f"{', '.join(sorted(missing))}. Its first line must name them: "
            "ID,wav,duration,label,fold"
        )
    clips = []
    for number, row in enumerate(rows, 2):
        for column in sorted(needed):
            if not (row[column] or "").strip():
                raise UserError(f"{path}, line {number}: the {column} is empty.")
        text = row["label"].strip()
        names = text.split(SEPARATOR) if multi_label else [text]
        names = [name.strip() for name in names if name.strip()]
        if not names:
            raise UserError(f"{path}, line {number}: the label is empty.")
        clips.append(
            Clip(
                id=row["ID"].strip(),
                wav=str(path.parent / Path(row["wav"].strip()).expanduser()),
                labels=tuple(dict.fromkeys(names)),
                part=part or row["fold"].strip(),
            )
        )
    return clips


def write_manifest(path, clips):
    """Writes clips as `read_manifests(csv=path)` reads them."""
    rows = (
        {
            "ID": clip.id,
            "duration": f"{clip.duration:.6f}",
            "wav": clip.wav,
            "label": SEPARATOR.join(clip.labels),
            "fold": clip.part,
        }
        for clip in clips
    )
    write_csv(path, rows, ["ID", "duration", "wav", "label", "fold"])


def inspect_clips(clips, rate=None):
    """Looks at every file: which can be used, and how long they are.

    Arguments
    ---------
    clips : list of Clip
    rate : int, optional
        Rate that every file must have, in Hz; default: any.

    Returns
    -------
    clips : list of Clip
        Those that can be used, with their durations.
    unusable : list of (str, str)
        Path and reason of the others.

    Raises
    ------
    ValueError
        If there are no clips, if IDs occur twice, or if a file has another rate.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> from encodecmae_sb.data.corpora import find_clips
    >>> clips, unusable = inspect_clips(find_clips("esc50", sound_folder()))
    >>> len(clips), len(unusable)
    (200, 0)
    """
    if not clips:
        raise UserError("There are no clips to learn from.")
    twice = [name for name, n in Counter(clip.id for clip in clips).items() if n > 1]
    if twice:
        raise UserError(
            f"{len(twice)} IDs occur more than once, the first is {twice[0]}. Every "
            "clip needs an ID of its own, in one part or fold only."
        )

    usable, unusable = [], []
    results = inspect_files((clip.wav for clip in clips), len(clips), "Reading files")
    for clip, result in zip(clips, results, strict=True):
        if isinstance(result, UnusableAudio):
            unusable.append((str(clip.wav), str(result)))
            continue
        if rate is not None and result.sample_rate != rate:
            raise UserError(
                f"{clip.wav} has {result.sample_rate} Hz, but corpus_rate={rate} "
                "is declared. Is it the original corpus? If any rate will do (it "
                "is resampled): --corpus_rate null"
            )
        usable.append(replace(clip, duration=result.duration))
    return usable, unusable


def make_runs(clips, valid_share=None):
    """Splits clips into one run, or into one for each fold.

    With folds, each is the test set of one run. Of the others the next one, in cyclic
    order, validates, or else a share of all their clips, and the rest is trained on.

    Arguments
    ---------
    clips : list of Clip
    valid_share : float, optional
        Validate on about this share of the remaining clips (chosen by a hash of the
        ID) instead of a whole fold. Useful where folds are few and unlike each other,
        such as speakers. Default: the next fold validates.

    Returns
    -------
    list of Run

    Raises
    ------
    ValueError
        If a part is missing, there are fewer than 3 folds or 2 labels, a label is
        tested that was not trained, or the share is not between 0 and 1 or given
        where there are no folds.

    Example
    -------
    >>> clips = [Clip(f"{i}", "", (f"{i % 2}",), f"{i // 4}") for i in range(12)]
    >>> run = make_runs(clips)[2]
    >>> run.name, run.valid[0].part, len(run.train)
    ('2', '0', 4)
    """
    if valid_share is not None and not 0 < valid_share < 1:
        raise UserError(
            f"valid_share={valid_share}: a number between 0 and 1 is allowed, or null "
            "for the next fold."
        )
    parts = in_order(clip.part for clip in clips)
    by_part = {part: [clip for clip in clips if clip.part == part] for part in parts}
    labels = all_labels(clips)
    if len(labels) < 2:
        raise UserError(
            f"All {len(clips)} clips have the label {labels[0]}: at least two "
            "different labels are needed."
        )
    if set(parts) & set(PARTS):
        if set(parts) != set(PARTS):
            raise UserError(
                f"The parts of the corpus are {', '.join(parts)}: there must be clips "
                f"in {', '.join(PARTS)}, and no others."
            )
        if valid_share is not None:
            raise UserError(
                f"valid_share={valid_share}, but the corpus has a validation part of "
                "its own: leave it out."
            )
        runs = [Run("test", *(by_part[part] for part in PARTS))]
    else:
        if len(parts) < 3:
            raise UserError(
                f"There are {len(parts)} folds ({', '.join(parts)}): at least 3 are "
                "needed, to train, to validate and to test on."
            )
        bad = [part for part in parts if not re.fullmatch(r"[\w-]+", part)]
        if bad:
            raise UserError(
                f"Fold {bad[0]!r}: folds become folders; name them with letters, "
                "digits, - and _ only."
            )
        runs = []
        for i, name in enumerate(parts):
            others = [clip for clip in clips if clip.part != name]
            if valid_share is None:
                after = parts[(i + 1) % len(parts)]
                validates = [clip.part == after for clip in others]
            else:
                validates = [_draw(clip) < valid_share for clip in others]
            train, valid = (
                [clip for clip, v in zip(others, validates, strict=True) if v == chosen]
                for chosen in (False, True)
            )
            if not valid:
                raise UserError(
                    f"valid_share={valid_share} of {len(others)} clips is none: give "
                    "more, or null to validate on the next fold."
                )
            runs.append(Run(name, train, valid, by_part[name]))
    for run in runs:
        _check_labels(run)
    return runs


def _draw(clip):
    """A number in [0, 1), evenly distributed, always the same for a clip."""
    return zlib.crc32(clip.id.encode()) / 2**32


def _check_labels(run):
    known = {label for clip in run.train for label in clip.labels}
    for part in ("valid", "test"):
        unseen = set(all_labels(getattr(run, part))) - known
        if unseen:
            shown = ", ".join(in_order(unseen)[:10])
            raise UserError(
                f"{len(unseen)} labels are in {part} but not in train"
                f"{'' if run.name == 'test' else f' (test fold {run.name})'}: {shown}. "
                "What was never trained cannot be recognised: add clips of them to "
                "train, spread them over the folds, or remove them."
            )


def all_labels(clips):
    """Every label once, numbers by value and then names by alphabet."""
    return in_order(label for clip in clips for label in clip.labels)


def in_order(names):
    """Different names, numbers by value and then names by alphabet.

    Example
    -------
    >>> in_order(["10", "9", "dog", "9"])
    ['9', '10', 'dog']
    """

    def rank(name):
        return (0, int(name), name) if name.isdecimal() else (1, 0, name)

    return sorted(set(names), key=rank)


def targets_of(clips, labels, multi_label):
    """What a classifier should say.

    Arguments
    ---------
    clips : list of Clip
    labels : list of str
    multi_label : bool

    Raises
    ------
    ValueError
        If a clip has several labels and may not.

    Returns
    -------
    torch.Tensor
        Indices into `labels`, int64, shape [clips]; for multi-label 0 or 1 for each
        label, float32, shape [clips, labels].

    Example
    -------
    >>> clips = [Clip("a", "", ("y", "x"), ""), Clip("b", "", ("x",), "")]
    >>> targets_of(clips, ["x", "y"], multi_label=True)
    tensor([[1., 1.],
            [1., 0.]])
    """
    index = {label: i for i, label in enumerate(labels)}
    if not multi_label:
        for clip in clips:
            if len(clip.labels) > 1:
                raise UserError(
                    f"Clip {clip.id} has {len(clip.labels)} labels: use "
                    "--multi_label True"
                )
        return torch.tensor([index[clip.labels[0]] for clip in clips])
    targets = torch.zeros(len(clips), len(labels))
    for row, clip in zip(targets, clips, strict=True):
        row[[index[label] for label in clip.labels]] = 1
    return targets


@dataclass
class ClipBatch:
    """Clips of different lengths, padded.

    Arguments
    ---------
    inputs : torch.Tensor
        Samples [B, N], or whatever else was stored of the clips, [B, N, ...].
    lengths : torch.Tensor
        Valid part of each along N, int64, shape [B].
    targets : torch.Tensor
        See `targets_of`.
    index : torch.Tensor
        Their places in the list of clips, int64, shape [B].
    """

    inputs: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    index: torch.Tensor

    def to(self, device):
        """The batch on another device."""
        return ClipBatch(
            *(
                getattr(self, name).to(device, non_blocking=True)
                for name in ("inputs", "lengths", "targets", "index")
            )
        )

    def pin_memory(self):
        """The batch in page-locked memory."""
        return ClipBatch(
            *(
                getattr(self, name).pin_memory()
                for name in ("inputs", "lengths", "targets", "index")
            )
        )


class LabelledClips(torch.utils.data.Dataset):
    """Clips as waveforms, or as what was computed from them, with targets.

    Arguments
    ---------
    clips : list of Clip
    targets : torch.Tensor
        See `targets_of`.
    sample_rate : int
        Rate of the waveforms, in Hz.
    stored : dict-like, optional
        Clip ID -> tensor to give instead of the waveform.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> from encodecmae_sb.data.corpora import find_clips
    >>> clips = find_clips("esc50", sound_folder())[:2]
    >>> data = LabelledClips(clips, torch.tensor([0, 0]), 24000)
    >>> data.collate([data[0], data[1]]).inputs.shape[0]
    2
    """

    def __init__(self, clips, targets, sample_rate=24000, stored=None):
        self.clips = clips
        self.targets = targets
        self.sample_rate = sample_rate
        self.stored = stored

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        clip = self.clips[index]
        if self.stored is not None:
            return index, self.stored[clip.id]
        try:
            return index, read_audio(clip.wav, self.sample_rate)
        except UnusableAudio as error:
            raise UserError(
                f"{clip.wav}: {error}. Repair the file or take it out of the corpus, "
                "and run the same command again."
            ) from error

    def collate(self, items):
        """Makes a `ClipBatch` of items."""
        index = torch.tensor([index for index, _ in items])
        inputs = [content for _, content in items]
        return ClipBatch(
            inputs=torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True),
            lengths=torch.tensor([len(content) for content in inputs]),
            targets=self.targets[index],
            index=index,
        )


class EpochBatches:
    """Batches of indices in random order, another one in every epoch.

    The order depends on the seed and the epoch alone, so that a run that was killed
    finds it again. Clips of like length tend to come together. A last batch of one
    clip is joined to the one before, because the head normalises over the batch.

    Arguments
    ---------
    durations : list of float
        Of all clips, in seconds.
    batch_size : int
        At least 2.
    seed : int

    Example
    -------
    >>> sampler = EpochBatches([1.0] * 5, batch_size=2, seed=0)
    >>> sampler.set_epoch(3)
    >>> sorted(len(batch) for batch in sampler)
    [2, 3]
    """

    def __init__(self, durations, batch_size, seed):
        if batch_size < 2:
            raise UserError(f"batch_size={batch_size}: at least 2.")
        if len(durations) < 2:
            raise UserError(f"{len(durations)} clip to train on: at least 2.")
        self.durations = np.asarray(durations)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch):
        """Chooses the epoch, counted from 1."""
        self.epoch = epoch

    def __len__(self):
        whole, rest = divmod(len(self.durations), self.batch_size)
        return max(whole + (rest > 1), 1)

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.durations))
        # Sorted by length within a few batches at a time, few enough that their
        # composition still is another one in every epoch.
        size = max(1, min(20, len(self) // 4)) * self.batch_size
        for start in range(0, len(order), size):
            part = order[start : start + size]
            order[start : start + size] = part[
                np.argsort(self.durations[part], kind="stable")
            ]
        cuts = [self.batch_size * i for i in range(1, len(self))]
        batches = np.split(order, cuts)
        for i in rng.permutation(len(batches)):
            yield batches[i].tolist()
