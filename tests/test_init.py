"""A pretraining that starts from weights that are there."""

import json
import shutil

import pytest
import torch
from commands import ROOT, flags, run_recipe
from encoders import load
from parity import published_checkpoint, self_trained
from teachers import copy_speech
from test_brains import make_brain

from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.lobes import (
    AudioEncoder,
    Codec,
    LogMel,
    MaskedCodecModel,
    ResiDualTransformer,
)
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.nnet.schedules import layer_scales
from encodecmae_sb.nnet.targets import Label
from encodecmae_sb.pipelines.start import compare
from encodecmae_sb.pretrained import pretraining
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.pretrained.folder import export_encoder, load_encoder_folder
from encodecmae_sb.pretrained.licence import ENCODEC, recorded_licence, targets_licence
from encodecmae_sb.pretrained.pretraining import Pretraining, load_pretraining
from encodecmae_sb.pretrained.published import PUBLISHED, import_published
from encodecmae_sb.utils.errors import UserError

# Two steps of training, and a validation after each.
SHORT = {"training_steps": 2, "valid_interval": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the bundled files."""
    return copy_speech(tmp_path_factory.mktemp("corpus") / "speech")


@pytest.fixture(scope="module")
def pretrain(corpus):
    """Runs the recipe; returns its metrics."""

    def run(output, yaml="mini", **options):
        given = {"data_folder": corpus, "codec": "bundled", **SHORT, **options}
        file = ROOT / f"hparams/{yaml}.yaml"
        run_recipe("pretrain", file, *flags(output, **given), "--noprogressbar")
        return json.loads((output / "metrics.json").read_text())

    return run


@pytest.fixture(scope="module")
def finished(pretrain, tmp_path_factory):
    """A finished run, whose folder has decoder and head."""
    output = tmp_path_factory.mktemp("init") / "run"
    return output, pretrain(output, export_pretraining=True)


def rows(output):
    """What each validation of a run measured."""
    newest = max(output.glob("save/CKPT*"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads((newest / "history.ckpt").read_text())


@pytest.mark.parametrize("part", ["encoder", "save"])
def test_it_goes_on_with_the_same_loss(finished, pretrain, tmp_path, capfd, part):
    """From the folder with decoder and head, and from the newest checkpoint."""
    output, metrics = finished
    source = output / part
    again = pretrain(tmp_path / "run", init=source, training_steps=1)
    assert again["initial_valid_loss"] == pytest.approx(metrics["valid_loss"], abs=1e-5)
    assert again["init"] == str(source)
    assert recorded_licence(tmp_path / "run/encoder") is None
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]
    text = capfd.readouterr().out
    assert f"before the first step: {metrics['valid_loss']:.6f}" in text
    assert text.count("loaded, ") == 4
    assert (tmp_path / "run/curves.png").exists()


def test_checkpoints_by_any_of_their_folders(finished, monkeypatch):
    """All hold the same weights as the exported folder."""
    output, _ = finished
    newest = max(output.glob("save/CKPT*"), key=lambda path: path.stat().st_mtime_ns)
    expected = load_pretraining(output / "encoder")
    for folder in (newest, newest.parent, output):
        found = load_pretraining(folder)
        assert found.label == expected.label
        weights = found.model.state_dict()
        for name, tensor in expected.model.state_dict().items():
            assert torch.equal(weights[name], tensor), name
    monkeypatch.chdir(newest.parent)
    assert load_pretraining(".").label == expected.label


def test_the_folder_is_an_encoder_as_any_other(finished):
    output, _ = finished
    names = {path.name for path in (output / "encoder").iterdir()}
    assert {"pretraining.yaml", "pretraining.ckpt"} <= names
    assert "pretraining" not in (output / "encoder/hyperparams.yaml").read_text()
    wavs = torch.rand(1, 6400)
    features, _ = load(output / "encoder").encode_batch(wavs)
    with torch.no_grad():
        expected = load_encoder_folder(output / "encoder")(wavs).last
    assert torch.equal(features, expected)


def test_an_older_decoder_goes_with_its_encoder(finished, tmp_path):
    """A new export without decoder and head leaves none of an older one."""
    output, _ = finished
    shutil.copytree(output / "encoder", tmp_path / "encoder")
    assert load_pretraining(tmp_path / "encoder").model is not None
    export_encoder(load_encoder_folder(output / "encoder"), tmp_path / "encoder")
    assert load_pretraining(tmp_path / "encoder").model is None
    assert not list((tmp_path / "encoder").glob("pretraining*"))


def test_a_run_that_is_resumed_loads_nothing(finished, pretrain, tmp_path, capfd):
    """Its source may be gone. It ends as if it had not been stopped."""
    output, _ = finished
    shutil.copytree(output / "encoder", tmp_path / "encoder")
    options = {"init": tmp_path / "encoder", "valid_interval": 2, "warmup_steps": 3}
    options |= {"layer_decay": 0.5, "lr_schedule": "null", "lr": 0.01}
    pretrain(tmp_path / "whole", training_steps=4, **options)
    pretrain(tmp_path / "parts", training_steps=2, **options)
    shutil.rmtree(tmp_path / "encoder")
    capfd.readouterr()
    pretrain(tmp_path / "parts", training_steps=4, **options)
    assert "Starts from" not in capfd.readouterr().out
    weights = [
        (tmp_path / name / "encoder/encoder.ckpt").read_bytes()
        for name in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
    # Codes are counted in fewer crops where fewer steps were to be made.
    whole, parts = (
        [{k: v for k, v in row.items() if "unigram" not in k} for row in rows(folder)]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole == parts
    assert [row["step"] for row in whole] == [0, 2, 4]
    for init in (output / "encoder", "null"):
        with pytest.raises(SystemExit, match=f"init: .*encoder -> {init}"):
            pretrain(tmp_path / "parts", **{**options, "init": init})


def test_what_does_not_fit_is_refused(finished, pretrain, tmp_path):
    """Before anything is trained. What fits is loaded if that is asked for."""
    output, _ = finished
    other = tmp_path / "codec.safetensors"
    save_codec(build_encodec(2, 8), other)
    for number, (options, message) in enumerate(
        [
            ({"dim": 48}, r"dim=32 there, 48 here.*--init_strict False"),
            ({"num_heads": 4}, "transformer: num_heads=2 there, 4 here"),
            ({"num_layers": 3}, "transformer: num_layers=2 there, 3 here"),
            ({"decoder_layers": 2}, "decoder: num_layers=1 there, 2 here"),
            ({"codec": other}, r"head: it predicts other targets \(codec bundled\)"),
            ({"yaml": "base_ec", "dim": 32}, "LogMel there, CodecLatents here"),
            ({"dim": 48, "init_strict": False}, "nothing of it fits"),
            ({"init_strict": "maybe"}, "True or False"),
        ]
    ):
        folder = tmp_path / str(number)
        with pytest.raises(SystemExit, match=f"(?s){message}"):
            pretrain(folder, init=output / "encoder", **options)
        assert not list(folder.glob("save/*"))


@pytest.fixture
def model():
    """A model and the label of its targets."""
    return masked_model(), Label("codec", "bundled", "f0")


def masked_model(layers=2, decoder_layers=1, **front_end):
    def transformer(num_layers):
        return ResiDualTransformer(16, num_layers, 2, 24, shared_ffn=False)

    encoder = AudioEncoder(LogMel(**front_end), transformer(layers))
    return MaskedCodecModel(encoder, transformer(decoder_layers), 2, 4)


def outcome(model, found, same=True):
    """Which parts fit, and how many weights of each are loaded."""
    parts = compare(model, found, same)
    return {name: (not part.problem, len(part.weights)) for name, part in parts.items()}


def test_what_fits_is_loaded(model):
    ours, label = model
    other = masked_model()
    found = Pretraining(other.encoder, other, label)
    whole = outcome(ours, found)
    assert all(fits for fits, _ in whole.values())
    assert sum(count for _, count in whole.values()) == len(ours.state_dict())
    other_targets = outcome(ours, found, same=False)
    assert other_targets == {**whole, "decoder": (False, 0), "head": (False, 0)}
    alone = compare(ours, Pretraining(other.encoder), same_targets=False)
    assert [name for name, part in alone.items() if part.absent] == ["decoder", "head"]
    deeper = outcome(masked_model(layers=3), found)
    assert deeper == {**whole, "transformer": (False, whole["transformer"][1])}
    published = masked_model(hop_length=318, centered=False)
    assert outcome(published, found) == {**whole, "front end": (False, 0)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the published layout, and the codec inside it."""
    folder = tmp_path_factory.mktemp("published")
    checkpoint, net = published_checkpoint("tiny_mel"), build_encodec(2, 8)
    weights = checkpoint["state_dict"]
    for name in [name for name in weights if name.startswith("target_encoder.")]:
        del weights[name]
    # A narrower codec than theirs, so that this takes less time.
    for name, tensor in net.state_dict().items():
        part, _, rest = name.partition(".")
        where = {"encoder": "encodec_encoder", "quantizer": "model"}.get(part)
        if where is not None:
            random = torch.randn(tensor.shape) if rest.endswith("embed") else tensor
            weights[f"target_encoder.{where}.{rest}"] = random
    torch.save(checkpoint, folder / "mel.pt")
    import_published(folder / "mel.pt", folder / "encoder")
    return folder / "mel.pt", folder / "encoder/codec.safetensors"


def test_published_weights(published, pretrain, tmp_path, monkeypatch, capfd):
    """By name. Their frames are shorter; their head fits the codec inside them."""
    path, codec = published
    monkeypatch.setattr(pretraining, "fetch_published", lambda name: path)
    found = load_pretraining("mel256-ec-base-ll")
    there = found.encoder.transformer
    sizes = {"dim": there.dim, "num_layers": there.num_layers}
    sizes |= {"num_heads": there.num_heads, "ffn_dim": there.ffn_dim}
    sizes |= {"head_dim": there.head_dim, "shared_ffn": there.shared_ffn}
    options = {**sizes, "training_steps": 1, "init": "mel256-ec-base-ll"}
    options["decoder_layers"] = found.model.decoder.num_layers
    options["normalise"] = "null"  # published weights hear the level
    assert found.predicts(Codec(codec).label, 8)
    assert not found.predicts(Codec("bundled").label, 8)
    with pytest.raises(SystemExit, match="hop_length=318 there, 320 here"):
        pretrain(tmp_path / "strict", codec=codec, **options)
    pretrain(tmp_path / "other", init_strict=False, **options)
    text = capfd.readouterr().out
    assert "this run's own (hop_length=318 there, 320 here" in text
    assert text.count("loaded, ") == 2
    assert text.count("drawn anew (it predicts other targets") == 2
    front_end = "!new:encodecmae_sb.lobes.LogMel {hop_length: 318, centered: False}"
    pretrain(tmp_path / "exact", codec=codec, front_end=front_end, **options)
    assert capfd.readouterr().out.count("loaded, ") == 4
    exported = load_encoder_folder(tmp_path / "exact/encoder")
    assert exported.front_end.hop_length == 318
    for run in ("other", "exact"):  # one has other targets
        assert recorded_licence(tmp_path / run / "encoder") == ENCODEC
    assert load_pretraining(tmp_path / "other/save").licence == ENCODEC
    assert targets_licence(Codec.label_of(codec)) == ENCODEC


def test_published_names_and_what_is_none_of_them(published, tmp_path):
    assert {f"mel256-ec-base-{data}" for data in ("as", "fma", "ll")} <= set(PUBLISHED)
    with pytest.raises(FileNotFoundError, match="init=nowhere.*mel256-ec-base-ll"):
        load_pretraining("nowhere")
    with pytest.raises(UserError, match="not an exported folder.*Or give a checkpoint"):
        load_pretraining(tmp_path)
    torch.save(self_trained(), tmp_path / "st.pt")
    found = load_pretraining(tmp_path / "st.pt")
    assert not found.predicts(Label("codec", "bundled", "f2e4bcc7"), 1)
    (tmp_path / "save/CKPT+1").mkdir(parents=True)
    (tmp_path / "save/CKPT+1/CKPT.yaml").write_text("unixtime: 1")
    with pytest.raises(UserError, match="No checkpoint is complete"):
        load_pretraining(tmp_path / "save/CKPT+1")
    (tmp_path / "save/CKPT+1/contents.json").write_text("{}")
    with pytest.raises(UserError, match="hyperparams.yaml, which says"):
        load_pretraining(tmp_path / "save")


def test_weights_that_would_run_code_are_not_read(finished, tmp_path):
    shutil.copytree(finished[0] / "encoder", tmp_path / "encoder")
    (tmp_path / "encoder/pretraining.ckpt").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    with pytest.raises(UserError, match="pretraining.ckpt cannot be read"):
        load_pretraining(tmp_path / "encoder")


def test_a_step_is_scaled_by_layer(tmp_path):
    """With a warm-up: the first step moves each weight by its share of the rate."""
    with_decay = {"layer_decay": 0.5, "warmup_steps": 4, "training_steps": 1}
    with_decay |= {"lr": 0.001, "lr_schedule": None}
    (corpus,) = prepare_corpora(copy_speech(tmp_path / "speech"), tmp_path / "lists")
    brain = make_brain(tmp_path, **with_decay, precision="fp32")
    model = brain.hparams.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    crops = RandomCrops([corpus.train_csv], 0.5), FixedCrops([corpus.valid_csv], 2, 0.5)
    brain.fit_crops(*crops)
    scales = layer_scales(model, 0.5)
    assert scales["encoder.transformer.layers.1.norm1.weight"] == 0.5
    assert scales["encoder.transformer.layers.0.attention.out.weight"] == 0.25
    assert scales["encoder.positions.scale"] == 0.125
    for name, parameter in model.named_parameters():
        # AdamW moves a weight by at most the learning rate, and its own decay.
        rate = 0.001 / 4 * scales[name]
        moved = (parameter.detach() - before[name] * (1 - 0.05 * rate)).abs().max()
        assert moved == pytest.approx(rate, rel=0.02), name
    shares = {group["lr_scale"] for group in brain.optimizer.param_groups}
    assert shares == {1.0, 0.5, 0.25, 0.125}


@pytest.mark.parametrize(
    "options", [{"layer_decay": 0}, {"layer_decay": 1.5}, {"warmup_steps": 0.1}]
)
def test_rates_that_cannot_be(tmp_path, options):
    with pytest.raises(UserError, match="or null"):
        make_brain(tmp_path, **options)


def test_a_shared_feed_forward_has_the_mean_of_the_shares():
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(16, 2, 2, 24))
    model = MaskedCodecModel(encoder, ResiDualTransformer(16, 1, 2, 24))
    scales = layer_scales(model, 0.5)
    assert scales["encoder.transformer.feed_forwards.0.0.weight"] == 0.375
    assert scales["decoder.feed_forwards.0.0.weight"] == 1
