"""What a report shows of the validations of a pretraining: curves and figures."""

import math

from .report import chart


def _number_of_codebooks(row):
    return sum(key.startswith("masked_ce_") for key in row)


def charts(rows, corpora):
    """Curves of a pretraining.

    Arguments
    ---------
    rows : list of dict
        What each validation measured; at least one.
    corpora : list of str

    Returns
    -------
    list of dict
        See `report.chart`.
    """
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
        lines.append(
            line(f"{name}/masked_ce_1", name, colour, end=name if len(name) < 7 else "")
        )
        own = f"unigram of {name}"
        lines.append(line(f"{name}/unigram_ce_1", own, colour, dashed=True))
    if lines:
        about = "Each with its own unigram, dotted."
        found.append(chart("Codebook 1, by corpus", "nats", lines, about))

    if "codes_predicted_1" in rows[-1]:
        found += _monitors(line, each, corpora)
    return [drawn for drawn in found if drawn]


def _monitors(line, each, corpora):
    """Curves of what `monitors` measured, drawn with functions of `charts`."""

    def of_frames(key, scale=1.0):
        lines = [line(key, "all clips", "c0", scale)]
        for i, name in enumerate(corpora if len(corpora) > 1 else [], 1):
            lines.append(line(f"{name}/{key}", name, f"c{i % 5}", scale))
        return lines

    single = len(each("codes_predicted")) == 1
    occur = "clusters_used" if single else "codes_used_1"
    return [
        chart(
            *("Effective rank of the frames", "directions"),
            of_frames("effective_rank"),
            "Of the last layer. If it falls to a few, the frames collapse.",
        ),
        chart(
            *("Share of variance by file", "%"),
            of_frames("file_variance", 100),
            "Near 100 a frame says from which file it is, and little else.",
        ),
        chart(
            *("Codes predicted", "% of a codebook"),
            [
                *each("codes_predicted", 100),
                line(occur, "occur, codebook 1", "c5", 100, dashed=True),
            ],
            "On hidden frames. The dotted line: those that occur there.",
        ),
        chart(
            *("Agreement with words", "correlation"),
            of_frames("utterance_word_agreement"),
            "Whether clips that share words have frames of the same clusters.",
        ),
        chart(
            *("Words found by a linear probe", "area under the ROC curve, %"),
            [line("word_probe_auc", "all clips", "c0", 100)],
            "In utterances of other parts of the validation set. By chance: 50.",
        ),
    ]


def figures(row, corpora, size):
    """Tables of cross-entropy and accuracy beside the unigram and chance.

    Arguments
    ---------
    row : dict
        What the last validation measured.
    corpora : list of str
    size : int
        Codes of a codebook.

    Returns
    -------
    list of dict
        Of all clips and of each corpus.
    """
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
    values = [value for one in found for row in one["values"] for value in row[1:3]]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low = math.floor(min([*finite, chance - 0.5]))

    def at(value):
        """A place on the scale, in percent; its end where training has diverged."""
        share = (value - low) / (chance - low) if math.isfinite(value) else 1
        return round(100 * min(1, max(0, share)), 2)

    for one in found:
        one["scale"] = f"{low} to {chance:.2f} (chance)"
        one["rows"] = []
        for name, model, unigram, right in one.pop("values"):
            known = model if unigram is None else unigram
            one["rows"].append(
                {
                    "name": name,
                    "model": f"{model:.2f}",
                    "unigram": "\u2013" if unigram is None else f"{unigram:.2f}",
                    "accuracy": f"{100 * right:.1f}",
                    "worse": not model <= known,
                    "start": min(at(model), at(known)),
                    "width": round(abs(at(model) - at(known)), 2),
                    "model_at": at(model),
                    "unigram_at": at(known),
                }
            )
    return found


def tiles(row, size, steps):
    """The figures at the top of the page.

    Arguments
    ---------
    row : dict
    size : int
    steps : int
        Of the whole training.

    Returns
    -------
    list of dict
    """
    chance = math.log(size)
    found = [
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
            "about": f"of hidden frames; chance {100 / size:.2f} %",
        },
    ]
    if "clusters_used" in row:
        found[1]["about"] = f"always the same: {100 * row['majority_accuracy']:.1f} %"
        found.append(
            {
                "name": "Clusters in use",
                "value": f"{100 * row['clusters_used']:.0f}",
                "unit": "%",
                "about": f"perplexity {row['cluster_perplexity']:.1f} of {size}",
            }
        )
    found.append(
        {
            "name": "Training steps",
            "value": f"{int(row['step'])}",
            "unit": "",
            "about": f"of {steps}",
        }
    )
    return found
