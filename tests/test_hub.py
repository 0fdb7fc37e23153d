"""Sharing: pushed to a server that speaks the hub's API, and read back safely."""

import re
import sys
import textwrap
import time

import pytest
import torch
import yaml
from commands import ROOT, execute, run_recipe
from hub import NAME, frames_of, small_encoder
from speechbrain.inference.interfaces import foreign_class
from speechbrain.utils.fetching import FetchConfig

from encodecmae_sb.bundled import sound_folder, speech_folder
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.inference import load
from encodecmae_sb.inference.classifier import export_classifier
from encodecmae_sb.inference.recogniser import export_recogniser
from encodecmae_sb.lobes import (
    Codec,
    CTCHead,
    EnCodecMAE,
)
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.nnet.pooling import ClipClassifier, ClipHead
from encodecmae_sb.pipelines.clip_features import check_encoder
from encodecmae_sb.pipelines.students import load_teacher
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.pretrained.hub import fetch_folder, push_folder
from encodecmae_sb.pretrained.licence import ENCODEC, Licence, targets_licence
from encodecmae_sb.pretrained.pretraining import load_pretraining
from encodecmae_sb.pretrained.published import (
    PUBLISHED,
    encoder_identity,
    encoder_licence,
)
from encodecmae_sb.utils.errors import UserError

CUSTOM = "custom_interface.py"


@pytest.fixture
def folder(tmp_path):
    export_encoder(small_encoder(shared_ffn=True), tmp_path / "encoder", "Of a test.")
    return tmp_path / "encoder"


