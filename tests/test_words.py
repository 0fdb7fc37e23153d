"""`task: words` of the probing recipe: recognisers on stored frames."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from classification import read_rows
from commands import ROOT, environment, execute
from killed import run_killed
from recognition import export_tiny, write_manifest

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.speech import collate_speech, librispeech_set, speech_dataset
from encodecmae_sb.data.tokenizer import make_tokens
from encodecmae_sb.evaluation.resampling import resampled_groups, resampled_rates
from encodecmae_sb.lobes import CTCHead, EnCodecMAE
from encodecmae_sb.nnet.heads import StoredLayers
from encodecmae_sb.nnet.lengths import absolute_lengths
from encodecmae_sb.pipelines.clip_features import StoredSummaries
from encodecmae_sb.pipelines.compare_words import stored_dataset
from encodecmae_sb.pipelines.report_results import kind_of, results_of
from encodecmae_sb.utils.grid import SAMPLE_RATE

TINY = {
    "number_of_epochs": 2,
    "train_splits": "[small]",
    "valid_splits": "[small]",
    "test_splits": "[small]",
    "batch_seconds": 8.0,
    "num_workers": 0,
    "head": "{hidden_size: 16}",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Four bundled utterances of each of two speakers, and a tiny encoder."""
    folder = tmp_path_factory.mktemp("words")
    export_tiny(folder / "encoder")
    for speaker in ("9001", "9002"):
        source = speech_folder() / f"dev/{speaker}/2"
        chapter = folder / f"small/{speaker}/2"
        chapter.mkdir(parents=True)
        for path in [*sorted(source.glob("*.flac"))[:4], *source.glob("*.txt")]:
            (chapter / path.name).symlink_to(path)
    return folder


def command(home, output, **options):
    given = {
        **TINY,
        "encoders": f"[logmel, random, {home}/encoder]",
        "data_folder": home,
        "output_folder": output,
        **options,
    }
    flags = [str(x) for key, value in given.items() for x in (f"--{key}", value)]
    recipe = [ROOT / "recipes/probe.py", ROOT / "hparams/words_mini.yaml"]
    flags += ["--device", "cpu", "--noprogressbar"]
    return [str(x) for x in (sys.executable, *recipe, *flags)]


@pytest.fixture(scope="module")
def finished(home):
    output = home / "finished"
    text = execute(command(home, output), home)
    return output, text, read_rows(output / "probes.csv")


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


def test_a_run_compares_encoders(home, finished):
    output, text, rows = finished
    metrics = metrics_of(output)
    names = ("logmel", "random", f"{home}/encoder")
    best = min(names, key=lambda name: metrics[f"{name}/wer"])
    for row in rows:
        name = row["encoder"]
        assert row["layer"] == ("-" if name == "logmel" else "weighted")
        assert row["width"] == ("256" if name == "logmel" else "32")
        # The alignments are those that the rate is of.
        said = re.search(r"%WER (\S+)", Path(row["alignments"]).read_text())[1]
        assert float(said) == pytest.approx(metrics[f"{name}/wer"], abs=0.01)
        for key in ("wer", "cer"):
            low, high = (metrics[f"{name}/{key}_{end}"] for end in ("low", "high"))
            assert low <= metrics[f"{name}/{key}"] <= high
        assert f"{metrics[f'{name}/cer']:.1f}" in text
        behind = metrics.get(f"{name}/wer_behind_best", 0)
        expected = metrics[f"{name}/wer"] - metrics[f"{best}/wer"]
        assert behind == pytest.approx(expected)
    assert "other speakers (2 were tested: too narrow" in metrics["interval_covers"]
    for name in ("metrics.json", "probes.csv", "probe.png"):
        assert name in text
        assert (output / name).exists()
    assert not (output / "layers.png").exists()
    # A report has them as bars.
    assert kind_of(output) == "probe"
    shown = results_of(output, "probe")
    assert shown["score"] == "Word error rate, %"
    assert [bar["at"] for bar in shown["bars"]] == [
        pytest.approx(min(100, metrics[f"{name}/wer"]), abs=0.01) for name in names
    ]


