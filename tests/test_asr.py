"""Speech recognition: tokens, data, the recipe end to end, the exported folder."""

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from commands import environment, execute
from killed import run_killed
from speechbrain import Stage
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.brains.ctc import CTCBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.speech import (
    SpeechSet,
    collate_speech,
    leave_out_short,
    librispeech_set,
    load_sets,
    manifest_set,
    speech_dataset,
)
from encodecmae_sb.data.tokenizer import Tokens, check_characters
from encodecmae_sb.inference.recogniser import build_searcher, search
from encodecmae_sb.lobes import (
    AudioEncoder,
    CTCHead,
    EnCodecMAE,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.lengths import absolute_lengths, relative_lengths
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.recoverables import History

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
    """A dozen bundled utterances in LibriSpeech's layout."""
    root = tmp_path_factory.mktemp("corpus")
    speaker = root / "small"
    speaker.symlink_to(speech_folder() / "dev/9001", target_is_directory=True)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An exported random encoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    transformer = ResiDualTransformer(32, 2, 2, 48)
    export_encoder(AudioEncoder(LogMel(), transformer), folder)
    return folder


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


def test_other_transcripts_make_other_units():
    texts = ["ONE TWO THREE TWO ONE", "THREE THREE TEN"] * 3
    one, again = Tokens.of_pieces(texts, 16), Tokens.of_pieces(texts, 16)
    assert one.digest() == again.digest() != Tokens.of_pieces(texts[:1], 16).digest()


def test_an_encoder_that_waits_needs_no_gradients_in_fp16(encoder, tmp_path):
    lobe, head = EnCodecMAE(encoder, freeze=False), CTCHead(32, 8)
    hparams = {"lr": 0.1, "lr_encoder": 0.1, "freeze_steps": 1}
    brain = CTCBrain(
        modules={"encoder": lobe, "head": head},
        opt_class=torch.optim.AdamW,
        hparams={**hparams, "noprogressbar": True},
        checkpointer=AtomicCheckpointer(tmp_path),
        tokens=None,
    )
    brain.init_optimizers()
    brain.scaler = torch.amp.GradScaler("cpu")
    moved = []
    for _ in range(2):
        before = [p.detach().clone() for p in lobe.encoder.transformer.parameters()]
        with torch.set_grad_enabled(brain.optimizer_step >= 1):
            frames = lobe(torch.rand(1, 16000), torch.ones(1))
        with torch.enable_grad():
            log_probs, _ = head(frames)
        brain.scaler.scale(log_probs.square().mean()).backward()
        brain.optimizers_step()
        after = lobe.encoder.transformer.parameters()
        pairs = zip(before, after, strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    assert moved == [False, True]


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


def test_a_batch_of_which_nothing_can_be_read(encoder):
    tokens = Tokens.of_characters(["AB"])
    lobe = EnCodecMAE(encoder, freeze=False, input_sample_rate=24000)
    head = CTCHead(lobe.dim, len(tokens), hidden_size=8)

    class Brain(CTCBrain):
        def init_optimizers(self):
            self.optimizers_dict = {}

    hparams = {
        "history": History(),
        "epoch_counter": SimpleNamespace(current=1),
        **{"seed": 0, "freeze_steps": 0, "lr_schedule": None},
    }
    modules = {"encoder": lobe, "head": head}
    run_opts = {"device": "cpu"}
    brain = Brain(modules, None, hparams, run_opts, tokens=tokens)
    brain.init_optimizers()
    brain.total_steps, brain.step = 10, 1
    nothing = {"id": "a", "sig": None, "wrd": "AB", "unusable": ("a.wav", "gone")}
    nothing["tokens"] = torch.tensor(tokens.encode("AB"))
    batch = collate_speech([nothing, {**nothing, "unusable": ("b.wav", "gone")}])
    noted = []
    brain.unusable = SimpleNamespace(add=noted.extend)
    brain.avg_train_loss = 3.0
    loss = brain.fit_batch(batch)
    assert brain.update_average(loss, brain.avg_train_loss) == 3.0
    # Every parameter takes part, as other processes wait for that, with no effect.
    gradients = [p.grad for module in (lobe, head) for p in module.parameters()]
    assert all(grad is not None and not grad.any() for grad in gradients)
    assert [tuple(item) for item in noted] == [("a.wav", "gone"), ("b.wav", "gone")]
    brain.on_stage_start(Stage.VALID)
    good = {**nothing, "sig": 0.1 * torch.randn(24000), "unusable": None}
    with torch.no_grad():
        alone = brain.update_average(
            brain.evaluate_batch(collate_speech([{**good}]), Stage.VALID), 0.0
        )
        average = 0.0
        brain.step = 0
        for items in ([nothing], [{**good}], [nothing], [{**good}], [nothing]):
            brain.step += 1
            loss = brain.evaluate_batch(collate_speech(items), Stage.VALID)
            average = brain.update_average(loss, average)
    assert average == pytest.approx(alone)
    assert brain.wer.ids == ["a"] * 3


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


def test_a_declared_rate_is_checked_in_a_folder_too(corpus, tmp_path):
    splits = {f"{part}_splits": ["small"] for part in ("train", "valid", "test")}
    csvs = {f"{part}_csv": None for part in ("train", "valid", "test")}
    hparams = {**splits, **csvs, "data_folder": corpus, "save_folder": tmp_path}
    hparams |= {"max_unusable": 0.05, "source_sample_rate": 16000}
    train, _, _ = load_sets(hparams)
    assert len(train.rows) == 28
    message = r"\.flac has 16000 Hz, but source_sample_rate=48000"
    with pytest.raises(ValueError, match=message):
        load_sets({**hparams, "source_sample_rate": 48000})
    with pytest.raises(ValueError, match="data_folder=.*a path is allowed"):
        load_sets({**hparams, "data_folder": [str(corpus), str(corpus)]})
    for splits in (960, [5], None, {"a": 1}):
        with pytest.raises(ValueError, match="train_splits=.*names of folders"):
            load_sets({**hparams, "train_splits": splits})


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


def write_manifest(path, rows):
    """Writes rows as CSV, with the columns of the first."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_manifest_errors(tmp_path):
    wav = str(tmp_path / "a.wav")
    soundfile.write(wav, np.zeros(8000), 8000)
    good = {"ID": "a", "wav": "$data_root/a.wav", "wrd": "ONE"}
    path = tmp_path / "x.csv"
    (row,) = manifest_set(write_manifest(path, [good]), tmp_path).rows
    assert row["wav"] == wav
    assert row["duration"] == 1.0
    with pytest.raises(FileNotFoundError, match="No such manifest"):
        manifest_set(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"lacks the columns \['wrd'\]"):
        manifest_set(write_manifest(path, [{"ID": "a", "wav": wav}]))
    with pytest.raises(ValueError, match="8000 Hz, but source_sample_rate=16000"):
        manifest_set(write_manifest(path, [good]), tmp_path, 16000)
    with pytest.raises(ValueError, match="occurs more than once"):
        manifest_set(write_manifest(path, [good, good]), tmp_path)
    empty = {**good, "ID": "b", "wrd": " "}
    with pytest.raises(ValueError, match=r"(?s)1 of 2 utterances.*b: no transcript"):
        manifest_set(write_manifest(path, [good, empty]), tmp_path)
    loaded = manifest_set(write_manifest(path, [good, empty]), tmp_path, None, 0.5)
    assert loaded.left_out == [("b", "no transcript")]
    gone = {**good, "ID": "c", "wav": "$data_root/c.wav", "duration": "1.0"}
    write_manifest(path, [{**good, "duration": "1.0"}, gone])
    loaded = manifest_set(path, tmp_path, None, 0.5)
    assert loaded.left_out == [(str(tmp_path / "c.wav"), "no such file")]


def test_no_transcripts(tmp_path):
    (tmp_path / "dev").mkdir()
    soundfile.write(tmp_path / "dev/a.wav", np.zeros(8000), 8000)
    with pytest.raises(ValueError, match="trans.txt is needed"):
        librispeech_set(tmp_path, ["dev"], tmp_path / "save")


def test_characters_that_training_never_had():
    tokens = Tokens.of_characters(["ONE", "TWO"])
    rows = [{"ID": "a", "wrd": "ONE"}, {"ID": "b", "wrd": "TWÖ?"}]
    with pytest.raises(ValueError, match=r"'Ö' \(1, first in b\)"):
        check_characters(tokens, rows, "dev")
    check_characters(tokens, rows[:1], "dev")


def test_too_short_for_ctc():
    texts = {"a": "ABAB", "b": "AABB", "c": "AAB"}
    rows = [{"ID": name, "wrd": text, "duration": 4.0} for name, text in texts.items()]
    speech = SpeechSet("train", rows)
    speech.tokenize(Tokens.of_characters(["AB"]))
    leave_out_short(speech, [4, 4, 4])
    assert [row["ID"] for row in speech.rows] == ["a", "c"]
    assert speech.left_out == [("b", "4 output steps for a target that needs 6")]
    with pytest.raises(ValueError, match="All utterances of train are too short"):
        leave_out_short(speech, [1, 1])


def test_transcripts_are_tokenized_once(corpus, tmp_path):
    speech = librispeech_set(corpus, ["small"], tmp_path)
    tokens = Tokens.of_characters([row["wrd"] for row in speech.rows])
    encoded = []

    class Counting:
        def encode(self, text):
            encoded.append(text)
            return tokens.encode(text)

    speech.tokenize(Counting())
    leave_out_short(speech, [10000] * len(speech.rows))
    dataset = speech_dataset(speech)
    for row, item in zip(speech.rows, dataset, strict=True):
        assert item["tokens"].dtype == torch.int64
        assert tokens.decode(item["tokens"]) == row["wrd"]
    assert encoded == [row["wrd"] for row in speech.rows]


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


def test_relative_lengths_give_the_counts_back():
    for size in (38, 49, 300, 22500):
        counts = torch.arange(1, size + 1)
        assert torch.equal(
            absolute_lengths(relative_lengths(counts, size), size), counts
        )


def test_the_beam_search_sees_every_step_and_no_more():
    labels = ["", *"ABC"]
    searcher = build_searcher(SimpleNamespace(labels=labels), {"beam_size": 4})
    # 15 of 38 steps: 15 / 38 * 38 is below 15 in single precision.
    log_probs = torch.full((2, 38, 4), -9.0)
    log_probs[:, :, 0] = 0.0
    log_probs[:, 14, 2] = 9.0  # the last step of the first item
    log_probs[:, 15, 3] = 9.0
    steps = torch.tensor([15, 38])
    assert search(searcher, log_probs.log_softmax(-1), steps) == ["B", "BC"]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("stack", [1, 2, 3])
def test_head_does_not_mix_items(recurrent, stack):
    head = CTCHead(8, 5, hidden_size=6, recurrent=recurrent, stack=stack).eval()
    items = [torch.randn(n, 8) for n in (7, 12, 20)]
    batch = torch.randn(3, 20, 8)
    for row, item in zip(batch, items, strict=True):
        row[: len(item)] = item
    together, num_steps = head(batch, torch.tensor([7, 12, 20]))
    for row, length, item in zip(together, num_steps.tolist(), items, strict=True):
        alone, _ = head(item[None])
        assert length == len(alone[0])
        assert torch.allclose(row[: len(alone[0])], alone[0], atol=1e-5)


def test_tokens_survive_a_file(tmp_path):
    texts = ["ONE TWO THREE", "FOUR FIVE SIX SEVEN"] * 3
    for tokens in (Tokens.of_characters(texts), Tokens.of_pieces(texts, 24)):
        tokens.save(tmp_path / "tokens")
        loaded = Tokens()
        loaded.load(tmp_path / "tokens")
        assert loaded.labels == tokens.labels
        for text in texts:
            assert 0 not in loaded.encode(text)
            assert loaded.decode(loaded.encode(text)) == text
