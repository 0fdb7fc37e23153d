"""Random crops of a mixture of corpora, as batches, without any state.

Every crop is a pure function of (seed, number of the draw): which corpus, which
file, where, and the seed of its mask. A run that was stopped, or that uses other
numbers of workers or processes, draws the very same crops.
"""

import contextlib
import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.values import are_weights

from .audio import UnusableAudio, read_audio
from .columns import read_columns
from .procedural.corpus import cut_procedural

_MAX_ATTEMPTS = 20

# With stored targets, audio of at most so much is kept in memory, in each process that
# reads it.
_KEPT_SECONDS = 1800  # 173 MB
_UTTERANCE_SECONDS = 10.0

# Shortest padded batch. EnCodec mirrors the beginning of a signal into its padding, at
# the deepest layer 6 frames of it. In a shorter batch the codes of a crop would depend
# on the length of the batch, and so on the other crops in it.
_MIN_FRAMES = 8


@dataclass
class CropBatch:
    """A batch of waveforms.

    Arguments
    ---------
    wavs : torch.Tensor
        Samples in [-1, 1], shape [B, N], zero after each item's end; N is a
        multiple of the hop.
    lengths : torch.Tensor
        True lengths in samples, int64, shape [B].
    num_frames : torch.Tensor
        Whole frames of each item, int64, shape [B]. A last frame that is not full
        counts as padding.
    seeds : torch.Tensor
        A seed per item, for its mask, int64, shape [B].
    corpus : torch.Tensor
        Index of each item's corpus, int64, shape [B].
    full : bool
        Whether all items are N samples long. Known on the host, so that nothing has
        to ask the device.
    unusable : list of (str, str)
        Path and reason of files that could not be read and were replaced.
    targets : torch.Tensor, optional
        Stored targets of the crops, zeros after each item's end, int64, shape
        [B, N / hop, Q].
    """

    wavs: torch.Tensor
    lengths: torch.Tensor
    num_frames: torch.Tensor
    seeds: torch.Tensor
    corpus: torch.Tensor
    full: bool
    unusable: list
    targets: torch.Tensor | None = None

    def to(self, device):
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        """The same batch in page-locked memory, for fast transfers."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, move):
        tensors = {
            name: move(value)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


class CropCollator:
    """Pads crops to the longest of the batch, rounded up to whole frames, at least 8.

    Arguments
    ---------
    hop_length : int
        Samples per frame.
    """

    def __init__(self, hop_length=HOP):
        self.hop_length = hop_length

    def __call__(self, items):
        longest = max(len(item["wav"]) for item in items)
        longest = max(longest, _MIN_FRAMES * self.hop_length)
        longest += -longest % self.hop_length
        wavs = torch.zeros(len(items), longest)
        for row, item in zip(wavs, items, strict=True):
            row[: len(item["wav"])] = item["wav"]
        lengths = torch.tensor([len(item["wav"]) for item in items])
        targets = None
        if "targets" in items[0]:
            each = [item["targets"].reshape(len(item["targets"]), -1) for item in items]
            frames, width = longest // self.hop_length, each[0].shape[1]
            targets = torch.zeros(len(items), frames, width, dtype=torch.int64)
            for row, codes in zip(targets, each, strict=True):
                row[: len(codes)] = codes
        return CropBatch(
            wavs=wavs,
            lengths=lengths,
            num_frames=lengths // self.hop_length,
            seeds=torch.tensor([item["seed"] for item in items]),
            corpus=torch.tensor([item["corpus"] for item in items]),
            full=bool((lengths == longest).all()),
            unusable=[bad for item in items for bad in item["unusable"]],
            targets=targets,
        )


class RandomCrops(Dataset):
    """Endless random crops: item n is the n-th draw.

    A corpus is drawn by its weight, a file of it in proportion to its length, a
    position in it uniformly. A file that turns out to be unreadable is replaced
    by another draw and reported in the item.

    Arguments
    ---------
    manifests : list of str or Path
        CSV manifests, one per corpus.
    crop_seconds : float
        Length of a crop; shorter files are taken whole.
    sample_rate : int
        Rate of the crops in Hz.
    seed : int
        Another seed, other draws.
    weights : list of float, optional
        Share of the draws each corpus gets; default: by total duration, which
        procedural audio has not.
    targets : list of StoredTargets, optional
        One per manifest, of the files that it lists: crops then begin on a frame, and
        their items hold its stored targets.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.data.manifest import prepare_corpora
    >>> corpus, = prepare_corpora(speech_folder(), getfixture("tmp_path"))
    >>> crops = RandomCrops([corpus.train_csv], crop_seconds=0.5)
    >>> crops[10**6]["wav"].shape
    torch.Size([12000])
    >>> bool((crops[3]["wav"] == crops[3]["wav"]).all())
    True
    """

    def __init__(
        self,
        manifests,
        crop_seconds=4.0,
        sample_rate=SAMPLE_RATE,
        seed=0,
        weights=None,
        targets=None,
    ):
        if weights is not None and not are_weights(weights, len(manifests)):
            raise UserError(
                f"corpus_weights={weights} for {len(manifests)} corpora: give a list "
                "with one number per data_folder, none negative, not all zero, such as "
                f'--corpus_weights "{[1] * len(manifests)}"; null: by duration.'
            )
        self.crop_seconds = crop_seconds
        self.sample_rate = sample_rate
        self.seed = seed
        self.targets = targets
        self.paths, self.durations, self.cumulated = [], [], []
        for corpus, manifest in enumerate(manifests):
            if targets is None:
                paths, durations = read_columns(manifest, wav=str, duration=float)
            else:
                paths, durations = targets[corpus].paths, targets[corpus].seconds
            self.paths.append(paths)
            self.durations.append(durations)
            self.cumulated.append(np.cumsum(durations))
        totals = np.array([c[-1] for c in self.cumulated])
        if weights is None and len(totals) > 1 and np.isinf(totals).any():
            raise UserError(
                "corpus_weights=null means by duration, and procedural audio has no "
                "end. Give the share of the crops of each data_folder, such as "
                f'--corpus_weights "{[1] * len(totals)}".'
            )
        by_duration = totals if len(totals) > 1 else [1.0]
        shares = np.array(by_duration if weights is None else weights, dtype=float)
        self.cumulated_shares = np.cumsum(shares / shares.sum())
        if targets is not None and self.total_seconds <= _KEPT_SECONDS:
            for part in targets:
                part.keep_audio()

    @property
    def total_seconds(self):
        """Duration of all corpora together, infinite with procedural audio."""
        return float(sum(c[-1] for c in self.cumulated))

    @property
    def num_files(self):
        """Files of all corpora together."""
        return sum(len(paths) for paths in self.paths)

    def __getitem__(self, draw):
        rng = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
        unusable = []
        for attempt in range(_MAX_ATTEMPTS):
            corpus, file, position = self.choose(draw, attempt, rng)
            seed = int(rng.integers(2**62))
            path = self.paths[corpus][file]
            try:
                if self.targets is None:
                    duration = self.durations[corpus][file]
                    crop = _cut(
                        path, duration, position, self.crop_seconds, self.sample_rate
                    )
                else:
                    crop = self.targets[corpus].cut(file, position, self.crop_seconds)
            except UnusableAudio as error:
                unusable.append((path, str(error)))
                continue
            return {**crop, "seed": seed, "corpus": corpus, "unusable": unusable}
        raise UserError(
            f"{_MAX_ATTEMPTS} files in a row could not be read, the last one "
            f"{path}: {unusable[-1][1]}. Is the disk with the audio still there?"
        )

    def corpus_of(self, draw):
        """The number of the corpus that a draw takes its crop from."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
        return self.choose(draw, 0, rng)[0]

    def choose(self, draw, attempt, rng):
        """Maps a draw to a corpus, a file of it and a position in the file.

        Arguments
        ---------
        draw : int
            Its number.
        attempt : int
            How many of its choices could not be read.
        rng : numpy.random.Generator
            The draw's own.

        Returns
        -------
        corpus, file : int
        position : float
            Start of the crop as a fraction of the latest possible start, in [0, 1).
        """
        corpus = int(np.searchsorted(self.cumulated_shares, rng.random()))
        corpus = min(corpus, len(self.paths) - 1)  # the sum may round below 1
        cumulated = self.cumulated[corpus]
        where = rng.random() * cumulated[-1]
        file = min(int(np.searchsorted(cumulated, where)), len(cumulated) - 1)
        return corpus, file, rng.random()


