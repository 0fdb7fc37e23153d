"""Brains in memory: what a step may and may not change."""

import copy
import math

import pytest
import torch
from commands import ROOT, TINY
from hyperpyyaml import load_hyperpyyaml
from speechbrain import Stage
from speechbrain.utils.run_opts import RunOptions

from encodecmae_sb.brains import pretrain
from encodecmae_sb.brains.base import ResumableBrain
from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.evaluation.codec import codec_report
from encodecmae_sb.lobes import Codec
from encodecmae_sb.nnet.codec_training import (
    LogMelDistance,
    ResidualCodebooks,
    init_seanet_,
    order_latents_,
    vary,
)
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.utils import precision


@pytest.fixture
def corpus(tmp_path):
    (corpus,) = prepare_corpora(speech_folder(), tmp_path / "manifests")
    return corpus


def make_brain(tmp_path, corpora=("speech",), **options):
    overrides = {**TINY, "output_folder": str(tmp_path / "run"), **options}
    with open(ROOT / "hparams/mini.yaml") as file:
        hparams = load_hyperpyyaml(file, overrides)
    return PretrainBrain(
        modules={**hparams["modules"], "targets": Codec("bundled")},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=hparams["checkpointer"],
        corpora=corpora,
    )


def test_training_moves_the_model_and_not_the_codec(tmp_path, corpus):
    brain = make_brain(tmp_path, training_steps=3)
    codec = copy.deepcopy(brain.modules.targets.state_dict())
    model = copy.deepcopy(brain.modules.model.state_dict())
    train = RandomCrops([corpus.train_csv], 0.5)
    brain.fit_crops(train, FixedCrops([corpus.valid_csv], 4, 0.5))
    for name, tensor in brain.modules.targets.state_dict().items():
        assert torch.equal(tensor, codec[name]), name
    moved = [
        name
        for name, tensor in brain.modules.model.state_dict().items()
        if not torch.equal(tensor, model[name])
    ]
    assert len(moved) == len(model)


def test_each_corpus_has_a_unigram_of_its_own(tmp_path, monkeypatch):
    """Counted by hand, of corpora that have no code in common."""
    monkeypatch.setattr(pretrain, "_UNIGRAM_CROPS", 16)

    class Crops:
        def corpus_of(self, draw):
            return int(draw % 10 == 0)  # rare: 2 of the first 16

        def __getitem__(self, draw):
            corpus = self.corpus_of(draw)
            codes = torch.full((10, 8), 5 if corpus else draw % 3)
            crop = {"wav": torch.zeros(3200), "targets": codes, "corpus": corpus}
            return {**crop, "seed": draw, "unusable": []}

    crops = Crops()
    brain = make_brain(tmp_path, corpora=["often", "rare"])
    brain.unigram = brain.count_codes(crops)
    mixture, often, rare = brain.unigram.exp()
    assert mixture[0, 5] == pytest.approx(21 / 1184)
    assert rare[0, 5] == pytest.approx(81 / 1104)  # 8 crops of 10 frames
    assert often[0, 5] == pytest.approx(1 / 1164)
    brain.init_optimizers()
    brain.on_stage_start(Stage.VALID)
    batch = CropCollator()([crops[draw] for draw in (0, 1, 2, 10)])
    with torch.no_grad():
        outputs = brain.compute_forward(batch, Stage.VALID)
        brain.compute_objectives(outputs, batch, Stage.VALID)
    row = brain.validation_row(0.0)
    monkeypatch.setattr(Crops, "corpus_of", lambda self, draw: 0)
    unknown = brain.count_codes(crops)
    assert unknown[2].isnan().all()
    assert unknown[:2].isfinite().all()
    assert row["rare/unigram_ce_1"] == pytest.approx(-math.log(81 / 1104), rel=1e-5)
    assert row["unigram_ce_1"] == pytest.approx(
        -float(mixture[0, [5, 1, 2, 5]].log().mean()),
        rel=1e-5,
    )