def test_what_is_finished_stays(home, finished):
    output, *_ = finished
    files = {path: path.stat().st_mtime_ns for path in output.glob("save/words/*/*")}
    before = metrics_of(output)
    assert "epoch" not in execute(command(home, output), home)
    kept = {path: path.stat().st_mtime_ns for path in output.glob("save/words/*/*")}
    assert kept == files
    assert metrics_of(output) == before
    # Another training, but the same frames.
    stored = sorted(output.glob("save/features/*"))
    one = {"encoders": "[logmel]", "lr": 0.004}
    assert "epoch 2" in execute(command(home, output, **one), home)
    assert sorted(output.glob("save/features/*")) == stored


def test_a_killed_run_ends_the_same(home, finished, tmp_path):
    output = tmp_path / "killed"
    given = command(home, output, encoders=f"[logmel, {home}/encoder]")
    # After the first epoch of the second encoder.
    run_killed(given, 3, cwd=home, env=environment())
    assert len(list(output.glob("save/words/*/result.json"))) == 1
    assert "epoch 1:" not in execute(given, home)
    mine = read_rows(output / "probes.csv")
    for row, other in zip(mine, (finished[2][0], finished[2][2]), strict=True):
        assert row | {"alignments": ""} == other | {"alignments": ""}


def test_stored_frames_are_those_of_the_encoder(home, finished, tmp_path):
    """The head says the same, but for the 16 bits that frames are stored in."""
    part = librispeech_set(home, ["small"], tmp_path)
    part.tokenize(make_tokens([row["wrd"] for row in part.rows], "char", None))
    options = {"source": home / "encoder", "input_sample_rate": SAMPLE_RATE}
    lobe = EnCodecMAE(**options, layer="weighted").eval()
    files = [StoredSummaries(x) for x in finished[0].glob("save/features/*.bin")]
    layers = EnCodecMAE(**options, output_all_hiddens=True)
    item = speech_dataset(part)[0]
    frames = layers(item["sig"][None])[:, 0].transpose(0, 1)  # [T, layers, D]
    own = [x for x in files if x[f"0/{item['id']}"].shape == frames.shape]
    assert len(own) == 2  # with the random one
    own.sort(key=lambda x: (x[f"0/{item['id']}"] - frames).abs().sum())
    head = CTCHead(lobe.dim, 40, hidden_size=8).eval()
    found = stored_dataset(0, part, own[0], head)
    outputs = []
    encoders = lobe, StoredLayers(lobe.encoder.num_layers)
    for encoder, data in zip(encoders, (speech_dataset(part), found), strict=True):
        batch = collate_speech([data[i] for i in range(3)])
        values, lens = batch.sig
        counts = encoder.num_frames(absolute_lengths(lens, values.shape[1]))
        with torch.no_grad():
            outputs.append((*head(encoder(values, lens), counts), batch.tokens[0]))
    (expected, *rest), (logs, *others) = outputs
    assert all(torch.equal(*pair) for pair in zip(rest, others, strict=True))
    for i, count in enumerate(rest[0]):
        torch.testing.assert_close(
            logs[i, :count], expected[i, :count], atol=2e-3, rtol=0
        )


def test_rates_of_drawn_groups():
    errors, totals = np.array([1, 4, 0, 2]), np.array([5, 5, 10, 4])
    rates = resampled_rates(errors, totals, ["b", "a", "a", "b"], draws=30, seed=5)
    counts = resampled_groups(2, 30, 5)
    expected = (counts @ [4, 3]) / (counts @ [15, 9])
    assert rates == pytest.approx(expected)


def test_manifests_without_speakers(home, tmp_path):
    """Then utterances are drawn, and there is an interval."""
    part = librispeech_set(home, ["small"], tmp_path)
    rows = [
        {key: row[key] for key in ("ID", "wav", "duration", "wrd")} for row in part.rows
    ]
    path = write_manifest(tmp_path / "all.csv", rows)
    options = {f"{name}_csv": path for name in ("train", "valid", "test")}
    options |= {"number_of_epochs": 1, "encoders": "[logmel]"}
    options |= {f"{name}_splits": "null" for name in ("train", "valid", "test")}
    text = execute(command(home, tmp_path / "out", **options), home)
    assert f"testing on {len(rows)} of {len(rows)} utterances" in text
    metrics = metrics_of(tmp_path / "out")
    assert "other utterances" in metrics["interval_covers"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_splits": "[small, small]"}, "There are 2 test sets"),
        ({"encoders": "[nowhere]"}, "There is no encoder in encoders=nowhere"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_what_the_recipe_refuses(home, tmp_path, options, message):
    text = execute(command(home, tmp_path / "out", **options), home, expect=1)
    assert message in text
    assert not (tmp_path / "out/save/features").exists()
