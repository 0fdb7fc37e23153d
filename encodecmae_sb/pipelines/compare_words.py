"""Compares encoders by words: a recogniser is trained on the stored frames of each."""

from functools import partial
from pathlib import Path

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.epoch_loop import EpochCounter

from encodecmae_sb.brains.ctc import CTCBrain
from encodecmae_sb.data import speech
from encodecmae_sb.data.clip_data import ClipData
from encodecmae_sb.data.clips import Clip, Fold
from encodecmae_sb.data.tokenizer import check_characters, make_tokens
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.evaluation.comparison import too_narrow
from encodecmae_sb.evaluation.probe import DRAWS
from encodecmae_sb.evaluation.resampling import resampled_rates
from encodecmae_sb.nnet.heads import StoredLayers
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import computed_once
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.recoverables import History

from .clip_vectors import (
    ClipVectors,
    check_encoders,
    check_encoding,
    named_encoders,
)
from .compare_table import error_table, write_errors

# Of all layers, whole frames are stored; see `ClipHead.keeps_frames`.
_FRAMES = {"layers": True, "layer": "last", "pooling": "attentive"}
# Yaml keys, and run options, that a training depends on.
_MATTER = (
    *("number_of_epochs", "batch_seconds", "max_batch_items", "num_buckets"),
    *("grad_accumulation_factor", "precision", "lr", "max_grad_norm"),
    "skip_nonfinite_grads",
)


class WordComparison(ClipVectors):
    """Stores frames and trains recognisers; both are kept and found again.

    Arguments
    ---------
    hparams : dict
        Of hparams/words_mini.yaml.
    run_opts : speechbrain.core.RunOptions

    Attributes
    ----------
    sets : list of SpeechSet
        Training, validation and test.

    Raises
    ------
    UserError
        If a value has no meaning, or there is not one test set.
    """

    def __init__(self, hparams, run_opts):
        check_encoding({**hparams, **_FRAMES, "pooling": "mean"})
        self.names, model = named_encoders(hparams)
        self.run_opts = run_opts
        self.fold = Fold("test", [], [], [])  # what {fold} in a path stands for
        check_encoders(self.names, [self.fold])
        self.sets = speech.load_sets(hparams)
        if len(self.sets) != 3:
            raise UserError(
                f"There are {len(self.sets) - 2} test sets: name one, with "
                "--test_splits or --test_csv."
            )
        train, *others = self.sets
        texts = [row["wrd"] for row in train.rows]
        self.tokens = make_tokens(texts, hparams["token_type"], hparams["vocab_size"])
        for part in others:
            check_characters(self.tokens, part.rows, part.name)
        for part in self.sets:
            part.tokenize(self.tokens)
        clips = [
            Clip(f"{number}/{row['ID']}", row["wav"], (), "", row["duration"])
            for number, part in enumerate(self.sets)
            for row in part.rows
        ]
        data = ClipData(clips, [self.fold], [""], False, 0)
        super().__init__(hparams | _FRAMES, run_opts, data, model)

    def pooling(self, name):
        return _FRAMES["pooling"]

    def compare(self):
        """Trains and tests a recogniser for every encoder and repeat.

        Returns
        -------
        list of dict
            `encoder`, `width`, `layer`, `fold`, `repeat`, `wer` and `cer` in per cent,
            `draws` of the WER, `draws_cer`, `steps`, `valid_cer`, and `alignments`, a
            file.
        """
        work = [(n, r) for n in self.names for r in range(self.hparams["repeats"])]
        rows = []
        with open_bar(len(work), "Recognising", "trainings", quiet=self.quiet) as bar:
            for name, repeat in work:
                bar.set_postfix_str(name, refresh=False)
                vectors = self.vectors(name, self.fold, repeat)
                about = {
                    "encoder": name,
                    "width": vectors.width,
                    "layer": "-" if vectors.num_layers == 1 else "weighted",
                    "fold": self.fold.name,
                    "repeat": repeat,
                }
                rows.append(about | self._recognise(vectors, repeat))
                bar.update(1)
                found = rows[-1]
                bar.write(f"{name}: WER {found['wer']:.1f} %  CER {found['cer']:.1f} %")
        return rows

    def _recognise(self, vectors, repeat):
        """Trains and tests on the frames of an encoder, once; kept in a file."""
        hparams, seed = self.hparams, self.hparams["seed"] + repeat
        given = {key: self.run_opts[key] for key in self.run_opts.overridden_args}
        values = [{**hparams, **given}[key] for key in _MATTER]
        made = [hparams[key] for key in ("head", "opt_class", "lr_schedule")]
        made = [[part.func.__qualname__, str(part.keywords)] for part in made]
        asked = [vectors.key, self.tokens.digest(), speech.sets_identity(self.sets)]
        # The draws are of these groups, and the same for all encoders.
        drawn = [speakers_of(self.sets[2].rows)[0], hparams["seed"], DRAWS]
        folder = self.save / "words" / digest([*asked, values, made, seed, drawn])
        return computed_once(
            folder / "result.json", lambda: self._train(vectors, seed, folder)
        )

    def _train(self, vectors, seed, folder):
        torch.manual_seed(seed)
        head = self.hparams["head"](vectors.width, len(self.tokens))
        encoder = StoredLayers(vectors.num_layers)
        train, valid, test = (
            stored_dataset(number, part, vectors.stored, head)
            for number, part in enumerate(self.sets)
        )
        settings = {
            **self.hparams,
            "seed": seed,
            "history": History(),
            "epoch_counter": EpochCounter(self.hparams["number_of_epochs"]),
        }
        parts = {key: settings[key] for key in ("history", "epoch_counter")}
        brain = CTCBrain(
            {"encoder": encoder, "head": head},
            settings["opt_class"],
            settings,
            self.run_opts,
            AtomicCheckpointer(folder, parts | {"encoder": encoder, "head": head}),
            tokens=self.tokens,
        )
        brain.fit_speech(train, valid)
        aligned = folder / "wer.txt"
        figures = brain.evaluate_set(test, None, aligned)
        rows = self.sets[2].rows
        speakers, _ = speakers_of(rows)
        speaker = dict(zip([row["ID"] for row in rows], speakers, strict=True))
        result = {key: figures[key] for key in ("wer", "cer")}
        for key, stats in (("", brain.wer), ("_cer", brain.cer)):
            errors, totals, ids = (
                [score[what] for score in stats.scores]
                for what in ("num_edits", "num_ref_tokens", "key")
            )
            groups = [speaker[name] for name in ids]
            rates = resampled_rates(errors, totals, groups, DRAWS, self.hparams["seed"])
            result[f"draws{key}"] = (100 * rates).tolist()
        result["steps"] = brain.optimizer_step
        result["valid_cer"] = min(brain.history.column("cer"))
        return result | {"alignments": str(aligned)}


