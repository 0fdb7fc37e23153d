"""Keeps a list of the audio that cannot be used."""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import write_csv

from .audio import can_be_read
from .remote import is_url
from .tars import Member

logger = get_logger(__name__)


class UnusableFiles:
    """The list of files left out, also kept in a CSV file, with a limit.

    Arguments
    ---------
    path : str or Path
        CSV file with columns path and reason. If it exists, a resumed run keeps the
        files in it that still cannot be read, and drops the others.
    num_files : int
        Files of the corpora, the unusable included.
    max_share : float
        Share of them that may be unusable before the run stops.
    recheck : bool
        False keeps all listed files, even those that can be read again.

    Example
    -------
    >>> bad = UnusableFiles(getfixture("tmp_path") / "unusable.csv", 100, 0.05)
    >>> bad.add([("a.wav", "empty file"), ("a.wav", "empty file")])
    >>> len(bad)
    1
    """

    def __init__(self, path, num_files, max_share=0.05, recheck=True):
        self.path = Path(path)
        self.num_files = num_files
        self.max_share = max_share
        self.reasons = {}
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.reasons = {
                    row["path"]: row["reason"]
                    for row in csv.DictReader(file)
                    if row["reason"] is not None
                }
        if recheck and self.reasons:
            with ThreadPoolExecutor(max_workers=16) as pool:
                unusable = list(pool.map(_still_unusable, self.reasons))
            listed = zip(self.reasons.items(), unusable, strict=True)
            self.reasons = dict(item for item, bad in listed if bad)
        if if_main_process():
            write_unusable(self.path, self.reasons.items())

    def add(self, items):
        """Adds files, and appends the new ones to the CSV file.

        Arguments
        ---------
        items : iterable of (str, str)
            Path and reason.

        Raises
        ------
        UserError
            If too large a share is unusable.
        """
        new = {path: why for path, why in items if path not in self.reasons}
        if not new:
            return
        self.reasons.update(new)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(new.items())
        for path, why in list(new.items())[:5]:
            logger.warning(f"Left out: {path}: {why}")
        logger.warning(
            f"{len(self)} of {self.num_files} audio files left out so far, listed in "
            f"{self.path}"
        )
        if len(self) > self.max_share * self.num_files:
            raise UserError(
                f"{len(self)} of {self.num_files} audio files are unusable, more than "
                f"max_unusable={self.max_share} allows. They are listed in "
                f"{self.path}. Repair or remove them, or raise --max_unusable."
            )

    def __len__(self):
        return len(self.reasons)


def write_unusable(path, items):
    """Writes a list of files left out, as `UnusableFiles` does.

    Arguments
    ---------
    path : str or Path
    items : iterable of (str, str)
        Path and reason.

    Example
    -------
    >>> path = getfixture("tmp_path") / "unusable.csv"
    >>> write_unusable(path, [("a.wav", "empty file")])
    >>> path.read_text().splitlines()
    ['path,reason', 'a.wav,empty file']
    """
    rows = ({"path": file, "reason": reason} for file, reason in items)
    write_csv(path, rows, ["path", "reason"])


def _still_unusable(path):
    """Whether a listed file exists and still cannot be read.

    If it does not exist, it was removed, or the entry is the ID of an utterance. If it
    is needed and cannot be used, it will be added again.
    """
    member = Member.at(path)
    place = path if member is None else member.tar
    there = is_url(place) or os.path.isfile(place)
    return there and not can_be_read(path)
