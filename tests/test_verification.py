"""Speaker verification: trials, their errors, and `task: verification` as it is run."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from classification import read_rows, write_rows
from commands import ROOT, run_recipe
from speechbrain.utils.metric_stats import EER, minDCF

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.trials import find_trials
from encodecmae_sb.evaluation.resampling import resampled_groups
from encodecmae_sb.evaluation.verification import (
    cosine_scores,
    resampled_eer,
    verification_errors,
)
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.pipelines.report_results import kind_of, results_of
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.errors import UserError

RATE = 8000


def drawn(seed, decimals=6, positive=64, negative=128):
    """Scores and targets; powers of two, so that single precision is exact."""
    rng = np.random.default_rng(seed)
    scores = [rng.normal(mean, 1, n) for mean, n in ((1, positive), (0, negative))]
    targets = np.arange(positive + negative) < positive
    return np.concatenate(scores).round(decimals), targets


@pytest.mark.parametrize("decimals", [6, 1])  # with one, many scores are equal
def test_errors_are_those_of_speechbrain(decimals):
    for seed in range(5):
        scores, targets = drawn(seed, decimals)
        parts = [torch.tensor(scores[kind]) for kind in (targets, ~targets)]
        (eer,), (cost,) = verification_errors(scores, targets)
        assert eer == EER(*parts)[0]
        assert cost == pytest.approx(minDCF(*parts)[0], abs=1e-8)
        _, (cost,) = verification_errors(scores, targets, p_target=0.5)
        assert cost == pytest.approx(minDCF(*parts, p_target=0.5)[0], abs=1e-7)


def test_a_count_is_a_repetition():
    scores, targets = drawn(0)
    counts = np.random.default_rng(0).integers(0, 3, (4, len(scores)))
    eers, costs = verification_errors(scores, targets, counts)
    for own, eer, cost in zip(counts, eers, costs, strict=True):
        again = verification_errors(scores.repeat(own), targets.repeat(own))
        assert again[0][0] == pytest.approx(eer, abs=1e-12)
        assert again[1][0] == pytest.approx(cost, abs=1e-12)


def test_scores_do_not_depend_on_scale_and_common_part():
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pairs = np.array([0, 1, 2]), np.array([3, 4, 5])
    expected = torch.cosine_similarity(vectors[:3], vectors[3:]).numpy()
    assert cosine_scores(vectors, *pairs) == pytest.approx(expected, abs=1e-6)
    moved = 3 * vectors + 100
    assert cosine_scores(moved, *pairs).min() > 0.9
    mean = torch.full((8,), 100.0)
    assert cosine_scores(moved, *pairs, mean) == pytest.approx(expected, abs=1e-4)


def test_speakers_are_drawn_with_all_their_trials():
    """Each set is scored as a list of trials in which drawn speakers come again."""
    rng = np.random.default_rng(1)
    speakers = np.stack(np.meshgrid(range(4), range(4))).reshape(2, -1).repeat(5, 1)
    targets = speakers[0] == speakers[1]
    scores = rng.normal(targets, 1)
    draws = resampled_eer(scores, targets, speakers, draws=20, seed=7)
    expected = []
    for counts in np.concatenate([resampled_groups(4, 20, seed) for seed in (7, 8)]):
        first, second = counts[speakers]
        times = np.where(targets, first, first * second)
        if times[targets].sum() and times[~targets].sum():
            again = verification_errors(scores.repeat(times), targets.repeat(times))
            expected.append(again[0][0])
    assert draws == pytest.approx(expected[:20])
    assert len(set(draws.tolist())) > 5


CLIPS = [
    Clip(f"{who}{i}", f"/data/{who}/{i}.wav", (who,), "test" if i < 4 else "train")
    for who in "abc"
    for i in range(6)
]


def ids(trials):
    return [
        (trials.clips[a].id, trials.clips[b].id)
        for a, b in zip(trials.first, trials.second, strict=True)
    ]


def test_drawn_trials():
    trials = find_trials(CLIPS, "label", "auto", 3, 1000, seed=0)
    # All pairs of nine test clips; the mean is of the part train.
    assert len(trials.first) == 9 * 8 / 2
    assert trials.targets.sum() == 3 * 3
    assert {clip.part for clip in trials.clips} == {"test"}
    assert {clip.part for clip in trials.train} == {"train"}
    for (a, b), target in zip(ids(trials), trials.targets, strict=True):
        assert target == (a[0] == b[0])
    again = find_trials(CLIPS, "label", "auto", 3, 1000, seed=0)
    other = find_trials(CLIPS, "label", "auto", 3, 1000, seed=1)
    assert again.key == trials.key != other.key
    fewer = find_trials(CLIPS, "label", "auto", 3, 5, seed=0)
    assert (fewer.targets.sum(), (~fewer.targets).sum()) == (5, 5)
    # Without parts, whatever is in no trial is for the mean.
    folds = [Clip(clip.id, clip.wav, ("x",), clip.labels[0]) for clip in CLIPS]
    trials = find_trials(folds, "fold", "auto", 2, 1000, seed=0)
    assert (len(trials.clips), len(trials.train), trials.num_speakers) == (6, 12, 3)


def test_pairs_of_many_speakers_are_not_all_listed():
    """2000 speakers have 8 million pairs of two; 500 are drawn, each once."""
    clips = [Clip(f"{i}", "", (f"{i // 2}",), "test") for i in range(4000)]
    trials = find_trials(clips, "label", "auto", 2, 500, seed=0)
    assert trials.targets.sum() == 500
    assert (~trials.targets).sum() == 500
    pairs = zip(trials.first.tolist(), trials.second.tolist(), strict=True)
    assert len({tuple(sorted(pair)) for pair in pairs}) == 1000
    again = find_trials(clips, "label", "auto", 2, 500, seed=0)
    assert again.key == trials.key


def test_trials_of_a_file(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/0.wav a/1.wav\n\n0 a0 /data/b/2.wav\n0 c/5.wav b2\n")
    trials = find_trials(CLIPS, "label", path, 1, 1, seed=0)
    assert ids(trials) == [("a0", "a1"), ("a0", "b2"), ("c5", "b2")]
    assert trials.targets.tolist() == [True, False, False]
    assert len(trials.train) == 5  # of the part train, and in no trial


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a0 a1\n0 a0 nobody.wav\n", "line 2: nobody.wav: no clip has this ID"),
        ("0 a0 0.wav", "line 1: 0.wav: 3 clips have such a path"),
        ("2 a0 a1", "line 1: '2 a0 a1'. A trial is a label"),
        ("1 a0", "A trial is a label"),
        ("1 a0 b0", "the label is 1, but a0 and b0 are of two speakers"),
        ("1 a0 a1", "None of the 1 trials is of two"),
        ("", "is empty"),
    ],
)
def test_bad_lists_of_trials(tmp_path, text, message):
    path = tmp_path / "trials.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_trials(CLIPS, "label", path, 1, 1, seed=0)


def test_bad_settings():
    with pytest.raises(UserError, match="speaker=who"):
        find_trials(CLIPS, "who", "auto", 1, 1, 0)
    with pytest.raises(UserError, match="speaker=fold, but the folds"):
        find_trials(CLIPS, "fold", "auto", 1, 1, 0)
    with pytest.raises(FileNotFoundError, match="trials=nowhere"):
        find_trials(CLIPS, "label", "nowhere", 1, 1, 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny encoder, and three speakers: tones of a pitch of their own, with noise."""
    folder = tmp_path_factory.mktemp("verification")
    torch.manual_seed(0)
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 2, 2, 64))
    export_encoder(encoder.eval(), folder / "encoder")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        hz = (200, 300, 450)[i % 3] * rng.uniform(0.95, 1.05)
        wav = 0.3 * np.sin(2 * np.pi * hz * np.arange(2000) / RATE)
        soundfile.write(folder / f"{i}.wav", wav + 0.05 * rng.normal(size=2000), RATE)
        rows.append((f"{i}", f"{folder}/{i}.wav", "word", f"speaker{i % 3}"))
    write_rows(folder / "clips.csv", rows, ("ID", "wav", "label", "fold"))
    return folder


