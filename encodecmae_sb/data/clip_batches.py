"""Labelled clips as a data set: waveforms, or what was computed from them, in batches.

B clips of up to N samples, or of up to N stored rows.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .audio import UnusableAudio, read_audio


@dataclass
class ClipBatch:
    """Clips of different lengths, padded.

    Arguments
    ---------
    inputs : torch.Tensor
        Samples at 24 kHz [B, N], or what was stored of the clips, [B, N, ...].
    lengths : torch.Tensor
        Valid part of each along N, int64, shape [B].
    targets : torch.Tensor
        See `clips.targets_of`.
    index : torch.Tensor
        Their places in the list of clips, int64, shape [B].
    """

    inputs: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    index: torch.Tensor

    def to(self, device):
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        """The batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function):
        return ClipBatch(*(function(getattr(self, f.name)) for f in fields(self)))


class LabelledClips(torch.utils.data.Dataset):
    """Clips as waveforms at 24 kHz, or as what was computed from them, with targets.

    Arguments
    ---------
    clips : list of Clip
    targets : torch.Tensor
        See `clips.targets_of`.
    stored : dict-like, optional
        Clip ID -> tensor to give instead of the waveform.

    Raises
    ------
    UserError
        When a clip is taken whose file cannot be read.

    Example
    -------
    >>> from encodecmae_sb.bundled import sound_folder
    >>> from encodecmae_sb.data.corpora import find_clips
    >>> clips = find_clips("esc50", sound_folder())[:2]
    >>> data = LabelledClips(clips, torch.tensor([0, 0]))
    >>> data.collate([data[0], data[1]]).inputs.shape[0]
    2
    """

    def __init__(self, clips, targets, stored=None):
        self.clips = clips
        self.targets = targets
        self.stored = stored

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        clip = self.clips[index]
        if self.stored is not None:
            return index, self.stored[clip.id]
        try:
            return index, read_audio(clip.wav, SAMPLE_RATE)
        except UnusableAudio as error:
            raise UserError(
                f"{clip.wav}: {error}. Repair the file or take it out of the corpus, "
                "and run the same command again."
            ) from error

    def collate(self, items):
        """Makes a `ClipBatch` of items."""
        index = torch.tensor([index for index, _ in items])
        inputs = [content for _, content in items]
        return ClipBatch(
            inputs=torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True),
            lengths=torch.tensor([len(content) for content in inputs]),
            targets=self.targets[index],
            index=index,
        )


class EpochBatches:
    """Batches of indices in random order, another one in every epoch.

    The order depends on the seed and the epoch alone, so a run that was killed finds it
    again. Clips of like length tend to come together. A last batch of one clip is
    joined to the batch before, because the head normalises over the batch.

    Arguments
    ---------
    durations : list of float
        Of all clips, in seconds.
    batch_size : int
        At least 2.
    seed : int

    Raises
    ------
    UserError
        If the batch size is below 2, or there are fewer than 2 clips.

    Example
    -------
    >>> sampler = EpochBatches([1.0] * 5, batch_size=2, seed=0)
    >>> sampler.set_epoch(3)
    >>> sorted(len(batch) for batch in sampler)
    [2, 3]
    """

    def __init__(self, durations, batch_size, seed):
        if batch_size < 2:
            raise UserError(f"batch_size={batch_size}: at least 2.")
        if len(durations) < 2:
            raise UserError(f"{len(durations)} clip to train on: at least 2.")
        self.durations = np.asarray(durations)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch):
        """Chooses the epoch, counted from 1."""
        self.epoch = epoch

    def __len__(self):
        whole, rest = divmod(len(self.durations), self.batch_size)
        return max(whole + (rest > 1), 1)

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.durations))
        # Sort by length within a few batches at a time. With more batches at a time,
        # the same clips would meet in every epoch.
        size = max(1, min(20, len(self) // 4)) * self.batch_size
        for start in range(0, len(order), size):
            part = order[start : start + size]
            order[start : start + size] = part[
                np.argsort(self.durations[part], kind="stable")
            ]
        cuts = [self.batch_size * i for i in range(1, len(self))]
        batches = np.split(order, cuts)
        for i in rng.permutation(len(batches)):
            yield batches[i].tolist()
