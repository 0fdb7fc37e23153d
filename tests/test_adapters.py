"""SpeechBrain's adapters on the lobe: what learns, what stays, what is exported."""

import json
from functools import partial

import pytest
import torch
from commands import ROOT, environment, run_recipe
from killed import run_killed
from recognition import export_tiny, link_speaker
from speechbrain.inference.interfaces import foreign_class
from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA
from test_asr import TINY

from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.inference.recogniser import export_recogniser
from encodecmae_sb.lobes import (
    AdaptedEnCodecMAE,
    AudioEncoder,
    Codec,
    CodecLatents,
    CTCHead,
    EnCodecMAE,
    LogMel,
    ResiDualTransformer,
)
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.utils.errors import UserError

ADAPTERS = {
    "LoRA": (LoRA, {"rank": 4}),
    "Houlsby": (HoulsbyAdapterLinear, {"projection_size": 4}),
}
# As a yaml gives them, with an argument of its own and with a class as argument.
NAMED = {
    "LoRA": partial(LoRA, rank=4, alpha=8.0),
    "Houlsby": partial(
        HoulsbyAdapterLinear, projection_size=4, activation=torch.nn.ReLU
    ),
}


def make_lobe(layer="last", front_end=LogMel, **options):
    torch.manual_seed(0)
    encoder = AudioEncoder(front_end(), ResiDualTransformer(16, 2, 2, 24))
    return EnCodecMAE(encoder, input_sample_rate=24000, layer=layer, **options)


def learnt(module):
    """The names of what an optimizer would be given."""
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("wrap", [AdaptedModel, AdaptedEnCodecMAE])
@pytest.mark.parametrize("freeze", [True, False])
def test_only_adapters_learn(kind, wrap, freeze):
    adapter, arguments = ADAPTERS[kind]
    lobe = make_lobe(freeze=freeze)
    wavs, lens = torch.rand(2, 9600) - 0.5, torch.tensor([1.0, 0.6])
    before = lobe(wavs, lens).detach()
    adapted = wrap(lobe, adapter, all_linear=True, adapter_kwargs=arguments).train()
    names = learnt(adapted)
    # Projection; two projections and two linear layers in each layer or for both.
    assert len(names) == 7 * {"LoRA": 2, "Houlsby": 4}[kind]
    assert all(".adapter_" in name for name in names)
    after = adapted(wavs, lens)
    assert torch.equal(after, before) == (kind == "LoRA")  # it starts as nothing

    weights = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 1)
    for _ in range(2):  # LoRA's first half has a gradient once the second is not zero
        adapted(wavs, lens).square().mean().backward()
        optimizer.step()
    changed = {
        name
        for name, parameter in adapted.named_parameters()
        if not torch.equal(parameter, weights[name])
    }
    assert changed == names
    assert not torch.equal(adapted(wavs, lens), after)
    assert adapted.dim == 16
    assert adapted.num_frames(torch.tensor([9600])) == 30


def test_the_sum_of_layers_learns_and_idle_layers_get_none():
    options = {"adapter_class": LoRA, "all_linear": True}
    weighted = AdaptedEnCodecMAE(make_lobe("weighted"), **options)
    assert "adapted_model.layer_weights" in learnt(weighted)
    weighted.train()(torch.rand(1, 4800)).square().sum().backward()
    assert weighted.layer_weights.grad.any()
    first = AdaptedEnCodecMAE(make_lobe(0), **options)
    assert first.in_words().startswith("LoRA in 5 layers, ")  # of 7
    latents = make_lobe(front_end=lambda: CodecLatents(Codec("bundled")))
    latents = AdaptedEnCodecMAE(latents, **options)
    assert not any("front_end" in name for name in learnt(latents))
    norms = AdaptedEnCodecMAE(
        make_lobe(), LoRA, target_layers=["*.qkv"], unfrozen_layers=["*.final_norm"]
    )
    assert {name.split(".")[-2] for name in learnt(norms)} == {
        *("adapter_down_proj", "adapter_up_proj", "final_norm"),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_layers": ["*.query"]}, r"no layer that learns.*attention\.qkv"),
        ({"target_layers": []}, "no layer that learns"),
        ({"target_layers": ["*.norm1"]}, "norm1, a LayerNorm: only linear"),
        ({"model_to_adapt": torch.nn.Linear(2, 2)}, "is a Linear: give an"),
    ],
)
def test_adapters_that_would_not_learn(options, message):
    with pytest.raises(UserError, match=message):
        AdaptedEnCodecMAE(
            **{"model_to_adapt": make_lobe, "adapter_class": LoRA, **options}
        )


