"""Some codebooks in each step: drawn by weight, and the same gradient in the mean."""

import numpy as np
import pytest
import torch
from speechbrain import Stage
from test_brains import make_brain

from encodecmae_sb.nnet.codebooks import CodebookSampler, DrawnCodebooks
from encodecmae_sb.nnet.loss import CODEBOOK_WEIGHTS
from encodecmae_sb.pipelines.benchmark.brain import random_batch
from encodecmae_sb.utils.errors import UserError

WEIGHTS = {
    "the paper's": CODEBOOK_WEIGHTS,
    "one is heavy": [0.7, 0.05, 0.1, 0.15],
    "two are heavy": [5, 4, 0.1, 0.2, 0.3],
    "some count for nothing": [1, 0, 2, 3, 0],
    "all alike": [1] * 6,
}


def possible(sampler):
    """Each draw that there is, and its probability, from where the draw changes."""
    ends = sampler.ends[np.isfinite(sampler.ends)]
    places = np.unique(np.concatenate([[0, 1], ends % 1]))
    middles, shares = (places[1:] + places[:-1]) / 2, np.diff(places)
    draws = [sampler.choose(middle) for middle in middles]
    return list(zip(draws, shares, strict=True))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_chances_are_in_proportion_to_weights(weights, count):
    weights = np.array(weights)
    if count >= (weights > 0).sum():
        return
    sampler = CodebookSampler(weights, count, seed=0)
    chances = np.zeros(len(weights))
    for numbers, share in possible(sampler):
        assert len(set(numbers)) == count
        assert numbers.tolist() == sorted(numbers)
        chances[numbers] += share
    assert chances == pytest.approx(sampler.chances, abs=1e-12)
    assert chances.sum() == pytest.approx(count)
    below = chances < 1 - 1e-9
    ratios = chances[below & (weights > 0)] / weights[below & (weights > 0)]
    assert ratios == pytest.approx(ratios[0])
    # The heavier, the likelier; those of chance 1 are the heaviest.
    assert (np.diff(chances[np.argsort(weights)]) > -1e-9).all()
    assert chances[weights == 0].sum() == 0


def test_draws_follow_from_seed_and_step():
    sampler = CodebookSampler(CODEBOOK_WEIGHTS, 2, seed=1)
    draws = [sampler.draw(step) for step in range(4000)]
    again, other = (CodebookSampler(CODEBOOK_WEIGHTS, 2, seed) for seed in (1, 2))
    for step in (0, 7, 3999):  # in any order
        assert torch.equal(again.draw(step).numbers, draws[step].numbers)
    differ = [
        not torch.equal(other.draw(step).numbers, draws[step].numbers)
        for step in range(100)
    ]
    assert sum(differ) > 50
    counts = torch.cat([drawn.numbers for drawn in draws]).bincount() / len(draws)
    assert np.abs(counts.numpy() - sampler.chances).max() < 0.04
    assert draws[0].factors.numpy() == pytest.approx(
        1 / sampler.chances[draws[0].numbers]
    )


def test_the_mean_gradient_is_that_of_all_codebooks(tmp_path):
    """Over all draws, each with its probability; so is the loss."""
    torch.manual_seed(0)
    brain = make_brain(tmp_path, precision="fp32", codebooks_per_step=2)
    brain.init_optimizers()
    brain.on_stage_start(Stage.TRAIN)
    batch = random_batch(3, 12800, 8, 1024)
    batch.num_frames, batch.full = torch.tensor([40, 31, 12]), False
    brain.on_fit_batch_start([batch], True)
    model = brain.modules.model

    def measured(drawn):
        brain.drawn = drawn
        model.zero_grad()
        outputs = brain.compute_forward(batch, Stage.TRAIN)
        count = 8 if drawn is None else len(drawn.numbers)
        assert outputs[0].shape == (3, 40, count, 1024)
        loss = brain.compute_objectives(outputs, batch, Stage.TRAIN)
        loss.backward()
        grads = torch.cat([p.grad.flatten().double() for p in model.parameters()])
        return torch.cat([loss.detach().double()[None], grads])

    assert brain.drawn is not None
    whole = measured(None)
    sampler, mean, apart = brain.codebook_sampler, torch.zeros_like(whole), []
    for numbers, share in possible(sampler):
        factors = torch.tensor(1 / sampler.chances[numbers]).float()
        part = measured(DrawnCodebooks(torch.from_numpy(numbers), factors))
        apart.append((part - whole)[1:].norm() / whole[1:].norm())
        mean += share * part
    assert len(apart) >= 8
    assert min(apart) > 0.1
    assert (mean - whole)[1:].norm() < 1e-5 * whole[1:].norm()
    assert mean[0].item() == pytest.approx(whole[0].item(), rel=1e-5)
    # Validation is on all codebooks, whatever the last step had.
    with torch.no_grad():
        assert brain.compute_forward(batch, Stage.TEST)[0].shape == (3, 40, 8, 1024)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "two"])
def test_numbers_that_are_not_allowed(tmp_path, count):
    with pytest.raises(UserError, match="codebooks_per_step.*null"):
        make_brain(tmp_path, codebooks_per_step=count)


@pytest.mark.parametrize("count", [None, 8, 100])
def test_all_codebooks(tmp_path, count):
    assert make_brain(tmp_path, codebooks_per_step=count).codebook_sampler is None
