"""Torch modules, each usable from any HyperPyYAML file."""

from .codec import Codec
from .encodecmae import EnCodecMAE
from .features import CodecLatents, LogMel
from .heads import CTCHead, LayerSum
from .loss import MaskedCodecLoss
from .masking import GapMasker
from .model import AudioEncoder, MaskedCodecModel
from .transformer import ResiDualTransformer

__all__ = [
    "AudioEncoder",
    "CTCHead",
    "Codec",
    "CodecLatents",
    "EnCodecMAE",
    "GapMasker",
    "LayerSum",
    "LogMel",
    "MaskedCodecLoss",
    "MaskedCodecModel",
    "ResiDualTransformer",
]
