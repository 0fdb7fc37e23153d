"""Interfaces of trained models, which `load` or `foreign_class` loads."""

from .classifier import EnCodecMAEClassifier
from .encoder import EnCodecMAEEncoder
from .loading import load
from .recogniser import EnCodecMAEASR

__all__ = ["EnCodecMAEASR", "EnCodecMAEClassifier", "EnCodecMAEEncoder", "load"]
