"""EnCodecMAE for SpeechBrain."""

__version__ = "0.1.0"
