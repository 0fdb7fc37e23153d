"""What finished recognition, classification and probe runs add to a report."""

import json
import re
from pathlib import Path

import yaml

from encodecmae_sb.evaluation.report import chart, png_uri
from encodecmae_sb.utils.errors import UserError

_WORST = 6  # transcripts that are shown
_ERRORS = {"eer": "Equal error rate, %", "wer": "Word error rate, %"}
_KINDS = {  # keys of hyperparams.yaml by which a run is known, first match
    "self-training": {"teacher", "masker", "model"},
    "pretraining": {"masker", "model", "n_codebooks"},
    "probe": {"encoders", "repeats"},
    "recognition": {"token_type", "head"},
    "classification": {"features", "head"},
}
TAKEN = (
    "A report can be made of the output folder of recipes/pretrain.py, self_train.py, "
    "asr_ctc.py, classify.py or probe.py."
)


def kind_of(folder):
    """What kind of run a folder holds.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    str
        A key of `_KINDS`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it holds no run that a report can be made of.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}. {TAKEN}")
    keys = set(settings_of(folder))
    for kind, needed in _KINDS.items():
        if needed <= keys:
            return kind
    raise UserError(f"{folder} holds no run that is known here. {TAKEN}")


def settings_of(folder):
    """The plain values of a run's hyperparams.yaml, as text; empty without one."""
    try:
        text = (folder / "hyperparams.yaml").read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
        return {
            key.value: value.value if isinstance(value, yaml.ScalarNode) else ""
            for key, value in node.value
        }
    except (OSError, UnicodeError, yaml.YAMLError, AttributeError, TypeError):
        return {}


def read_metrics(folder):
    """The run's metrics.json; empty if it has not finished."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return metrics


def read_history(checkpoint):
    """The measurements that a checkpoint holds; none without it."""
    path = checkpoint and Path(checkpoint) / "history.ckpt"
    if not path or not path.is_file():
        return []
    return json.loads(path.read_text(encoding="utf-8"))


def results_of(folder, kind):
    """What the page shows of a finished recognition, classification or probe run.

    Arguments
    ---------
    folder : Path
    kind : str
        As `kind_of` gives it.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        If it has not finished.
    """
    metrics = read_metrics(folder)
    if not metrics:
        raise UserError(
            f"{folder} has no metrics.json: the {kind} has not finished. Let it finish."
        )
    makers = {
        "recognition": _recognition,
        "classification": _classification,
        "probe": _probe,
    }
    empty = {"bars": [], "table": None, "picture": None, "transcripts": []}
    empty |= {"score": "", "alt": ""}
    return empty | makers[kind](folder, metrics)


def recognition_charts(rows):
    """Curves of a recognition run."""
    steps = [row["step"] for row in rows]

    def line(key, name, kind):
        ys = [row.get(key, float("nan")) for row in rows]
        return {"name": name, "kind": kind, "xs": steps, "ys": ys}

    losses = [line("train_loss", "training", "c0"), line("valid_loss", "valid.", "c1")]
    rates = [line("wer", "words", "c0"), line("cer", "characters", "c1")]
    charts = [chart("Loss", "", losses), chart("Errors in validation", "%", rates)]
    return [drawn for drawn in charts if drawn]


def _recognition(folder, metrics):
    names = [key[:-4] for key in metrics if key.endswith("/wer")]
    body = [
        [name, f"{metrics[f'{name}/wer']:.1f}", f"{metrics[f'{name}/cer']:.1f}"]
        for name in names
    ]
    worst = [item for path in sorted(folder.glob("wer_*.txt")) for item in _read(path)]
    worst.sort(key=lambda item: (-item["rate"], item["name"]))
    about = f"CTC, {metrics['protocol']}, head: {metrics['head']}, "
    about += f"{metrics['steps']} steps."
    if worst:
        about += f" Below, the {min(_WORST, len(worst))} worst utterances."
    return {
        "title": "Speech recognition",
        "about": about,
        "table": {"head": ["Set", "Words wrong, %", "Characters, %"], "body": body},
        "transcripts": worst[:_WORST],
    }


def _read(path):
    """The utterances of SpeechBrain's file of alignments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines[:-3]):
        found = re.match(r"(.*), %WER ([\d.]+) \[", line)
        if found is None or found[1].startswith("<"):
            continue
        said, marks, heard = (
            [word.strip() for word in row.split(" ; ")] for row in lines[i + 1 : i + 4]
        )
        pairs = zip(heard, marks, strict=False)
        yield {
            "name": found[1],
            "rate": float(found[2]),
            "about": f"{float(found[2]):.0f} % of the words wrong",
            "reference": " ".join(word for word in said if word != "<eps>"),
            "heard": [
                ("(missing)" if word == "<eps>" else word, mark != "=")
                for word, mark in pairs
            ],
        }


def _classification(folder, metrics):
    names = [key for key in metrics if f"{key}_std" in metrics]
    names = names or [key for key in ("accuracy", "mAP") if key in metrics]
    body = [
        [
            name.replace("_", " "),
            f"{metrics[name]:.3f}",
            f"{metrics.get(f'{name}_std', float('nan')):.3f}",
        ]
        for name in names
    ]
    about = f"{metrics['clips']} clips, {metrics['classes']} classes, "
    about += f"{metrics['folds']} folds."
    if "most_frequent_class" in metrics:
        about += " Always the most frequent class: "
        about += f"{metrics['most_frequent_class']:.3f}."
    picture = folder / "confusion.png"
    return {
        "title": "Classification",
        "about": about,
        "table": {"head": ["Score", "Mean", "Dev. of folds"], "body": body},
        "picture": png_uri(picture) if picture.is_file() else None,
        "alt": "Confusion matrix: labels in rows, predictions in columns",
    }


def _probe(folder, metrics):
    scores, found = ("accuracy", "mAP", *_ERRORS), []
    for name, _, key in (k.rpartition("/") for k in metrics):
        encoder = name if key in _ERRORS else name.rpartition("/")[0]  # NAME/PROBE
        if key in scores and f"{encoder}/layer" in metrics:
            found.append((name, key))
    bars = []
    for name, key in found:
        value = metrics[f"{name}/{key}"]
        low = metrics.get(f"{name}/{key}_low", value)
        high = metrics.get(f"{name}/{key}_high", value)
        decimals, scale = (1, 1) if key in _ERRORS else (3, 100)  # errors: per cent
        low_at, high_at = (min(100, scale * end) for end in (low, high))
        bars.append(
            {
                "name": name,
                "value": f"{value:.{decimals}f}",
                "at": round(min(100, scale * value), 2),
                "low_at": round(low_at, 2),
                "width": round(high_at - low_at, 2),
                "interval": f"{low:.{decimals}f}\u2013{high:.{decimals}f}",
            }
        )
    about = "The score of probes on frozen features; the band is its 95 % interval."
    if "most_frequent_class" in metrics:
        about += " Always the most frequent class: "
        about += f"{metrics['most_frequent_class']:.3f}."
    titles = {"mAP": "mAP", **_ERRORS}
    return {
        "title": "Probe",
        "about": about,
        "bars": bars,
        "score": titles.get(found[0][1] if found else "", "Accuracy"),
    }
