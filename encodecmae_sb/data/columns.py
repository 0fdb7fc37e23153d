"""Columns of manifests in little memory: a corpus may have millions of files."""

import csv
import os
from array import array
from collections.abc import Sequence

import numpy as np


class Texts(Sequence):
    """Many texts in one block of memory.

    A list takes about twice as much, and every forked worker that reads it gets its own
    copy. In a NumPy array each text takes as much memory as the longest one.

    Arguments
    ---------
    texts : iterable of str

    Example
    -------
    >>> texts = Texts(["a.wav", "Ω.wav"])
    >>> len(texts), texts[1], texts[-2], list(texts)
    (2, 'Ω.wav', 'a.wav', ['a.wav', 'Ω.wav'])
    >>> list(texts.take([1, 1]))
    ['Ω.wav', 'Ω.wav']
    """

    def __init__(self, texts=()):
        self._data = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text):
        """Adds a text at the end."""
        self._data += text.encode()
        self._ends.append(len(self._data))

    def take(self, numbers):
        """Some of the texts, in the order of their numbers, as other `Texts`."""
        return Texts(self[number] for number in numbers)

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, number):
        number = range(len(self))[number]
        return self._data[self._ends[number] : self._ends[number + 1]].decode()


def read_columns(manifests, **kinds):
    r"""Reads columns of manifests, one manifest after another.

    Arguments
    ---------
    manifests : str, Path or list of them
        CSV files with a header.
    **kinds
        What each column is to become: `str`, `float` or `int`.

    Returns
    -------
    list
        Of each column `Texts`, or an array, float64 or int64, shape [rows].

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.csv"
    >>> _ = path.write_text("ID,duration,wav\na,1.5,a.wav\nb,2.0,b.wav\n")
    >>> paths, durations = read_columns(path, wav=str, duration=float)
    >>> list(paths), durations
    (['a.wav', 'b.wav'], array([1.5, 2. ]))
    """
    if isinstance(manifests, (str, os.PathLike)):
        manifests = [manifests]
    makers = {str: Texts, float: lambda: array("d"), int: lambda: array("q")}
    columns = [makers[kind]() for kind in kinds.values()]
    for manifest in manifests:
        with open(manifest, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            places = [header.index(name) for name in kinds]
            filled = list(zip(columns, kinds.values(), places, strict=True))
            for row in rows:
                for column, kind, place in filled:
                    column.append(kind(row[place]))
    return [
        column if isinstance(column, Texts) else np.array(column) for column in columns
    ]
