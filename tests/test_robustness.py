"""Models under corruptions: which clips are a test, and the recipe end to end."""

import json

import numpy as np
import pytest
import soundfile
import torch
from classification import (
    classifiers,
    load,
    make_home,
    read_rows,
    run_here,
    tiny_encoder,
    write_rows,
)
from commands import run_recipe
from recognition import export_tiny, link_speaker

from encodecmae_sb.bundled import sound_folder
from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.evaluation import corruptions
from encodecmae_sb.evaluation.corruptions import CORRUPTIONS, Sounds
from encodecmae_sb.evaluation.metrics import clip_scores
from encodecmae_sb.inference.classifier import export_classifier, read_training
from encodecmae_sb.inference.recogniser import export_recogniser
from encodecmae_sb.lobes import (
    AudioEncoder,
    CTCHead,
    EnCodecMAE,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.pipelines import robustness
from encodecmae_sb.pipelines.robustness_data import choose_parts
from encodecmae_sb.utils.errors import UserError

OFFICIAL = "encodec"  # needs weights that are not in the repository


FOLDS = [Clip(str(i), "", ("a",), str(i % 3)) for i in range(9)]
PARTS = [Clip(part, "", ("a",), part) for part in ("train", "valid", "test")]
HELD_OUT = (
    "Trained on 6 clips of esc50. It validated best; fold 1 was held out for its test."
)
ONE_SPLIT = "Trained on 6 clips of esc50. Fine."


@pytest.mark.parametrize(
    ("clips", "fold", "cards", "parts"),
    [
        (FOLDS, None, [HELD_OUT], ["1"]),
        (FOLDS, "1", [HELD_OUT], ["1"]),
        (FOLDS, "2", [HELD_OUT.replace("esc50", "fsdd")], ["2"]),  # another corpus
        (FOLDS, "all", [HELD_OUT.replace("esc50", "fsdd")], ["0", "1", "2"]),
        (FOLDS, "2", [""], ["2"]),
        (PARTS, None, [ONE_SPLIT], ["test"]),
        (FOLDS, None, [], ["0", "1", "2"]),
        (FOLDS, "2", [], ["2"]),
        (PARTS, None, [], ["test"]),
    ],
)
def test_which_clips_are_a_test(clips, fold, cards, parts):
    cards = {f"model {i}": card for i, card in enumerate(cards)}
    assert choose_parts(clips, fold, cards, "esc50")[0] == parts


@pytest.mark.parametrize(
    ("clips", "fold", "cards", "message"),
    [
        (FOLDS, "2", [HELD_OUT], "no test: --fold 1"),
        (FOLDS, "all", [HELD_OUT], "no test: --fold 1"),
        (FOLDS, None, [HELD_OUT, HELD_OUT.replace("fold 1", "fold 2")], "one by one"),
        (FOLDS, None, [""], "No README says .* --fold NAME"),
        (FOLDS, None, [HELD_OUT, ""], "No README says"),
        # Fold 1 of another corpus says nothing of fold 1 here.
        (FOLDS, None, [HELD_OUT.replace("esc50", "fsdd")], "No README says"),
        (FOLDS, "7", [HELD_OUT], "--fold 7: the clips have 0, 1, 2"),
        (PARTS, "train", [ONE_SPLIT], "no test: --fold test"),
        (PARTS, "all", [ONE_SPLIT], "no test: --fold test"),
        (PARTS[:1], None, [], "Give at least two"),
    ],
)
def test_training_clips_are_no_test(clips, fold, cards, message):
    cards = {f"model {i}": card for i, card in enumerate(cards)}
    with pytest.raises(UserError, match=message):
        choose_parts(clips, fold, cards, "esc50")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a classifier of three kinds of short sounds, in `run`."""
    folder = make_home(tmp_path_factory.mktemp("robust"))
    run_here(folder, folder / "run")
    return folder


FEW = ["white", "gain", "speed", OFFICIAL]


def check(home, *models, corruptions=FEW, **options):
    """Runs the recipe in this process."""
    given = {"csv": home / "clips.csv", "device": "cpu", **options}
    given = {key: value for key, value in given.items() if value is not None}
    words = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    models = models or (home / "run/classifier",)
    words += ["--noprogressbar", "--corruptions", *corruptions]
    run_recipe("robustness", *models, *words)


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


def test_a_classifier_is_tested_on_the_fold_that_was_held_out(home, capsys):
    model, output = home / "run/classifier", home / "run/robustness"
    corpus, fold = read_training((model / "README.md").read_text())
    assert corpus == str(home / "clips.csv")
    check(home)
    said, metrics = capsys.readouterr().out, metrics_of(output)
    # Clean, it is as good as the training recipe said of this very fold.
    trained = json.loads((home / "run/metrics.json").read_text())
    assert metrics[f"{model}/clean/accuracy"] == trained[f"fold_{fold}/accuracy"]
    assert metrics["clips"] == 12
    assert f"fold {fold}, which {model} was not trained on" in metrics["test"]
    assert metrics[f"{model}/white_3/accuracy"] < metrics[f"{model}/clean/accuracy"]
    assert "not on this machine" in metrics[f"not_available/{OFFICIAL}"]
    for name in ("table.md", "metrics.json", "robustness.csv", "robustness.png"):
        assert name in said
        assert (output / name).stat().st_size > 0
    table = (output / "table.md").read_text()
    assert table.count("\n| ") == 2 + 1 + 3 * 3 + 1 + 3  # header, clean, ..., means
    assert "| EnCodec, encodec_24khz |  | not available | not available |" in table
    assert table.split("\n\n")[1] in said
    rows = read_rows(output / "robustness.csv")
    assert len(rows) == 1 + 3 * 3 + 1 + 3
    assert {row["value"] for row in rows if row["corruption"] == "gain"} == {
        *("-10 dB", "-20 dB", "-30 dB")
    }
    examples = {path.stem for path in (output / "examples").glob("*.flac")}
    assert examples == {"clean", "white", "gain", "speed"}
    clean, gain = (
        soundfile.read(output / f"examples/{name}.flac")[0]
        for name in ("clean", "gain")
    )
    np.testing.assert_allclose(gain, clean / 10, atol=1e-4)


def test_interrupted_it_goes_on(home, tmp_path, monkeypatch):
    """What was finished is not computed again, and the end is the same."""
    done, corrupt_one = [], robustness.corrupt

    def corrupt_some(name, strength, *rest):
        done.append((name, strength))
        if name == stops_at:
            raise KeyboardInterrupt
        return corrupt_one(name, strength, *rest)

    monkeypatch.setattr(robustness, "corrupt", corrupt_some)
    stops_at = "speed"
    options = {"output_folder": tmp_path / "run", "max_clips": 6}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        check(home, **options)
    assert {name for name, _ in done} == {"white", "gain", "speed"}
    assert not (tmp_path / "run/metrics.json").exists()
    finished = len(list((tmp_path / "run/save/outputs").iterdir()))
    assert finished == 1 + 2 * 3
    stops_at = None
    done.clear()
    check(home, **options)
    assert {name for name, _ in done[:18]} == {"speed"}  # then come the examples
    assert len(done) == 18 + 3
    check(home, **options | {"output_folder": tmp_path / "other"})
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "other")
    # Another seed draws other noise, and only noise.
    done.clear()
    check(home, **options, seed=1)
    assert len(done) == 6 * 9 + 3


def test_models_side_by_side(home, tmp_path, capsys):
    """A probe is fitted on the other folds, and is tested on the same clips."""
    models = home / "run/classifier", home / "encoder"
    check(home, *models, output_folder=tmp_path, corruptions=["gain"])
    metrics, table = metrics_of(tmp_path), (tmp_path / "table.md").read_text()
    for number, model in enumerate(models, 1):
        assert metrics[f"{model}/clean/accuracy"] > 0.8
        assert f"| {number}: accuracy (95 %) |" in table
        assert f"\n- {number}: {model}\n" in table
    # Alone, the probes of all folds are tested together.
    capsys.readouterr()
    check(home, home / "encoder", output_folder=tmp_path, corruptions=["gain"])
    assert metrics_of(tmp_path)["clips"] == 36
    assert "every fold, each by a probe" in capsys.readouterr().out


def test_several_labels(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    for row in rows:
        row["label"] += "" if row["label"] == "noise" else ";tone"
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows])
    labels = ["high", "low", "noise", "tone", "other"]
    model = classifiers("mean", tiny_encoder())
    export_classifier(model, labels, tmp_path / "classifier", multi_label=True)
    options = {"csv": tmp_path / "clips.csv", "output_folder": tmp_path / "run"}
    options |= {"fold": "all", "corruptions": ["gain"]}
    check(home, tmp_path / "classifier", **options)
    metrics, classifier = metrics_of(tmp_path / "run"), load(tmp_path / "classifier")
    found = torch.cat([classifier.classify_file(row["wav"])[0] for row in rows])
    given = [row["label"].split(";") for row in rows]
    targets = torch.tensor([[float(x in each) for x in labels] for each in given])
    expected = clip_scores(found, targets)["mAP"]
    assert metrics[f"{tmp_path}/classifier/clean/mAP"] == pytest.approx(expected)
    assert "--fold all says" in metrics["test"]
    with pytest.raises(SystemExit, match="a linear probe is for clips with one label"):
        check(home, tmp_path / "classifier", home / "encoder", **options)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """The folder of a random recogniser, which says that it was trained on `other`."""
    folder = tmp_path_factory.mktemp("speech")
    torch.manual_seed(0)
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 2, 2, 48))
    tokens = Tokens.of_characters(["ABCDEFGHIJKLMNOPQRSTUVWXYZ' "])
    head = CTCHead(32, len(tokens), hidden_size=16)
    lobe = EnCodecMAE(encoder, input_sample_rate=24000)
    (folder / "corpus").mkdir()
    link_speaker(folder / "corpus")
    origin = f"Trained on 9 utterances (0.01 h) of {folder}/corpus: other. Encoder A."
    settings = {"beam_size": 4}, folder / "asr", origin, {}
    export_recogniser(lobe, head, tokens, *settings)
    return folder


def test_a_recogniser(recogniser, tmp_path):
    options = {"data_folder": recogniser / "corpus", "csv": None, "max_clips": 3}
    options |= {"output_folder": tmp_path, "corruptions": ["gain", OFFICIAL]}
    model = recogniser / "asr"
    check(tmp_path, model, fold="small", **options)
    metrics = metrics_of(tmp_path)
    for rate in ("WER", "CER"):
        assert metrics[f"{model}/clean/{rate}"] > 50
        assert metrics[f"{model}/clean/{rate}_low"] <= metrics[f"{model}/clean/{rate}"]
    assert "WER (95 %) | CER (95 %)" in (tmp_path / "table.md").read_text()
    assert metrics["test"] == "Tested on 3 of 28 utterances of small."
    with pytest.raises(SystemExit, match="was trained on other of"):
        check(tmp_path, model, fold="other", **options)
    with pytest.raises(SystemExit, match="has the parts small. Give the one"):
        check(tmp_path, model, **options)
    with pytest.raises(SystemExit, match="that is for clips with labels"):
        check(tmp_path, model, corpus="esc50", **options)
    with pytest.raises(SystemExit, match="Give them one by one"):
        check(tmp_path, model, export_tiny(recogniser / "encoder"), **options)


def test_sounds_under_test_are_no_noise():
    """An encoder is tested on all folds of the bundled sounds: none is left."""
    paths = sorted(sound_folder().rglob("*.flac"))
    assert "is what is tested" in Sounds(tested=paths).lacking("environment")
    assert Sounds(tested=paths[:9]).lacking("environment") is None
    assert Sounds(tested=paths).lacking("white") is None


def test_the_demonstration_needs_no_data(recogniser, tmp_path, capsys):
    """The form of the docstring's first line."""
    options = {"output_folder": tmp_path, "max_clips": 2, "corruptions": ["gain"]}
    check(tmp_path, recogniser / "asr", csv=None, **options)
    assert "DEMONSTRATION" in capsys.readouterr().out
    assert metrics_of(tmp_path)["test"] == "Tested on 2 of 84 utterances of test."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["noise"]}, "--corruptions noise: unknown. There are white"),
        ({"fold": "9"}, "--fold 9: the clips have 0, 1, 2"),
        ({"max_clips": 1}, "--max_clips 1: give a whole number from 2"),
        ({"seed": -1}, "--seed -1"),
        ({"csv": "none.csv"}, "No such manifest"),
        ({"csv": None, "data_folder": sound_folder()}, "does not know 10 labels"),
        ({"data_folder": sound_folder()}, "--data_folder and --csv: give one"),
        ({"noise_folder": "nowhere", "corruptions": ["environment"]}, "no such folder"),
        ({"layer": "all"}, "--layer all: give one layer"),
    ],
)
def test_bad_settings_end_with_a_message(home, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        check(home, output_folder=tmp_path, **options)


def test_bad_models_end_with_a_message(home, tmp_path):
    (tmp_path / "empty").mkdir()
    for models, message in (
        ([tmp_path / "empty"], "is not an exported folder"),
        ([tmp_path / "nothing"], "nothing"),
        ([home / "run/classifier"] * 2, "give each model once"),
    ):
        with pytest.raises(SystemExit, match=message):
            check(home, *models, output_folder=tmp_path)


def test_a_codec_that_is_not_there_is_named_and_not_replaced(
    home, tmp_path, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise soundfile.LibsndfileError(1)

    corruptions._cannot_write.cache_clear()
    monkeypatch.setattr(corruptions.soundfile, "write", refuse)
    assert "pip install -U soundfile" in CORRUPTIONS["opus"].missing()
    missing = CORRUPTIONS["mp3"].missing()
    monkeypatch.undo()
    assert "does not write MPEG_LAYER_III" in missing
    options = {"output_folder": tmp_path, "corruptions": ["opus", "gain"]}
    check(home, max_clips=2, **options)  # still known as missing
    corruptions._cannot_write.cache_clear()
    assert "opus: not available: libsndfile" in capsys.readouterr().out
    assert (
        "| Opus |  | not available | not available |"
        in (tmp_path / "table.md").read_text()
    )


def test_labels_of_a_manifest_that_the_classifier_does_not_know(home, tmp_path):
    rows = read_rows(home / "clips.csv")
    rows[0]["label"] = "thunder"
    write_rows(tmp_path / "clips.csv", [row.values() for row in rows])
    with pytest.raises(
        SystemExit, match="does not know 1 labels of the clips: thunder"
    ):
        check(home, csv=tmp_path / "clips.csv", output_folder=tmp_path)
