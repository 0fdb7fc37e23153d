"""Tiny tasks in the layout of HEAR, of generated sounds."""

import json

import numpy as np
import soundfile

RATE = 16000
HZ = {"low": 200, "middle": 700, "high": 2500}


def tone(label, seconds, rng):
    """A tone with some noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    hz = HZ[label] * rng.uniform(0.9, 1.1)
    wav = 0.3 * np.sin(2 * np.pi * hz * time) + 0.02 * rng.standard_normal(len(time))
    return wav.astype(np.float32)


def write_task(root, name, splits, version="v1.0", mode="full", rate=RATE, **metadata):
    """Writes a task: `splits` has for each split a dict of file name -> (wav, said)."""
    folder = root / f"{name}-{version}-{mode}"
    for split, files in splits.items():
        audio = folder / str(rate) / split
        audio.mkdir(parents=True)
        for file, (wav, _) in files.items():
            soundfile.write(audio / file, wav, rate)
        said = {file: said for file, (_, said) in files.items()}
        (folder / f"{split}.json").write_text(json.dumps(said))
    rows = [f"{i},{label}" for i, label in enumerate(sorted(HZ))]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows, ""]))
    metadata = {
        "task_name": name,
        "version": version,
        "mode": mode,
        "splits": list(splits),
        "sample_duration": None,
        **metadata,
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    return folder


def write_tones(root, seed=0, **more):
    """Scenes with one label, in a training, a validation and a test split."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in (("train", 30), ("valid", 15), ("test", 18)):
        labels = [sorted(HZ)[i % 3] for i in range(count)]
        # Some labels are wrong, so that scores are not all 1.
        heard = [label if rng.random() < 0.8 else "low" for label in labels]
        splits[split] = {
            f"{split}{i}.wav": (tone(heard[i], 0.3, rng), [labels[i]])
            for i in range(count)
        }
    given = {
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "evaluation": ["top1_acc", "mAP", "d_prime", "aucroc"],
    }
    return write_task(root, "tones", splits, **given | more)


def write_chords(root, seed=1, **more):
    """Scenes with any number of labels, in three folds."""
    rng = np.random.default_rng(seed)
    splits = {}
    for fold in ("fold00", "fold01", "fold02"):
        files = {}
        for i in range(14):
            labels = [label for n, label in enumerate(sorted(HZ)) if i >> n & 1]
            seconds = 0.3 if i % 2 else 0.4
            wav = 0.02 * rng.standard_normal(int(seconds * RATE))
            for label in labels:
                wav = wav + 0.2 * tone(label, seconds, rng) * (rng.random() < 0.85)
            files[f"{fold}_{i}.wav"] = (wav.astype(np.float32), labels)
        splits[fold] = files
    given = {
        "embedding_type": "scene",
        "prediction_type": "multilabel",
        "split_mode": "new_split_kfold",
        "evaluation": ["mAP", "top1_acc", "aucroc", "d_prime"],
    }
    return write_task(root, "chords", splits, **given | more)


def write_beeps(root, seed=2, **more):
    """Recordings of 6 s with events of three kinds."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in (("train", 5), ("valid", 3), ("test", 4)):
        files = {}
        for i in range(count):
            wav = 0.02 * rng.standard_normal(6 * RATE).astype(np.float32)
            events = []
            for label in rng.permutation(sorted(HZ)).tolist() * 2:
                seconds = rng.uniform(0.35, 0.9)
                start = rng.uniform(0, 6 - seconds)
                first = int(start * RATE)
                sound = tone(label, seconds, rng) * rng.choice([0.1, 1.0])
                wav[first : first + len(sound)] += sound
                end = start + seconds
                event = {"label": label, "start": 1000 * start, "end": 1000 * end}
                events.append(event)
            files[f"{split}{i}.wav"] = (wav, events)
        splits[split] = files
    given = {
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "evaluation": [
            *("event_onset_200ms_fms", "event_onset_50ms_fms"),
            *("event_onset_offset_50ms_20perc_fms", "segment_1s_er"),
        ],
    }
    return write_task(root, "beeps", splits, **given | more)
