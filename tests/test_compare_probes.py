"""The kinds of probes side by side, their levels, intervals and pictures."""

import pytest
import soundfile
import torch
from classification import read_rows, write_rows
from probing import HEADER, make_home, metrics_of, run

from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.pretrained.folder import export_encoder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with tiny encoders and sounds."""
    return make_home(tmp_path_factory.mktemp("probe"))


def test_each_kind_of_probe_has_its_table(home, tmp_path):
    first = f"{home}/0/encoder"
    options = {"encoders": f"[logmel, random, {first}]", "probes": "[linear, mlp, knn]"}
    text = run(
        home, tmp_path, normalise=True, labels_per_class="[1, 3, all]", **options
    )
    metrics, rows = metrics_of(tmp_path), read_rows(tmp_path / "probes.csv")
    names = ["logmel", "random", first]
    names += [f"{name}, equal level" for name in names]
    for name in names:
        for probe, choice in (("linear", "C "), ("mlp", "1 hidden"), ("knn", "k ")):
            assert metrics[f"{name}/{probe}/accuracy"] > 0.6
            own = [r for r in rows if (r["encoder"], r["probe"]) == (name, probe)]
            # What has no seed is not repeated.
            repeats = 2 if probe == "mlp" or name.startswith("random") else 1
            assert len(own) == 3 * repeats
            assert all(row["choice"].startswith((choice, "0 hidden")) for row in own)
        curve = [
            metrics[f"{name}/labels_{number}/accuracy"] for number in (1, 3, "all")
        ]
        assert curve[2] == metrics[f"{name}/linear/accuracy"]
        assert min(curve) > 0.4
    assert (tmp_path / "labels.png").exists()
    assert "labels.png" in text
    assert text.count("behind best") == 3


def test_the_level_of_clips_is_all_that_equal_level_takes_away(home, tmp_path):
    """Louder and softer copies have the same vectors, and not without it."""
    rows = read_rows(home / "clips.csv")
    for row in rows:
        wav, rate = soundfile.read(row["wav"])
        row["wav"] = f"{tmp_path}/{row['ID']}.wav"
        gain = 2.0 ** -(int(row["ID"]) % 5)
        soundfile.write(row["wav"], gain * wav, rate, subtype="FLOAT")
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows], HEADER)
    options = {"encoders": f"[{home}/0/encoder]", "normalise": True}
    options["probes"] = "[knn]"
    run(home, tmp_path / "loud", **options)
    run(home, tmp_path / "soft", csv=tmp_path / "clips.csv", **options)
    loud, soft = (
        {path.read_bytes() for path in (tmp_path / name).glob("save/features/*.bin")}
        for name in ("loud", "soft")
    )
    # The vectors as they are, and those at equal level; only these are the same.
    assert (len(loud), len(soft), len(loud & soft)) == (2, 2, 1)


def test_groups_or_folds_are_drawn_together(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    header = (*HEADER, "group")
    pairs = [(*row.values(), f"{int(row['ID']) // 2}") for row in rows]
    write_rows(tmp_path / "pairs.csv", pairs, header)
    whole = [(*row.values(), f"speaker {row['fold']}") for row in rows]
    write_rows(tmp_path / "whole.csv", whole, header)
    options = {"encoders": "[logmel]", "probes": "[knn]"}
    drawn = {}
    for name in ("pairs", "whole"):
        run(home, tmp_path / name, csv=tmp_path / f"{name}.csv", **options)
        drawn[name] = metrics_of(tmp_path / name)
    assert drawn["pairs"]["resample"] == "groups"
    assert "groups of test clips" in drawn["pairs"]["interval_covers"]
    # A fold of one speaker has nothing to draw: speakers are drawn as folds.
    assert drawn["whole"]["resample"] == "folds"
    assert "other folds and test clips" in drawn["whole"]["interval_covers"]
    scores = {drawn[name]["logmel/knn/accuracy"] for name in drawn}
    assert len(scores) == 1
    options |= {"resample": "groups", "csv": tmp_path / "whole.csv"}
    with pytest.raises(SystemExit, match="the test clips of a fold are one group"):
        run(home, tmp_path / "no", **options)


def test_the_encoders_of_a_run_are_drawn_over_its_steps(home, tmp_path):
    for step in (90, 600):
        torch.manual_seed(step)
        encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 1, 2, 64))
        export_encoder(encoder.eval(), tmp_path / f"run/steps/step_{step}")
    options = {"encoders": f"[logmel, {tmp_path}/run/steps]", "probes": "[linear, knn]"}
    text = run(home, tmp_path / "out", **options)
    metrics = metrics_of(tmp_path / "out")
    for step in (90, 600):
        assert f"{tmp_path}/run/steps/step_{step}/knn/accuracy" in metrics
    assert (tmp_path / "out/steps.png").exists()
    assert "steps.png" in text
    steps = f"{tmp_path}/run/steps"
    options["encoders"] = f"[{steps}, {steps}/step_90]"
    with pytest.raises(SystemExit, match="each once"):
        run(home, tmp_path / "twice", **options)


def test_other_folds_of_the_training_clips_are_other_choices(home, tmp_path):
    """The test clips and their number are the same; the splits to choose on are not."""
    rows = read_rows(home / "clips.csv")
    for row in rows:
        row["fold"] = f"{int(row['ID']) // 6}"  # 4 folds
    options = {"encoders": "[logmel]", "probes": "[linear]"}
    for name, moved in (("before", ()), ("after", ("12", "18"))):
        for row in rows:
            if row["ID"] in moved:
                row["fold"] = {"2": "3", "3": "2"}[row["fold"]]
        write_rows(tmp_path / f"{name}.csv", [row.values() for row in rows], HEADER)
        run(home, tmp_path / "run", csv=tmp_path / f"{name}.csv", **options)
    assert len(list(tmp_path.glob("run/save/probes/*.json"))) == 8
