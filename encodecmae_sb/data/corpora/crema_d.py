"""CREMA-D: 7442 sentences by 91 actors, 6 emotions.

https://github.com/CheyneyComputerScience/CREMA-D. There is no official split. Each
actor is in one of 5 folds, so no voice is both in training and in the test.
"""

import re

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import need

RATE = 16000
MAX_UNUSABLE = 0.001  # in some copies 1076_MTI_NEU_XX cannot be read
LAYOUT = """\
  AudioWAV/1001_DFA_ANG_XX.wav   ACTOR_SENTENCE_EMOTION_LEVEL"""

_NAME = re.compile(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]+")
_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}


def find_clips(folder):
    """Clips with a fold by actor: 1001 is in fold 1, 1002 in fold 2, ...

    The actor is the group.
    """
    clips = []
    for path in sorted(need(folder, "AudioWAV", LAYOUT).glob("*.wav")):
        name = _NAME.fullmatch(path.stem)
        if name is None or name[2] not in _EMOTIONS:
            continue
        fold = (int(name[1]) - 1001) % 5 + 1
        label = (_EMOTIONS[name[2]],)
        clips.append(Clip(path.stem, str(path), label, str(fold), group=name[1]))
    return clips
