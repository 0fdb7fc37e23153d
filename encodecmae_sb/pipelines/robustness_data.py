"""Which recordings a model is tested on: none that it was trained on."""

import contextlib
from pathlib import Path

from encodecmae_sb.bundled import sound_folder, speech_folder
from encodecmae_sb.data.clip_data import AUTO, find_usable
from encodecmae_sb.data.clips import PARTS, Clip, all_labels, in_order, targets_of
from encodecmae_sb.data.folders import list_folder
from encodecmae_sb.data.manifest import check_folders, part_named
from encodecmae_sb.data.speech import librispeech_set, manifest_set
from encodecmae_sb.data.unusable import write_unusable
from encodecmae_sb.evaluation.robustness import ClipScorer, SpeechScorer
from encodecmae_sb.inference import classifier, recogniser
from encodecmae_sb.pretrained.hub import HubFolder
from encodecmae_sb.pretrained.published import find_model
from encodecmae_sb.utils.errors import UserError

from .clip_features import draws_seed
from .robustness import TestSet

ALL = "all"


def read_card(source, kind):
    """The README of a model's folder; empty if there is none."""
    found = find_model(source, kind)
    folder = found.path if isinstance(found, HubFolder) else Path(found)
    with contextlib.suppress(OSError):
        return (folder / "README.md").read_text(encoding="utf-8")
    return ""


def find_labelled(options, output):
    """The clips of a corpus or of a manifest.

    Arguments
    ---------
    options : dict
        Reads `corpus`, `csv`, `data_folder`, `multi_label` and `max_unusable`.
        Without all of the first three, the sounds of this package are taken.
    output : Path
        Folder for `unusable_files.csv`.

    Returns
    -------
    clips : list of Clip
    multi_label : bool
    corpus : str
        Its name or the path of the manifest.
    """
    folder, corpus = options["data_folder"], options["corpus"] or "esc50"
    bundled = not (folder or options["csv"])
    hparams = dict.fromkeys(("train_csv", "valid_csv", "test_csv", "corpus_rate"))
    hparams |= {"csv": options["csv"], "corpus": corpus}
    hparams |= {"data_folder": folder or (sound_folder() if bundled else None)}
    hparams |= {"multi_label": options["multi_label"]}
    share = options["max_unusable"]
    hparams |= {"max_unusable": AUTO if share is None else share, "valid_share": None}
    clips, _ = find_usable(hparams, output)
    return clips, hparams["multi_label"], str(options["csv"] or corpus)


def choose_parts(clips, fold, cards, corpus):
    """The parts of a corpus to test on: no classifier was trained on them.

    Arguments
    ---------
    clips : list of Clip
    fold : str or None
        What the user asks for: a part, or "all".
    cards : dict of str to str
        Of each classifier its README. Without classifiers, each part may be tested by
        probes of the others.
    corpus : str
        Its name, or the path of a manifest.

    Returns
    -------
    parts : list of str
    why : str
        Why they are a test, in words.

    Raises
    ------
    UserError
        If a classifier was trained on them, or nothing says that it was not.

    Example
    -------
    >>> clips = [Clip(part, "", (), part) for part in "123"]
    >>> card = "Trained on 9 clips of esc50. Fine; fold 2 was held out for its test."
    >>> choose_parts(clips, None, {"A": card}, "esc50")
    (['2'], 'fold 2, which A was not trained on')
    """
    parts = in_order(clip.part for clip in clips)
    official = set(PARTS) <= set(parts)
    if fold not in (None, ALL, *parts):
        raise UserError(f"--fold {fold}: the clips have {', '.join(parts)}, or {ALL}.")
    if not cards:
        return _for_probes(parts, fold, official)
    known = {name: classifier.read_training(card) for name, card in cards.items()}
    for name, (trained, held_out) in known.items():
        same = trained is not None and _same(trained, corpus)
        if fold is not None and same and fold != (held_out or "test"):
            own = held_out or "test"
            raise UserError(
                f"--fold {fold}: {name} was trained on {trained}, and only {own} was "
                f"held out. Figures on its training clips are no test: --fold {own}"
            )
    if fold == ALL:
        return parts, "all clips; --fold all says that no model was trained on them"
    # What was held out of one corpus may be anything in another.
    stated = {
        held_out if trained is not None and _same(trained, corpus) else None
        for trained, held_out in known.values()
    }
    if fold is None and official:
        fold = "test"
    if fold is None and stated <= set(parts):
        if len(stated) > 1:
            raise UserError(
                f"Other folds were held out from {', '.join(cards)}: "
                f"{', '.join(sorted(stated))}. Test them one by one."
            )
        (fold,) = stated
    if fold is None:
        raise UserError(
            f"No README says which clips {', '.join(cards)} was not trained on. The "
            f"clips have the folds {', '.join(parts)}. Give the one that was held out: "
            f"--fold NAME; or --fold {ALL}, if it was trained on none of them."
        )
    if stated == {fold}:
        return [fold], f"fold {fold}, which {' and '.join(cards)} was not trained on"
    if official and fold == "test":
        return [fold], "the part test"
    return [fold], f"fold {fold}; --fold says that no model was trained on it"


