"""What the repository ships so that everything runs offline: a corpus, a codec.

`corpus/` is written by `recipes/make_corpus.py`; `codec.safetensors` by
`recipes/train_codec.py hparams/codec_mini.yaml`. `hparams` is a link to the
repository's `hparams/`; a wheel has the files themselves.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def speech_folder():
    """Synthetic speech in LibriSpeech layout.

    Example
    -------
    >>> sorted(p.name for p in speech_folder().iterdir() if p.is_dir())
    ['dev', 'test', 'train']
    """
    return _HERE / "corpus" / "speech"


def sound_folder():
    """Synthetic sound events and notes in ESC-50 layout.

    Example
    -------
    >>> sorted(p.name for p in sound_folder().iterdir())
    ['audio', 'meta']
    """
    return _HERE / "corpus" / "sound"


def corpus_folders():
    """Both corpora: what a recipe works on that is given no data folder.

    Example
    -------
    >>> [path.name for path in corpus_folders()]
    ['speech', 'sound']
    """
    return [speech_folder(), sound_folder()]


def codec_file():
    """A small codec with EnCodec's interface, trained on synthetic audio.

    Example
    -------
    >>> codec_file().suffix
    '.safetensors'
    """
    return _HERE / "codec.safetensors"


def hparams_folder():
    """The yaml files: one file, one experiment.

    Example
    -------
    >>> (hparams_folder() / "probe_mini.yaml").is_file()
    True
    """
    return _HERE / "hparams"
