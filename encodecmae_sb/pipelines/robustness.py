"""Tests models on corrupted recordings, and finds finished work again.

A condition is `CLEAN`, or (name of a corruption, strength); an output is what a model
gives for all clips in one of them, see `evaluation.robustness`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from encodecmae_sb.data.audio import write_audio
from encodecmae_sb.data.clip_batches import LabelledClips
from encodecmae_sb.evaluation.corruptions import (
    CORRUPTIONS,
    STRENGTHS,
    VERSION,
    corrupt,
)
from encodecmae_sb.evaluation.metrics import write_rows
from encodecmae_sb.evaluation.plots import draw_losses
from encodecmae_sb.evaluation.robustness import (
    CLEAN,
    as_markdown,
    as_metrics,
    score_rows,
)
from encodecmae_sb.evaluation.simple_probes import (
    LINEAR,
    fit_probe,
    leave_one_out,
)
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.experiment import write_metrics
from encodecmae_sb.utils.files import whole_file, write_text
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.progress import open_bar

from .clip_features import clips_key, store_summaries

# Recordings of at most so many seconds stay in memory (345 MB).
_KEPT_SECONDS = 3600
_EXAMPLE_SECONDS = 3
_EXAMPLE_STRENGTH = 2


class TestedClassifier:
    """A classifier under test.

    Arguments
    ---------
    source : str
        As the user named it.
    interface : EnCodecMAEClassifier
    """

    def __init__(self, source, interface):
        self.source, self.interface = source, interface
        self.key = module_key(interface.mods.classifier)

    def predict(self, wavs, lengths, clips):
        """Samples [B, N] and counts of them [B] -> probabilities [B, classes]."""
        shares = lengths / wavs.shape[1]
        return self.interface.classify_batch(wavs, shares, SAMPLE_RATE)[0].cpu().numpy()


class TestedRecogniser:
    """A recogniser under test; arguments as for `TestedClassifier`."""

    def __init__(self, source, interface):
        self.source, self.interface = source, interface
        hparams = interface.hparams
        model = getattr(hparams, "language_model", None)
        size = os.path.getsize(model.path) if model and model.path else 0
        parts = [module_key(interface.mods.lobe), module_key(interface.mods.head)]
        self.key = digest([*parts, hparams.beam_search, hparams.tokens.digest(), size])

    def predict(self, wavs, lengths, clips):
        """Samples [B, N] and counts of them [B] -> texts [B]."""
        shares = lengths / wavs.shape[1]
        return np.array(
            self.interface.transcribe_batch(wavs, shares, SAMPLE_RATE)[0], dtype=str
        )


class TestedProbe:
    """Linear probes on an encoder, one for each tested part of a corpus.

    The vector of a clip is mean and deviation of its frames. The probe for a part is
    fitted on the clean clips of all other parts.

    Arguments
    ---------
    source : str
        As the user named it.
    encoder : AudioEncoder
    layer : int or str
        Of the frames.
    clips : list of Clip
        Of the whole corpus.
    targets : torch.Tensor
        Of them, int64, shape [clips].
    tested : list of str
        Parts to test on.
    save, batch_size, device, quiet
        As for `Robustness`.
    """

    def __init__(
        self,
        source,
        encoder,
        layer,
        clips,
        targets,
        tested,
        save,
        batch_size,
        device,
        quiet,
    ):
        self.source, self.device = source, device
        lobe = EnCodecMAE(encoder, input_sample_rate=SAMPLE_RATE, layer=layer)
        # Only the pooling of the head is used, which has nothing to learn.
        head = ClipHead(lobe.dim, 1, pooling="mean_std")
        self.model = ClipClassifier(lobe, head).to(device).eval()
        groups = [clip.part for clip in clips]
        vectors_key = [module_key(lobe.encoder), layer, FRAMES_VERSION]
        self.key = digest([*vectors_key, clips_key(clips), groups, tested])
        path = Path(save) / "features" / f"{digest([self.key])}.bin"
        options = batch_size, 0, device, quiet
        stored = store_summaries(self.model, clips, path, *options)
        vectors = np.stack([stored[clip.id][0].numpy() for clip in clips])
        groups, self.probes = np.array(groups), {}
        for part in tested:
            train = np.flatnonzero(groups != part)
            inner = leave_one_out(train, groups[train])
            self.probes[part] = fit_probe(
                LINEAR, vectors, targets.numpy(), train, inner
            )

    @torch.no_grad()
    def predict(self, wavs, lengths, clips):
        """Samples [B, N] and counts of them [B] -> probabilities [B, classes]."""
        vectors, _ = self.model.summarise(wavs.to(self.device), lengths)
        vectors = vectors[:, 0].float().cpu().numpy()
        rows = zip(clips, vectors, strict=True)
        return np.concatenate(
            [self.probes[clip.part].probabilities(row[None]) for clip, row in rows]
        )


@dataclass
class TestSet:
    """What models are tested on.

    Arguments
    ---------
    clips : list of Clip
    scorer : ClipScorer or SpeechScorer
        Of outputs for these clips, in their order.
    what : str
        In words: how many, which, and why they are a test.
    """

    clips: list
    scorer: object
    what: str


class Robustness:
    """Tests models in all conditions; each output is kept in a file and found again.

    Arguments
    ---------
    models : list of TestedClassifier, TestedRecogniser or TestedProbe
    test : TestSet
    corruptions : list of Corruption
    sounds : Sounds
    save : str or Path
        Folder for outputs.
    seed : int
    batch_size : int
    quiet : bool
        No progress bar.
    """

    def __init__(
        self, models, test, corruptions, sounds, save, seed=0, batch_size=8, quiet=False
    ):
        self.models, self.test, self.sounds = models, test, sounds
        self.corruptions = corruptions
        self.missing = {
            each.name: why
            for each in corruptions
            if (why := each.missing() or sounds.lacking(each.name)) is not None
        }
        self.save = Path(save)
        self.seed, self.batch_size, self.quiet = seed, batch_size, quiet
        self.clips_key = clips_key(test.clips)
        self.reader = LabelledClips(test.clips, torch.zeros(len(test.clips)))
        self.keeps = sum(clip.duration for clip in test.clips) <= _KEPT_SECONDS
        self.read = {}

    def conditions(self):
        """All conditions, the clean one first."""
        able = (each for each in self.corruptions if each.name not in self.missing)
        return [CLEAN, *((each.name, i) for each in able for i in STRENGTHS)]

    def heard(self, number, condition):
        """A clip as it is heard in a condition, samples [N]."""
        if number not in self.read:
            wav = self.reader[number][1]
            if not self.keeps:
                self.read.clear()
            self.read[number] = wav
        wav = self.read[number]
        if condition == CLEAN:
            return wav
        seed = int(digest([self.seed, self.test.clips[number].id]), 16)
        return corrupt(*condition, wav, seed, self.sounds)

    def _path(self, model, condition):
        name, strength = condition
        asked = [model.key, FRAMES_VERSION, self.clips_key, name]
        if condition != CLEAN:
            (corruption,) = (each for each in self.corruptions if each.name == name)
            asked += [corruption.values[strength - 1], self.seed, VERSION]
            asked += [self.sounds.key(name)]
        return self.save / "outputs" / f"{digest(asked)}.npy"

    def run(self):
        """Tests every model in every condition.

        Returns
        -------
        list of dict
            Of each model: condition -> output.

        Raises
        ------
        UserError
            If a file cannot be read.
        """
        found = [{} for _ in self.models]
        conditions = self.conditions()
        with open_bar(
            len(conditions), "Testing", "conditions", quiet=self.quiet
        ) as bar:
            for condition in conditions:
                bar.set_postfix_str(" ".join(map(str, condition)), refresh=False)
                paths = [self._path(model, condition) for model in self.models]
                missing = [i for i, path in enumerate(paths) if not path.exists()]
                outputs = self._outputs(missing, condition)
                for i, output in zip(missing, outputs, strict=True):
                    with whole_file(paths[i]) as scratch, open(scratch, "wb") as file:
                        np.save(file, output)
                for own, path in zip(found, paths, strict=True):
                    own[condition] = np.load(path)
                bar.update(1)
        return found

    def _outputs(self, which, condition):
        """Outputs of some models, by number; each recording is corrupted once."""
        parts = [[] for _ in which]
        for start in range(0, len(self.test.clips) if which else 0, self.batch_size):
            clips = self.test.clips[start : start + self.batch_size]
            wavs = [self.heard(start + i, condition) for i in range(len(clips))]
            # A very short clip that was sped up may be less than a frame.
            wavs = [pad(wav, (0, max(0, HOP - len(wav)))) for wav in wavs]
            lengths = torch.tensor([len(wav) for wav in wavs])
            batch = pad_sequence(wavs, batch_first=True)
            for part, i in zip(parts, which, strict=True):
                part.append(self.models[i].predict(batch, lengths, clips))
        return [np.concatenate(part) for part in parts]

    def write_examples(self, folder):
        """Writes the first seconds of a clip, clean and under each corruption."""
        samples = _EXAMPLE_SECONDS * SAMPLE_RATE
        able = [each.name for each in self.corruptions if each.name not in self.missing]
        for name in CORRUPTIONS.keys() - able:  # those of another run
            (Path(folder) / f"{name}.flac").unlink(missing_ok=True)
        for name in ("clean", *able):
            condition = CLEAN if name == "clean" else (name, _EXAMPLE_STRENGTH)
            wav = self.heard(0, condition)[:samples].clamp(-1, 1)
            write_audio(Path(folder) / f"{name}.flac", wav.numpy(), SAMPLE_RATE)


def write_results(robustness, outputs, output):
    """Writes metrics, tables, the picture and examples.

    Arguments
    ---------
    robustness : Robustness
    outputs : list of dict
        From `Robustness.run`.
    output : Path
        The folder to write to.

    Returns
    -------
    table : str
        In Markdown.
    """
    scorer, corruptions = robustness.test.scorer, robustness.corruptions
    names, rows, drawn = scorer.names, [], {}
    for model, own in zip(robustness.models, outputs, strict=True):
        settings = corruptions, robustness.missing, scorer
        found = score_rows(model.source, own, *settings)
        rows += found
        drawn[model.source] = _grids(found, corruptions, names[0])
    metrics = as_metrics(rows, names)
    metrics |= {"clips": len(robustness.test.clips), "test": robustness.test.what}
    metrics |= {"seed": robustness.seed}
    for name, why in robustness.missing.items():
        metrics[f"not_available/{name}"] = why
    write_metrics(output, metrics)
    write_rows(output / "robustness.csv", rows)
    table = as_markdown(rows, names)
    write_text(output / "table.md", f"{robustness.test.what}\n\n{table}\n")
    titles = [each.title for each in corruptions]
    draw_losses(drawn, titles, output / "robustness.png", names[0])
    robustness.write_examples(output / "examples")
    return table


def _grids(rows, corruptions, name):
    """Scores and losses, each [corruptions, strengths]; NaN where there is none."""
    grids = np.full((2, len(corruptions), len(STRENGTHS)), np.nan)
    places = {each.name: i for i, each in enumerate(corruptions)}
    for row in rows:
        if row["strength"]:
            for grid, key in zip(grids, (name, "loss"), strict=True):
                if row[key] is not None:
                    grid[places[row["corruption"]], row["strength"] - 1] = row[key]
    return grids
