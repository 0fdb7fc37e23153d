"""The probes themselves, and their yamls; the recipe is in test_compare.py."""

import math
from pathlib import Path

import pytest
import torch

from encodecmae_sb.evaluation.probe import ProbeGrid, probe_vectors, train_probe
from encodecmae_sb.utils.errors import UserError

ROOT = Path(__file__).parent.parent


def vectors(count=90, classes=3, noise=0.3, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    inputs = torch.nn.functional.one_hot(targets, 8).float()
    inputs = inputs + noise * torch.randn(count, 8, generator=generator)
    return scale * inputs, targets


def test_the_scale_of_vectors_does_not_matter():
    def accuracies(scale):
        parts = [vectors(seed=i, scale=scale) for i in range(3)]
        rows = probe_vectors(*parts, 3, ProbeGrid([0, 1], [0.01]), repeats=2)
        return [row["accuracy"] for row in rows]

    reference = accuracies(1.0)
    assert min(reference) > 0.9
    assert accuracies(1024.0) == reference
    # A power of two scales without rounding; so does this.
    assert accuracies(2.0**-10) == reference


def test_the_probe_that_validates_best_is_tested():
    # Whether two signs agree is beyond a linear probe.
    parts = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(300, 2, generator=generator)
        parts.append((inputs, (inputs.prod(1) > 0).long()))
    grid = ProbeGrid([0, 2], [0.01], hidden_size=32)
    rows = probe_vectors(*parts, 2, grid, repeats=2)
    assert [row["hidden_layers"] for row in rows] == [2, 2]
    assert min(row["accuracy"] for row in rows) > 0.85
    (linear,) = probe_vectors(*parts, 2, ProbeGrid([0], [0.01]))
    assert linear["accuracy"] < 0.7


def test_the_test_set_chooses_nothing():
    train, valid, test = (vectors(seed=i, noise=0.8) for i in range(3))
    grid = ProbeGrid([0, 1, 2], [0.01, 0.003], hidden_size=16)

    def chosen(test):
        (row,) = probe_vectors(train, valid, test, 3, grid)
        return {key: row[key] for key in ("hidden_layers", "lr", "epoch", "valid")}

    assert chosen(test) == chosen((test[0], test[1].flip(0)))


def test_repeats_differ_by_their_seeds_alone():
    parts = [vectors(seed=i, noise=1.0) for i in range(3)]
    grid = ProbeGrid([1], [0.01], hidden_size=16)
    rows = probe_vectors(*parts, 3, grid, repeats=3)
    assert len({(row["valid"], row["accuracy"]) for row in rows}) > 1
    (second,) = probe_vectors(*parts, 3, grid, seed=1)
    assert rows[1] == {**second, "repeat": 1}


def test_training_stops_and_goes_back_to_the_best_epoch():
    train, valid = vectors(seed=0, noise=1.0), vectors(seed=1, noise=1.0)
    grid = ProbeGrid([1], [0.05], number_of_epochs=60, patience=5)
    trained = train_probe(train, valid, 3, (1, 0.05), grid, seed=0)
    assert 0 < trained.epoch < 55
    with torch.no_grad():
        logits = trained.probe(valid[0])
    assert torch.nn.functional.cross_entropy(logits, valid[1]).item() == trained.loss
    # The same again, whatever was drawn in between, and without a trace.
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = train_probe(train, valid, 3, (1, 0.05), grid, seed=0)
    assert torch.rand(1) == expected
    assert (again.epoch, again.loss) == (trained.epoch, trained.loss)


def test_bad_vectors_end_with_a_message():
    good, grid = vectors(), ProbeGrid([0], [0.01])
    bad = good[0].clone()
    bad[3, 2] = math.nan
    with pytest.raises(UserError, match="1 of the 90 vectors of valid"):
        probe_vectors(good, (bad, good[1]), good, 3, grid)
    with pytest.raises(UserError, match="repeats=0"):
        probe_vectors(good, good, good, 3, grid, repeats=0)
    with pytest.raises(UserError, match="num_classes=1"):
        probe_vectors(good, good, good, 1, grid)


def test_both_yamls_have_the_same_keys_and_each_is_read():
    def keys(name):
        lines = (ROOT / "hparams" / name).read_text().splitlines()
        return [line.split(":")[0] for line in lines if line[:1].isalpha()]

    assert keys("probe_mini.yaml") == keys("probe_fsdd.yaml")
    source = "".join(
        (ROOT / "encodecmae_sb" / name).read_text()
        for name in (
            *("pipelines/compare.py", "pipelines/clip_vectors.py"),
            *("pipelines/compare_results.py", "data/clip_data.py", "commands/probe.py"),
        )
    )
    for key in keys("probe_mini.yaml"):
        assert f'"{key}"' in source or key in ProbeGrid.__dataclass_fields__
