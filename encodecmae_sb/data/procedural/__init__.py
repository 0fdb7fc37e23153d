"""Endless synthetic audio: a pure function of a seed and a number."""
