"""Makes the page of a run: what it shows, from the run's files and its model."""

import csv
import math
import re
import shlex
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.checkpoints import Checkpointer

from encodecmae_sb.evaluation.report import (
    MAX_BYTES,
    chart,
    flac_bytes,
    flac_uri,
    gaps,
    principal_axes,
    render,
    spectrogram_uri,
)
from encodecmae_sb.nnet.encodec import CodecError
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .report_clips import decoder_of, load_model, measure_clips
from .report_results import (
    kind_of,
    read_history,
    read_metrics,
    recognition_charts,
    results_of,
    settings_of,
)

_MAP = {"width": 360, "height": 320}
_MARGIN = 34
_LISTENED = 6.0e6  # bytes that the clips to listen to may take; the map gets the rest


def make_page(
    folder,
    results=(),
    codec=None,
    clips=6,
    map_clips=100,
    layout="pca",
    labels=None,
    device=None,
    quiet=False,
):
    """The report of a run as HTML.

    Arguments
    ---------
    folder : str or Path
        The output folder of a run. A run that goes on is reported as far as it is.
    results : list of str or Path
        Output folders of recognition, classification and probe runs to add. Those
        inside `folder` are found.
    codec : str, optional
        The run's codec, if it is not where the run found it.
    clips, map_clips : int
        The most clips to listen to, and the most on the map.
    layout : str
        `pca`, or `umap`, for which `umap-learn` must be installed.
    labels : str or Path, optional
        CSV file with the columns `wav` and `label`.
    device : str, optional
    quiet : bool

    Returns
    -------
    str

    Raises
    ------
    UserError
        If the folder holds no run, no checkpoint, or the page would exceed 10 MB.
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(folder).expanduser()
    if min(clips, map_clips) < 0:
        raise UserError(f"clips={clips}, map_clips={map_clips}: 0 or more is allowed.")
    kind = kind_of(folder)
    place = _umap if layout == "umap" else principal_axes
    if layout == "umap":
        _import_umap()
    page = {
        "title": "/".join(folder.resolve().parts[-2:]),
        "kind": {
            "pretraining": "Report of a pretraining",
            "self-training": "Report of a self-training",
        }.get(kind, f"Report of a {kind} run"),
        "charts": [],
        "figures": [],
        "figures_about": "",
        "clips": [],
        "clips_about": [],
        "map": None,
        "notes": [],
        "tiles": [],
        "settings": sorted(settings_of(folder).items()),
        "next": [],
    }
    inside = [path.parent for path in sorted(folder.glob("*/hyperparams.yaml"))]
    others = [Path(path).expanduser() for path in results]
    kinds = {path: kind_of(path) for path in others}
    if wrong := [path for path in others if "training" in kinds[path]]:
        raise UserError(
            f"--results {wrong[0]}: that is a {kinds[wrong[0]]}. Give folders of "
            "recipes/asr_ctc.py, classify.py or probe.py."
        )
    for path in inside:
        try:
            other = kind_of(path)
        except UserError:
            continue  # an exported folder has such a file, too
        if "training" not in other and read_metrics(path):
            others, kinds[path] = [*others, path], other
    page["results"] = [results_of(path, kinds[path]) for path in others]
    if "training" in kind:
        options = codec, labels, place, clips, map_clips, device, quiet
        _fill_pretraining(page, folder, kind, *options)
    else:
        page["results"].insert(0, results_of(folder, kind))
        page["facts"] = _facts(folder, kind, None)
        rows = read_history(_newest(folder))
        if kind == "recognition":
            page["charts"] = recognition_charts(rows)
        page["lead"] = "What the run measured, and where it comes from."
    shown = [
        ("curves", "Curves", page["charts"]),
        ("figures", "Figures", page["figures"]),
        ("clips", "Hear it", page["clips"]),
        ("map", "Map", page["map"]),
        ("results", "Results", page["results"]),
        ("origin", "Origin", True),
        ("next", "What next", page["next"]),
    ]
    page["parts"] = [(anchor, name) for anchor, name, there in shown if there]
    html = render(page)
    if (size := len(html.encode("utf-8"))) > MAX_BYTES:
        raise UserError(
            f"The report would take {size / 1e6:.1f} MB, more than 10. Give fewer "
            f"clips: --clips (now {clips}), --map_clips (now {map_clips})."
        )
    return html


def _fill_pretraining(
    page, folder, kind, codec, labels, place, clips, map_clips, device, quiet
):
    identity = _read_identity(folder)
    labels = _read_labels(labels)
    run = load_model(folder, identity, codec)
    rows, metrics = read_history(run.checkpoint), read_metrics(folder)
    corpora = _corpora(folder, rows)
    steps = int(run.hparams["training_steps"])
    done = rows and metrics.get("step") == rows[-1]["step"]
    page["facts"] = _facts(folder, kind, run.checkpoint, identity)
    page["lead"] = (
        "Half of each clip is hidden, and the model predicts it. This page shows how "
        "well, and lets you hear it."
    )
    if not done:
        page["notes"].append(
            "The run has not finished. This page shows its newest checkpoint. Make the "
            "report again to see more."
        )
    if not rows:
        page["notes"].append("There has been no validation yet, so there is no curve.")
    else:
        page["charts"] = _charts(rows, corpora)
        size = run.hparams["codebook_size"]
        page["figures"] = _figures(rows[-1], corpora, size)
        page["figures_about"] = (
            "Cross-entropy on hidden frames: the lower, the better the model predicts. "
            f"Chance is {math.log(size):.2f} nats and {100 / size:.2g} % right, "
            f"because there are {size} codes."
        )
        page["tiles"] = _tiles(rows[-1], size, steps)

    device = choose_device(device)
    measured, notes = measure_clips(run, folder, corpora, labels, device, quiet)
    page["notes"] += notes
    _fill_clips(page, run, measured, clips, kind)
    _fill_map(page, measured, map_clips, place)
    page["next"] = _next_steps(folder, kind)


def _read_identity(folder):
    import json

    path = folder / "save" / "identity.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read_labels(path):
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["wav"]: row["label"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeError) as error:
        raise UserError(
            f"--labels {path}: a CSV file with the columns wav and label is needed, "
            f"as recipes/classify.py writes in clips.csv ({error!r})."
        ) from error


def _newest(folder):
    save = folder / "save"
    checkpoint = Checkpointer(save).find_checkpoint() if save.is_dir() else None
    return checkpoint and checkpoint.path


def _corpora(folder, rows):
    """Names of the corpora, in the order of the run where it is known."""
    names = [p.name.removesuffix("_valid.csv") for p in folder.glob("save/*_valid.csv")]
    measured = [key.partition("/")[0] for key in (rows[-1] if rows else {})]
    return sorted(
        names,
        key=lambda n: (
            (n not in measured, measured.index(n)) if n in measured else (True, 0, n)
        ),
    )


def _number_of_codebooks(row):
    return sum(key.startswith("masked_ce_") for key in row)


def _charts(rows, corpora):
    count = _number_of_codebooks(rows[-1])

    def line(key, name, kind, scale=1.0, **more):
        xs = [row["step"] for row in rows]
        ys = [scale * row.get(key, math.nan) for row in rows]
        return {"name": name, "kind": kind, "xs": xs, "ys": ys, **more}

    def each(key, scale=1.0):
        lines = []
        for q in range(1, count + 1):
            shade = (q - 1) / max(1, count - 1)
            more = {"end": f"{q}"} if count <= 16 else {}
            if count > 1:
                more["legend"] = f"codebooks 1 to {count}" if q == 1 else ""
            name = f"codebook {q}"
            lines.append(line(f"{key}_{q}", name, "", scale, shade=shade, **more))
        return lines

    unigram = line("unigram_ce_1", "unigram, codebook 1", "c5", dashed=True)
    found = [
        chart(
            "Cross-entropy of hidden frames",
            "nats",
            [*each("masked_ce"), unigram],
            "Lower is better. The dotted line knows only how often each code occurs.",
        ),
        chart(
            *("Hidden frames that are right", "%"),
            each("masked_accuracy", 100),
            "How often the most probable code is the true one.",
        ),
        chart(
            *("Loss", "nats"),
            [
                line("train_loss", "training", "c0", end="train"),
                line("valid_loss", "validation", "c1", end="valid"),
            ],
            "What training minimises. It counts visible frames, too.",
        ),
    ]
    lines = []
    for i, name in enumerate(corpora if len(corpora) > 1 else []):
        colour = f"c{i % 5}"
        lines.append(line(f"{name}/masked_ce_1", name, colour, end=name[:5]))
        own = f"unigram of {name}"
        lines.append(line(f"{name}/unigram_ce_1", own, colour, dashed=True))
    if lines:
        about = "Each with its own unigram, dotted."
        found.append(chart("Codebook 1, by corpus", "nats", lines, about))
    return [drawn for drawn in found if drawn]


def _figures(row, corpora, size):
    chance = math.log(size)
    found = []
    for prefix in ["", *(f"{name}/" for name in corpora if len(corpora) > 1)]:
        rows = []
        for q in range(1, _number_of_codebooks(row) + 1):
            values = [row.get(f"{prefix}{k}_{q}") for k in ("masked_ce", "unigram_ce")]
            if values[0] is not None:
                right = row[f"{prefix}masked_accuracy_{q}"]
                rows.append((str(q), *values, right))
        if rows:
            title = f"Only {prefix[:-1]}" if prefix else "All validation clips"
            found.append({"title": title, "values": rows})
    least = min(
        value
        for one in found
        for row in one["values"]
        for value in row[1:3]
        if value is not None
    )
    low = math.floor(min(least, chance - 0.5))

    def at(value):
        return round(100 * min(1, max(0, (value - low) / (chance - low))), 2)

    for one in found:
        one["scale"] = f"{low} to {chance:.2f} (chance)"
        one["about"] = "Nats on hidden frames, and how many are right."
        one["rows"] = []
        for name, model, unigram, right in one.pop("values"):
            known = model if unigram is None else unigram
            one["rows"].append(
                {
                    "name": name,
                    "model": f"{model:.2f}",
                    "unigram": "\u2013" if unigram is None else f"{unigram:.2f}",
                    "accuracy": f"{100 * right:.1f}",
                    "worse": model > known,
                    "start": min(at(model), at(known)),
                    "width": round(abs(at(model) - at(known)), 2),
                    "model_at": at(model),
                    "unigram_at": at(known),
                }
            )
    return found


def _tiles(row, size, steps):
    chance = math.log(size)
    tiles = [
        {
            "name": "Cross-entropy, codebook 1",
            "value": f"{row['masked_ce_1']:.2f}",
            "unit": "nats",
            "about": f"unigram {row['unigram_ce_1']:.2f}, chance {chance:.2f}",
        },
        {
            "name": "Right, codebook 1",
            "value": f"{100 * row['masked_accuracy_1']:.1f}",
            "unit": "%",
            "about": f"of hidden frames; chance {100 / size:.2g} %",
        },
    ]
    if "clusters_used" in row:
        tiles[1]["about"] = f"always the same: {100 * row['majority_accuracy']:.1f} %"
        tiles.append(
            {
                "name": "Clusters in use",
                "value": f"{100 * row['clusters_used']:.0f}",
                "unit": "%",
                "about": f"perplexity {row['cluster_perplexity']:.1f} of {size}",
            }
        )
    tiles.append(
        {
            "name": "Training steps",
            "value": f"{int(row['step'])}",
            "unit": "",
            "about": f"of {steps}",
        }
    )
    return tiles


def _facts(folder, kind, checkpoint, identity=None):
    settings, identity = settings_of(folder), identity or {}
    head = (folder / "hyperparams.yaml").read_text(encoding="utf-8")[:500]
    found = re.search(r"# Generated (\S+) from:\n# (.*)", head)
    recipe = {
        "pretraining": "pretrain",
        "self-training": "self_train",
        "recognition": "asr_ctc",
        "classification": "classify",
        "probe": "probe",
    }[kind]
    yaml_name = Path(found[2]).name if found else "hyperparams.yaml"
    facts = [
        (
            "Command",
            f"python recipes/{recipe}.py hparams/{yaml_name}, with the settings below",
        )
    ]
    if found:
        facts.append(("Started on", found[1]))
    if checkpoint:
        saved = re.search(r"CKPT\+(\d{4}-\d\d-\d\d)\+(\d\d)-(\d\d)", checkpoint.name)
        when = f"{saved[1]} {saved[2]}:{saved[3]}" if saved else checkpoint.name
        facts.append(("Checkpoint saved on", when))
    if "seed" in settings:
        facts.append(("Seed", settings["seed"]))
    if "data" in identity:
        facts.append(("Data", str(identity["data"].get("value", ""))))
    for key, name in (("codec", "Codec"), ("targets_content", "Targets")):
        if key in identity:
            what = identity[key]
            facts.append((name, f"{what.get('value')} ({what.get('digest')})"))
    if kind == "self-training":
        facts.append(("Teacher", settings.get("teacher", "")))
    if identity.get("precision"):
        facts.append(("Precision", str(identity["precision"])))
    log = folder / "env.log"
    if log.is_file():
        text = log.read_text(encoding="utf-8", errors="replace")
        names = r"(?m)^(encodecmae_sb|speechbrain|torch)==(.*)$"
        versions = [f"{name} {version}" for name, version in re.findall(names, text)]
        facts.append(("Versions", ", ".join(versions)))
    return facts


def _fill_clips(page, run, measured, count, kind):
    if not measured or not count:
        return
    seconds = max(len(clip.wav) for clip in measured) / SAMPLE_RATE
    codec = decoder_of(run)
    each = (3 if codec else 1) * (flac_bytes(seconds) + 90000)
    fitting = max(1, int(_LISTENED // each))
    count = min(count, fitting, len(measured))
    ranked = sorted(measured, key=lambda clip: (clip.ce, clip.corpus, clip.name))
    third, rest = divmod(count, 3)
    best, typical = third + (rest > 0), third
    worst = count - best - typical
    middle = max(best, min(len(ranked) // 2, len(ranked) - worst - typical))
    chosen = [("best", clip) for clip in ranked[:best]]
    chosen += [("typical", clip) for clip in ranked[middle : middle + typical]]
    chosen += [("worst", clip) for clip in ranked[len(ranked) - worst :]]
    page["clips_about"] = [
        f"{count} of {len(measured)} validation clips: those that the model predicts "
        "best, some in the middle, and the worst, by mean cross-entropy over hidden "
        "frames and all codebooks. The turquoise stripes are the hidden parts."
    ]
    if codec is None:
        what = "clusters" if kind == "self-training" else "not codes of a codec"
        page["clips_about"].append(
            f"The targets of this run are {what}. Nothing turns them back into sound, "
            "so there is the original only."
        )
    device = next(run.hparams["model"].parameters()).device
    for rank, clip in chosen:
        sounds = [("Original", "what was recorded", clip.wav)]
        try:
            if codec is not None:
                for name, about, codes in (
                    ("Codec", "decoded from the true codes", clip.codes),
                    (
                        "Filled in",
                        "hidden parts decoded from the prediction",
                        clip.filled,
                    ),
                ):
                    with torch.no_grad():
                        wav = codec.decode(codes[None].to(device))[0]
                    sounds.append((name, about, wav.cpu()[: len(clip.wav)]))
        except CodecError as error:
            codec = None
            page["clips_about"].append(f"There is no codec audio: {error}")
        page["clips"].append(_clip(rank, clip, sounds))


def _clip(rank, clip, sounds):
    loudest, shown = None, []
    for name, about, wav in sounds:
        picture, loudest = spectrogram_uri(wav, loudest)
        sound = {"name": name, "about": about, "picture": picture}
        shown.append(sound | {"audio": flac_uri(wav)})
    return {
        "rank": rank,
        "badge": {"best": "Among the best", "worst": "Among the worst"}.get(
            rank, "In the middle"
        ),
        "name": clip.name,
        "about": f"{_where(clip)} \u00b7 {clip.ce:.2f} nats \u00b7 codebook 1: "
        f"{100 * clip.accuracy:.0f} % right",
        "seconds": f"{len(clip.wav) / SAMPLE_RATE:.1f}",
        "gaps": gaps(clip.hidden),
        "sounds": shown,
    }


def _where(clip):
    return f"{clip.corpus}, {clip.label}" if clip.label else clip.corpus


def _fill_map(page, measured, count, place):
    if len(measured) < 3 or not count:
        return
    chosen = np.linspace(0, len(measured) - 1, min(count, len(measured)))
    clips = [measured[i] for i in np.unique(chosen.round().astype(int))]
    used = sum(
        len(s["audio"]) + len(s["picture"]) for c in page["clips"] for s in c["sounds"]
    )
    used += sum(len(result["picture"] or "") for result in page["results"])
    # As long as they fit whatever they hold; noise is the largest.
    left = (MAX_BYTES - 500_000 - used) / len(clips) - 1000 - flac_bytes(0)
    seconds = min(1.5, max(0.1, left * 3 / 4 / 2 / SAMPLE_RATE))
    samples = int(seconds * SAMPLE_RATE)
    places, shares = place(torch.stack([clip.vector for clip in clips]))
    middle = (places.max(0) + places.min(0)) / 2
    wide, high = (_MAP[key] - 2 * _MARGIN for key in ("width", "height"))
    extent = np.maximum(np.ptp(places, axis=0), 1e-9)
    scale = min(wide / extent[0], high / extent[1])
    points = []
    for clip, (x, y) in zip(clips, (places - middle) * scale, strict=True):
        start = max(0, (len(clip.wav) - samples) // 2)
        points.append(
            {
                "x": round(float(_MAP["width"] / 2 + x), 1),
                "y": round(float(_MAP["height"] / 2 - y), 1),
                "name": clip.name,
                "about": f"{clip.name}, {_where(clip)}",
                "detail": f"{_where(clip)}. {clip.ce:.2f} nats on hidden frames.",
                "corpus": clip.corpus,
                "label": clip.label or "no label",
                "audio": flac_uri(clip.wav[start : start + samples]),
            }
        )
    groups = {"corpus": _ordered(points, "corpus"), "label": _ordered(points, "label")}
    groups = {key: names for key, names in groups.items() if len(names) > 1}
    if shares is None:
        axes, how = ["UMAP 1", "UMAP 2"], "placed by UMAP"
    else:
        axes = [
            f"axis {i}: {100 * s:.0f} % of the variance"
            for i, s in enumerate(shares, 1)
        ]
        how = "seen from where they differ most (PCA)"
    page["map"] = {
        **_MAP,
        "about": f"{len(points)} clips as the encoder sees them: the mean frame of "
        f"each, {how}. Clips close to each other sound alike to the encoder. Click "
        "one to hear it.",
        "axes": axes,
        "points": points,
        "groups": groups or {"corpus": _ordered(points, "corpus")},
    }


def _ordered(points, key):
    return sorted({point[key] for point in points})


def _import_umap():
    try:
        import umap
    except ImportError as error:
        raise UserError(
            "--layout umap needs the package umap-learn: pip install -e '.[umap]'. "
            "Or take --layout pca."
        ) from error
    return umap


def _umap(vectors):
    """Places by UMAP, [clips, 2], and None for the shares of the variance."""
    neighbours = min(15, len(vectors) - 1)
    layout = _import_umap().UMAP(n_neighbors=neighbours, random_state=0)
    return layout.fit_transform(vectors.numpy()).astype(np.float64), None


def _next_steps(folder, kind):
    name = shlex.quote(str(folder))
    steps = [
        ("Features of your own audio", f"python recipes/embed.py {name}/encoder AUDIO"),
        (
            "What the encoder is worth, beside random weights",
            "python recipes/probe.py "
            f'hparams/probe_mini.yaml --encoders "[logmel, random, {folder}/encoder]"',
        ),
        (
            "This page with those results",
            f"python recipes/report.py {name} --results PROBE_FOLDER",
        ),
    ]
    if kind == "pretraining":
        command = f"python recipes/reconstruct.py AUDIO {name}"
        steps.insert(0, ("Hear what the model fills in, in a file of yours", command))
    return steps
