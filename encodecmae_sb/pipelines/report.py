"""Makes the page of a run: what it shows, from the run's files and its model."""

import csv
import math
import re
import shlex
from pathlib import Path

from encodecmae_sb.evaluation.reconstruct import newest_checkpoint
from encodecmae_sb.evaluation.report import (
    MAX_BYTES,
    principal_axes,
    render,
)
from encodecmae_sb.evaluation.report_figures import charts, figures, tiles
from encodecmae_sb.utils.checkpointer import read_identity
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device

from .report_clips import load_model, measure_clips
from .report_results import (
    kind_of,
    read_history,
    read_metrics,
    recognition_charts,
    results_of,
    settings_of,
)
from .report_sounds import fill_clips, fill_map, import_umap, place_by_umap


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
    place = place_by_umap if layout == "umap" else principal_axes
    if layout == "umap":
        import_umap()
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
        rows = read_history(newest_checkpoint(folder))
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
    identity = read_identity(folder / "save")
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
        page["charts"] = charts(rows, corpora)
        size = run.hparams["codebook_size"]
        page["figures"] = figures(rows[-1], corpora, size)
        page["figures_about"] = (
            "Cross-entropy on hidden frames, in nats, for each codebook (book). The "
            "lower, the better the model predicts. "
            f"Chance is {math.log(size):.2f} nats and {100 / size:.2f} % right, "
            f"because there are {size} codes."
        )
        page["tiles"] = tiles(rows[-1], size, steps)

    device = choose_device(device)
    measured, notes = measure_clips(run, folder, corpora, labels, device, quiet)
    page["notes"] += notes
    fill_clips(page, run, measured, clips, kind)
    fill_map(page, measured, map_clips, place)
    page["next"] = _next_steps(folder, kind)


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


def _corpora(folder, rows):
    """Names of the corpora, in the order of the run where it is known."""
    names = [p.name.removesuffix("_valid.csv") for p in folder.glob("save/*_valid.csv")]
    measured = [key.partition("/")[0] for key in (rows[-1] if rows else {})]
    known = [name for name in dict.fromkeys(measured) if name in names]
    return known + sorted(set(names) - set(known))


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
