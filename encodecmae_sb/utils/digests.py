"""Short names for settings and weights, by which stored work is found again."""

import hashlib
import json


def digest(content):
    """A short name for what can be written as JSON.

    Example
    -------
    >>> len(digest([1, "a"]))
    12
    """
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_each(items, *before):
    """As `digest(list(items))`, but in the memory of one item.

    With more arguments, as `digest([*before, list(items)])`.

    Example
    -------
    >>> digest_each(iter([1, "a"])) == digest([1, "a"])
    True
    >>> digest_each(iter([1, "a"]), 2, "b") == digest([2, "b", [1, "a"]])
    True
    """
    # Around the items stands the JSON of the same list without any.
    around = json.dumps([*before, []] if before else [], sort_keys=True)
    end = 2 if before else 1
    content = hashlib.sha256(around[:-end].encode())
    for number, item in enumerate(items):
        text = json.dumps(item, sort_keys=True)
        content.update(f"{', ' if number else ''}{text}".encode())
    content.update(around[-end:].encode())
    return content.hexdigest()[:12]


_LEVELLED = "-level"


def with_normalisation(fingerprint, normalise):
    """A codec's fingerprint, and how its input is normalised.

    Example
    -------
    >>> with_normalisation("d7cc33bc", "level"), with_normalisation("d7cc33bc", None)
    ('d7cc33bc-level', 'd7cc33bc')
    """
    return fingerprint + (_LEVELLED if normalise else "")


def without_normalisation(fingerprint):
    """A codec's own fingerprint, and how its input is normalised.

    Example
    -------
    >>> without_normalisation("d7cc33bc-level"), without_normalisation("my-codec")
    (('d7cc33bc', 'level'), ('my-codec', None))
    """
    own = fingerprint.removesuffix(_LEVELLED)
    return own, None if own == fingerprint else "level"


def weights_key(module):
    """A digest of the weights of a module, as hexadecimal text."""
    return tensors_key(module.state_dict())


def tensors_key(tensors):
    """A digest of named tensors in their order, as hexadecimal text."""
    content = hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
