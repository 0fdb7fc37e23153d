"""Embeddings of HEAR's tasks, through the HEAR API: computed once, kept in files."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from encodecmae_sb import hear
from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.hear_tasks import EVENT
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import LogMelFrames
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file, write_text
from encodecmae_sb.utils.preemption import ignore_signals
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.signal import resample

from .clip_features import StoredSummaries
from .clip_vectors import LOGMEL, RANDOM

# An event may start so much after the last frame: encoders drop a tail of up to 85 ms,
# and the time of a frame is that of its middle.
_TAIL_MS = 200
# So that the end of an event belongs to it, as in heareval.
_END_MS = 1e-4


class LogMelModel(nn.Module):
    """The baseline: log-mel frames in the place of an encoder's, for the HEAR API."""

    def __init__(self):
        super().__init__()
        self.encoder = LogMelFrames()
        self.sample_rate = hear.SAMPLE_RATE

    def forward(self, audio):
        """Samples [sounds, samples] at `sample_rate` -> frames [sounds, T, D]."""
        front_end = self.encoder.front_end
        return front_end(resample(audio, self.sample_rate, front_end.sample_rate))


def load_model(name, like, rate, seed):
    """The model of the HEAR API for an encoder of the yaml.

    Arguments
    ---------
    name : str
        "logmel", "random", or what `load_encoder_source` takes.
    like : str or None
        The encoder that "random" is like.
    rate : int
        Of the audio that it will get, in Hz.
    seed : int
        Of random weights.

    Returns
    -------
    HearModel or LogMelModel
    """
    if name == LOGMEL:
        model = LogMelModel()
    elif name == RANDOM:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = hear.HearModel(load_encoder_source(like, pretrained=False))
    else:
        model = hear.load_model(name)
    model.sample_rate = rate
    return model


