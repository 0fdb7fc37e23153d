"""Speech Commands v0.02: 105 829 spoken words of 1 s, 35 classes, official lists.

https://arxiv.org/abs/1804.03209. Background noise is not a class here.
"""

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import need
from encodecmae_sb.data.folders import find_paths

RATE = 16000
LAYOUT = """\
  validation_list.txt   testing_list.txt
  backward/0165e0e8_nohash_0.wav
  bed/00176480_nohash_0.wav   and so on, one folder a word"""


def find_clips(folder):
    """Clips. Those in neither list are for training."""
    lists = {"valid": "validation_list.txt", "test": "testing_list.txt"}
    part_of = {}
    for part, name in lists.items():
        text = need(folder, name, LAYOUT).read_text(encoding="utf-8")
        part_of.update((line.strip(), part) for line in text.splitlines())
    part_of.pop("", None)
    names = set(part_of)
    for path in find_paths(folder, "[!_.]*/*.wav"):
        names.add(f"{path.parent.name}/{path.name}")
    return [
        Clip(
            id=name.removesuffix(".wav"),
            wav=str(folder / name),
            labels=(name.split("/")[0],),
            part=part_of.get(name, "train"),
            group=name.split("/")[1].split("_")[0],  # who speaks
        )
        for name in sorted(names)
    ]
