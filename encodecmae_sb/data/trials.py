"""Trials of speaker verification: pairs of clips of one speaker or of two."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError

from .clips import PARTS, in_order

AUTO = "auto"
SPEAKER = ("label", "fold", "group")


@dataclass(frozen=True)
class Trials:
    """Pairs of clips.

    Arguments
    ---------
    clips : list of Clip
        That trials name.
    speakers : numpy.ndarray
        The speaker of each clip, from 0, int64, [clips].
    first, second : numpy.ndarray
        The clips of each trial, indices into `clips`, int64, [trials].
    train : list of Clip
        Others, which no trial names: for the mean of the vectors.
    """

    clips: list
    speakers: np.ndarray
    first: np.ndarray
    second: np.ndarray
    train: list

    @property
    def targets(self):
        """Whether both clips of a trial have one speaker, bool, [trials]."""
        return self.speakers[self.first] == self.speakers[self.second]

    @property
    def num_speakers(self):
        """Speakers in the trials."""
        return int(self.speakers.max()) + 1

    @property
    def key(self):
        """A short name for all of it."""
        ids = [[clip.id for clip in part] for part in (self.clips, self.train)]
        arrays = (self.speakers, self.first, self.second)
        return digest([ids, [array.tolist() for array in arrays]])

    def describe(self):
        """One line on the trials.

        Example
        -------
        >>> pairs = np.array([0, 0]), np.array([1, 2])
        >>> Trials([1, 2, 3], np.array([0, 0, 1]), *pairs, []).describe()
        '2 trials (1 of one speaker, 1 of two) of 3 clips by 2 speakers; 0 more clips.'
        """
        one, number = int(self.targets.sum()), len(self.first)
        return (
            f"{number} trials ({one} of one speaker, {number - one} of two) of "
            f"{len(self.clips)} clips by {self.num_speakers} speakers; "
            f"{len(self.train)} more clips."
        )


def check_file(trials):
    """Raises a `FileNotFoundError` unless trials are drawn, or there is their file."""
    if trials != AUTO and not Path(trials).expanduser().is_file():
        raise FileNotFoundError(
            f"No such file: trials={trials}. Give a file, or {AUTO} to have trials "
            "drawn."
        )


def find_trials(clips, speaker, trials, clips_per_speaker, max_trials, seed):
    """Pairs of clips, from a file or drawn.

    Arguments
    ---------
    clips : list of Clip
        All there are. Where they have the parts train and test, drawn trials are of the
        part test, and `Trials.train` has clips of the part train only.
    speaker : str
        What says who speaks in a clip: "label", "fold" or "group".
    trials : str or Path
        "auto": drawn. Else a file with lines `1 clip clip` (one speaker) or
        `0 clip clip` (two); a clip is named by its ID, or by its path or the end of it.
    clips_per_speaker : int
        Drawn trials are all pairs of so many clips of each speaker, or of all if there
        are fewer.
    max_trials : int
        If drawn trials of one speaker, or of two, are more, so many of them are drawn.
    seed : int
        Of all that is drawn.

    Returns
    -------
    Trials

    Raises
    ------
    UserError
        If a line is wrong, a clip is unknown, or trials of one kind are missing.
    FileNotFoundError
        If there is no such file.

    Example
    -------
    >>> from encodecmae_sb.data.clips import Clip
    >>> clips = [Clip(f"{i}", "", ("word",), "AB"[i % 2]) for i in range(20)]
    >>> find_trials(clips, "fold", "auto", 3, 100, seed=0).describe()
    '15 trials (6 of one speaker, 9 of two) of 6 clips by 2 speakers; 14 more clips.'
    """
    if speaker not in SPEAKER:
        raise UserError(f"speaker={speaker}: allowed are {', '.join(SPEAKER)}.")
    split = bool({clip.part for clip in clips} & set(PARTS))
    if split and speaker == "fold":
        raise UserError(
            "speaker=fold, but the folds of these clips are train, valid and test: if "
            "their labels are speakers, give --speaker label."
        )
    names = [_speaker(clip, speaker) for clip in clips]
    order = {name: number for number, name in enumerate(in_order(names))}
    of_all = np.array([order[name] for name in names])
    if trials == AUTO:
        tested = [not split or clip.part == "test" for clip in clips]
        pairs = _draw(of_all, np.array(tested), clips_per_speaker, max_trials, seed)
    else:
        pairs = _read(trials, clips, of_all)
    used, places = np.unique(pairs, return_inverse=True)
    first, second = places.reshape(pairs.shape).T
    named = set(used.tolist())
    train = [
        clip
        for i, clip in enumerate(clips)
        if i not in named and (not split or clip.part == "train")
    ]
    speakers = np.unique(of_all[used], return_inverse=True)[1]
    found = Trials([clips[i] for i in used], speakers, first, second, train)
    for there, kind in ((found.targets, "one speaker"), (~found.targets, "two")):
        if not there.any():
            raise UserError(
                f"None of the {len(first)} trials is of {kind}: there must be some of "
                f"one speaker and some of two. The clips have {len(order)} speakers "
                f"(speaker={speaker})."
            )
    return found


def _speaker(clip, speaker):
    name = {"fold": clip.part, "group": clip.group, "label": clip.labels[0]}[speaker]
    if not name:
        raise UserError(
            f"speaker=group, but clip {clip.id} has no group: give the manifest a "
            "column group, or --speaker label or fold."
        )
    return name


def _draw(speakers, tested, clips_per_speaker, max_trials, seed):
    """Drawn pairs of clips, indices, [trials, 2]."""
    rng = np.random.default_rng(seed)
    chosen = []
    for speaker in np.unique(speakers):
        own = np.flatnonzero(tested & (speakers == speaker))
        number = min(clips_per_speaker, len(own))
        chosen += sorted(rng.choice(own, number, replace=False).tolist())
    chosen = np.array(chosen)
    owner = speakers[chosen]
    same = [
        own[np.stack(np.triu_indices(len(own), 1), 1)]
        for own in (chosen[owner == speaker] for speaker in np.unique(owner))
    ]
    same = np.concatenate(same)
    number = min(max_trials, len(same))
    kept = same[np.sort(rng.choice(len(same), number, replace=False))]
    others = len(chosen) * (len(chosen) - 1) // 2 - len(same)
    return np.concatenate([kept, _draw_others(chosen, owner, others, max_trials, rng)])


def _draw_others(chosen, owner, number, most, rng):
    """Drawn pairs of two speakers, each once, [trials, 2].

    Pairs of many speakers are too many to list: they are drawn until there are enough.
    """
    wanted, count = min(number, most), len(chosen)
    if number <= 2 * most:
        first, second = np.triu_indices(count, 1)
        places = first * count + second
        places = places[owner[first] != owner[second]]
        places = np.sort(rng.choice(places, wanted, replace=False))
    else:
        places = np.zeros(0, np.int64)
        while len(places) < wanted:
            drawn = np.sort(rng.integers(count, size=(wanted, 2)), 1)
            drawn = drawn[owner[drawn[:, 0]] != owner[drawn[:, 1]]]
            drawn = drawn[:, 0] * count + drawn[:, 1]
            _, new = np.unique(np.concatenate([places, drawn]), return_index=True)
            # In the order in which they were drawn.
            places = np.concatenate([places, drawn])[np.sort(new)][:wanted]
    return chosen[np.stack([places // count, places % count], 1)]


def _read(path, clips, speakers):
    """The pairs of a file, indices, [trials, 2]."""
    check_file(path)
    path = Path(path).expanduser()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = [(i, line.split()) for i, line in enumerate(lines, 1) if line.strip()]
    for number, words in rows:
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise UserError(
                f"{path}, line {number}: {' '.join(words)!r}. A trial is a label (1 "
                "for one speaker, 0 for two) and two clips: 1 a.wav b.wav"
            )
    find = _finder(clips, {name for _, words in rows for name in words[1:]})
    pairs = []
    for number, (label, *names) in rows:
        a, b = (find(name, f"{path}, line {number}") for name in names)
        if (speakers[a] == speakers[b]) != (label == "1"):
            spoken = "one speaker" if label == "0" else "two speakers"
            raise UserError(
                f"{path}, line {number}: the label is {label}, but {names[0]} and "
                f"{names[1]} are of {spoken}. Correct the list, or --speaker, which "
                "says where a clip's speaker stands."
            )
        pairs.append((a, b))
    if not pairs:
        raise UserError(f"{path} is empty: give lines such as 1 a.wav b.wav")
    return np.array(pairs)


def _finder(clips, names):
    """A function from the name of a clip, and where it stands, to its index."""
    ids = {clip.id: i for i, clip in enumerate(clips)}
    paths = {}
    for depth in {len(Path(name).parts) for name in names}:
        for i, clip in enumerate(clips):
            paths.setdefault(Path(clip.wav).parts[-depth:], []).append(i)

    def find(name, where):
        if name in ids:
            return ids[name]
        found = paths.get(Path(name).parts, [])
        if len(found) != 1:
            reason = (
                "no clip has this ID or path. It may also be a file that cannot be "
                "read: see unusable_files.csv"
                if not found
                else f"{len(found)} clips have such a path. Name it by its ID"
            )
            raise UserError(f"{where}: {name}: {reason}.")
        return found[0]

    return find
