"""A trained recogniser as a folder, and the interface that loads it."""

import shutil
from pathlib import Path

import torch
from speechbrain.decoders.ctc import CTCBeamSearcher
from speechbrain.inference.interfaces import Pretrained

from encodecmae_sb import __version__
from encodecmae_sb.data.tokenizer import BLANK
from encodecmae_sb.pretrained.folder import FORMAT, INTERFACE, encoder_yaml, yaml_value
from encodecmae_sb.utils.errors import UserError

from .encoder import check_batch, read_file

_YAML = """\
# A CTC speech recogniser on an EnCodecMAE encoder, made by encodecmae_sb {version}.
format: {format}
{encoder}

lobe: !new:encodecmae_sb.lobes.EnCodecMAE
    source: !ref <encoder>
    freeze: True
    input_sample_rate: {lobe.input_sample_rate}
    layer: {lobe.layer}
    output_norm: {lobe.output_norm}
    piece_seconds: {piece_seconds}
    whole_codec_frames: {lobe.whole_codec_frames}

head: !new:encodecmae_sb.lobes.CTCHead
    input_size: {head.input_size}
    num_tokens: {head.num_tokens}
    hidden_size: {head.hidden_size}
    num_layers: {head.num_layers}
    recurrent: {head.recurrent}
    stack: {head.stack}

tokens: !new:encodecmae_sb.data.tokenizer.Tokens

language_model: !new:encodecmae_sb.inference.recogniser.FilePath

beam_search:
{beam_search}

modules:
    encoder: !ref <lobe>
    head: !ref <head>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lobe: !ref <lobe>
        head: !ref <head>
        tokens: !ref <tokens>{language_model}
    custom_hooks:
        lobe: !name:encodecmae_sb.pretrained.folder.load_weights
        head: !name:encodecmae_sb.pretrained.folder.load_weights
        tokens: !name:encodecmae_sb.data.tokenizer.load_tokens
        language_model: !name:encodecmae_sb.inference.recogniser.load_path
"""

_README = """\
# A speech recogniser on an EnCodecMAE encoder

{origin}

    from speechbrain.inference.interfaces import foreign_class

    recogniser = foreign_class(
        source="{folder}",
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    )
    print(recogniser.transcribe_file("speech.wav"))

| measured | |
| --- | --- |
{figures}"""


class FilePath:
    """The path of a file that comes with an exported folder; None without one."""

    path = None


def load_path(holder, path):
    """Notes a path, as a hook for SpeechBrain's Pretrainer."""
    holder.path = str(path)


def build_searcher(tokens, settings, kenlm_model_path=None):
    """SpeechBrain's CTC beam search over a vocabulary.

    Arguments
    ---------
    tokens : Tokens
    settings : dict
        Arguments of `speechbrain.decoders.ctc.CTCBeamSearcher`.
    kenlm_model_path : str, optional
        A KenLM language model of words; needs the package `kenlm`.

    Returns
    -------
    CTCBeamSearcher
    """
    return CTCBeamSearcher(
        blank_index=BLANK,
        vocab_list=tokens.labels,
        kenlm_model_path=kenlm_model_path,
        **settings,
    )


def search(searcher, log_probs, lens):
    """Decodes a batch with a beam search.

    Arguments
    ---------
    searcher : CTCBeamSearcher
    log_probs : torch.Tensor
        Shape [B, T, tokens].
    lens : torch.Tensor
        Relative lengths, shape [B].

    Returns
    -------
    list of str
    """
    # The searcher cuts lens * T off to a whole number, and 0.3947 * 38 is 14.999.
    steps = (lens * log_probs.shape[1]).round() + 0.25
    best = searcher(log_probs.cpu(), (steps / log_probs.shape[1]).cpu())
    return [hypotheses[0].text for hypotheses in best]