def test_push_and_load_by_name(hub, folder, capsys, monkeypatch):
    (folder / "metrics.json").write_text('{"valid_loss": 5.1}')
    run = lambda *words: run_recipe("push", *words)  # noqa: E731
    run(folder, NAME, "--private", "--licence", "apache-2.0")
    printed = capsys.readouterr().out
    commit = hub.branches[NAME]["main"]
    assert f'encoder = load("{NAME}@{commit}")' in printed
    assert f"Pushed to {hub.url}/{NAME}" in printed
    assert hub.created[NAME]["visibility"] == "private"
    assert "Bearer hf_of_a_test" in hub.tokens
    files = hub.commits[NAME, commit]
    assert set(files) == {
        *(".gitattributes", "README.md", CUSTOM, "encoder.safetensors"),
        *("hyperparams.yaml", "metrics.json"),
    }
    card = files["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "feature-extraction"
    assert "Of a test." in card
    assert f'load("{NAME}")' in card

    monkeypatch.setattr(torch, "load", None)  # no pickle is read from here on
    want = frames_of(small_encoder(shared_ffn=True))
    assert torch.equal(frames_of(NAME), want)
    assert capsys.readouterr().out.count(commit) == 1
    assert torch.equal(frames_of(NAME), want)
    assert capsys.readouterr().out == ""
    assert not torch.equal(frames_of(NAME, pretrained=False), want)
    assert torch.equal(load(NAME).mods.encoder(torch.ones(1, 9000)).last, ones(want))
    model = load_pretraining(NAME)
    assert model.model is None
    assert torch.equal(frames_of(model.encoder), want)
    assert load_teacher(NAME, "last").hub_name == f"{NAME}@{commit}"
    check_encoder(NAME, [type("Fold", (), {"name": "1"})])
    # Python of the hub is not even fetched.
    assert not [asked for asked in hub.asked if CUSTOM in asked]


def ones(_):
    return small_encoder(shared_ffn=True)(torch.ones(1, 9000)).last


def test_a_pinned_revision_stays(hub, folder, tmp_path):
    first = push_folder(folder, NAME).commit
    export_encoder(small_encoder(1), tmp_path / "other")
    old = frames_of(NAME)
    second = push_folder(tmp_path / "other", NAME, branch="v2").commit
    assert hub.branches[NAME] == {"main": first, "v2": second}
    assert torch.equal(frames_of(NAME), old)
    third = push_folder(tmp_path / "other", NAME).commit
    new = frames_of(small_encoder(1))
    assert third != first
    for source, want in [
        (NAME, new),
        (f"{NAME}@{first}", old),
        (f"{NAME}@v2", new),
    ]:
        assert torch.equal(frames_of(source), want)
    identities = [
        encoder_identity(EnCodecMAE(source).encoder, source)
        for source in (NAME, f"{NAME}@{first}")
    ]
    assert [each["value"] for each in identities] == [
        f"{NAME}@{third}",
        f"{NAME}@{first}",
    ]
    assert identities[0]["digest"] != identities[1]["digest"]


def test_a_process_stays_with_a_commit(hub, folder, tmp_path):
    push_folder(folder, NAME)
    old = frames_of(NAME)
    files = hub.commits[NAME, hub.branches[NAME]["main"]]
    hub.commit(NAME, {**files, "encoder.safetensors": b"of somebody else"})
    assert torch.equal(frames_of(NAME), old)


def test_foreign_class(hub, folder, tmp_path):
    commit = push_folder(folder, NAME).commit
    for more in (
        {},
        {"savedir": tmp_path / "savedir"},
        {"fetch_config": FetchConfig(revision=commit)},
    ):
        encoder = foreign_class(
            source=NAME, pymodule_file=CUSTOM, classname="EnCodecMAEEncoder", **more
        )
        assert torch.equal(encoder.mods.encoder(torch.ones(1, 9000)).last, ones(None))
    assert (tmp_path / "savedir/encoder.safetensors").exists()
    # What was fetched is a folder like any other, too.
    path = fetch_folder(NAME).path
    assert torch.equal(frames_of(path), frames_of(NAME))
    assert load_encoder_folder(path).dim == 16


def test_the_code_of_the_card(hub, folder, tmp_path, capsys):
    """Both ways stay with a commit, the one that runs no code from there first."""
    first = push_folder(folder, NAME)
    export_encoder(small_encoder(1), tmp_path / "other")
    push_folder(tmp_path / "other", NAME)
    card = hub.commits[NAME, first.commit]["README.md"].decode()
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", card, flags=re.MULTILINE)
    assert ["foreign_class" in block for block in blocks] == [False, True]
    assert "custom_interface.py" in card.split(blocks[0])[1].split(blocks[1])[0]
    for block in blocks:
        code = textwrap.dedent(block).replace("COMMIT", first.commit)
        names = {}
        exec(code.partition("features =")[0], names)
        features = names["encoder"].mods.encoder(torch.ones(1, 9000)).last
        assert torch.equal(features, ones(None))
    # Sent again, the card has the same.
    (folder / "README.md").write_text(card)
    again = hub.commits[NAME, push_folder(folder, NAME).commit]["README.md"].decode()
    assert again == card


def test_a_recogniser(hub, tmp_path, capsys):
    texts = ["ONE TWO", "THREE FOUR FIVE"]
    lobe = EnCodecMAE(small_encoder(), layer="weighted")
    for tokens, file in [
        (Tokens.of_characters(texts), "tokens.json"),
        (Tokens.of_pieces(texts, 18), "tokens.model"),
    ]:
        head = CTCHead(16, len(tokens), hidden_size=8)
        export_recogniser(
            lobe, head, tokens, {"beam_size": 4}, tmp_path / "asr", "", {}
        )
        pushed = push_folder(tmp_path / "asr", NAME)
        assert file in pushed.files
        path = sorted(speech_folder().rglob("*.flac"))[0]
        want = load(tmp_path / "asr").transcribe_file(path)
        assert load(NAME, "recogniser").transcribe_file(path) == want
        interface = foreign_class(
            source=NAME,
            pymodule_file=CUSTOM,
            classname="EnCodecMAEASR",
            fetch_config=FetchConfig(allow_updates=True),
        )
        assert interface.transcribe_file(path) == want
    with pytest.raises(UserError, match="another kind of model: recogniser"):
        EnCodecMAE(NAME)


def test_a_classifier(hub, tmp_path, capsys):
    model = ClipClassifier(EnCodecMAE(small_encoder()), ClipHead(16, 3))
    labels = ["no", "7", "1e3"]
    export_classifier(model, labels, tmp_path / "classifier", True)
    push_folder(tmp_path / "classifier", NAME)
    path = sorted(sound_folder().rglob("*.flac"))[0]
    want, *_ = load(tmp_path / "classifier").classify_file(path)
    classifier = load(NAME)
    assert classifier.labels == labels
    assert torch.equal(classifier.classify_file(path)[0], want)


def test_what_cannot_be_shared(hub, folder, tmp_path):
    text = (folder / "hyperparams.yaml").read_text()
    own = text.replace("encodecmae_sb.lobes.LogMel", "my_module.Mine")
    (folder / "hyperparams.yaml").write_text(own)
    with pytest.raises(UserError, match="cannot be shared.*my_module.Mine"):
        push_folder(folder, NAME)
    with pytest.raises(FileNotFoundError, match="No such folder.*recipes/asr_ctc"):
        push_folder(tmp_path / "none", NAME)
    with pytest.raises(UserError, match="user/name"):
        push_folder(folder, "speech")
    assert hub.asked == []


def test_the_licence_of_encodec(hub, tmp_path):
    for origin, licence in [
        ("targets: codec encodec_24khz.", "cc-by-nc-4.0"),
        ("", None),
    ]:
        export_encoder(small_encoder(), tmp_path / "encoder", origin)
        pushed = push_folder(tmp_path / "encoder", NAME)
        assert pushed.licence == (licence or "not-stated")
        card = hub.commits[NAME, pushed.commit]["README.md"].decode()
        assert ("EnCodec's official weights" in card) == (licence is not None)


@pytest.mark.parametrize("licence", [ENCODEC, Licence("mit"), None])
def test_the_licence_goes_on(hub, tmp_path, licence):
    """From an encoder on the hub, whose card is not fetched, to what is made of it."""
    export_encoder(small_encoder(), tmp_path / "encoder")
    if licence == ENCODEC:
        export_encoder(small_encoder(), tmp_path / "encoder", licence=licence)
    given = "mit" if licence == Licence("mit") else None
    assert push_folder(tmp_path / "encoder", NAME, licence=given).kind == "encoder"
    assert encoder_licence(NAME) == load_pretraining(NAME).licence == licence
    model = ClipClassifier(EnCodecMAE(NAME), ClipHead(16, 3))
    export_classifier(model, ["a", "b", "c"], tmp_path / "c", licence=licence)
    pushed = push_folder(tmp_path / "c", "someone/sounds")
    assert pushed.licence == (licence.name if licence else "not-stated")
    files = hub.commits["someone/sounds", pushed.commit]
    card = files["README.md"].decode()
    assert card.count(ENCODEC.reason) == (licence == ENCODEC)
    assert load("someone/sounds").labels == ["a", "b", "c"]


def test_the_licence_is_not_that_of_a_page_nearby(tmp_path):
    (tmp_path / "README.md").write_text("Targets: encodec_24khz.")
    save_codec(build_encodec(2, 8), tmp_path / "mine.safetensors")
    label = Codec.label_of(tmp_path / "mine.safetensors")
    assert targets_licence(label) is None


def test_published_names_have_the_licence_of_their_targets():
    assert {encoder_licence(name) for name in PUBLISHED} == {ENCODEC}


def test_names_that_stand_for_nothing(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push_folder(folder, NAME)
    for source, message in [
        ("someone/else", "someone/else does not exist.*no folder someone/else"),
        (f"{NAME}@v9", "no revision v9"),
        (f"{NAME}@{'0' * 40}", "no revision 0000"),
        ("nowhere", "No such encoder folder: nowhere.*mel256-ec-base.*user/name"),
    ]:
        started = time.monotonic()
        with pytest.raises(FileNotFoundError, match=message):
            EnCodecMAE(source)
        assert time.monotonic() - started < 30
    with pytest.raises(UserError, match="encoder_folder=someone/else"):
        check_encoder("someone/else", [type("Fold", (), {"name": "1"})])
    # A folder comes first.
    export_encoder(small_encoder(1), tmp_path / "someone/speech")
    assert torch.equal(frames_of(NAME), frames_of(small_encoder(1)))


def test_the_variables_of_the_hub(hub, folder, tmp_path):
    """HF_ENDPOINT and the cache as a user sets them, and the commands."""
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "other")}
    script = [sys.executable, ROOT / "recipes/push.py", folder, NAME]
    execute(script, tmp_path, **more)
    commit = hub.branches[NAME]["main"]
    audio = sorted(speech_folder().rglob("*.flac"))[0]
    script = [sys.executable, ROOT / "recipes/embed.py", NAME, audio]
    printed = execute([*script, "--output_folder", "features"], tmp_path, **more)
    assert commit in printed
    noted = (tmp_path / "features/features.json").read_text()
    assert f"{NAME}@{commit}" in noted
