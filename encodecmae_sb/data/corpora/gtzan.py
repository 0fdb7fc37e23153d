"""GTZAN: music of 30 s, 10 genres, in the fault-filtered split.

The split of Kereliuk et al. (https://arxiv.org/abs/1507.04761) leaves out duplicates,
and no artist is in two parts: 443 clips to train, 197 to validate, 290 to test. The
lists come with torchaudio.
"""

from torchaudio.datasets import gtzan

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing, need

RATE = 22050
MAX_UNUSABLE = 0.01  # in some copies jazz.00054 cannot be read
LAYOUT = """\
  genres/blues/blues.00000.wav (or .au)   and so on, one folder a genre
The folder may also be called genres_original, or be given itself."""

_LISTS = {
    "train": gtzan.filtered_train,
    "valid": gtzan.filtered_valid,
    "test": gtzan.filtered_test,
}


def find_clips(folder):
    """Clips of the fault-filtered split that are there."""
    for name in ("genres", "genres_original"):
        if (folder / name).is_dir():
            folder = folder / name
    for genre in gtzan.gtzan_genres:
        need(folder, genre, LAYOUT)
    clips = []
    for part, names in _LISTS.items():
        for name in names:
            genre = name.split(".")[0]
            for ending in (".wav", ".au"):
                path = folder / genre / f"{name}{ending}"
                if path.exists():
                    clips.append(Clip(name, str(path), (genre,), part))
                    break
        if not clips or clips[-1].part != part:
            raise missing(folder, f"file of {part}, such as {names[0]}.wav", LAYOUT)
    return clips
