"""The vectors of labelled clips from several encoders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from encodecmae_sb.evaluation.probe import check_whole
from encodecmae_sb.lobes import EnCodecMAE
from encodecmae_sb.nnet.chunks import FRAMES_VERSION
from encodecmae_sb.nnet.pooling import (
    ClipClassifier,
    ClipHead,
    EqualLevel,
    LogMelFrames,
)
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device
from encodecmae_sb.utils.grid import SAMPLE_RATE

from .clip_features import (
    StoredSummaries,
    check_encoder,
    clips_key,
    in_fold,
    store_summaries,
)

LOGMEL, RANDOM = "logmel", "random"


def check_encoding(hparams):
    """Refuses encoders, layers and poolings that cannot be, before any work."""
    if not isinstance(hparams["layers"], bool):
        raise UserError(f"layers={hparams['layers']}: allowed are True, False.")
    check_whole("repeats", hparams["repeats"], 1)
    check_whole("encode_batch_size", hparams["encode_batch_size"], 1)
    if hparams["pooling"] not in ("mean", "mean_std"):
        raise UserError(
            f"pooling={hparams['pooling']}: allowed are mean, mean_std. Pooling that "
            "learns, such as attentive, is for recipes/classify.py."
        )
    layer = hparams["layer"]
    if layer not in ("last", "last_no_norm"):
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise UserError(
                f"layer={layer}: allowed are last, last_no_norm and a number from 0."
            )
    elif layer == "last_no_norm" and hparams["layers"]:
        raise UserError(
            "layer=last_no_norm is none of the layers that layers=True goes through: "
            "give one of the two."
        )
    if torch.distributed.is_initialized():
        raise UserError("Probing runs in one process: start without torchrun.")
    named_encoders(hparams)


def named_encoders(hparams):
    """The encoders to compare, and the one that `random` is like.

    Returns
    -------
    names : list of str
        A folder `steps` of a pretraining, see `keep_encoders` in its yaml, stands for
        the encoders in it.
    model : str or None
        The first that is neither `random` nor `logmel`.
    """
    names = hparams["encoders"]
    names = [str(name) for name in (names if isinstance(names, list) else [names])]
    names = [each for name in names for each in kept_encoders(name) or [name]]
    for name in names:
        if "{fold}" in name and step_of(name) is None and Path(name).name == "steps":
            raise UserError(
                f"encoders={name}: with {{fold}} name each step, as in {name}/step_600."
            )
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"encoders={names}: give one or more, each once, for example\n"
            f'  --encoders "[{LOGMEL}, {RANDOM}, results/mini/1234/encoder]"'
        )
    models = [name for name in names if name not in (LOGMEL, RANDOM)]
    if RANDOM in names and not models:
        raise UserError(
            f"encoders={names}: {RANDOM} has the architecture of the first encoder "
            "named, and there is none. Name one, such as results/mini/1234/encoder."
        )
    return names, models[0] if models else None


def check_encoders(names, folds):
    """Makes sure that there is every encoder, for every fold.

    Arguments
    ---------
    names : list of str
        From `named_encoders`.
    folds : list of Fold

    Raises
    ------
    UserError
        If one is missing.
    """
    for name in names:
        if name not in (LOGMEL, RANDOM):
            check_encoder(name, folds, "encoders")


def kept_encoders(folder):
    """The encoders that a pretraining kept on its way, the first step first.

    Arguments
    ---------
    folder : str
        `steps` in the output folder of the pretraining.

    Returns
    -------
    list of str
        Their folders, `step_600` and so on; empty if there are none.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for step in (600, 1200, 90):
    ...     (folder / f"step_{step}").mkdir()
    >>> [Path(name).name for name in kept_encoders(folder)]
    ['step_90', 'step_600', 'step_1200']
    """
    found = [path for path in Path(folder).glob("step_*") if step_of(path) is not None]
    return list(map(str, sorted(found, key=step_of)))


def step_of(folder):
    """The step in the name of a kept encoder's folder; None for other folders."""
    start, _, number = Path(folder).name.partition("_")
    return int(number) if start == "step" and number.isdecimal() else None


@dataclass
class Vectors:
    """The vectors of all clips from one encoder.

    Arguments
    ---------
    stored : StoredSummaries
        Clip ID -> vectors, float32, [L, W].
    key : str
        A name for all that they depend on.
    """

    stored: StoredSummaries
    key: str

    @property
    def num_layers(self):
        """Layers that were stored, L."""
        return self.stored.values.shape[1]

    @property
    def width(self):
        """Of a vector, W."""
        return self.stored.values.shape[2]

    def of(self, clips, layer):
        """Vectors of some clips, [clips, W]."""
        return torch.stack([self.stored[clip.id][layer] for clip in clips])


class ClipVectors:
    """Computes the vectors of clips; they are kept in files and found again.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    data : ClipData
    model : str or None
        The encoder that `random` is like.
    """

    def __init__(self, hparams, run_opts, data, model):
        self.model = model
        self.hparams = hparams
        self.device = choose_device(run_opts["device"])
        self.quiet = run_opts["noprogressbar"]
        self.data = data
        self.save = Path(hparams["save_folder"])
        self.clips_key = clips_key(data.clips)
        self.known = {}

    def vectors(self, name, fold, number=0, equal=False):
        """The vectors of all clips from one encoder, computed once.

        Arguments
        ---------
        name : str
        fold : Fold
        number : int
            The repeat; in each, `random` has other weights.
        equal : bool
            Bring all clips to one level first, see `EqualLevel`.

        Returns
        -------
        Vectors
        """
        source = in_fold(self.model if name == RANDOM else name, fold)
        wanted = (source, number if name == RANDOM else None, equal)
        if wanted not in self.known:
            self.known[wanted] = self._encode(name, source, number, equal)
        return self.known[wanted]

    def pooling(self, name):
        """How frames become a vector; for log-mel frames always in the same way."""
        return "mean_std" if name == LOGMEL else self.hparams["pooling"]

    def _encode(self, name, source, number, equal):
        hparams, pooling = self.hparams, self.pooling(name)
        if name == LOGMEL:
            lobe, made, layer = LogMelFrames(), LOGMEL, None
        else:
            torch.manual_seed(hparams["seed"] + number)  # of the random weights
            lobe = EnCodecMAE(
                source,
                output_all_hiddens=hparams["layers"],
                input_sample_rate=SAMPLE_RATE,
                layer=hparams["layer"],
                chunk_seconds=hparams.get("chunk_seconds", 4.0),
                pretrained=name != RANDOM,
            )
            made = [describe(lobe.encoder), lobe.chunk]
            layer = "all" if hparams["layers"] else hparams["layer"]
        # Only the pooling of the head is used, which has nothing to learn.
        head = ClipHead(lobe.dim, len(self.data.labels), pooling=pooling)
        # With the weights in its name, a file belongs to one initialisation only.
        weights = weights_key(lobe)
        asked = [made, weights, FRAMES_VERSION, self.clips_key, pooling, layer]
        if equal:
            lobe, asked = EqualLevel(lobe), [*asked, "equal level"]
        key = digest(asked)
        stored = store_summaries(
            ClipClassifier(lobe, head).to(self.device),
            self.data.clips,
            self.save / "features" / f"{key}.bin",
            hparams["encode_batch_size"],
            hparams["num_workers"],
            self.device,
            self.quiet,
        )
        return Vectors(stored, key)