@pytest.mark.parametrize(("units", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_the_faster_precision(tmp_path, monkeypatch, capsys, units, chosen):
    monkeypatch.setattr(precision, "_cpu_is_fast_in_bf16", lambda: units)
    brain = make_brain(tmp_path)  # mini.yaml says auto
    assert brain.precision == chosen
    assert ("fp32, since bf16 is not faster on cpu" in capsys.readouterr().out) == (
        not units
    )
    for asked in ("bf16", "fp32"):
        brain = make_brain(tmp_path / asked, precision=asked)
        assert brain.precision == asked
        run_opts = RunOptions(precision=asked, overridden_args={"precision"})
        brain = ResumableBrain(hparams={"precision": "auto"}, run_opts=run_opts)
        assert brain.precision == asked
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "bf16", "amx", "fast"),
    [
        ("AuthenticAMD", True, False, True),
        ("AuthenticAMD", False, False, False),
        ("GenuineIntel", True, False, False),  # it has the instructions, and is slower
        ("GenuineIntel", True, True, True),
        ("", False, False, False),
    ],
)
def test_which_cpus_are_fast_in_bf16(monkeypatch, words, bf16, amx, fast):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(precision, "_words_of_cpuinfo", lambda: {words})
    cpu = precision.torch.cpu
    monkeypatch.setattr(cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision.best_precision("cpu") == ("bf16" if fast else "fp32")


def test_silence_and_unequal_lengths_give_a_finite_loss(tmp_path):
    brain = make_brain(tmp_path)
    brain.init_optimizers()
    brain.on_stage_start(Stage.TRAIN)
    items = [
        {"wav": wav, "seed": i, "corpus": 0, "unusable": []}
        for i, wav in enumerate(
            [torch.zeros(12000), torch.rand(400), torch.zeros(320), torch.rand(5000)]
        )
    ]
    for chosen in (items, items[:1], items[2:3]):
        loss = brain.fit_batch([CropCollator()(chosen)])
        assert torch.isfinite(loss)
    for parameter in brain.modules.model.parameters():
        assert torch.isfinite(parameter).all()


def test_padding_changes_no_gradient(tmp_path):
    """An item alone, and the same item with a padded end, teach the same."""
    gradients = []
    wav = torch.rand(8000, generator=torch.Generator().manual_seed(0)) - 0.5
    for padded in (False, True):
        brain = make_brain(tmp_path)
        collate = CropCollator()
        batch = collate([{"wav": wav, "seed": 7, "corpus": 0, "unusable": []}])
        if padded:
            batch.wavs = torch.nn.functional.pad(batch.wavs, (0, 6400))
            batch.full = False
        outputs = brain.compute_forward(batch, None)
        loss = brain.modules.loss_fn(*outputs)
        loss.loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in brain.modules.model.parameters()])
        )
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_a_fresh_codec_passes_its_signal():
    net = build_encodec(n_filters=4, n_codebooks=1)
    init_seanet_(net)
    wavs = 0.1 * torch.randn(2, 1, 9600, generator=torch.Generator().manual_seed(0))
    latents = net.encoder(wavs)
    assert latents.std(dim=-1).mean() > 0.01
    assert net.decoder(latents).std() > 0.01


def test_codebooks_follow_their_vectors():
    net = build_encodec(n_filters=2, n_codebooks=2, codebook_size=16)
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(16, 128, generator=generator)

    def draw():
        which = torch.randint(16, (800,), generator=generator)
        return centres[which] + 0.1 * torch.randn(800, 128, generator=generator)

    books = ResidualCodebooks(net.quantizer)
    books.start(draw(), generator)
    for _ in range(60):
        books.update(draw(), generator)
    vectors = draw()
    quantized = books.quantize(vectors.T[None])
    left = (quantized[0].T - vectors).norm(dim=1).mean()
    assert left < 0.15 * vectors.norm(dim=1).mean()
    codes = net.quantizer.vq.layers[0].encode(vectors.T[None])
    assert codes.unique().numel() >= 14


def test_levels_vary_and_repeat():
    items = [
        {"wav": torch.rand(3200) - 0.5, "seed": i, "corpus": 0, "unusable": []}
        for i in range(32)
    ]
    batch = CropCollator()(items)
    peaks = vary(batch.wavs, batch.seeds).abs().amax(1)
    assert peaks.max() <= 1 + 1e-6
    assert peaks.min() > 0.01
    assert peaks.max() / peaks.min() > 5
    assert torch.equal(vary(batch.wavs, batch.seeds), vary(batch.wavs, batch.seeds))


def test_bundled_codec_on_unheard_voices(corpus):
    """The figures in docs/codec_and_corpus.md of the codec in this repository."""
    valid = FixedCrops([corpus.valid_csv], 24)
    loader = torch.utils.data.DataLoader(valid, 8, collate_fn=CropCollator())
    report = codec_report(Codec("bundled").net, loader)
    assert report["perplexity_min"] >= 64
    assert report["mel_ratio"] <= 0.6
    untrained = build_encodec(8, 8)
    init_seanet_(untrained)
    assert codec_report(untrained, loader, quantized=False)["mel_ratio"] > 1


def test_a_saved_codec_is_the_codec(tmp_path):
    net = Codec("bundled").net
    save_codec(net, tmp_path / "copy.safetensors")
    copied = Codec(tmp_path / "copy.safetensors")
    wavs = torch.rand(1, 6400) - 0.5
    assert torch.equal(copied.encode(wavs), Codec("bundled").encode(wavs))


def test_log_mel_distance_is_in_nats():
    wavs = torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
    distance = LogMelDistance()(wavs, wavs / torch.e)
    assert distance.item() == pytest.approx(1.0, abs=0.02)


def test_ordered_latents_leave_the_autoencoder_as_it_was():
    net = build_encodec(n_filters=4, n_codebooks=1)
    init_seanet_(net)
    generator = torch.Generator().manual_seed(0)
    wavs = 0.1 * torch.randn(8, 1, 32000, generator=generator)
    before = net.encoder(wavs)
    decoded = net.decoder(before).detach()
    ordered = order_latents_(net, before.transpose(1, 2))
    after = net.encoder(wavs)
    assert (after.transpose(1, 2) - ordered).abs().max() < 1e-2 * ordered.std()
    assert not torch.allclose(before, after)
    assert (net.decoder(after) - decoded).abs().max() < 1e-2 * decoded.std()
