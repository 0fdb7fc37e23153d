"""What a pretrained model imagines where audio is hidden."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from hyperpyyaml import load_hyperpyyaml
from torch import nn

from encodecmae_sb.lobes import Codec, CodecLatents, GapMasker
from encodecmae_sb.nnet.encodecmae import MaskedCodecModel
from encodecmae_sb.nnet.masking import FrameMask
from encodecmae_sb.utils.checkpointer import find_checkpoint, read_identity
from encodecmae_sb.utils.digests import without_normalisation
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

from .plots import picture

_ADVICE = "Give the output folder of recipes/pretrain.py, e.g. results/mini/1234"


@dataclass
class PretrainingRun:
    """What a pretraining run left, ready to predict.

    Arguments
    ---------
    model : MaskedCodecModel
        Of the newest checkpoint, in eval mode.
    masker : GapMasker
        That of the training.
    codec : Codec
        Whose codes the model predicts.
    crop : int
        Samples of a training crop.
    metrics : dict
        The run's `metrics.json`; empty if it has not finished.
    checkpoint : Path
        The folder of the checkpoint.
    """

    model: nn.Module
    masker: nn.Module
    codec: nn.Module
    crop: int
    metrics: dict
    checkpoint: Path

    @property
    def prefixes(self):
        """Of the validation's figures: "" for all of it, "speech/" for one corpus."""
        last = "masked_accuracy_1"
        return sorted(key[: -len(last)] for key in self.metrics if key.endswith(last))


def load_run(folder, codec=None):
    """Loads the newest checkpoint of a pretraining run.

    Arguments
    ---------
    folder : str or Path
        The output folder of recipes/pretrain.py.
    codec : str, optional
        Source of the codec; default: the one that the run's metrics.json names.

    Returns
    -------
    PretrainingRun

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it is not a pretraining run, has no readable checkpoint of its own, or
        the codec is unknown.
    """
    folder = Path(folder).expanduser()
    hparams = read_hparams(folder)
    if "teacher" in hparams:
        raise UserError(
            f"{folder} is a self-training run: its targets are clusters, which no "
            f"codec can turn into sound. {_ADVICE}"
        )
    metrics = {}
    if (folder / "metrics.json").is_file():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if "targets" in metrics:
        raise UserError(
            f"{folder} was trained on the targets {metrics['targets']}, which no codec "
            "can turn into sound. Give a run that was trained on the codes of a codec."
        )
    source = codec or metrics.get("codec")
    if source is None:
        raise UserError(
            f"{folder} does not say what codec it was trained with (metrics.json is "
            "written when a run ends). Name it: --codec bundled, --codec encodec_24khz "
            "or --codec FILE"
        )
    normalise = codec_normalisation(read_identity(folder / "save"))
    codec, model = Codec(source, hparams["n_codebooks"], normalise), hparams["model"]
    if isinstance(model.encoder.front_end, CodecLatents):
        model.encoder.front_end.use(codec)
    checkpoint = load_newest(folder, model)
    return PretrainingRun(
        model=model.eval(),
        masker=hparams["masker"],
        codec=codec,
        crop=HOP * round(hparams["crop_seconds"] * hparams["sample_rate"] / HOP),
        metrics=metrics,
        checkpoint=checkpoint,
    )


def codec_normalisation(identity):
    """How the codec of a pretraining normalises audio, or None.

    Arguments
    ---------
    identity : dict
        From `read_identity`.

    Returns
    -------
    str or None
    """
    return without_normalisation(identity.get("codec", {}).get("digest", ""))[1]


def newest_checkpoint(folder):
    """The folder of the newest complete checkpoint of a run; None if there is none.

    Arguments
    ---------
    folder : Path
        The output folder of a recipe.

    Returns
    -------
    Path or None
    """
    return find_checkpoint(folder / "save")