def _cut(path, duration, position, crop_seconds, sample_rate):
    """The crop that starts at the fraction `position` of the latest possible start."""
    rendered = cut_procedural(path, position, crop_seconds, sample_rate)
    if rendered is not None:
        return {"wav": torch.from_numpy(rendered)}
    start = position * max(duration - crop_seconds, 0.0)
    return {"wav": read_audio(path, sample_rate, start, crop_seconds)}


def _transcripts(manifest, count):
    """The transcript of each file of a manifest, empty if it has none."""
    with open(manifest, encoding="utf-8") as file:
        there = "wrd" in file.readline().strip().split(",")
    return read_columns(manifest, wrd=str)[0] if there else [""] * count


class FixedCrops(Dataset):
    """The same crops at every validation: the middle of each file.

    They are read once, at construction, and kept in memory. Each has the transcript of
    its whole file, the key `wrd`, empty where there is none.

    Arguments
    ---------
    manifests : list of str or Path
        CSV manifests, one per corpus.
    max_items : int
        At most this many files of each corpus, spread evenly over it.
    crop_seconds : float
        Length of a crop; shorter files are taken whole.
    sample_rate : int
        Rate of the crops in Hz.
    seed : int
        For the masks.
    targets : list of StoredTargets, optional
        As for `RandomCrops`.
    utterances : bool
        Whether items with a transcript also have the first 10 s of their file, the key
        `utterance`, if these can be read.

    Raises
    ------
    UserError
        If none of a corpus' files can be read.

    Example
    -------
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.data.manifest import prepare_corpora
    >>> corpus, = prepare_corpora(speech_folder(), getfixture("tmp_path"))
    >>> len(FixedCrops([corpus.valid_csv], max_items=3))
    3
    """

    def __init__(
        self,
        manifests,
        max_items=64,
        crop_seconds=4.0,
        sample_rate=SAMPLE_RATE,
        seed=0,
        targets=None,
        utterances=False,
    ):
        self.targets = targets
        self.items = []
        self.rows = []  # of each item: the number of its row in its manifest
        self.unusable = []
        for corpus, manifest in enumerate(manifests):
            paths, durations = read_columns(manifest, wav=str, duration=float)
            transcripts = _transcripts(manifest, len(paths))
            before = len(self.items)
            chosen = np.linspace(0, len(paths) - 1, min(max_items, len(paths)))
            for index in chosen.round().astype(int):
                path = paths[index]
                try:
                    if targets is None:
                        duration = durations[index]
                        crop = _cut(path, duration, 0.5, crop_seconds, sample_rate)
                    else:
                        crop = targets[corpus].cut(index, 0.5, crop_seconds)
                except UnusableAudio as error:
                    self.unusable.append((path, str(error)))
                    continue
                if utterances and transcripts[index]:
                    # A file may be readable as far as its crop.
                    with contextlib.suppress(UnusableAudio):
                        utterance = read_audio(path, sample_rate, 0, _UTTERANCE_SECONDS)
                        crop["utterance"] = utterance
                rng = np.random.Generator(np.random.Philox(key=[seed, index]))
                self.rows.append(int(index))
                self.items.append(
                    {
                        **crop,
                        "seed": int(rng.integers(2**62)),
                        "corpus": corpus,
                        "unusable": [],
                        "wrd": transcripts[index],
                    }
                )
            if len(self.items) == before:
                raise UserError(
                    f"None of the {len(chosen)} validation files of {manifest} can "
                    f"be read; the last one is {path}: {self.unusable[-1][1]}"
                )

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


