"""A trained classifier: its interface, and its folder that `foreign_class` loads."""

import re

import torch
from speechbrain.inference.interfaces import Pretrained

from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.pooling import probabilities
from encodecmae_sb.pretrained.folder import export_folder

from .encoder import check_batch, read_file


class EnCodecMAEClassifier(Pretrained):
    """Says what a recording is.

    The four results are those of SpeechBrain's `EncoderClassifier`, but
    **probabilities, not their logarithms**: softmax over the classes, or, where a
    clip may have several labels, a sigmoid for each; then every label with a
    probability above 0.5 is given.

    Example
    -------
    >>> from speechbrain.inference.interfaces import foreign_class
    >>> from encodecmae_sb.bundled import sound_folder
    >>> from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead, LogMelFrames
    >>> lobe = LogMelFrames()
    >>> model = ClipClassifier(lobe, ClipHead(lobe.dim, 2, pooling="mean_std"))
    >>> folder = getfixture("tmp_path") / "classifier"
    >>> export_classifier(model, ["no", "yes"], folder)
    >>> classifier = foreign_class(
    ...     source=str(folder),
    ...     pymodule_file="custom_interface.py",
    ...     classname="EnCodecMAEClassifier",
    ... )
    >>> path = sorted(sound_folder().rglob("*.flac"))[0]
    >>> probabilities, score, index, label = classifier.classify_file(path)
    >>> probabilities.shape, score.shape, index.shape, len(label)
    (torch.Size([1, 2]), torch.Size([1]), torch.Size([1]), 1)
    """

    MODULES_NEEDED = ["classifier"]
    HPARAMS_NEEDED = ["labels", "multi_label", "sample_rate"]

    @property
    def sample_rate(self):
        """Rate that `classify_batch` expects, in Hz."""
        return self.hparams.sample_rate

    @property
    def labels(self):
        """The classes, in the order of the probabilities."""
        return self.hparams.labels

    def classify_file(self, path):
        """Classifies an audio file of any rate, mono or not.

        Arguments
        ---------
        path : str or Path
            WAV, FLAC, OGG or MP3.

        Returns
        -------
        probabilities, score, index, label
            As `classify_batch` for a batch of one.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        UserError
            If it cannot be read.
        """
        wav = read_file(path, self.sample_rate)
        return self._classify(wav[None], None)

    def classify_batch(self, wavs, wav_lens=None, sample_rate=None):
        """Classifies a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples in [-1, 1], shape [B, N].
        wav_lens : torch.Tensor, optional
            Lengths relative to N, shape [B]; default: all 1.
        sample_rate : int, optional
            Rate of `wavs`; default: 24 000 Hz.

        Returns
        -------
        probabilities : torch.Tensor
            Not logarithms; shape [B, classes].
        score : torch.Tensor
            Probability of the most probable class, shape [B]; multi-label: a list
            of B tensors, the probabilities of the labels given.
        index : torch.Tensor
            The class, int64, shape [B]; multi-label: a list of B tensors.
        label : list of str
            Its name; multi-label: a list of B lists of names, the most probable
            first, possibly empty.

        Raises
        ------
        UserError
            If shapes or values are off.
        """
        wavs, lengths = check_batch(wavs, wav_lens, sample_rate, self.sample_rate)
        return self._classify(wavs, torch.tensor(lengths))

    def forward(self, wavs, wav_lens=None):
        """Same as `classify_batch`."""
        return self.classify_batch(wavs, wav_lens)

    @torch.no_grad()
    def _classify(self, wavs, num_samples):
        classifier = self.mods.classifier
        logits = classifier.head(
            *classifier.summarise(wavs.to(self.device), num_samples)
        )
        return decide(
            probabilities(logits, self.hparams.multi_label),
            self.labels,
            self.hparams.multi_label,
        )


def decide(probabilities, labels, multi_label, threshold=0.5):
    """From probabilities to labels.

    Arguments
    ---------
    probabilities : torch.Tensor
        Shape [B, classes].
    labels : list of str
    multi_label : bool
    threshold : float
        With `multi_label`: probability above which a label is given.

    Returns
    -------
    probabilities, score, index, label
        See `EnCodecMAEClassifier.classify_batch`.

    Example
    -------
    >>> decide(torch.tensor([[0.6, 0.7, 0.1]]), ["a", "b", "c"], multi_label=True)[3]
    [['b', 'a']]
    """
    if not multi_label:
        score, index = probabilities.max(-1)
        return probabilities, score, index, [labels[i] for i in index.tolist()]
    score, index = [], []
    for row in probabilities:
        order = row.argsort(descending=True, stable=True)
        order = order[row[order] > threshold]
        index.append(order)
        score.append(row[order])
    return probabilities, score, index, [[labels[i] for i in row] for row in index]


def read_training(card):
    """What a classifier was trained on, as its README says.

    Arguments
    ---------
    card : str
        Text of the README, as `pipelines.folds.write_results` writes it.

    Returns
    -------
    corpus, fold : str or None
        Name of the corpus or path of the manifest, and the fold that was held out; None
        where the README does not say it.

    Example
    -------
    >>> read_training("Trained on 160 clips of esc50. Encoder A, frozen. Of 5 folds it "
    ...               "validated best; fold 3 was held out for its test.")
    ('esc50', '3')
    >>> read_training("Trained by hand.")
    (None, None)
    """
    corpus = re.search(r"Trained on \d+ clips of (.+?)\. ", card)
    fold = re.search(r"\bfold ([\w-]+) was held out for its test", card)
    return corpus and corpus[1], fold and fold[1]


def export_classifier(
    classifier, labels, folder, multi_label=False, origin="", figures=None, licence=None
):
    """Writes a classifier folder, whole or not at all.

    Arguments
    ---------
    classifier : ClipClassifier
        What to write.
    labels : list of str
        Names of the classes, in their order.
    folder : str or Path
        Made if needed; files of the same names in it are replaced.
    multi_label : bool
        Whether a clip may have several labels.
    origin : str
        A sentence or two for the folder's README.
    figures : dict of str to float, optional
        Metrics for the folder's README.
    licence : Licence, optional
        That of its encoder.
    """
    lobe = classifier.lobe
    if isinstance(lobe, EnCodecMAE):
        sample_rate = lobe.input_sample_rate
    else:
        sample_rate = lobe.front_end.sample_rate
    settings = {"sample_rate": sample_rate, "multi_label": multi_label}
    several = ", any number of them in a clip" if multi_label else ""
    shown = ", ".join(labels[:50]) + (", ..." if len(labels) > 50 else "")
    export_folder(
        folder,
        "classifier",
        {"classifier": classifier},
        {**settings, "labels": list(labels)},
        f"{len(labels)} classes{several}. {origin}",
        figures,
        f"Classes: {shown}",
        licence=licence,
    )
