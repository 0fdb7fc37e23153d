"""Compares encoders by speaker verification: whether two clips have one speaker."""

from pathlib import Path

from encodecmae_sb.data.clip_data import ClipData, find_usable
from encodecmae_sb.data.clips import Fold, all_labels, write_manifest
from encodecmae_sb.data.trials import check_file, find_trials
from encodecmae_sb.evaluation.comparison import main_rows, too_narrow
from encodecmae_sb.evaluation.probe import DRAWS, check_whole
from encodecmae_sb.evaluation.verification import (
    cosine_scores,
    resampled_eer,
    verification_errors,
)
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import computed_once
from encodecmae_sb.utils.progress import open_bar
from encodecmae_sb.utils.values import is_number

from .clip_vectors import (
    LOGMEL,
    RANDOM,
    ClipVectors,
    check_encoders,
    check_encoding,
    named_encoders,
)
from .compare_table import error_table, write_errors


def check_trials(hparams):
    """Refuses values that have no meaning, before any work."""
    check_encoding(hparams)
    for key in ("clips_per_speaker", "max_trials"):
        check_whole(key, hparams[key], 1)
    if not isinstance(hparams["centre"], bool):
        raise UserError(f"centre={hparams['centre']}: allowed are True, False.")
    if not is_number(hparams["p_target"]) or not 0 < hparams["p_target"] < 1:
        raise UserError(f"p_target={hparams['p_target']}: a number between 0 and 1.")


class TrialComparison(ClipVectors):
    """Computes vectors and scores trials; both are kept in files and found again.

    Arguments
    ---------
    hparams : dict
        Of hparams/verify_fsdd.yaml.
    run_opts : speechbrain.core.RunOptions
    trials : Trials
    unusable : int
        Files that were left out.
    """

    def __init__(self, hparams, run_opts, trials, unusable):
        self.names, model = named_encoders(hparams)
        self.trials = trials
        clips = trials.clips + (trials.train if hparams["centre"] else [])
        if len(clips) == len(trials.clips) and hparams["centre"]:
            raise UserError(
                "centre=True, but no clip is left for the mean of the vectors: every "
                "clip is in a trial. Add training clips, give fewer "
                "--clips_per_speaker, or --centre False."
            )
        self.fold = Fold("test", trials.train, [], trials.clips)
        data = ClipData(clips, [self.fold], all_labels(clips), False, unusable)
        super().__init__(hparams, run_opts, data, model)

    def compare(self):
        """Scores the trials with every encoder, in every layer that is stored.

        Returns
        -------
        list of dict
            `encoder`, `width`, `layer`, `pooling`, `fold`, `repeat`, `eer` in per cent,
            `min_dcf`, and `draws` of the EER.
        """
        repeats = self.hparams["repeats"]
        work = [
            (name, number)
            for name in self.names
            for number in range(repeats if name == RANDOM else 1)
        ]
        rows = []
        with open_bar(len(work), "Verifying", "encoders", quiet=self.quiet) as bar:
            for name, number in work:
                bar.set_postfix_str(name, refresh=False)
                vectors, own = self.vectors(name, self.fold, number), []
                for layer in range(vectors.num_layers):
                    shown = layer if self.hparams["layers"] else self.hparams["layer"]
                    about = {
                        "encoder": name,
                        "width": vectors.width,
                        "layer": "-" if name == LOGMEL else shown,
                        "pooling": self.pooling(name),
                        "fold": self.fold.name,
                        "repeat": number,
                    }
                    own.append(about | self._score(vectors, layer))
                rows += own
                (shown,) = main_rows([[row] for row in own], self.hparams["layer"])
                bar.update(1)
                bar.write(f"{name}: EER {shown['eer']:.1f} %")
        return rows

    def _score(self, vectors, layer):
        """The errors of one encoder and layer, computed once and kept in a file."""
        trials, hparams = self.trials, self.hparams
        asked = [vectors.key, layer, trials.key, hparams["centre"]]
        asked += [hparams["p_target"], DRAWS]

        def compute():
            mean = None
            if hparams["centre"]:
                mean = vectors.of(trials.train, layer).double().mean(0)
            pairs = trials.first, trials.second
            scores = cosine_scores(vectors.of(trials.clips, layer), *pairs, mean)
            speakers = trials.speakers[list(pairs)]
            (eer,), (min_dcf,) = verification_errors(
                scores, trials.targets, p_target=hparams["p_target"]
            )
            # The same speakers are drawn for all encoders.
            seed = int(digest(trials.key), 16)
            draws = resampled_eer(scores, trials.targets, speakers, DRAWS, seed)
            return {
                "eer": 100 * eer,
                "min_dcf": min_dcf,
                "draws": (100 * draws).tolist(),
            }

        return computed_once(self.save / "trials" / f"{digest(asked)}.json", compute)


def compare_trials(hparams, run_opts):
    """Runs `task: verification` of recipes/probe.py, from clips to the table."""
    output = Path(hparams["output_folder"])
    check_trials(hparams)
    check_file(hparams["trials"])
    names, _ = named_encoders(hparams)
    check_encoders(names, [Fold("test", [], [], [])])
    clips, unusable = find_usable(hparams, output)
    write_manifest(output / "clips.csv", clips)
    keys = ("speaker", "trials", "clips_per_speaker", "max_trials", "seed")
    trials = find_trials(clips, *(hparams[key] for key in keys))
    comparison = TrialComparison(hparams, run_opts, trials, unusable)
    print(f"{trials.describe()} {unusable} files left out.", flush=True)
    rows = comparison.compare()
    covers = f"95 %: other speakers ({trials.num_speakers} were tested"
    covers += too_narrow(trials.num_speakers)
    if RANDOM in comparison.names and hparams["repeats"] > 1:
        covers += "; for random also other weights"
    about = {
        "trials": len(trials.first),
        "clips": len(trials.clips),
        "speakers": trials.num_speakers,
        "repeats": hparams["repeats"],
        "interval_covers": f"{covers}); not other training clips, pretrainings",
        "unusable_files": unusable,
    }
    results = write_errors(output, rows, "eer", ["min_dcf"], about, hparams, 50)
    layers = "\n  layers.png           layer by layer" if hparams["layers"] else ""
    print(
        f"\n{error_table(*results, 'eer', 'min_dcf', 5)}\n"
        f"\nMade in {output}:\n"
        "  metrics.json         the metrics above\n"
        f"  probe.png            the same as a picture{layers}\n"
        "  probes.csv           every encoder, layer and repeat\n"
        "  clips.csv            the clips as a manifest, to change and give as --csv\n"
        "Next, the same command with\n"
        '  --encoders "[A, B]"  other encoders; what was computed is kept\n'
        "  --trials FILE        your own trials: lines of 1 or 0 and two clips"
    )
