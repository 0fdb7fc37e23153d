"""Figures of a pretraining that need no labels: how its frames and codes look.

N frames, D channels, U files, K classes or clusters. The functions draw from no global
generator, so a training is the same with them and without.
"""

import warnings
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from torch.nn.utils.rnn import pad_sequence

from encodecmae_sb.nnet.chunks import encode_in_chunks, shortest_item

# At most this many frames of a validation set are kept. In double precision and 768
# wide they are 50 MB.
MOST_FRAMES = 8192
# Clusters whose agreement with words is measured, if there are as many frames.
_CLUSTERS = 64
# With fewer files there are hardly any pairs to compare, with more there are too many.
_FEWEST_FILES, _MOST_FILES = 8, 500
# For `word_probe`: parts of the files, and how many files of the other parts must have
# a word, and must not have it.
_PARTS, _FEWEST_EXAMPLES = 3, 3
_UTTERANCES_AT_ONCE = 16


def effective_rank(frames):
    """How many directions the frames use.

    It is e to the entropy of the singular values of the centred frames, normalised to
    sum 1 (Roy & Vetterli 2007, "The effective rank"; RankMe, arXiv 2210.02885, does the
    same without the centring). From 1, all frames on a line, to D, the same variance in
    all directions.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [N, D], N clearly larger than D.

    Returns
    -------
    float
        0 if all frames are the same.

    Example
    -------
    >>> line = torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0])
    >>> round(effective_rank(line), 3)
    1.0
    """
    if not _varies(frames):
        return 0.0
    frames = frames.double() - frames.double().mean(0)
    # The squares of the singular values: faster than these, for many frames.
    squares = torch.linalg.eigvalsh(frames.T @ frames).clamp(min=0)
    return perplexity(squares.sqrt())


def perplexity(counts):
    """The entropy of counts, or of other weights, of shape [K], as a power of e.

    Example
    -------
    >>> round(perplexity(torch.tensor([5, 5, 0, 0])), 4)
    2.0
    """
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp().item()


def between_share(frames, files):
    """The share of the frames' variance that is between files.

    The variance of the files' means over that of all frames, all channels together. 1:
    all frames of a file are the same. Frames that know nothing of their file give about
    (U - 1) / (N - 1), not 0, since means of a few frames differ by chance.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [N, D].
    files : torch.Tensor
        Number of the file of each frame, int64, shape [N].

    Returns
    -------
    float
        0 if all frames are the same.

    Example
    -------
    >>> frames, files = torch.tensor([[0.0], [2.0], [2.0], [4.0]]), [0, 0, 1, 1]
    >>> between_share(frames, torch.tensor(files))
    0.5
    """
    if not _varies(frames):
        return 0.0
    frames = frames.double() - frames.double().mean(0)
    means = _file_means(frames, files)
    return (means.square().sum() / frames.square().sum()).item()


def _file_means(frames, files):
    """For each frame the mean of its file's frames, [N, D]."""
    _, files, counts = files.unique(return_inverse=True, return_counts=True)
    sums = frames.new_zeros(len(counts), frames.shape[1]).index_add_(0, files, frames)
    return (sums / counts[:, None])[files]


def _varies(frames):
    """Whether frames differ by more than rounding."""
    frames = frames.double()
    scale = frames.square().mean().sqrt()
    return bool((frames - frames.mean(0)).abs().max() > 1e-6 * scale)


def word_agreement(frames, files, words):
    """Whether files that share words have frames of the same clusters.

    The frames are clustered by k-means, after the mean of each file was removed: else
    clusters would be voices. Two numbers are compared for each pair of files: how much
    their distributions over the clusters overlap (the sum of the square roots of the
    products of shares), and what share of their words both have (intersection over
    union of the sets). The figure is the rank correlation (Spearman) of the two over
    all pairs.

    It measures utterances, not frames: where a word lies in its file is not known, and
    a crop may lack words of its file. What else goes along with shared words, such as
    the length of a file, counts as well. So compare it with the first validation of
    the run, or with another encoder on the same files; its size means little alone.

    Arguments
    ---------
    frames : torch.Tensor
        Shape [N, D].
    files : torch.Tensor
        Number of the file of each frame, from 0 to U - 1, int64, shape [N].
    words : list of set of str
        Of each file, U of them.

    Returns
    -------
    float
        From -1 to 1; 0 means no agreement, NaN that all pairs are alike.

    Example
    -------
    >>> files = torch.arange(9).repeat_interleave(4)
    >>> frames = torch.eye(4)[torch.tensor([0, 0, 0, 1, 2, 2, 2, 3]).repeat(5)[:36]]
    >>> words = [{"yes"} if file % 2 else {"no"} for file in range(9)]
    >>> round(word_agreement(frames, files, words), 4)
    1.0
    """
    frames = frames - _file_means(frames, files)
    number = min(_CLUSTERS, len(frames))
    kmeans = KMeans(number, n_init=1, max_iter=20, random_state=0)
    with warnings.catch_warnings():
        # 20 rounds are enough, and there may be fewer different frames than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = torch.from_numpy(kmeans.fit_predict(frames.numpy()))
    counts = torch.zeros(len(words), number, dtype=torch.float64)
    counts.index_put_((files, found.long()), torch.tensor(1.0).double(), True)
    roots = (counts / counts.sum(1, keepdim=True).clamp(min=1)).sqrt()
    first, second = torch.triu_indices(len(words), len(words), 1)
    # Rounded, so that equal pairs have equal ranks.
    overlap = (roots @ roots.T)[first, second].round(decimals=9)
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    shared = [len(words[i] & words[j]) / len(words[i] | words[j]) for i, j in pairs]
    if len(overlap.unique()) < 2 or len(set(shared)) < 2:
        return float("nan")
    return float(spearmanr(overlap.numpy(), shared).statistic)


