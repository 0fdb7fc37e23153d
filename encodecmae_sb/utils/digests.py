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


def digest_each(items):
    """As `digest(list(items))`, but in the memory of one item.

    Example
    -------
    >>> digest_each(iter([1, "a"])) == digest([1, "a"])
    True
    """
    content = hashlib.sha256(b"[")
    for number, item in enumerate(items):
        text = json.dumps(item, sort_keys=True)
        content.update(f"{', ' if number else ''}{text}".encode())
    content.update(b"]")
    return content.hexdigest()[:12]


def weights_key(module):
    """Tells modules of the same make apart by their weights."""
    content = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
