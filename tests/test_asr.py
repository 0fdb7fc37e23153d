"""The recognition recipe end to end, and the folder that it exports."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from commands import environment, execute
from killed import run_killed
from recognition import export_tiny, link_speaker, write_manifest
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.data.speech import librispeech_set
from encodecmae_sb.inference.recogniser import read_training
from encodecmae_sb.lobes import CTCHead, EnCodecMAE
from encodecmae_sb.pretrained.licence import ENCODEC, recorded_licence

ROOT = Path(__file__).parent.parent
RECIPES = {"finetuned": "asr_ctc_mini.yaml", "frozen": "asr_ctc_mini_frozen.yaml"}
# These, made smaller still.
TINY = {
    "number_of_epochs": 2,
    "train_splits": "[small]",
    "valid_splits": "[small]",
    "test_splits": "[small]",
    "batch_seconds": 8.0,
    "num_workers": 0,
    "head": "{hidden_size: 16}",
    "beam_search": "{beam_size: 8}",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Bundled utterances of a speaker in LibriSpeech's layout."""
    return link_speaker(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An exported random encoder."""
    return export_tiny(tmp_path_factory.mktemp("exported") / "encoder")


def command(output, encoder, corpus, protocol="finetuned", **options):
    """The command line of a run, as a list."""
    given = {
        **TINY,
        **({"freeze_steps": 2} if protocol == "finetuned" else {}),
        "encoder_folder": encoder,
        "data_folder": corpus,
        "output_folder": output,
        **options,
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    recipe = [ROOT / "recipes/asr_ctc.py", ROOT / "hparams" / RECIPES[protocol]]
    return [str(x) for x in (sys.executable, *recipe, "--device", "cpu", *flags)]


@pytest.fixture(scope="module", params=["frozen", "finetuned"])
def finished(request, tmp_path_factory, encoder, corpus):
    """The output folder of a run that went through."""
    output = tmp_path_factory.mktemp("asr") / request.param
    execute(command(output, encoder, corpus, request.param), output.parent)
    return output


def load_recogniser(folder):
    """Loads an exported folder as a user does."""
    return foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    )


def hypotheses(path):
    """The words that an alignment file says were recognised, per utterance."""
    texts, lines = {}, path.read_text().partition("Characters")[0].splitlines()
    for i, line in enumerate(lines):
        if ", %WER" in line:
            words = [word.strip() for word in lines[i + 3].split(";")]
            texts[line.split(",")[0]] = " ".join(w for w in words if w != "<eps>")
    return texts


def test_interface_agrees_with_the_recipe(finished, corpus, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    (finished / "asr").rename(moved)
    monkeypatch.chdir(tmp_path)
    try:
        recogniser = load_recogniser("elsewhere")
    finally:
        moved.rename(finished / "asr")
    expected = hypotheses(finished / "wer_small.txt")
    assert len(expected) == 28
    files = {path.stem: path for path in (corpus / "small").rglob("*.flac")}
    for ID, text in expected.items():
        assert recogniser.transcribe_file(files[ID.rpartition("/")[2]]) == text

    wavs = [recogniser.load_audio(str(path)) for path in list(files.values())[:3]]
    wavs = [torch.as_tensor(wav) for wav in wavs]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lens = torch.tensor([len(wav) / batch.shape[1] for wav in wavs])
    texts, tokens = recogniser.transcribe_batch(batch, lens, sample_rate=16000)
    assert [recogniser.hparams.tokens.decode(item) for item in tokens] == texts


def test_metrics(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for name in ("wer", "cer"):
        assert metrics[f"small/{name}"] > 0
    assert metrics["protocol"] == finished.name
    # The yaml's; asr_ctc_finetuned.yaml has fully connected layers.
    assert metrics["head"] == "2 BiLSTM layers of 16"
    assert metrics["head"] in (finished / "asr/README.md").read_text()
    assert CTCHead(8, 4, 6, 1, False).in_words() == "1 fully connected layer of 6"
    assert metrics["pretrained"] is True
    assert metrics["left_out"] == 0


def test_the_card_says_where_it_comes_from(finished, encoder, corpus):
    card = (finished / "asr/README.md").read_text()
    assert "Trained on 28 utterances (0.0" in card
    assert f" h) of {corpus}: small. Encoder {encoder}." in card
    assert read_training(card) == (str(corpus), ["small"])
    assert ENCODEC.reason in card
    assert recorded_licence(finished / "asr") == ENCODEC


def test_the_sum_of_layers_learns_and_what_is_frozen_does_not(finished, encoder):
    weights = torch.load(finished / "asr/lobe.ckpt", weights_only=True)
    assert weights["layer_weights"].unique().numel() > 1
    before = torch.load(encoder / "encoder.ckpt", weights_only=True)
    same = [torch.equal(weights[f"encoder.{name}"], before[name]) for name in before]
    assert all(same) == (finished.name == "frozen")
    with pytest.raises(ValueError, match="holds another kind of model: recogniser"):
        EnCodecMAE(finished / "asr")


def test_checkpoints_of_another_training(finished, encoder, corpus):
    before = (finished / "metrics.json").read_text()
    options = {"pretrained": False, "lr": 0.01}
    run = command(finished, encoder, corpus, finished.name, **options)
    text = execute(run, finished.parent, 1)
    for line in ("pretrained: True -> False", "-> random weights", "lr: 0.002 -> 0.01"):
        assert line in text
    assert "Traceback" not in text
    assert (finished / "metrics.json").read_text() == before


def test_killed_and_started_again_it_ends_the_same(encoder, corpus, tmp_path):
    options = {
        "number_of_epochs": 3,
        "ckpt_interval_steps": 1,
        "ckpt_interval_minutes": 0,
        "grad_accumulation_factor": 2,
        "batch_seconds": 4.0,
    }
    straight = command(tmp_path / "straight", encoder, corpus, **options)
    execute(straight, tmp_path)
    broken = command(tmp_path / "broken", encoder, corpus, **options)
    for saves, delay in ((1, 0), (3, 0.02)):
        run_killed(broken, saves, delay, cwd=tmp_path, env=environment())
    execute(broken, tmp_path)
    results = [
        (
            json.loads((tmp_path / name / "metrics.json").read_text()),
            (tmp_path / name / "asr/lobe.ckpt").read_bytes(),
            (tmp_path / name / "asr/head.ckpt").read_bytes(),
        )
        for name in ("straight", "broken")
    ]
    assert results[0] == results[1]


def test_manifests_pieces_and_a_corrupt_file(encoder, corpus, tmp_path):
    rows = librispeech_set(corpus, ["small"], tmp_path).rows[:16]
    bad = tmp_path / "bad.flac"
    bad.write_bytes(Path(rows[0]["wav"]).read_bytes()[:4000])
    rows[0] = {**rows[0], "wav": str(bad)}
    with open(tmp_path / "all.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["ID", "duration", "wav", "wrd"], None, "ignore")
        writer.writeheader()
        writer.writerows(rows)
    files = {f"{part}_csv": tmp_path / "all.csv" for part in ("train", "valid")}
    other = tmp_path / "other/all.csv"
    other.parent.mkdir()
    write_manifest(other, rows[5:9])
    # As the figures of the validation are called.
    write_manifest(tmp_path / "valid.csv", rows[9:11])
    tests = [tmp_path / "all.csv", other, tmp_path / "valid.csv"]
    files["test_csv"] = f"[{', '.join(map(str, tests))}]"
    run = command(
        tmp_path / "out",
        encoder,
        corpus,
        number_of_epochs=1,
        token_type="bpe",
        vocab_size=60,
        chunk_seconds="null",
        # The corrupt file is alone in its batch.
        max_batch_items=1,
        test_batch_size=1,
        **files,
    )
    execute(run, tmp_path)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["left_out"] == 1
    assert str(bad) in (tmp_path / "out/left_out.csv").read_text()
    recogniser = load_recogniser(tmp_path / "out/asr")
    assert len(recogniser.hparams.tokens) == 60
    assert isinstance(recogniser.transcribe_file(rows[1]["wav"]), str)
    # Two manifests of one name.
    assert len(hypotheses(tmp_path / "out/wer_all.txt")) == len(rows) - 1
    assert len(hypotheses(tmp_path / "out/wer_all_1.txt")) == 4
    assert {"all/wer", "all_1/wer"} < set(metrics)
    # And one named as the validation, whose figures stay what they are called.
    assert len(hypotheses(tmp_path / "out/wer_valid_1.txt")) == 2
    assert {"valid_1/wer", "valid_1/loss", "valid/epoch"} < set(metrics)
    assert "valid/loss" not in metrics
    assert metrics["steps"] == len(rows)


def test_testing_only_keeps_the_figures(finished, encoder, corpus):
    if finished.name != "frozen":
        pytest.skip("one protocol will do")
    before = (finished / "metrics.json").read_text()
    run = command(finished, encoder, corpus, finished.name)
    execute([*run, "--test_only"], finished.parent)
    assert (finished / "metrics.json").read_text() == before


def test_testing_only_what_was_never_trained(encoder, corpus, tmp_path):
    run = command(tmp_path / "out", encoder, corpus)
    text = execute([*run, "--test_only"], tmp_path, expect=1)
    assert "--test_only" in text
    assert "holds no checkpoint" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_splits": "train-clean-100"},
            "no folder 'train-clean-100'. It has: small",
        ),
        ({"token_type": "bpe", "vocab_size": 5000}, "the largest that fits is"),
        ({"token_type": "word"}, "allowed are char, bpe and unigram"),
        ({"data_folder": "null", "train_csv": "x.csv"}, "give all three"),
        ({"encoder_folder": "/nowhere"}, "No such encoder folder: /nowhere"),
    ],
)
def test_errors_before_training(encoder, corpus, tmp_path, options, message):
    text = execute(
        command(tmp_path / "out", encoder, corpus, **options), tmp_path, expect=1
    )
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("frozen", "finetuned"),
    [
        ("asr_ctc_frozen.yaml", "asr_ctc_finetuned.yaml"),
        ("asr_ctc_mini_frozen.yaml", "asr_ctc_mini.yaml"),
    ],
)
def test_what_a_finetuned_encoder_needs_more(frozen, finetuned):
    few, more = (
        set(re.findall(r"(?m)^(\w+):", (ROOT / "hparams" / name).read_text()))
        for name in (frozen, finetuned)
    )
    assert more - few == {"lr_encoder", "freeze_steps"}
    assert few < more