def test_what_could_not_be_exported_is_known_before_training():
    raw = AdaptedModel(make_lobe(), LoRA, all_linear=True)
    with pytest.raises(UserError, match="AdaptedModel cannot be exported"):
        describe(raw)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_exported_recogniser_has_its_adapters(kind, tmp_path):
    lobe = partial(make_lobe, "weighted")
    adapted = AdaptedEnCodecMAE(lobe, NAMED[kind], target_layers=["*.qkv", "*.out"])
    for name, parameter in adapted.named_parameters():
        if name in learnt(adapted):
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = Tokens.of_characters(["ONE TWO"])
    head = CTCHead(16, len(tokens), hidden_size=8).eval()
    export_recogniser(adapted, head, tokens, {"beam_size": 4}, tmp_path / "asr", "", {})
    loaded = foreign_class(
        source=str(tmp_path / "asr"),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    )
    wavs, lens = torch.rand(2, 9600) - 0.5, torch.tensor([1.0, 0.6])
    assert torch.equal(loaded.mods.lobe(wavs, lens), adapted.eval()(wavs, lens))
    assert not torch.equal(make_lobe("weighted")(wavs, lens), adapted(wavs, lens))
    texts, _ = loaded.transcribe_batch(wavs, lens)
    assert len(texts) == 2


def test_the_recipe_trains_adapters_and_goes_on(tmp_path):
    """Killed after its second checkpoint, and started again: as if it never was."""
    encoder = export_tiny(tmp_path / "encoder")
    (tmp_path / "corpus").mkdir()
    given = {
        **TINY,
        "encoder_folder": encoder,
        "data_folder": link_speaker(tmp_path / "corpus"),
        "number_of_epochs": 1,
        "ckpt_interval_steps": 2,
        "ckpt_interval_minutes": 0,
        "device": "cpu",
    }

    def arguments(name):
        options = {**given, "output_folder": tmp_path / name}
        words = [str(part) for k, v in options.items() for part in (f"--{k}", v)]
        return [str(ROOT / "hparams/asr_ctc_mini_lora.yaml"), *words]

    recipe = ["python", ROOT / "recipes/asr_ctc.py"]
    run_recipe("asr_ctc", *arguments("straight"))
    run_killed([*recipe, *arguments("broken")], 2, cwd=tmp_path, env=environment())
    run_recipe("asr_ctc", *arguments("broken"))
    straight, broken = (
        (
            json.loads((tmp_path / name / "metrics.json").read_text()),
            torch.load(tmp_path / name / "asr/lobe.ckpt", weights_only=True),
        )
        for name in ("straight", "broken")
    )
    assert straight[0] == broken[0]
    assert straight[0]["protocol"].startswith("adapters (LoRA in 7 layers, ")
    learns = {"adapted_model.layer_weights"}
    for name, tensor in straight[1].items():
        assert torch.equal(tensor, broken[1][name]), name
        if name.endswith("adapter_up_proj.weight"):
            assert tensor.any(), name  # it was zero
    assert straight[1]["adapted_model.layer_weights"].any()
    (saved,) = {
        tuple(torch.load(path / "encoder.ckpt", weights_only=True))
        for path in tmp_path.glob("straight/save/CKPT*")
    }
    assert learns < set(saved)
    assert all(".adapter_" in name for name in set(saved) - learns)
    lobe = EnCodecMAE(encoder).encoder.state_dict()
    kept = {
        name.removeprefix("adapted_model.encoder.").replace(".pretrained_module", ""): w
        for name, w in straight[1].items()
        if ".adapter_" not in name and name not in learns
    }
    assert kept.keys() == lobe.keys()
    assert all(torch.equal(kept[name], lobe[name]) for name in lobe)