def load_newest(folder, model):
    """Loads the newest checkpoint into a model.

    Arguments
    ---------
    folder : Path
        The output folder of a pretraining or self-training.
    model : MaskedCodecModel

    Returns
    -------
    Path
        The folder of the checkpoint.

    Raises
    ------
    UserError
        If there is none, or it cannot be read.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(
            f"{folder} holds no checkpoint (save/CKPT+*). Let the run save."
        )
    _load_weights(model, checkpoint / "model.ckpt")
    return checkpoint


def read_hparams(folder):
    """Builds what the yaml of a pretraining or self-training run names.

    Arguments
    ---------
    folder : Path
        The output folder.

    Returns
    -------
    dict
        With the model, its weights still random, and without what would write files,
        and without `input_augment` and `targets`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    UserError
        If it is of no such run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}. {_ADVICE}")
    path = folder / "hyperparams.yaml"
    keys = set()
    if path.is_file():
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
            keys = {name.value for name, _ in node.value}
        except (yaml.YAMLError, AttributeError, TypeError, ValueError):
            keys = set()
    needed = {"model", "masker", "n_codebooks", "crop_seconds", "sample_rate"}
    if missing := needed - keys:
        raise UserError(
            f"{folder} is not a pretraining run: hyperparams.yaml in it lacks "
            f"{', '.join(sorted(missing))}. {_ADVICE}"
        )
    # Leave these out. The first three would make folders and files, and seed the whole
    # process; the others need not be importable here.
    unwanted = {
        "checkpointer",
        "train_logger",
        "__set_seed",
        "input_augment",
        "targets",
    }
    unwanted &= keys
    try:
        with open(path, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, dict.fromkeys(unwanted))
    except Exception as error:  # building from a broken yaml raises many kinds
        raise UserError(f"{path} cannot be used: {error}. {_ADVICE}") from error
    model, masker = hparams["model"], hparams["masker"]
    if not isinstance(model, MaskedCodecModel) or not isinstance(masker, GapMasker):
        raise UserError(f"{path} describes another kind of model. {_ADVICE}")
    return hparams


def _load_weights(model, path):
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(weights, strict=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"Checkpoint {path} cannot be read, or is not of the model that "
            f"hyperparams.yaml in the run's folder describes: {error}\nDelete its "
            "folder to use the checkpoint before it, or give another run."
        ) from error


@dataclass
class Reconstruction:
    """Codes of a recording, and what the model put in the place of hidden ones.

    Arguments
    ---------
    codes : torch.Tensor
        The codec's, int64, shape [T, Q].
    hidden : torch.Tensor
        bool, shape [T].
    predicted : torch.Tensor
        Most probable codes where hidden, the codec's elsewhere, shape [T, Q].
    filled : torch.Tensor
        The same, or with a temperature drawn codes where hidden, shape [T, Q].
    gains : torch.Tensor
        See `FrozenCodec.gains`; of each frame, shape [T].
    """

    codes: torch.Tensor
    hidden: torch.Tensor
    predicted: torch.Tensor
    filled: torch.Tensor
    gains: torch.Tensor

    @property
    def accuracy(self):
        """Share of hidden frames whose most probable code is right, shape [Q]."""
        right = self.predicted[self.hidden] == self.codes[self.hidden]
        return right.double().mean(0)

    @property
    def constant_accuracy(self):
        """What always answering the commonest visible code gets, shape [Q]."""
        commonest = self.codes[~self.hidden].mode(dim=0).values
        return (self.codes[self.hidden] == commonest).double().mean(0)


def random_gaps(run, num_samples, seed=0):
    """Gaps as in training, drawn for each chunk as long as a training crop.

    Arguments
    ---------
    run : PretrainingRun
    num_samples : int
        Of the recording at 24 kHz.
    seed : int

    Returns
    -------
    torch.Tensor
        True where hidden, bool, shape [ceil(num_samples / 320)].
    """
    parts = []
    for i, start in enumerate(range(0, num_samples, run.crop)):
        size = min(run.crop, num_samples - start)
        draw = np.random.Generator(np.random.Philox(key=[seed, i])).integers(2**62)
        parts.append(draw_mask(run.masker, size, int(draw)))
    return torch.cat(parts)


