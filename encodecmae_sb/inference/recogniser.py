"""A trained recogniser: its interface, and its folder that `foreign_class` loads."""

import re
import shutil

import torch
from speechbrain.decoders.ctc import CTCBeamSearcher
from speechbrain.inference.interfaces import Pretrained

from encodecmae_sb.data.tokenizer import BLANK
from encodecmae_sb.pretrained.folder import export_folder
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

from .encoder import check_batch, read_file


class LanguageModel:
    """A KenLM file that comes with an exported folder.

    Arguments
    ---------
    path : str, optional
        Of the file; `load` sets it.
    """

    def __init__(self, path=None):
        self.path = path

    def save(self, path):
        """Copies the file."""
        shutil.copyfile(self.path, path)

    def load(self, path):
        """Notes where the file is."""
        self.path = str(path)


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
        unigrams=known_words(kenlm_model_path),
        **settings,
    )


def known_words(kenlm_model_path):
    """The words of a language model in ARPA format; None for a binary one.

    SpeechBrain reads them only from files called `.arpa`, and an exported folder gives
    the file another name. Without them, unknown words would cost nothing.

    Arguments
    ---------
    kenlm_model_path : str or None

    Returns
    -------
    set of str or None
    """
    if not kenlm_model_path:
        return None
    with open(kenlm_model_path, "rb") as file:
        if not file.read(64).lstrip().startswith(b"\\data\\"):
            return None
    # Here, because it needs a package that only language models need.
    from speechbrain.integrations.decoders.kenlm_scorer import (
        load_unigram_set_from_arpa,
    )

    return load_unigram_set_from_arpa(str(kenlm_model_path))


def search(searcher, log_probs, num_steps):
    """Decodes a batch with a beam search.

    Arguments
    ---------
    searcher : CTCBeamSearcher
    log_probs : torch.Tensor
        Shape [B, T, tokens].
    num_steps : torch.Tensor
        Steps of each item, int64, shape [B].

    Returns
    -------
    list of str
    """
    # One by one, because the searcher cuts relative lengths off to whole steps, and
    # 15 / 38 * 38 may be 14.999.
    items = zip(log_probs.cpu(), num_steps.tolist(), strict=True)
    return [searcher(item[None, :steps])[0][0].text for item, steps in items]


def export_recogniser(
    lobe,
    head,
    tokens,
    beam_search,
    folder,
    origin,
    figures,
    kenlm_model_path=None,
    licence=None,
):
    """Writes a folder that holds all that recognition needs, whole or not at all.

    Arguments
    ---------
    lobe : EnCodecMAE
    head : CTCHead
    tokens : Tokens
    beam_search : dict
        Settings of `build_searcher`.
    folder : str or Path
        Made if needed; files of the same names in it are replaced.
    origin : str
        A sentence or two for the folder's README: trained how, on what.
    figures : dict of str to float
        For the folder's README.
    kenlm_model_path : str, optional
        Copied into the folder.
    licence : Licence, optional
        That of its encoder.
    """
    parts = {"lobe": lobe, "head": head, "tokens": tokens}
    if kenlm_model_path:
        parts["language_model"] = LanguageModel(kenlm_model_path)
    settings = {"beam_search": beam_search}
    about = folder, "recogniser", parts, settings, origin, figures
    export_folder(*about, licence=licence)


def read_training(card):
    """What a recogniser was trained on, as its README says.

    Arguments
    ---------
    card : str
        Text of the README, as `recipes/asr_ctc.py` writes it.

    Returns
    -------
    folder : str or None
        Of the corpus; None where the README does not say it.
    parts : list of str
        Of the corpus, or the path of a manifest.

    Example
    -------
    >>> read_training("Trained on 9 utterances (0.01 h) of /data: a+b. Encoder A.")
    ('/data', ['a', 'b'])
    """
    found = re.search(r"Trained on \d+ utterances \(.+? h\) of (.+?): (.+?)\. ", card)
    return (found[1], found[2].split("+")) if found else (None, [])


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

    MODULES_NEEDED = ["lobe", "head"]
    HPARAMS_NEEDED = ["beam_search", "tokens"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # After the superclass has loaded vocabulary and language model.
        self.searcher = None

    @property
    def sample_rate(self):
        """Rate that `transcribe_batch` expects, in Hz."""
        return self.mods.lobe.input_sample_rate

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
        UserError
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
        UserError
            If shapes or values are off, or an item is shorter than a frame.
        """
        wavs, lengths = check_batch(wavs, wav_lens, sample_rate, self.sample_rate)
        shortest = HOP * self.sample_rate / SAMPLE_RATE
        if min(lengths) < shortest:
            raise UserError(f"an item of {min(lengths)} samples is less than a frame")
        wavs, num_samples = wavs.to(self.device), torch.tensor(lengths)
        frames, num_frames = self.mods.lobe.encode(wavs, num_samples)
        log_probs, num_steps = self.mods.head(frames, num_frames)
        if self.searcher is None:
            language_model = getattr(self.hparams, "language_model", LanguageModel())
            self.searcher = build_searcher(
                self.hparams.tokens, self.hparams.beam_search, language_model.path
            )
        texts = search(self.searcher, log_probs, num_steps)
        return texts, [self.hparams.tokens.encode(text) for text in texts]

    def forward(self, wavs, wav_lens=None):
        """Same as `transcribe_batch`."""
        return self.transcribe_batch(wavs, wav_lens)
