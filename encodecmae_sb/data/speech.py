"""Transcribed speech: from manifests with a `wrd` column to datasets."""

import os
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import check_path
from encodecmae_sb.utils.grid import SAMPLE_RATE
from encodecmae_sb.utils.identity import named

from .audio import UnusableAudio, inspect_audio, read_audio
from .manifest import check_folders, prepare_split, read_manifest

_STAND_IN = SAMPLE_RATE  # samples of silence for a batch without readable files


@dataclass
class SpeechSet:
    """Utterances of one set.

    Arguments
    ---------
    name : str
        Such as `dev-clean`.
    rows : list of dict
        With keys ID (str), wav (path), wrd (text), duration (seconds) and, after
        `tokenize`, tokens (int32).
    left_out : list of (str, str)
        ID or path, and reason, of each utterance that cannot be used.
    """

    name: str
    rows: list
    left_out: list = field(default_factory=list)

    @property
    def seconds(self):
        """Duration of all utterances."""
        return sum(row["duration"] for row in self.rows)

    def tokenize(self, tokens):
        """Adds to each row the numbers of its transcript, from `Tokens`."""
        for row in self.rows:
            row["tokens"] = np.array(tokens.encode(row["wrd"]), dtype=np.int32)


def load_sets(hparams):
    """Training, validation and test sets, as a yaml names them.

    Arguments
    ---------
    hparams : dict
        With keys `data_folder`, `train_splits`, `train_csv` and the same of `valid`
        and `test`, `save_folder`, `max_unusable` and `source_sample_rate`.

    Returns
    -------
    list of SpeechSet
        Training, validation, and the test sets.

    Raises
    ------
    FileNotFoundError, UserError
        As `librispeech_set` and `manifest_set`, and if what is named is not enough.
    """
    parts = ("train", "valid", "test")
    given = [part for part in parts if hparams[f"{part}_csv"]]
    if given and len(given) < 3 and not hparams["data_folder"]:
        raise UserError(
            f"Of train_csv, valid_csv and test_csv only {', '.join(given)} given, and "
            "no data_folder whose parts could stand for the rest: give all three."
        )
    return [loaded for part in parts for loaded in _load_part(part, hparams)]


def _load_part(part, hparams):
    """The sets of a part: one, or for `test` as many as there are named."""
    folder = hparams["data_folder"] or speech_folder()
    share, rate = hparams["max_unusable"], hparams["source_sample_rate"]
    files, splits = hparams[f"{part}_csv"], hparams[f"{part}_splits"]
    if files is not None:
        files = [files] if isinstance(files, str) else files
        if part != "test" and len(files) > 1:
            raise UserError(f"{part}_csv={files}: give one manifest.")
        return [manifest_set(file, folder, rate, share) for file in files]
    splits = [splits] if isinstance(splits, str) else splits
    if not isinstance(splits, list) or not all(isinstance(x, str) for x in splits):
        raise UserError(
            f"{part}_splits={splits}: names of folders are allowed, one or a list, "
            f'such as --{part}_splits "[dev-clean, dev-other]"'
        )
    groups = [[split] for split in splits] if part == "test" else [splits]
    save = hparams["save_folder"]
    return [librispeech_set(folder, names, save, share, rate) for names in groups]


def sets_identity(sets):
    """All that a training depends on of sets, see `utils.identity`."""
    keys = "ID", "duration", "wrd"
    rows = [[row[key] for key in keys] for part in sets for row in part.rows]
    return named([part.name for part in sets], digest(rows))


def set_names(sets):
    """A short name for each test set, no two the same, and none "valid".

    Example
    -------
    >>> set_names([SpeechSet("a/test.csv", []), SpeechSet("b/test.csv", [])])
    ['test', 'test_1']
    """
    names = []
    for part in sets:
        stem = name = Path(part.name).stem
        count = 0
        while name in (*names, "valid"):  # which has figures, too
            count += 1
            name = f"{stem}_{count}"
        names.append(name)
    return names


