"""What a value from a yaml may be."""

import math
from numbers import Real

import numpy as np


def is_number(value):
    """Whether this is a number; True and False are none.

    Example
    -------
    >>> is_number(0.5), is_number(True), is_number("0.5")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def are_weights(values, count):
    """Whether these are so many weights: finite, none negative, not all 0.

    Example
    -------
    >>> are_weights([2, 1], 2), are_weights([1], 2), are_weights([0, 0], 2)
    (True, False, False)
    """
    return (
        isinstance(values, list | tuple | np.ndarray)
        and len(values) == count
        and all(is_number(value) and 0 <= value < math.inf for value in values)
        and bool(sum(values) > 0)
    )
