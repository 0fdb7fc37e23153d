"""Free Spoken Digit Dataset: digits by a few speakers at 8 kHz; 10 classes.

https://github.com/Jakobovski/free-spoken-digit-dataset. A fold is a speaker and has
the speaker's name, so the test voice is never in training.
"""

import re

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import need

RATE = 8000
VALID_SHARE = 0.1  # the clips of a whole speaker would be too many
LAYOUT = """\
  recordings/7_jackson_32.wav   DIGIT_SPEAKER_INDEX"""

_NAME = re.compile(r"(\d)_([^_]+)_(\d+)")


def find_clips(folder):
    """Clips with the speaker as fold and as group."""
    clips = []
    for path in sorted(need(folder, "recordings", LAYOUT).glob("*.wav")):
        if name := _NAME.fullmatch(path.stem):
            clips.append(Clip(path.stem, str(path), (name[1],), name[2], group=name[2]))
    return clips
