"""LibriSpeech, who speaks: a closed set of speakers.

https://www.openslr.org/12. The official parts cannot be used, because they share no
speaker. Instead, of every ten utterances of a speaker in the `train-*` folders, in
order, the ninth is for validation and the tenth for the test. A part of the corpus is
enough; train-clean-100 has 251 speakers.
"""

from collections import defaultdict

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing
from encodecmae_sb.data.folders import find_paths

RATE = 16000
LAYOUT = """\
  train-clean-100/103/1240/103-1240-0000.flac   PART/SPEAKER/CHAPTER/
The part may also be called train."""


def find_clips(folder):
    """Clips of speakers with at least ten utterances."""
    speakers = defaultdict(list)
    for path in find_paths(folder, "train*/*/*/*.flac"):
        speakers[path.parent.parent.name].append(path)
    if not speakers:
        raise missing(folder, "train*/SPEAKER/CHAPTER/*.flac", LAYOUT)
    clips = []
    for speaker, paths in speakers.items():
        if len(paths) < 10:
            continue
        for i, path in enumerate(paths):
            part = {8: "valid", 9: "test"}.get(i % 10, "train")
            clips.append(Clip(path.stem, str(path), (speaker,), part))
    return clips
