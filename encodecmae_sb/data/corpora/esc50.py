"""ESC-50: 2000 environmental sounds of 5 s, 50 classes, 5 folds.

https://github.com/karolpiczak/ESC-50
"""

import csv

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing, need

RATE = 44100
LAYOUT = """\
  meta/esc50.csv        filename,fold,target,category,esc10,src_file,take
  audio/1-100032-A-0.wav"""


def find_clips(folder):
    """Clips with their official folds; the takes of a recording are a group.

    Corpora of the same layout, such as the sounds in this package, have another
    name for the table: any single CSV file in `meta` will do.
    """
    audio = need(folder, "audio", LAYOUT)
    tables = sorted(need(folder, "meta", LAYOUT).glob("*.csv"))
    tables = [path for path in tables if path.name == "esc50.csv"] or tables
    if len(tables) != 1:
        raise missing(folder, "meta/esc50.csv", LAYOUT)
    with open(tables[0], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filename", "fold", "category"} <= set(rows[0]):
        raise missing(folder, f"{tables[0].name} with ESC-50's columns", LAYOUT)
    return [
        Clip(
            id=row["filename"].rsplit(".", 1)[0],
            wav=str(audio / row["filename"]),
            labels=(row["category"],),
            part=row["fold"],
            group=row.get("src_file") or "",
        )
        for row in rows
    ]
