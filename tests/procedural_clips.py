"""What procedural clips cost and look like, beside recordings.

    python tests/procedural_clips.py [FOLDER_OF_AUDIO ...]

Prints for each kind of clip, and for the crops of 2 s of each folder: CPU milliseconds
to make a clip of 1 s; the long-term spectrum, dB in 6 of 24 mel bands; the deviation of
log-mel frames between clips and over time, in dB; and the errors of `foreseen`.
"""

import sys
import time

import numpy as np
import torch
import torchaudio

from encodecmae_sb.data.audio import UnusableAudio, read_audio
from encodecmae_sb.data.manifest import find_audio
from encodecmae_sb.data.procedural.scene import KINDS, render
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE


def log_mel(clips):
    """Log-mel frames in dB relative to the clip's peak, at least -60, [B, T, 24]."""
    mel = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, 1024, hop_length=HOP, n_mels=24
    )
    wavs = torch.stack([torch.as_tensor(clip) for clip in clips])
    frames = 10 * (mel(wavs).mT + 1e-12).log10()
    return (frames - frames.amax((1, 2), keepdim=True)).clamp(min=-60)


def foreseen(frames, gap=15, context=8):
    """How well what stands around a gap tells what is in it.

    A gap in the middle of each clip is hidden. The rest of the clip is searched for the
    stretch before and after which it sounds most as it does before and after the gap.
    If nothing comes back, that stretch is no better a guess than frames at random.

    Arguments
    ---------
    frames : torch.Tensor
        [B, T, M].
    gap, context : int
        Frames.

    Returns
    -------
    own, random, other : float
        Mean square errors, dB^2: the frame that was found; a random visible frame of
        the same clip; a random frame of another clip.
    """
    rng = np.random.default_rng(0)
    errors = []
    first = (frames.shape[1] - gap) // 2
    window = context + gap + context
    for i, clip in enumerate(frames):
        hidden = clip[first : first + gap]
        around = (
            torch.cat([clip[s : s + context], clip[s + context + gap : s + window]])
            for s in range(len(clip) - window + 1)
        )
        around = torch.stack(list(around))
        starts = torch.arange(len(around)) + context
        apart = (starts - first).abs() >= gap
        distance = (around - around[first - context]).square().mean((1, 2))
        best = int(starts[distance.masked_fill(~apart, torch.inf).argmin()])
        visible = [t for t in range(len(clip)) if not first <= t < first + gap]
        other = frames[(i + 1 + rng.integers(len(frames) - 1)) % len(frames)]
        guesses = (
            clip[best : best + gap],
            clip[rng.choice(visible, gap)],
            other[rng.integers(len(clip), size=gap)],
        )
        errors.append([(guess - hidden).square().mean() for guess in guesses])
    return torch.tensor(errors).mean(0).tolist()


def _recorded(folder, count, length):
    """Crops of `length` samples of some files of a folder."""
    paths = [folder + "/" + path for path, _, _ in find_audio(folder)]
    rng, clips = np.random.default_rng(0), []
    for path in rng.permutation(paths):
        try:
            wav = read_audio(path, SAMPLE_RATE)
        except UnusableAudio:
            continue
        if len(wav) < length:
            continue
        start = rng.integers(len(wav) - length + 1)
        clips.append(wav[start : start + length])
        if len(clips) == count:
            break
    return clips


def main(folders, count=200, length=2 * SAMPLE_RATE):
    print(f"{'':26s}  ms/s   long-term spectrum           between  over time   errors")
    for name in [*KINDS, "all kinds", *folders]:
        cost = ""
        if name in folders:
            clips = _recorded(name, count, length)
        else:
            kind = None if name == "all kinds" else name
            began = time.process_time()
            for draw in range(count):
                render(1, draw, SAMPLE_RATE, kind=kind)
            cost = f"{1000 * (time.process_time() - began) / count:.2f}"
            clips = [render(1, draw, length, kind=kind) for draw in range(count)]
        frames = log_mel(clips)
        means = frames.mean(1)
        spectrum = " ".join(f"{v:4.0f}" for v in means.mean(0)[::4])
        between, within = means.std(0).mean(), frames.std(1).mean()
        errors = " ".join(f"{e:4.0f}" for e in foreseen(frames))
        figures = f"{between:6.1f} {within:8.1f}    {errors}"
        print(f"{name[-26:]:26s} {cost:>5s}   {spectrum}   {figures}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