def draw_mask(masker, num_samples, seed):
    """The mask of one crop, as pretraining draws it, bool, shape [T]."""
    frames = torch.tensor([num_samples // HOP])
    return masker(frames, torch.tensor([seed]), -(-num_samples // HOP)).hidden[0]


def given_gaps(text, num_samples, sample_rate=SAMPLE_RATE):
    """Gaps from seconds.

    Arguments
    ---------
    text : str
        Such as "0.5-0.7,1.2-1.5".
    num_samples : int
        Of the recording.
    sample_rate : int

    Returns
    -------
    torch.Tensor
        True where hidden, bool, shape [ceil(num_samples / 320)]; whole frames.

    Raises
    ------
    UserError
        If a gap is not within the recording.

    Example
    -------
    >>> given_gaps("0.1-0.2", 24000).nonzero().flatten()
    tensor([ 8,  9, 10, 11, 12, 13, 14])
    """
    hidden = torch.zeros(-(-num_samples // HOP), dtype=torch.bool)
    seconds = num_samples / sample_rate
    for part in text.split(","):
        try:
            start, stop = map(float, part.split("-"))
        except ValueError:
            raise UserError(
                f"gaps={text!r}: {part!r} is not START-STOP in seconds, as in "
                "--gaps 0.5-0.7,1.2-1.5"
            ) from None
        if not 0 <= start < stop <= seconds:
            raise UserError(
                f"gaps={text!r}: {part}: START must come before STOP, and both must "
                f"lie in the file, which is {seconds:.2f} s long."
            )
        first, last = (round(t * sample_rate / HOP) for t in (start, stop))
        hidden[first : max(last, first + 1)] = True
    # A last frame that is not whole is never predicted.
    hidden[num_samples // HOP :] = False
    if not hidden.any():
        raise UserError(f"gaps={text!r} hide no whole frame (13 ms).")
    return hidden


@torch.no_grad()
def fill_in(run, wav, hidden, temperature=0.0, seed=0):
    """Predicts hidden codes, in chunks as long as a training crop.

    Arguments
    ---------
    run : PretrainingRun
    wav : torch.Tensor
        Samples at 24 kHz in [-1, 1], shape [N].
    hidden : torch.Tensor
        True where hidden, bool, shape [ceil(N / 320)].
    temperature : float
        0: the most probable codes; else codes drawn from the predicted
        distribution, whose logits are divided by it.
    seed : int
        Of the draws.

    Returns
    -------
    Reconstruction

    Raises
    ------
    UserError
        If a whole chunk is hidden.
    """
    if not temperature >= 0:
        raise UserError(f"temperature={temperature}: 0 or more is allowed.")
    generator = torch.Generator().manual_seed(seed)
    codes, predicted, filled, gains = [], [], [], []
    for start in range(0, len(wav), run.crop):
        chunk = wav[start : start + run.crop]
        masked = hidden[start // HOP :][: -(-len(chunk) // HOP)][None]  # [1, T]
        padded = F.pad(chunk, (0, -len(chunk) % HOP))[None]
        true = run.codec.encode(padded)[0]  # [T, Q]
        codes.append(true)
        gains.append(run.codec.gains(padded).expand(len(true)))
        best = drawn = true
        if masked.any():
            frames = torch.tensor([len(chunk) // HOP]) if len(chunk) % HOP else None
            mask = FrameMask.of(masked, frames)
            if not mask.max_visible:
                begin, end = start / SAMPLE_RATE, (start + len(chunk)) / SAMPLE_RATE
                raise UserError(
                    f"The gaps hide everything from {begin:.2f} to {end:.2f} s, one "
                    "chunk of the training's length: leave something to go by."
                )
            logits = run.model(padded, mask)[0].float()  # [T, Q, K]
            where = masked[0, :, None]
            best = drawn = torch.where(where, logits.argmax(-1), true)
            if temperature:
                shares = (logits / temperature).softmax(-1).flatten(0, 1)
                draws = torch.multinomial(shares, 1, generator=generator)
                drawn = torch.where(where, draws.view(true.shape), true)
        predicted.append(best)
        filled.append(drawn)
    return Reconstruction(
        torch.cat(codes),
        hidden,
        torch.cat(predicted),
        torch.cat(filled),
        torch.cat(gains),
    )


def silence(wav, hidden):
    """A waveform [N] with the samples of hidden frames [T] set to zero."""
    return wav * ~hidden.repeat_interleave(HOP)[: len(wav)]


def measure(run, done):
    """Accuracy on the hidden frames, beside what the run's validation reported.

    Arguments
    ---------
    run : PretrainingRun
    done : Reconstruction

    Returns
    -------
    dict of str to number
        `frames`, `hidden_frames`, `chance` and, for each codebook q = 1, 2, ...,
        `gap_accuracy_q`, `constant_accuracy_q`, `validation_accuracy_q` and, of a run
        with several corpora, `CORPUS/validation_accuracy_q`.
    """
    metrics = {
        "frames": len(done.hidden),
        "hidden_frames": int(done.hidden.sum()),
        "chance": 1 / run.codec.codebook_size,
    }
    pairs = zip(done.accuracy.tolist(), done.constant_accuracy.tolist(), strict=True)
    for q, (right, constant) in enumerate(pairs, 1):
        metrics[f"gap_accuracy_{q}"] = right
        metrics[f"constant_accuracy_{q}"] = constant
        for prefix in run.prefixes:
            reported = run.metrics[f"{prefix}masked_accuracy_{q}"]
            metrics[f"{prefix}validation_accuracy_{q}"] = reported
    return metrics


def draw_spectrograms(wavs, hidden, path, sample_rate=SAMPLE_RATE):
    """Draws spectrograms one below the other, with the gaps marked.

    Arguments
    ---------
    wavs : dict of str to torch.Tensor
        Titles and waveforms [N].
    hidden : torch.Tensor
        True where hidden, bool, shape [T].
    path : str or Path
        The PNG file to write.
    sample_rate : int
    """
    edges = torch.diff(F.pad(hidden.int(), (1, 1))).nonzero().view(-1, 2)
    gaps = (HOP / sample_rate * edges.double()).tolist()
    length = len(next(iter(wavs.values()))) / sample_rate
    images = {}
    for title, wav in wavs.items():
        spectrum = torch.stft(
            wav, 1024, 240, window=torch.hann_window(1024), return_complex=True
        )
        images[title] = 20 * spectrum.abs().clamp(min=1e-6).log10()
    loudest = max(image.max().item() for image in images.values())
    size = (min(40, max(9, 3 * length)), 2.4 * len(wavs))
    with picture(path, rows=len(wavs), figsize=size, sharex=True) as (_, rows):
        for axes, (title, image) in zip(rows, images.items(), strict=True):
            axes.imshow(
                image,
                origin="lower",
                aspect="auto",
                extent=(0, length, 0, sample_rate / 2000),
                cmap="magma",
                vmin=loudest - 80,
                vmax=loudest,
            )
            for gap in gaps:
                axes.axvspan(*gap, facecolor="none", edgecolor="cyan", linewidth=1.2)
                # A bar on top makes narrow gaps visible.
                axes.axvspan(*gap, 0.96, 1.0, color="cyan")
            axes.set(title=title, ylabel="kHz", ylim=(0, sample_rate / 2000))
        rows[-1].set(xlabel="seconds (cyan: hidden from the model)", xlim=(0, length))
