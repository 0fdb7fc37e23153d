"""Procedural audio: pure, foreseeable, never the same in training and validation."""

import numpy as np
import pytest
import torch
from procedural_clips import foreseen, log_mel
from test_resume import Killed, Log, train
from torch.utils.data import DataLoader

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.crops import CropCollator, DrawSampler, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.procedural import corpus as procedural_corpus
from encodecmae_sb.data.procedural.scene import KINDS, render
from encodecmae_sb.pipelines.pretrain import build_crops, open_codes, prepare_data
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.identity import data_identity

SECOND = 24000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    (corpus,) = prepare_corpora(
        "procedural", tmp_path_factory.mktemp("save"), procedural=True
    )
    return corpus


@pytest.fixture(scope="module")
def clips():
    """Some clips of 2 s of each kind."""
    return {
        kind: np.stack([render(5, n, 2 * SECOND, kind=kind) for n in range(16)])
        for kind in KINDS
    }


@pytest.fixture
def rendered(monkeypatch):
    """The seeds and draws that were rendered."""
    calls = []

    def spy(seed, draw, *args):
        calls.append((seed, draw))
        return render(seed, draw, *args)

    monkeypatch.setattr(procedural_corpus, "render", spy)
    return calls


def crops_of(*corpora, **options):
    return RandomCrops([corpus.train_csv for corpus in corpora], 0.5, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_follows_from_seed_and_draw(kind):
    """Not from what was rendered before, nor from global state."""
    first = render(1, 2, SECOND, kind=kind)
    np.random.seed(0)  # noqa: NPY002
    others = [render(1, 3, SECOND, kind=kind), render(2, 2, SECOND, kind=kind)]
    assert np.array_equal(first, render(1, 2, SECOND, kind=kind))
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.5


@pytest.mark.parametrize("rate", [8000, SECOND])
@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_samples_are_finite_and_in_range(samples, rate):
    """Of any length, at any rate."""
    for draw in range(10):
        for kind in KINDS:
            clip = render(0, draw, samples, rate, kind)
            assert clip.shape == (samples,)
            assert clip.dtype == np.float32
            assert np.abs(clip).max() <= 1  # false for NaN, too


def test_clips_differ_widely(clips):
    """In level and spectrum, as recordings do."""
    for kind, some in clips.items():
        peaks = 20 * np.log10(np.abs(some).max(1))
        assert (peaks < 0).all(), kind
        assert peaks.std() > 3, kind
        spectra = log_mel(some).mean(1)
        assert spectra.std(0).mean() > 5, kind


def test_kinds_sound_as_they_are_called(clips):
    """Steady kinds change less over time than those made of events; speech has a
    syllable's rhythm and most of its power below 4 kHz."""
    changes = {kind: log_mel(some).std(1).mean() for kind, some in clips.items()}
    steady = max(changes["machines"], changes["textures"])
    assert steady < min(changes["speech"], changes["impacts"], changes["calls"])
    power = np.abs(np.fft.rfft(clips["speech"])) ** 2
    low = power[:, : 2 * 4000].sum(1) / power.sum(1)
    assert np.median(low) > 0.8
    level = log_mel(clips["speech"]).mean(-1)
    rhythm = torch.fft.rfft(level - level.mean(1, keepdim=True)).abs().square()
    hertz = torch.fft.rfftfreq(level.shape[1], 1 / 75)
    in_band = (hertz > 1) & (hertz < 12)
    assert (rhythm[:, in_band].sum(1) / rhythm.sum(1)).median() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_stretch_can_be_foreseen(clips, kind):
    """From its own clip, far better than from others; from the place where the clip
    sounds alike, better than from any place of it, unless it is steady."""
    own, random, other = foreseen(log_mel(clips[kind]))
    assert own < 0.5 * other
    assert own < (1.0 if kind in ("machines", "textures") else 0.75) * random


def test_states_without_order_cannot_be_foreseen():
    """The measure tells a pattern from none: here what stands around says nothing."""
    states = 20 * torch.randn(16, 30, 24, generator=torch.Generator().manual_seed(0))
    own, random, other = foreseen(states.repeat_interleave(5, dim=1), gap=5, context=5)
    assert own > 0.8 * random
    assert own > 0.8 * other


def test_the_generator_has_not_changed():
    """If this fails because the samples should change: raise VERSION, and put the new
    values here. Otherwise a run would go on with other audio."""
    means = [float(np.abs(render(1, draw, SECOND)).mean()) for draw in range(8)]
    expected = EXPECTED[procedural_corpus.VERSION]
    assert means == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_sound_has_changed(kind):
    """As above; a few draws do not have all kinds among them."""
    clips = [render(1, draw, SECOND, kind=kind) for draw in range(3)]
    slopes = [float(np.abs(np.diff(clip)).mean()) for clip in clips]
    expected = EXPECTED_OF_KINDS[procedural_corpus.VERSION][kind]
    assert slopes == pytest.approx(expected, rel=0.02)


EXPECTED = {1: [0.00623, 0.01131, 0.00744, 0.06654, 0.01368, 0.0338, 0.0341, 0.00463]}
EXPECTED_OF_KINDS = {
    1: {
        "speech": [0.007818, 0.006755, 0.007677],
        "notes": [0.01665, 0.01693, 0.005533],
        "impacts": [0.002028, 0.006532, 0.0008504],
        "calls": [0.02418, 0.1802, 0.0014],
        "machines": [0.00275, 0.009223, 0.001924],
        "textures": [0.03402, 0.09106, 0.02299],
    }
}


def test_workers_and_processes_draw_the_same(corpus):
    crops = crops_of(corpus, seed=3)
    wanted = [crops[draw]["wav"] for draw in range(8)]
    for rank in range(2):
        sampler = DrawSampler(4, 2, rank, 2, range(2))
        options = {"collate_fn": CropCollator(), "num_workers": 1}
        batches = list(DataLoader(crops, batch_sampler=sampler, **options))
        for draws, batch in zip(sampler, batches, strict=True):
            for draw, wav in zip(draws, batch.wavs, strict=True):
                assert torch.equal(wav[: len(wanted[draw])], wanted[draw])
    assert len({float(wav.abs().sum()) for wav in wanted}) == 8


def test_training_never_renders_what_validation_does(corpus, rendered):
    """Whatever the seed of the run; and validation is the same in each."""
    fixed = FixedCrops([corpus.valid_csv], 40, 0.5, seed=1)
    valid, rendered[:] = set(rendered), []
    assert len(valid) == len(fixed) == 40
    for seed in range(5):
        crops = crops_of(corpus, seed=seed)
        for draw in range(40):
            crops[draw]
    assert len(set(rendered)) == 200
    assert not {seed for seed, _ in rendered} & {seed for seed, _ in valid}
    again = FixedCrops([corpus.valid_csv], 40, 0.5, seed=2)
    for one, other in zip(fixed.items, again.items, strict=True):
        assert torch.equal(one["wav"], other["wav"])


def test_corpora_are_mixed_by_weight(tmp_path, rendered):
    folders = ["procedural", speech_folder() / "dev"]
    corpora = prepare_corpora(folders, tmp_path, procedural=True)
    with pytest.raises(UserError, match="has no end"):
        crops_of(*corpora)
    crops = crops_of(*corpora, weights=[3, 1])
    drawn = np.bincount([crops.corpus_of(draw) for draw in range(2000)])
    assert drawn / 2000 == pytest.approx([0.75, 0.25], abs=0.04)
    items = [crops[draw] for draw in range(40)]
    assert len(rendered) == sum(item["corpus"] == 0 for item in items)
    fixed = FixedCrops([corpus.valid_csv for corpus in corpora], 3, 0.5)
    assert [item["corpus"] for item in fixed.items] == [0, 0, 0, 1, 1, 1]
    assert [bool(item["wrd"]) for item in fixed.items] == [False] * 3 + [True] * 3


def test_a_killed_run_ends_with_the_same_weights(corpus, tmp_path):
    crops = crops_of(corpus), FixedCrops([corpus.valid_csv], 2, 0.5)
    whole, parts = Log(), Log()
    wanted = train(tmp_path / "whole", crops, whole).modules.state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "killed", crops, parts, kill_at=3)
    resumed = train(tmp_path / "killed", crops, parts).modules.state_dict()
    assert parts == whole
    for name, value in wanted.items():
        assert torch.equal(value, resumed[name]), name


