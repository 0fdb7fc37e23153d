"""The account of unusable files."""

from pathlib import Path

import numpy as np
import pytest
from recordings import cut, noise, write

from encodecmae_sb.data.manifest import read_manifest
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.utils.errors import UserError


def test_unusable_files_are_counted_once_and_remembered(tmp_path):
    path = tmp_path / "unusable.csv"
    names = [str(tmp_path / name) for name in ("a.wav", 'b, "c".wav')]
    for name in names:
        cut(write(Path(name), noise(1, 24000)))
    bad = UnusableFiles(path, 100, 0.05)
    assert len(bad) == 0
    bad.add([(names[0], "empty"), (names[0], "empty"), (names[1], "x, y")])
    bad.add([(names[0], "again")])
    assert len(bad) == 2
    again = UnusableFiles(path, 100, 0.05)
    assert len(again) == 2
    again.add([(names[0], "again"), (names[1], "x, y")])
    assert len(again) == 2
    again.add([(f"{i}.wav", "bad") for i in range(3)])
    with pytest.raises(UserError, match="6 of 100.*--max_unusable") as caught:
        again.add([("one too many.wav", "bad")])
    assert str(path) in str(caught.value)
    assert len(read_manifest(path)) == 6


def test_what_is_readable_again_is_forgotten(tmp_path):
    path = tmp_path / "unusable.csv"
    names = ["repaired.wav", "bad inside.wav", "bad.wav", "removed.wav"]
    files = [write(tmp_path / name, noise(1, 24000)) for name in names]
    noted = [(str(file), "unreadable") for file in files]
    # As a recogniser notes an utterance that has none; its corpus will say again.
    UnusableFiles(path, 100).add([*noted, ("dev/1-2-0003", "no transcript")])
    samples = noise(1, 24000)
    samples[5] = np.nan  # only reading all of it tells
    write(files[1], samples, subtype="FLOAT")
    cut(files[2])
    files[3].unlink()
    account = UnusableFiles(path, 40, max_share=0.05)
    still = [str(file) for file in files[1:3]]
    assert list(account.reasons) == still
    assert [row["path"] for row in read_manifest(path)] == still
    account.add([(still[0], "unreadable")])
    with pytest.raises(UserError, match="3 of 40"):
        account.add([(str(files[0]), "bad once more")])
