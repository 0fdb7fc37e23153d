"""The parts of a report that one can hear: clips with spectrograms, and the map."""

import numpy as np
import torch

from encodecmae_sb.evaluation.report import (
    MAX_BYTES,
    flac_bytes,
    flac_uri,
    gaps,
    spectrogram_uri,
)
from encodecmae_sb.nnet.encodec import CodecError
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .report_clips import decoder_of

_MAP = {"width": 360, "height": 310}
_MARGIN = 34
_LISTENED = 6.0e6  # bytes that the clips to listen to may take; the map gets the rest


def fill_clips(page, run, measured, count, kind):
    """Puts the best, middling and worst clips on the page, with their sounds.

    Arguments
    ---------
    page : dict
        Gets `clips` and `clips_about`.
    run : LoadedRun
    measured : list of MeasuredClip
    count : int
        The most clips; of long ones fewer fit.
    kind : str
        Of the run.
    """
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
    for number, (rank, clip) in enumerate(chosen):
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
                        wav = codec.decode(codes[None].to(device))[0].cpu()
                    wav = wav[: len(clip.wav)] * codec.gains(clip.wav[None])
                    sounds.append((name, about, wav))
        except CodecError as error:
            codec = None
            page["clips_about"].append(f"There is no codec audio: {error}")
        shown = _clip(rank, clip, sounds)
        if number in (0, len(chosen) - 1) and rank != "typical":
            shown["badge"] = f"The {rank}"
        page["clips"].append(shown)


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


def fill_map(page, measured, count, place):
    """Puts the map on the page, with as much sound as fits.

    Arguments
    ---------
    page : dict
        Gets `map`. Its clips and results must be there already.
    measured : list of MeasuredClip
    count : int
        The most points.
    place : callable
        Vectors [clips, D] -> places [clips, 2] and shares of the variance, or None.
    """
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


def import_umap():
    """The module of the optional package `umap-learn`; a clear error without it."""
    try:
        import umap
    except ImportError as error:
        raise UserError(
            "--layout umap needs the package umap-learn: pip install -e '.[umap]'. "
            "Or take --layout pca."
        ) from error
    return umap


def place_by_umap(vectors):
    """Places by UMAP, [clips, 2], and None for the shares of the variance."""
    neighbours = min(15, len(vectors) - 1)
    layout = import_umap().UMAP(n_neighbors=neighbours, random_state=0)
    return layout.fit_transform(vectors.numpy()).astype(np.float64), None