def librispeech_set(
    data_folder, splits, save_folder, max_unusable=0.05, sample_rate=None
):
    """Loads parts of a corpus laid out as LibriSpeech.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds `train-clean-100`, `dev-clean`, ...
    splits : list of str
        Names of the parts to load together.
    save_folder : str or Path
        Where the manifests go.
    max_unusable : float
        Share of utterances that may be unusable.
    sample_rate : int, optional
        Rate in Hz that all files must have; default: any.

    Returns
    -------
    SpeechSet

    Raises
    ------
    FileNotFoundError
        If a part is missing; the message lists those that are there.
    UserError
        If transcripts are missing or empty, too much audio is unusable, or a rate is
        another than declared.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> dev = librispeech_set(speech_folder(), ["dev"], getfixture("tmp_path"))
    >>> len(dev.rows), dev.rows[0]["wrd"]
    (84, 'WE BOUGHT TWO TICKETS FOR THE EARLY SHOW')
    """
    check_path("data_folder", data_folder)
    (data_folder,) = check_folders(data_folder)
    rows, left_out = [], []
    for split in splits:
        folder = data_folder / split
        if not folder.is_dir():
            there = sorted(path.name for path in data_folder.iterdir() if path.is_dir())
            raise FileNotFoundError(
                f"{data_folder} has no folder {split!r}. It has: "
                f"{', '.join(there) or 'no folders at all'}. Name its parts with "
                "--train_splits, --valid_splits and --test_splits."
            )
        path, unusable = prepare_split(folder, save_folder, max_unusable)
        left_out += unusable
        rows += read_manifest(path)
    for row in rows:
        _check_rate(row["wav"], int(row["sample_rate"]), sample_rate)
    if not any(row.get("wrd") for row in rows):
        raise UserError(
            f"No transcripts in {data_folder} ({', '.join(splits)}): a file named "
            "<speaker>-<chapter>.trans.txt is needed beside the audio, with lines of "
            "an utterance's name and its text."
        )
    return _transcribed("+".join(splits), rows, left_out, max_unusable)


