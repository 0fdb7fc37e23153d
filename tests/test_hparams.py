"""Yaml files of the same kind have the same keys and differ only where they say so."""

import pytest
import yaml
from commands import ROOT

# Keys whose values make one pretraining what it is and not another.
PRETRAINING = {
    *("output_folder", "batch_size", "crop_seconds", "valid_items"),
    *("num_workers", "store_targets", "codebooks_per_step"),
    *("training_steps", "valid_interval", "grad_accumulation_factor", "lr"),
    *("lr_schedule", "ckpt_interval_minutes", "masked_weight", "front_end"),
    *("dim", "num_layers", "num_heads", "head_dim", "ffn_dim", "shared_ffn"),
    *("decoder_layers", "normalise", "altered_copies"),
}
SELF_TRAINING = PRETRAINING - {"front_end"} | {
    *("teacher", "n_clusters", "cluster_clips", "cluster_passes", "codebook_size"),
}


def values(name):
    """The keys of a yaml file, and what each says, with tags and references."""
    text = (ROOT / f"hparams/{name}.yaml").read_text()
    node = yaml.compose(text)
    return {key.value: yaml.serialize(value) for key, value in node.value}


@pytest.mark.parametrize(
    ("first", "others", "may_differ"),
    [
        ("mini", ["small", "base", "base_ec", "large"], PRETRAINING),
        ("self_train_mini", ["self_train_base"], SELF_TRAINING),
    ],
)
def test_files_of_a_kind(first, others, may_differ):
    one = values(first)
    for name in others:
        other = values(name)
        assert one.keys() == other.keys(), name
        differ = {key for key in one if one[key] != other[key]}
        assert differ <= may_differ, (name, differ - may_differ)


def test_self_training_has_the_keys_of_pretraining():
    """But for those that choose the targets, and the start: that is the teacher's."""
    only_there = values("mini").keys() - values("self_train_mini").keys()
    start = {"init", "init_strict", "export_pretraining"}
    targets = {"codec", "codes_folder", "store_targets", "targets", "codebook_weights"}
    assert only_there <= {*targets, "codebooks_per_step", *start}


@pytest.mark.parametrize("name", ["verify_fsdd", "words_mini"])
def test_every_key_is_read(name):
    files = (ROOT / "encodecmae_sb").rglob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    text = (ROOT / f"hparams/{name}.yaml").read_text()
    for key in values(name):
        part = key.partition("_")[2]  # of train, valid or test
        read = (f'"{key}"', f"hparams.{key}", f'{{part}}_{part}"')
        assert any(words in source for words in read) or f"<{key}>" in text, key