def run(home, output, **options):
    given = {
        "encoders": f"[logmel, random, {home}/encoder]",
        "csv": home / "clips.csv",
        "output_folder": output,
        "repeats": 2,
        "clips_per_speaker": 5,
        "num_workers": 0,
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    yaml = ROOT / "hparams/verify_fsdd.yaml"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run_recipe("probe", yaml, "--device", "cpu", "--noprogressbar", *flags)
    return said.getvalue()


def test_a_run_compares_encoders(home):
    output = home / "finished"
    text = run(home, output)
    metrics = json.loads((output / "metrics.json").read_text())
    names = ("logmel", "random", f"{home}/encoder")
    assert metrics["logmel/eer"] < 20  # pitch is easy to hear
    assert (metrics["trials"], metrics["speakers"]) == (15 * 14 / 2, 3)
    best = min(names, key=lambda name: metrics[f"{name}/eer"])
    assert f"{best}/eer_behind_best" not in metrics
    for name in names:
        eer = metrics[f"{name}/eer"]
        assert metrics[f"{name}/eer_low"] <= eer <= metrics[f"{name}/eer_high"]
        assert 0 <= metrics[f"{name}/min_dcf"] <= 0.01
        if name != best:
            behind = metrics[f"{name}/eer_behind_best"]
            assert behind == pytest.approx(eer - metrics[f"{best}/eer"])
        assert f"{eer:.1f}" in next(x for x in text.splitlines() if x.startswith(name))
    rows = read_rows(output / "probes.csv")
    assert [row["encoder"] for row in rows] == [names[0], names[1], names[1], names[2]]
    assert "other speakers (3" in metrics["interval_covers"]
    assert "9 more clips" in text
    for name in ("metrics.json", "probes.csv", "probe.png", "clips.csv"):
        assert name in text
        assert (output / name).exists()
    # A report has them as bars.
    assert kind_of(output) == "probe"
    shown = results_of(output, "probe")
    assert shown["score"] == "Equal error rate, %"
    assert [bar["at"] for bar in shown["bars"]] == [
        pytest.approx(min(100, metrics[f"{name}/eer"]), abs=0.01) for name in names
    ]
    # The same command again computes nothing.
    files = {path: path.stat().st_mtime_ns for path in output.glob("save/*/*")}
    assert len(files) == 4 * 2 + 4  # vectors with their notes, scores
    run(home, output)
    assert {p: p.stat().st_mtime_ns for p in output.glob("save/*/*")} == files
    assert json.loads((output / "metrics.json").read_text()) == metrics
    # What is missing is computed, and the rest is as before.
    lost = sorted((output / "save/trials").glob("*.json"))[0]
    lost.unlink()
    run(home, output)
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert lost.exists()


def test_layers(home, tmp_path):
    output = tmp_path / "layers"
    run(home, output, layers=True, encoders=f"[logmel, {home}/encoder]", layer=0)
    metrics = json.loads((output / "metrics.json").read_text())
    inner = [metrics[f"{home}/encoder/layer_{i}/eer"] for i in range(2)]
    assert metrics[f"{home}/encoder/eer"] == inner[0]
    assert (output / "layers.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "verify"}, "task=verify: allowed are classes, verification"),
        ({"clips_per_speaker": 100}, "no clip is left for the mean"),
        ({"p_target": 2}, "p_target=2"),
        ({"centre": "maybe"}, "centre=maybe"),
        ({"max_trials": 0}, "max_trials=0"),
        ({"encoders": "[nowhere]"}, "There is no encoder in encoders=nowhere"),
    ],
)
def test_what_the_recipe_refuses(home, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(home, tmp_path / "out", **options)
    assert not Path(tmp_path / "out/save/features").exists()