def export_recogniser(
    lobe, head, tokens, beam_search, folder, origin, figures, kenlm_model_path=None
):
    """Writes a folder that holds all that recognition needs.

    Arguments
    ---------
    lobe : EnCodecMAE
    head : CTCHead
    tokens : Tokens
    beam_search : dict
        Settings of `build_searcher`.
    folder : str or Path
        Made if needed; files in it are replaced.
    origin : str
        A sentence or two for the folder's README: trained how, on what.
    figures : dict of str to float
        For the folder's README.
    kenlm_model_path : str, optional
        Copied into the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("lobe", lobe), ("head", head)):
        weights = {key: value.cpu() for key, value in module.state_dict().items()}
        torch.save(weights, folder / f"{name}.ckpt")
    tokens.save(folder / "tokens.ckpt")
    if kenlm_model_path:
        shutil.copyfile(kenlm_model_path, folder / "language_model.ckpt")
    yaml = _YAML.format(
        version=__version__,
        format=FORMAT,
        encoder=encoder_yaml(lobe.encoder),
        lobe=lobe,
        piece_seconds=yaml_value(lobe.piece_seconds),
        head=head,
        beam_search="\n".join(
            f"    {name}: {yaml_value(value)}" for name, value in beam_search.items()
        ),
        language_model=(
            "\n        language_model: !ref <language_model>"
            if kenlm_model_path
            else ""
        ),
    )
    (folder / "hyperparams.yaml").write_text(yaml, encoding="utf-8")
    (folder / "custom_interface.py").write_text(INTERFACE, encoding="utf-8")
    table = "".join(f"| {name} | {value:.4g} |\n" for name, value in figures.items())
    readme = _README.format(origin=origin, folder=folder.name, figures=table)
    (folder / "README.md").write_text(readme, encoding="utf-8")


class EnCodecMAEASR(Pretrained):
    """Transcribes speech, with the beam search that the recipe tested with.

    Example
    -------
    >>> from speechbrain.inference.interfaces import foreign_class
    >>> from encodecmae_sb.bundled import speech_folder
    >>> from encodecmae_sb.lobes import AudioEncoder, CTCHead, EnCodecMAE
    >>> from encodecmae_sb.lobes import LogMel, ResiDualTransformer
    >>> from encodecmae_sb.data.tokenizer import Tokens
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> tokens = Tokens.of_characters(["ONE TWO"])
    >>> head = CTCHead(64, len(tokens), hidden_size=16)
    >>> folder = getfixture("tmp_path") / "asr"
    >>> lobe = EnCodecMAE(encoder, input_sample_rate=24000)
    >>> export_recogniser(lobe, head, tokens, {"beam_size": 4}, folder, "", {})
    >>> recogniser = foreign_class(
    ...     source=str(folder),
    ...     pymodule_file="custom_interface.py",
    ...     classname="EnCodecMAEASR",
    ... )
    >>> path = sorted(speech_folder().rglob("*.flac"))[0]
    >>> type(recogniser.transcribe_file(path))
    <class 'str'>
    """

    MODULES_NEEDED = ["encoder", "head"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # After the superclass has loaded vocabulary and language model.
        self.searcher = None

    @property
    def sample_rate(self):
        """Rate that `transcribe_batch` expects, in Hz."""
        return self.mods.encoder.input_sample_rate

    def transcribe_file(self, path):
        """Transcribes an audio file of any rate, mono or not.

        Arguments
        ---------
        path : str or Path
            WAV, FLAC, OGG or MP3.

        Returns
        -------
        str

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it cannot be read or is shorter than a frame.
        """
        wav = read_file(path, self.sample_rate)
        return self.transcribe_batch(wav[None])[0][0]

    @torch.no_grad()
    def transcribe_batch(self, wavs, wav_lens=None, sample_rate=None):
        """Transcribes a padded batch.

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
        texts : list of str
        tokens : list of list of int
            The texts as numbers of the vocabulary.

        Raises
        ------
        ValueError
            If shapes or values are off.
        """
        wavs, lengths = check_batch(wavs, wav_lens, sample_rate, self.sample_rate)
        if min(lengths) < 320:
            raise UserError(f"an item of {min(lengths)} samples is less than a frame")
        wavs = wavs.to(self.device)
        wav_lens = torch.tensor(lengths, device=self.device) / wavs.shape[1]
        frames = self.mods.encoder(wavs, wav_lens)
        frame_lens = self.mods.encoder.frame_lens(wav_lens, wavs.shape[1])
        log_probs, lens = self.mods.head(frames, frame_lens)
        if self.searcher is None:
            self.searcher = build_searcher(
                self.hparams.tokens,
                vars(self.hparams)["beam_search"],
                self.hparams.language_model.path,
            )
        texts = search(self.searcher, log_probs, lens)
        return texts, [self.hparams.tokens.encode(text) for text in texts]

    def forward(self, wavs, wav_lens=None):
        """Same as `transcribe_batch`."""
        return self.transcribe_batch(wavs, wav_lens)