def speakers_of(rows):
    """Who speaks in each utterance, else the utterance itself.

    Arguments
    ---------
    rows : list of dict
        Of a `SpeechSet`.

    Returns
    -------
    groups : list of str
    kind : str
        "speakers" or "utterances".

    Example
    -------
    >>> speakers_of([{"ID": "a", "spk_id": "x"}, {"ID": "b", "spk_id": "x"}])
    (['x', 'x'], 'speakers')
    >>> speakers_of([{"ID": "a", "spk_id": "x"}, {"ID": "b"}])
    (['a', 'b'], 'utterances')
    """
    speakers = [row.get("spk_id") for row in rows]
    if all(speakers):
        return speakers, "speakers"
    return [row["ID"] for row in rows], "utterances"


def stored_dataset(number, part, stored, head):
    """A set as `speech.speech_dataset` gives it, with stored frames as `sig`.

    Utterances that are too short for their transcript are left out of training and
    validation, the sets 0 and 1.

    Arguments
    ---------
    number : int
        Of the set.
    part : SpeechSet
        Tokenized.
    stored : StoredSummaries
        "NUMBER/ID" -> frames [T, layers, D].
    head : CTCHead

    Returns
    -------
    DynamicItemDataset
    """
    data = {}
    kept = speech.SpeechSet(part.name, list(part.rows))
    if number < 2:
        places = [stored.places[f"{number}/{row['ID']}"] for row in part.rows]
        steps = [head.num_outputs(end - start) for start, end in places]
        speech.leave_out_short(kept, steps)
    for row in kept.rows:
        data[row["ID"]] = {
            "place": f"{number}/{row['ID']}",
            "wrd": row["wrd"],
            "duration": row["duration"],
            "numbers": row["tokens"],
            "unusable": None,
        }
    items = [
        {"func": partial(_frames, stored), "takes": "place", "provides": "sig"},
        {"func": _tensor, "takes": "numbers", "provides": "tokens"},
    ]
    return DynamicItemDataset(data, items, ["id", "sig", "tokens", "wrd", "unusable"])


# These are not inside the function above: worker processes may get them as a pickle.


def _frames(stored, place):
    return stored[place].float()


def _tensor(numbers):
    return torch.from_numpy(numbers).long()


def compare_words(hparams, run_opts):
    """Runs `task: words` of recipes/probe.py, from utterances to the table."""
    output = Path(hparams["output_folder"])
    comparison = WordComparison(hparams, run_opts)
    train, _, test = comparison.sets
    total = sum(len(part.rows) + len(part.left_out) for part in comparison.sets)
    listed = output / "unusable_files.csv"
    listed.unlink(missing_ok=True)
    unusable = UnusableFiles(listed, total, hparams["max_unusable"])
    unusable.add([item for part in comparison.sets for item in part.left_out])
    groups, kind = speakers_of(test.rows)
    print(
        f"{len(comparison.names)} encoders; training on {len(train.rows)} utterances, "
        f"{train.seconds / 60:.1f} min; testing on {len(test.rows)} of "
        f"{len(set(groups))} {kind}; {len(unusable)} left out.",
        flush=True,
    )
    rows = comparison.compare()
    number = len(set(groups))
    covers = f"95 %: other {kind} ({number} were tested{too_narrow(number)})"
    if hparams["repeats"] > 1:
        covers += f", other seeds ({hparams['repeats']} were tried)"
    about = {
        "utterances": len(test.rows),
        "groups": len(set(groups)),
        "repeats": hparams["repeats"],
        "interval_covers": f"{covers}; not other training clips, pretrainings",
        "unusable_files": len(unusable),
    }
    sum_alone = {"layer": "last", "layers": False}
    results = write_errors(output, rows, "wer", ["cer"], about, sum_alone)
    print(
        f"\n{error_table(*results, 'wer', 'cer')}\n"
        f"\nMade in {output}:\n"
        "  metrics.json         the metrics above\n"
        "  probe.png            the same as a picture\n"
        "  probes.csv           every encoder and repeat, and its alignments\n"
        "Next, the same command with\n"
        '  --encoders "[A, B]"  other encoders; what was computed is kept\n'
        "  --data_folder DIR    your own corpus, in the layout of LibriSpeech\n"
        "or train and export a recogniser: python recipes/asr_ctc.py"
    )
