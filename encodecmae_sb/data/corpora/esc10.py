"""ESC-10: 400 environmental sounds of about 5 s, 10 classes, 5 folds.

https://doi.org/10.7910/DVN/YDEPUT, in the layout of its first release: a folder for
each class. (ESC-50 holds the same sounds under other names.)
"""

import re

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing
from encodecmae_sb.data.folders import find_paths

RATE = 44100
LAYOUT = """\
  001 - Dog bark/1-30226-A.ogg   NUMBER - CLASS/FOLD-RECORDING-TAKE.ogg"""

_CLASS = re.compile(r"(\d{3}) - (.+)")
_NAME = re.compile(r"(\d)-(\w+)-\w")


def find_clips(folder):
    """Clips with their official folds; the takes of a recording are a group."""
    clips, numbers = [], {f"{number:03d}" for number in range(1, 11)}
    for path in find_paths(folder, "*/*.ogg"):
        label, name = _CLASS.fullmatch(path.parent.name), _NAME.fullmatch(path.stem)
        if label and name:
            numbers.discard(label[1])
            clips.append(
                Clip(path.stem, str(path), (label[2],), name[1], group=name[2])
            )
    if clips and numbers:
        names = ", ".join(f"{number} - CLASS" for number in sorted(numbers))
        raise missing(folder, f"folder {names}", LAYOUT)
    return clips