def manifest_set(csv_file, data_folder=None, sample_rate=None, max_unusable=0.05):
    """Loads a SpeechBrain manifest.

    Arguments
    ---------
    csv_file : str or Path
        With columns ID, wav, wrd and, to spare reading every header, duration (s).
    data_folder : str, optional
        What `$data_root` (or `${data_root}`) in the paths stands for.
    sample_rate : int, optional
        Rate in Hz that all files must have; default: any.
    max_unusable : float
        Share of utterances that may be unusable.

    Returns
    -------
    SpeechSet

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UserError
        If columns or transcripts are missing, or a rate is another than declared.
    """
    try:
        rows = read_manifest(csv_file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No such manifest: {csv_file}") from error
    missing = {"ID", "wav", "wrd"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(
            f"{csv_file} lacks the columns {sorted(missing)}"
            + (f"; it has {sorted(rows[0])}." if rows else ": it is empty.")
            + " A manifest for speech recognition has ID, wav, wrd and duration."
        )
    left_out, usable = [], []
    for row in rows:
        row["wav"] = re.sub(r"\$\{?data_root\}?", str(data_folder or ""), row["wav"])
        if not os.path.exists(row["wav"]):
            left_out.append((row["wav"], "no such file"))
            continue
        if sample_rate is not None or not row.get("duration"):
            try:
                info = inspect_audio(row["wav"])
            except UnusableAudio as error:
                left_out.append((row["wav"], str(error)))
                continue
            _check_rate(row["wav"], info.sample_rate, sample_rate)
            row["duration"] = info.duration
        usable.append(row)
    return _transcribed(str(csv_file), usable, left_out, max_unusable)


def _check_rate(path, rate, declared):
    if declared not in (None, rate):
        raise UserError(
            f"{path} has {rate} Hz, but source_sample_rate={declared} was declared. "
            "Correct it, or leave it null: files of any rate are resampled."
        )


def _transcribed(name, rows, left_out, max_unusable):
    """A `SpeechSet` of the rows that have a transcript."""
    total = len(rows) + len(left_out)
    usable, seen = [], set()
    for row in rows:
        text = " ".join((row.get("wrd") or "").split())
        if not text:
            left_out.append((row["ID"], "no transcript"))
        elif row["ID"] in seen:
            raise UserError(f"{name}: the ID {row['ID']!r} occurs more than once.")
        else:
            seen.add(row["ID"])
            try:
                duration = float(row["duration"])
            except ValueError:
                raise UserError(
                    f"{name}: the utterance {row['ID']!r} has duration="
                    f"{row['duration']!r}: seconds are needed, such as 3.5."
                ) from None
            usable.append({**row, "wrd": text, "duration": duration})
    if not usable or len(left_out) > max_unusable * total:
        listed = "\n".join(f"  {item}: {why}" for item, why in left_out[:10])
        raise UserError(
            f"{len(left_out)} of {total} utterances of {name} are unusable "
            f"(max_unusable={max_unusable} allows {max_unusable:.0%}):\n{listed}\n"
            "Add their transcripts or repair the files, or raise --max_unusable."
        )
    return SpeechSet(name, usable, left_out)


def leave_out_short(speech, num_steps):
    """Leaves out utterances too short for CTC to align their transcript.

    CTC needs an output step for every token, and one more between equal ones.

    Arguments
    ---------
    speech : SpeechSet
        Tokenized; changed in place.
    num_steps : list of int
        Output steps of the model for each row.

    Raises
    ------
    UserError
        If no utterance is left.
    """
    kept = []
    for row, steps in zip(speech.rows, num_steps, strict=True):
        numbers = row["tokens"]
        needed = len(numbers) + int((numbers[1:] == numbers[:-1]).sum())
        if steps < needed:
            why = f"{steps} output steps for a target that needs {needed}"
            speech.left_out.append((row["ID"], why))
        else:
            kept.append(row)
    if not kept:
        raise UserError(
            f"All utterances of {speech.name} are too short for their transcripts: "
            f"{speech.left_out[-1][0]} has {speech.left_out[-1][1]}. Do audio and "
            "transcripts belong together?"
        )
    speech.rows = kept


def speech_dataset(speech, sample_rate=SAMPLE_RATE):
    """A SpeechBrain dataset with `id`, `sig`, `tokens`, `wrd` and `unusable`.

    Arguments
    ---------
    speech : SpeechSet
        What to load; tokenized.
    sample_rate : int
        Of `sig`, in Hz; files of other rates are resampled.

    Returns
    -------
    DynamicItemDataset
    """
    data = {
        row["ID"]: {
            **{name: row[name] for name in ("wav", "wrd", "duration")},
            "numbers": row["tokens"],
        }
        for row in speech.rows
    }
    items = [
        {
            "func": partial(_read, sample_rate),
            "takes": "wav",
            "provides": ["sig", "unusable"],
        },
        {"func": _tensor, "takes": "numbers", "provides": "tokens"},
    ]
    keys = ["id", "sig", "tokens", "wrd", "unusable"]
    return DynamicItemDataset(data, items, keys)


# These are not inside the function above: worker processes may get them as a pickle.


def _read(sample_rate, wav):
    try:
        return read_audio(wav, sample_rate), None
    except UnusableAudio as error:
        return None, (wav, str(error))


def _tensor(numbers):
    return torch.from_numpy(numbers).long()


def collate_speech(items):
    """A `PaddedBatch` without the items that could not be read.

    Its `unusable` lists them as (path, reason). If no item could be read, one remains
    with silence as its audio, and `is_empty` is true: a batch cannot be left out,
    because several processes go through their batches together.
    """
    bad = [item["unusable"] for item in items if item["sig"] is None]
    good = [item for item in items if item["sig"] is not None]
    if not good:
        good = [{**items[0], "sig": torch.zeros(_STAND_IN)}]
    good = [{**item, "unusable": (), "empty": len(bad) == len(items)} for item in good]
    good[0]["unusable"] = tuple(bad)
    return PaddedBatch(good)


def is_empty(batch):
    """Whether nothing of a batch could be read, see `collate_speech`."""
    return batch.empty[0]