class DrawSampler:
    """Batches of draw numbers for one process of several.

    Step s of the run takes the draws s * G to (s + 1) * G - 1, with G the crops of a
    step; each process takes its slice of them, a batch at a time. What is drawn in a
    step depends neither on the number of processes nor on the size of the batches.

    Arguments
    ---------
    crops_per_step : int
        Of all processes together, G.
    batch_size : int
        Crops per batch; `crops_per_step` is a multiple of this times `world_size`.
    rank, world_size : int
        This process and how many there are.
    steps : range
        The steps to draw for, counted from 0. May be set at any time before the
        next iteration begins.

    Example
    -------
    >>> sampler = DrawSampler(crops_per_step=4, batch_size=2, steps=range(2, 4))
    >>> list(sampler)
    [[8, 9], [10, 11], [12, 13], [14, 15]]
    """

    def __init__(
        self, crops_per_step, batch_size, rank=0, world_size=1, steps=range(0)
    ):
        self.crops_per_step = crops_per_step
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.steps = steps

    @property
    def batches_per_step(self):
        """Batches that this process contributes to a step."""
        return self.crops_per_step // self.world_size // self.batch_size

    def __iter__(self):
        share = self.crops_per_step // self.world_size
        for step in self.steps:
            first = step * self.crops_per_step + self.rank * share
            for start in range(first, first + share, self.batch_size):
                yield list(range(start, start + self.batch_size))

    def __len__(self):
        return len(self.steps) * self.batches_per_step


class StepLoader(DataLoader):
    """Loads for each optimizer step a list of the batches that make it up.

    Arguments
    ---------
    crops : RandomCrops
    sampler : DrawSampler
    **options
        For `torch.utils.data.DataLoader`.

    Example
    -------
    >>> item = {"wav": torch.zeros(640), "seed": 0, "corpus": 0, "unusable": []}
    >>> loader = StepLoader([item] * 8, DrawSampler(4, 2, steps=range(2)))
    >>> [[len(batch.wavs) for batch in step] for step in loader]
    [[2, 2], [2, 2]]
    """

    def __init__(self, crops, sampler, **options):
        super().__init__(
            crops, batch_sampler=sampler, collate_fn=CropCollator(), **options
        )

    def __iter__(self):
        batches = super().__iter__()
        count = self.batch_sampler.batches_per_step
        while step := list(itertools.islice(batches, count)):
            yield step

    def __len__(self):
        return len(self.batch_sampler.steps)