@torch.no_grad()
def utterance_vectors(encoder, wavs, device):
    """Mean and deviation of the frames of each utterance.

    Arguments
    ---------
    encoder : AudioEncoder
        On the device.
    wavs : sequence of torch.Tensor
        Samples at 24 kHz, each of shape [N].
    device : torch.device or str

    Returns
    -------
    torch.Tensor
        float32, on the CPU, shape [U, 2 D].

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96)).eval()
    >>> utterance_vectors(encoder, [torch.rand(24000), torch.rand(9000)], "cpu").shape
    torch.Size([2, 128])
    """
    shortest, vectors = shortest_item(encoder.front_end), []
    for start in range(0, len(wavs), _UTTERANCES_AT_ONCE):
        some = wavs[start : start + _UTTERANCES_AT_ONCE]
        some = [F.pad(wav, (0, max(0, shortest - len(wav)))) for wav in some]
        batch = pad_sequence(some, batch_first=True).to(device)
        items = encode_in_chunks(encoder, batch, [len(wav) for wav in some])
        pooled = [torch.cat([x.mean(0), x.std(0, correction=0)]) for x in items]
        vectors.append(torch.stack(pooled).float().cpu())
    return torch.cat(vectors)


def word_probe(vectors, words):
    """How well a linear probe finds out which words are said in a file.

    A word is probed that is said in at least 8 files, and not in at least 8. The files
    are cut into three parts as they come: where they are sorted by speaker, the parts
    mostly have different ones. Each part is tested with ridge regression on the other
    two, for the words that at least 3 of their files have, and at least 3 have not. The
    strength of the regularisation is the mean of the squared lengths of the
    standardised vectors.

    Arguments
    ---------
    vectors : torch.Tensor
        One of each file, such as mean and deviation of its frames, shape [U, D].
    words : sequence of set of str
        Of each file, U of them.

    Returns
    -------
    float
        The mean over words and parts of the area under the ROC curve: 0.5 by chance,
        1 if all is found. NaN where there are too few files or words, and from vectors
        that are not finite.

    Example
    -------
    >>> words = [{"yes"} if file % 2 else {"no"} for file in range(30)]
    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(15, 1)
    >>> word_probe(vectors, words)
    1.0
    """
    said = Counter(word for each in words for word in each)
    most = len(words) - _FEWEST_FILES
    probed = sorted(word for word, n in said.items() if _FEWEST_FILES <= n <= most)
    if not probed or not vectors.isfinite().all():
        return float("nan")
    rows = [[float(word in each) for word in probed] for each in words]
    there, areas = torch.tensor(rows, dtype=torch.float64), []
    for part in torch.arange(len(words)).tensor_split(_PARTS):
        others = torch.ones(len(words), dtype=torch.bool)
        others[part] = False
        counts = there[others].sum(0)
        enough = torch.minimum(counts, others.sum() - counts) >= _FEWEST_EXAMPLES
        x, y = vectors[others].double(), there[others][:, enough]
        mean, deviation = x.mean(0), x.std(0).clamp(min=1e-9)
        x = (x - mean) / deviation
        products = x @ x.T
        # If all vectors are the same, so are all scores.
        products.diagonal().add_(products.diagonal().mean().clamp(min=1e-9))
        weights = x.T @ torch.linalg.solve(products, y - y.mean(0))
        scores = (vectors[part].double() - mean) / deviation @ weights
        truths = there[part][:, enough]
        for truth, score in zip(truths.T, scores.T, strict=True):
            if 0 < truth.sum() < len(truth):
                areas.append(roc_auc_score(truth, score))
    return float(np.mean(areas)) if areas else float("nan")


