"""Interfaces that `foreign_class` loads from exported folders."""

from .classifier import EnCodecMAEClassifier
from .encoder import EnCodecMAEEncoder
from .recogniser import EnCodecMAEASR

__all__ = ["EnCodecMAEASR", "EnCodecMAEClassifier", "EnCodecMAEEncoder"]