class _Batches(Dataset):
    """Audio of sounds that follow each other and have one length."""

    def __init__(self, sounds, rate, seconds):
        self.rate = rate
        self.batches = []
        for _, group in itertools.groupby(sounds, lambda sound: sound.num_samples):
            same = list(group)
            size = max(1, int(seconds * rate // same[0].num_samples))
            self.batches += [same[i : i + size] for i in range(0, len(same), size)]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        try:
            wavs = [read_audio(sound.path, self.rate) for sound in self.batches[index]]
        except UnusableAudio as error:
            first = self.batches[index][0].path
            raise UserError(f"{first} or a file after it: {error}") from error
        return torch.stack(wavs)


@dataclass
class SplitEmbeddings:
    """Embeddings of a split.

    Arguments
    ---------
    stored : StoredSummaries
        Of each sound its embedding [D], or its frames [T, D]; float32.
    times : numpy.ndarray or None
        Of all frames, in ms, in the order of the frames.
    key : str
        A name for all that they depend on.
    """

    stored: StoredSummaries
    times: np.ndarray
    key: str

    def frames_of(self, sound):
        """Which frames are those of a sound, as a slice."""
        return slice(*self.stored.places[sound.name])

    def inputs(self):
        """All embeddings, [items, D]."""
        return torch.from_numpy(np.array(self.stored.values))


def frame_targets(task, sounds, embeddings, encoder):
    """Which labels are present at the times of the frames.

    Arguments
    ---------
    task : HearTask
    sounds : list of Sound
    embeddings : SplitEmbeddings
    encoder : str
        For the message.

    Returns
    -------
    torch.Tensor
        0 or 1, float32, [frames, labels].

    Raises
    ------
    UserError
        If the frames of a sound end before its last event.
    """
    index = {label: i for i, label in enumerate(task.labels)}
    targets = torch.zeros(len(embeddings.times), len(task.labels))
    for sound in sounds:
        frames = embeddings.frames_of(sound)
        times = embeddings.times[frames]
        last = max(sound.events, key=lambda event: event.start, default=None)
        if last is not None and last.start > times[-1] + _TAIL_MS:
            raise UserError(
                f"The {len(times)} frames that {encoder} gives for {sound.path} end at "
                f"{times[-1] / 1000:.2f} s, but its last event, {last.label!r}, starts "
                f"at {last.start / 1000:.2f} s. The encoder must give timestamps up to "
                "the end of the audio, in ms."
            )
        for event in sound.events:
            present = (times >= event.start) & (times < event.end + _END_MS)
            targets[frames, index[event.label]] += torch.from_numpy(present)
    return targets.clamp_(max=1)


class HearEmbeddings:
    """Computes the embeddings of tasks with one encoder.

    Arguments
    ---------
    name : str
        Of the encoder.
    model : HearModel or LogMelModel
        On the device.
    folder : Path
        For the files.
    batch_seconds : float
        Audio that is encoded at once; a longer file is encoded alone.
    num_workers : int
    device : torch.device
    quiet : bool
        No progress bar.
    """

    def __init__(self, name, model, folder, batch_seconds, num_workers, device, quiet):
        self.name = name
        self.model = model.eval().to(device)
        self.folder = folder
        self.batch_seconds = batch_seconds
        self.num_workers = num_workers
        self.device = device
        self.quiet = quiet
        self.made = [describe(model.encoder.front_end), weights_key(model)]
        if name != LOGMEL:
            self.made.append(describe(model.encoder))

    def of(self, task, split):
        """The embeddings of a split, computed once.

        Arguments
        ---------
        task : HearTask
        split : str

        Returns
        -------
        SplitEmbeddings

        Raises
        ------
        UserError
            If an embedding is not finite, or a file cannot be read.
        """
        sounds = task.splits[split]
        files = []
        for sound in sounds:
            stat = os.stat(sound.path)
            files.append([sound.name, stat.st_size, stat.st_mtime_ns])
        place = [task.name, str(task.folder.resolve()), task.rate, task.kind, split]
        key = digest([*self.made, FRAMES_VERSION, place, files])
        path = Path(self.folder) / f"{key}.bin"
        times = path.with_suffix(".npy") if task.kind == EVENT else None
        if not path.with_suffix(".json").exists():
            self._store(task, split, path, times)
        if times is not None:
            times = np.load(times)
        return SplitEmbeddings(StoredSummaries(path), times, key)

    def _embed(self, wavs, kind):
        """Embeddings [sounds, 1 or T, D], and times of frames [T] or None."""
        if kind == EVENT:
            frames, times = hear.get_timestamp_embeddings(wavs, self.model)
            return frames, times[0].double().cpu().numpy()
        if self.name == LOGMEL:
            deviation, mean = torch.std_mean(self.model(wavs), 1, correction=0)
            return torch.cat([mean, deviation], 1)[:, None], None
        return hear.get_scene_embeddings(wavs, self.model)[:, None], None

    @torch.no_grad()
    def _store(self, task, split, path, times_path):
        data = _Batches(task.splits[split], task.rate, self.batch_seconds)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
        )
        places, rows, all_times = {}, 0, []
        what = f"Encoding {task.name}, {split}"
        bar = open_bar(len(task.splits[split]), what, "files", quiet=self.quiet)
        with bar, whole_file(path) as scratch, open(scratch, "wb") as file:
            for wavs, sounds in zip(loader, data.batches, strict=True):
                items, times = self._embed(wavs.to(self.device), task.kind)
                if not torch.isfinite(items).all():
                    raise UserError(
                        f"{self.name} gives embeddings that are not finite (NaN or "
                        f"Inf) near {sounds[0].path}: its weights are damaged. "
                        "Pretrain it again or name another one."
                    )
                items = items.float().cpu().numpy()
                for sound, item in zip(sounds, items, strict=True):
                    after = rows + len(item)
                    places[sound.name] = rows if times is None else [rows, after]
                    rows = after
                    file.write(item.tobytes())
                    all_times.append(times)
                bar.update(len(sounds))
        if times_path is not None:
            with whole_file(times_path) as scratch, open(scratch, "wb") as file:
                np.save(file, np.concatenate(all_times))
        shape = [rows, items.shape[-1]]
        notes = {"shape": shape, "dtype": str(items.dtype), "places": places}
        # Write the notes last: a file without notes is computed anew.
        write_text(path.with_suffix(".json"), json.dumps(notes))