class Monitors:
    """Collects frames and codes of a validation, and measures them.

    Arguments
    ---------
    transcripts : list of str
        Of each item of the validation set, in its order; empty where there is none.
    corpora : list of str
    n_codebooks, codebook_size : int

    Example
    -------
    >>> monitors = Monitors([""] * 4, ["speech"], n_codebooks=2, codebook_size=8)
    >>> seeds, corpus = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    >>> monitors.add_frames(torch.rand(4, 9, 2), torch.full((4,), 9), seeds, corpus)
    >>> codes = torch.arange(4)[:, None].expand(4, 2)
    >>> monitors.add_codes(codes, torch.zeros_like(codes))
    >>> row = monitors.row()
    >>> row["codes_used_1"], row["codes_predicted_1"]
    (0.5, 0.125)
    >>> list(row)[:2]
    ['effective_rank', 'file_variance']
    """

    def __init__(self, transcripts, corpora, n_codebooks, codebook_size):
        self.words = [set(text.split()) for text in transcripts]
        self.corpora = corpora
        self.per_item = max(1, MOST_FRAMES // max(1, len(transcripts)))
        self.kept, self.counts, self.corpus = [], [], []
        self.agreements = {}  # by the files that they are of
        # How often each code occurs, and is predicted, on hidden frames.
        self.codes = torch.zeros(2, n_codebooks, codebook_size, dtype=torch.int64)

    def add_frames(self, frames, num_frames, seeds, corpus):
        """Keeps some frames of each item, drawn by its seed; waits for no device.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [B, T, D], on any device.
        num_frames, seeds, corpus : torch.Tensor
            Of each item, int64, shape [B], as in a `CropBatch`; on the CPU.
        """
        chosen = []
        for count, seed in zip(num_frames.tolist(), seeds.tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed)
            some = torch.randperm(count, generator=generator)[: self.per_item]
            self.counts.append(len(some))
            chosen.append(len(chosen) * frames.shape[1] + some)
        chosen = torch.cat(chosen).to(frames.device, non_blocking=True)
        self.kept.append(frames.flatten(0, 1)[chosen].float())
        self.corpus += corpus.tolist()

    def add_codes(self, codes, predicted):
        """Counts codes of hidden frames, and what was predicted, each [N, Q]."""
        for table, found in zip(self.codes, (codes, predicted), strict=True):
            for row, values in zip(table, found.cpu().T, strict=True):
                row += torch.bincount(values, minlength=len(row))

    def row(self):
        """All figures by their names in `metrics.json`; NaN from frames that are."""
        self.frames = torch.cat(self.kept).cpu().split(self.counts)  # of each item
        row = self._frame_figures(range(len(self.frames)))
        if len(self.corpora) > 1:
            for number, name in enumerate(self.corpora):
                files = [i for i, corpus in enumerate(self.corpus) if corpus == number]
                # With `--debug`, validation may not come to the last corpora.
                own = self._frame_figures(files) if files else {}
                row.update({f"{name}/{key}": value for key, value in own.items()})
        for q, (occur, predicted) in enumerate(zip(*self.codes, strict=True), 1):
            if len(self.codes[0]) > 1:  # the Brain measures an only codebook
                row[f"codes_used_{q}"] = (occur > 0).double().mean().item()
                row[f"code_perplexity_{q}"] = perplexity(occur)
            row[f"codes_predicted_{q}"] = (predicted > 0).double().mean().item()
            row[f"predicted_perplexity_{q}"] = perplexity(predicted)
        return row

    def _frame_figures(self, files):
        """Of the files with these numbers."""
        frames, numbers = self._of(files)
        if not frames.isfinite().all():
            return dict.fromkeys(("effective_rank", "file_variance"), float("nan"))
        row = {
            "effective_rank": effective_rank(frames),
            "file_variance": between_share(frames, numbers),
        }
        spoken = [i for i in files if self.words[i] and len(self.frames[i])]
        spoken = spoken[:: -(-len(spoken) // _MOST_FILES) or 1]
        if len(spoken) >= _FEWEST_FILES:
            # Often all transcripts are those of one corpus: it is not measured twice.
            key = tuple(spoken)
            if key not in self.agreements:
                words = [self.words[i] for i in spoken]
                self.agreements[key] = word_agreement(*self._of(spoken), words)
            row["utterance_word_agreement"] = self.agreements[key]
        return row

    def _of(self, files):
        """Frames of some files [N, D], and the place of each one's file among them."""
        kept = [self.frames[i] for i in files]
        counts = torch.tensor([len(frames) for frames in kept], dtype=torch.int64)
        numbers = torch.repeat_interleave(torch.arange(len(kept)), counts)
        return torch.cat(kept), numbers