def _for_probes(parts, fold, official):
    if len(parts) < 2:
        raise UserError(
            f"All clips have the fold {parts[0]}: an encoder is tested by a probe that "
            "is fitted on other folds. Give at least two."
        )
    if official and fold is None:
        fold = "test"
    if fold in (None, ALL):
        return parts, "every fold, each by a probe that was fitted on the others"
    return [fold], f"fold {fold}, by a probe that was fitted on the others"


def _same(trained, corpus):
    """Whether two names of a corpus, or two paths of a manifest, are the same."""
    return trained == corpus or Path(trained).resolve() == Path(corpus).resolve()


def check_labels(clips, labels, source):
    """Makes sure that a classifier knows the labels of all clips."""
    unknown = [label for label in all_labels(clips) if label not in labels]
    if unknown:
        raise UserError(
            f"{source} does not know {len(unknown)} labels of the clips: "
            f"{', '.join(unknown[:10])}. It knows {', '.join(labels[:10])}"
            f"{', ...' if labels[10:] else ''}. Give clips of its classes: --csv FILE"
        )


def spread_out(clips, number):
    """At most so many clips, spread evenly over the list; None: all.

    Example
    -------
    >>> spread_out(list(range(10)), 3)
    [0, 3, 6]
    """
    if number is None or number >= len(clips):
        return clips
    return [clips[i * len(clips) // number] for i in range(number)]


def _in_order(clips):
    """Clips of similar length together, the longest first."""
    return sorted(clips, key=lambda clip: -clip.duration)


def labelled_test(clips, parts, why, labels, multi_label, corpus, max_clips):
    """The `TestSet` of labelled clips.

    Arguments
    ---------
    clips : list of Clip
    parts, why
        From `choose_parts`.
    labels : list of str
    multi_label : bool
    corpus : str
    max_clips : int or None

    Returns
    -------
    TestSet
    """
    chosen = [clip for clip in clips if clip.part in parts]
    kept = _in_order(spread_out(chosen, max_clips))
    targets = targets_of(kept, labels, multi_label)
    number = f"{len(kept)} of {len(chosen)}" if len(kept) < len(chosen) else len(kept)
    what = f"Tested on {number} clips of {corpus}: {why}."
    groups = _groups([clip.group for clip in kept])
    return TestSet(kept, ClipScorer(targets, draws_seed(kept), groups), what)


def speech_test(options, cards, output):
    """The `TestSet` of utterances: a part of a corpus, or a manifest.

    Arguments
    ---------
    options : dict
        Reads `csv`, `data_folder`, `fold`, `max_clips` and `max_unusable`. Without the
        first two, the test part of the speech in this package is taken.
    cards : dict of str to str
        Of each recogniser its README.
    output : Path
        Folder for manifests and `unusable_files.csv`.

    Returns
    -------
    TestSet

    Raises
    ------
    FileNotFoundError, UserError
        As `data.speech.librispeech_set` and `manifest_set`, and if a recogniser was
        trained on the part.
    """
    share = 0.0 if options["max_unusable"] is None else options["max_unusable"]
    folder, manifest = options["data_folder"], options["csv"]
    if manifest:
        part = str(manifest)
        speech = manifest_set(manifest, folder, max_unusable=share)
    else:
        (folder,) = check_folders(folder or speech_folder())
        part = options["fold"] or _test_part(folder)
    for name, card in cards.items():
        trained, parts = recogniser.read_training(card)
        if (
            trained is not None
            and part in parts
            and (manifest or _same_speech(trained, folder))
        ):
            raise UserError(
                f"{name} was trained on {part} of {trained}. Figures on its training "
                "utterances are no test: give another part, --fold NAME"
            )
    if not manifest:
        speech = librispeech_set(folder, [part], output / "save", share)
    write_unusable(output / "unusable_files.csv", speech.left_out)
    clips = [
        Clip(
            *(row["ID"], row["wav"], (row["wrd"],), part, row["duration"]),
            group=row.get("spk_id") or "",
        )
        for row in speech.rows
    ]
    kept = _in_order(spread_out(clips, options["max_clips"]))
    number = f"{len(kept)} of {len(clips)}" if len(kept) < len(clips) else len(kept)
    what = f"Tested on {number} utterances of {part}."
    if part_named(Path(part).name) in ("train", "valid"):
        what += (
            f" NO TEST if a model was trained or chosen on them: {part} is named as a "
            "part for that."
        )
    texts = [clip.labels[0] for clip in kept]
    groups = _groups([clip.group for clip in kept])
    return TestSet(kept, SpeechScorer(texts, draws_seed(kept), groups), what)


def _groups(groups):
    """The groups of clips if they are all known, and there are several."""
    return groups if all(groups) and len(set(groups)) > 1 else None


def _test_part(folder):
    """The one part of a corpus of speech that is named as one to test on."""
    parts = sorted(entry.name for entry in list_folder(folder) if entry.is_dir())
    tests = [part for part in parts if part_named(part) == "test"]
    if len(tests) != 1:
        raise UserError(
            f"{folder} has the parts {', '.join(parts) or 'none'}. Give the one to "
            "test on: --fold NAME"
        )
    return tests[0]


def _same_speech(trained, folder):
    bundled = folder == speech_folder().resolve()
    return bundled if trained == "the bundled corpus" else _same(trained, folder)
