"""The grid of the targets: how often there is one, and at which sample rate.

Both numbers are EnCodec's. Nothing else in this package states them.
"""

SAMPLE_RATE = 24000  # Hz
HOP = 320  # samples from target to target, 75 a second
