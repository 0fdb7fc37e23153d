"""What a yaml names: torch modules, each usable from any HyperPyYAML file."""

from encodecmae_sb.nnet.encodecmae import AudioEncoder, MaskedCodecModel
from encodecmae_sb.nnet.front_ends import CodecLatents, LogMel
from encodecmae_sb.nnet.heads import CTCHead, LayerSum
from encodecmae_sb.nnet.loss import MaskedCodecLoss
from encodecmae_sb.nnet.masking import GapMasker
from encodecmae_sb.nnet.transformer import ResiDualTransformer

from .adapters import AdaptedEnCodecMAE
from .augment import InputAugment
from .codec import Codec
from .encodecmae import EnCodecMAE
from .targets import Clusters, MelRVQ, RandomProjection, SeveralTargets

__all__ = [
    "AdaptedEnCodecMAE",
    "AudioEncoder",
    "CTCHead",
    "Clusters",
    "Codec",
    "CodecLatents",
    "EnCodecMAE",
    "GapMasker",
    "InputAugment",
    "LayerSum",
    "LogMel",
    "MaskedCodecLoss",
    "MaskedCodecModel",
    "MelRVQ",
    "RandomProjection",
    "ResiDualTransformer",
    "SeveralTargets",
]