def test_another_generator_is_another_identity(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(procedural_corpus, "VERSION", 99)
    (other,) = prepare_corpora("procedural", tmp_path, procedural=True)
    (same,) = prepare_corpora("procedural", tmp_path / "again", procedural=True)
    assert data_identity([other]) == data_identity([same]) != data_identity([corpus])


def test_what_needs_files_says_so(tmp_path):
    with pytest.raises(UserError, match="procedural audio is new in every draw"):
        prepare_corpora("procedural", tmp_path)
    hparams = {"data_folder": ["procedural"], "codes_folder": "codes"}
    with pytest.raises(UserError, match="codes cannot be stored"):
        open_codes(hparams, None)
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "shards.json").write_text("{}")
    hparams = {"data_folder": ["procedural", shards], "codes_folder": None}
    with pytest.raises(UserError, match="gone through in passes"):
        open_codes(hparams, None)
    folder = tmp_path / "procedural"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="No audio"):
        prepare_corpora(folder, tmp_path, procedural=True)


def test_pretraining_says_that_there_is_no_end(tmp_path, capsys):
    hparams = {
        **{"data_folder": "procedural", "save_folder": tmp_path, "max_unusable": 0},
        **{"crop_seconds": 0.5, "sample_rate": SECOND, "seed": 1},
        **{"corpus_weights": None, "valid_items": 2},
    }
    corpora, unusable = prepare_data(hparams, tmp_path / "unusable.csv", shards=True)
    build_crops(hparams, corpora, unusable)
    said = "Training on 0 files and procedural audio without end; validating on 2;"
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="here files are needed"):
        prepare_data(hparams, tmp_path / "unusable.csv")
