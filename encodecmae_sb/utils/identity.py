"""The identity of a training: everything that its result depends on.

The first checkpoint of a run writes it to `identity.json`. A run that finds checkpoints
with another identity refuses to go on: its result would not be what its settings say.
"""

import csv
import hashlib
import json
import os

import yaml
from hyperpyyaml import resolve_references

# Keys of a yaml that may change when a training goes on. All others must stay.
MAY_CHANGE = frozenset(
    [
        # Places of files. The files are identified by their content.
        *("output_folder", "save_folder", "data_folder", "valid_folder"),
        *("train_csv", "valid_csv", "codes_folder", "codec", "teacher"),
        *("encoder_folder", "csv"),
        # How long to train, and how often to validate and to save.
        *("training_steps", "number_of_epochs", "valid_interval"),
        *("optimizer_step_limit", "ckpt_interval_minutes", "ckpt_interval_steps"),
        # The device, and how it is used.
        *("device", "distributed_backend", "find_unused_parameters", "noprogressbar"),
        *("activation_checkpointing", "compile", "compile_mode", "compile_module_keys"),
        # How the work is divided. Each Brain says in `shares` what must stay.
        *("batch_size", "grad_accumulation_factor", "crops_per_step"),
        *("num_workers", "encode_batch_size", "test_batch_size"),
        # What comes of them is in the identity: as `codes`, and as `altered_copies`.
        *("store_targets", "altered_copies"),
        # Checks, and what to do when they fail.
        *("source_sample_rate", "max_unusable"),
        *("skip_nonfinite_grads", "nonfinite_patience"),
        # Where figures go while it trains.
        *("train_logger", "log_to", "log_interval"),
        # How the start was made. What was loaded is in the identity.
        "init_strict",
        # What is exported, and what is measured in validation and after training.
        *("export_pretraining", "keep_encoders", "monitors"),
        *("test_csv", "test_splits", "beam_search", "kenlm_model_path"),
    ]
)

_SHOWN = 120  # characters of a value that an error shows


def named(value, digest):
    """A value that is identified by its content, not by its name.

    Arguments
    ---------
    value : object
        The user's name for it, which is shown.
    digest : str
        Of the content, which is compared.

    Returns
    -------
    dict
    """
    return {"value": value, "digest": digest}


def yaml_identity(text, overrides, given=()):
    r"""The part of a training's identity that comes from its yaml file.

    Arguments
    ---------
    text : str
        The yaml.
    overrides : str or dict
        Values that replace its own.
    given : collection of str
        The keys that `overrides` has.

    Returns
    -------
    dict
        Value of each key that is not in `MAY_CHANGE`.

    Example
    -------
    >>> text = "lr: 0.1\nbatch_size: 4\nopt: {lr: !ref <lr>}"
    >>> yaml_identity(text, {"lr": 1}, ["lr"])
    {'lr': '1', 'opt': {'lr': '!ref <lr>'}}
    """
    resolved = yaml.compose(resolve_references(text, overrides), yaml.SafeLoader)
    written = {key.value: node for key, node in yaml.compose(text).value}
    identity = {}
    for key, node in resolved.value:
        key = key.value
        if key in MAY_CHANGE or key.startswith("__"):
            continue
        # Keep the references in a block: the key that they refer to is compared by
        # itself.
        plain = isinstance(node, yaml.ScalarNode) or key in given
        identity[key] = _plain(node if plain else written.get(key, node))
    return identity


def _plain(node):
    """What a yaml node says, as strings, lists and dicts."""
    tag = f"{node.tag} " if node.tag.startswith("!") else ""
    if isinstance(node, yaml.ScalarNode):
        return tag + node.value
    if isinstance(node, yaml.SequenceNode):
        content = [_plain(item) for item in node.value]
    else:
        content = {key.value: _plain(value) for key, value in node.value}
    return {tag.strip(): content} if tag else content


def data_identity(corpora):
    """Identifies the content of manifests, wherever the audio lies.

    Arguments
    ---------
    corpora : list of Corpus
        See `data.manifest`.

    Returns
    -------
    dict
        See `named`.
    """
    content, counts = hashlib.sha256(), []
    for corpus in corpora:
        counts.append(0)
        for manifest in (corpus.train_csv, corpus.valid_csv):
            with open(manifest, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                content.update(json.dumps(rows.fieldnames).encode())
                for row in rows:
                    for column in ("wav", "codes"):
                        # Draws from shards depend on the shard of each item.
                        tar, member, _ = row.get(column, "").partition("::")
                        row[column] = os.path.basename(tar) if member else ""
                    content.update("\0".join(row.values()).encode() + b"\n")
                    counts[-1] += 1
    names = [corpus.name for corpus in corpora]
    listed = [f"{n} files of {name}" for n, name in zip(counts, names, strict=True)]
    return named(", ".join(listed), content.hexdigest()[:12])


def differences(old, new):
    """What differs between two identities.

    Arguments
    ---------
    old, new : dict
        A missing key counts as null: an older version of a yaml may lack it.

    Returns
    -------
    list of (str, str, str)
        Key, old and new value.

    Example
    -------
    >>> old = {"lr": 1, "codec": named("bundled", "f0")}
    >>> differences(old, {"lr": 2, "codec": named("copy.safetensors", "f0")})
    [('lr', '1', '2')]
    """
    found = []
    for key in sorted({*old, *new}):
        before, after = _normal(old.get(key)), _normal(new.get(key))
        if _compared(before) != _compared(after):
            found.append((key, _shown(before), _shown(after)))
    return found


def _normal(value):
    """A value to compare: yaml gives numbers as text, as they were written."""
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    words = {"null": None, "~": None, "": None, "true": True, "false": False}
    if str(value).lower() in words:
        return words[str(value).lower()]
    try:
        return float(value)
    except ValueError:
        return value


def _compared(value):
    is_named = isinstance(value, dict) and value.keys() == {"value", "digest"}
    return value["digest"] if is_named else value


def _shown(value):
    if isinstance(value, dict) and value.keys() == {"value", "digest"}:
        return f"{_shown(value['value'])} ({value['digest']})"
    if isinstance(value, float):
        return f"{value:g}"
    plain = isinstance(value, str | bool)  # a bool as a command line has it
    text = str(value) if plain else json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
