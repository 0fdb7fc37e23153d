"""FSD50K: 51 197 Freesound clips of 0.3 to 30 s, 200 classes, several a clip.

https://zenodo.org/record/4060432. Official parts.
"""

import csv

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing, need

RATE = 44100
MULTI_LABEL = True
LAYOUT = """\
  FSD50K.ground_truth/dev.csv    fname,labels,mids,split
  FSD50K.ground_truth/eval.csv   fname,labels,mids
  FSD50K.dev_audio/64760.wav
  FSD50K.eval_audio/37199.wav"""

_PARTS = {"train": "train", "val": "valid", "": "test"}


def find_clips(folder):
    """Clips: `dev` in its own parts, `eval` for the test."""
    clips = []
    for name in ("dev", "eval"):
        table = need(folder, f"FSD50K.ground_truth/{name}.csv", LAYOUT)
        audio = need(folder, f"FSD50K.{name}_audio", LAYOUT)
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        needed = {"fname", "labels"} | ({"split"} if name == "dev" else set())
        if not rows or not needed <= set(rows[0]):
            raise missing(folder, f"{table.name} with FSD50K's columns", LAYOUT)
        clips += [
            Clip(
                id=f"{name}/{row['fname']}",
                wav=str(audio / f"{row['fname']}.wav"),
                labels=tuple(row["labels"].split(",")),
                part=_PARTS[row.get("split", "")],
            )
            for row in rows
        ]
    return clips
