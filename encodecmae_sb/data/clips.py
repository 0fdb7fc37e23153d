"""Labelled clips: from a corpus or a manifest to folds, labels and targets."""

import csv
import re
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv

from .audio import UnusableAudio, inspect_files

PARTS = ("train", "valid", "test")
SEPARATOR = ";"  # between the labels of a clip, in manifests of multi-label corpora


@dataclass(frozen=True)
class Clip:
    """A recording with its labels.

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
    group : str
        What clips share that belong together, such as a speaker or a recording; empty
        if that is not known.
    """

    id: str
    wav: str
    labels: tuple
    part: str
    duration: float = 0.0
    group: str = ""


@dataclass(frozen=True)
class Fold:
    """The clips of one training, its validation and its test.

    Arguments
    ---------
    name : str
        The part of the corpus that is the test set. "test" for an official split,
        which is a single fold.
    train, valid, test : list of Clip
    """

    name: str
    train: list
    valid: list
    test: list


def read_manifests(multi_label=False, **manifests):
    r"""Reads clips from CSV files.

    Columns: ID, wav (absolute, or relative to the CSV file), label, and, in a
    single `csv`, fold: names of folds, or train, valid and test. A column group is read
    where it is there. Other columns, such as duration, are ignored; lengths are read
    from the files. Labels of a clip in a multi-label manifest are separated by ";".

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
    UserError
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
                group=(row.get("group") or "").strip(),
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
            "group": clip.group,
        }
        for clip in clips
    )
    write_csv(path, rows, ["ID", "duration", "wav", "label", "fold", "group"])


def inspect_clips(clips, rate=None):
    """Inspects every file: whether it can be used, and how long it is.

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
    UserError
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


def make_folds(clips, valid_share=None):
    """Splits clips into folds; an official split is a single one.

    In cross-validation each part is the test set once. The next part, in cyclic order,
    is the validation set, or else a share of the clips of all other parts. The rest is
    the training set.

    Arguments
    ---------
    clips : list of Clip
    valid_share : float, optional
        Validate on about this share of the remaining clips (chosen by a hash of the
        ID) instead of a whole part. Useful where parts are few and unlike each other,
        such as speakers. Default: the next part is the validation set.

    Returns
    -------
    list of Fold

    Raises
    ------
    UserError
        If a part is missing, there are fewer than 3 folds or 2 labels, a test
        label has no training clips, or the share is not between 0 and 1 or given
        where there are no folds.

    Example
    -------
    >>> clips = [Clip(f"{i}", "", (f"{i % 2}",), f"{i // 4}") for i in range(12)]
    >>> fold = make_folds(clips)[2]
    >>> fold.name, fold.valid[0].part, len(fold.train)
    ('2', '0', 4)
    """
    number = isinstance(valid_share, int | float)
    if valid_share is not None and not (number and 0 < valid_share < 1):
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
        folds = [Fold("test", *(by_part[part] for part in PARTS))]
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
        folds = []
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
            folds.append(Fold(name, train, valid, by_part[name]))
    for fold in folds:
        _check_labels(fold)
    return folds


def _draw(clip):
    """A random number in [0, 1) that is always the same for a clip."""
    return zlib.crc32(clip.id.encode()) / 2**32


def _check_labels(fold):
    known = {label for clip in fold.train for label in clip.labels}
    for part in ("valid", "test"):
        unseen = set(all_labels(getattr(fold, part))) - known
        if unseen:
            shown = ", ".join(in_order(unseen)[:10])
            where = "" if fold.name == "test" else f" (test fold {fold.name})"
            raise UserError(
                f"{len(unseen)} labels are in {part} but not in train{where}: {shown}. "
                "A classifier cannot recognise labels without training clips: add "
                "clips of them to train, spread them over the folds, or remove them."
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
    """What a classifier should predict.

    Arguments
    ---------
    clips : list of Clip
    labels : list of str
    multi_label : bool

    Raises
    ------
    UserError
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
