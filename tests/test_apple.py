"""What Apple's machines lack: float64 on their GPU, and processes that are forked."""

import contextlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.speech import collate_speech, librispeech_set, speech_dataset
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.evaluation.probe import _score
from encodecmae_sb.inference.encoder import check_batch
from encodecmae_sb.lobes import (
    AudioEncoder,
    EnCodecMAE,
    GapMasker,
    LogMel,
    MaskedCodecLoss,
    MaskedCodecModel,
    ResiDualTransformer,
)

# Float64


class There(torch.Tensor):
    """A CPU tensor that says that it is on an Apple GPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            dtype=values.dtype,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            device="meta",
        )

    is_mps = True

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, *args, **kwargs):
        raise RuntimeError("only within Apple()")


class Apple(TorchDispatchMode):
    """In this context "mps" is a device, without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        ]
        there = any(isinstance(x, There) for x in tensors)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == "meta"
            kwargs["device"] = "cpu"
        elif there and func is not torch.ops.aten.copy_.default:
            apart = [x for x in tensors if x.dim() and not isinstance(x, There)]
            assert not apart, f"{func} of tensors on two devices"
        args, kwargs = tree_map_only(There, lambda x: x.values, (args, kwargs))
        result = func(*args, **kwargs)
        if not there:
            return result
        dtypes = {x.dtype for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        if torch.float64 in dtypes:
            raise TypeError(f"{func}: there is no float64 on this device")
        return tree_map_only(torch.Tensor, There, result)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Autocast does not know the pretended device."""
    nothing = contextlib.nullcontext()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nothing)


def test_the_pretended_device():
    x = torch.arange(3.0)
    with Apple():
        there = There(x)
        assert there.is_mps
        assert (there * 2).cpu().equal(2 * x)
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        with pytest.raises(AssertionError, match="two devices"):
            there + x


def test_masks():
    lengths, seeds = torch.arange(1, 76), torch.arange(75)
    expected = GapMasker()(lengths, seeds, 75).hidden
    with Apple():
        masked = GapMasker()(There(lengths), There(seeds), 75).hidden
        assert masked.is_mps
        assert masked.cpu().equal(expected)


def parts(module):
    """Parameters and buffers of a module, moved."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: There(tensor.detach()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("centered", [True, False])
def test_log_mel(centered):
    front_end, wavs = LogMel(centered=centered), torch.rand(2, 6400) - 0.5
    with Apple():
        frames = functional_call(front_end, parts(front_end), There(wavs))
        assert frames.is_mps
    assert (frames.values - front_end(wavs)).abs().max() < 1e-3


def test_a_validation_step():
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 1, 2, 48))
    model = MaskedCodecModel(encoder, ResiDualTransformer(32, 1, 2, 48), 2, 16)
    wavs, codes = torch.rand(3, 24000) - 0.5, torch.arange(450).view(3, 75, 2) % 16
    lengths, corpus = torch.tensor([75, 75, 40]), torch.tensor([0, 1, 1])

    def validate(device):
        brain = SimpleNamespace(
            unigram=device(torch.arange(96.0).view(3, 2, 16)),
            sums=torch.zeros(2, 4, 2, dtype=torch.float64),
            frames=torch.zeros(2, dtype=torch.float64),
        )
        mask = GapMasker()(device(lengths), device(lengths), 75)
        weights = parts(model) if device is There else {}
        logits = functional_call(model, weights, (device(wavs), mask))
        loss_fn = MaskedCodecLoss(2)
        weights = parts(loss_fn) if device is There else {}
        given = (logits, device(codes), mask)
        loss = functional_call(loss_fn, weights, given)
        PretrainBrain.add_to_sums(
            brain, loss, device(codes), mask.hidden, device(corpus)
        )
        return brain

    with torch.no_grad():
        expected = validate(lambda tensor: tensor)
        with Apple():
            there = validate(There)
    assert there.frames.equal(expected.frames)
    assert torch.allclose(there.sums, expected.sums, rtol=1e-3)


def test_the_lobe():
    encoder = AudioEncoder(LogMel(), ResiDualTransformer(32, 2, 2, 48))
    lobe = EnCodecMAE(encoder, layer="weighted", chunk_seconds=0.5)
    wavs, lens = torch.rand(2, 12000) - 0.5, torch.tensor([1.0, 0.7])
    with torch.no_grad(), Apple():
        features = functional_call(lobe, parts(lobe), (There(wavs), There(lens)))
        assert features.is_mps
    assert (features.values - lobe(wavs, lens)).abs().max() < 1e-2


def test_the_score_of_a_probe():
    logits, targets = torch.eye(3).repeat(3, 1), torch.arange(9) // 2 % 3
    with Apple():
        score = _score(There(logits), There(targets))
    assert score == _score(logits, targets)
    assert 0 < score < 1


def test_a_batch_for_the_interface():
    wavs, wav_lens = torch.rand(2, 3200) - 0.5, torch.tensor([1.0, 0.5])
    with Apple():
        _, lengths = check_batch(There(wavs), There(wav_lens), None, 24000)
    assert lengths == [3200, 1600]


# Processes that are not forked get what they work on as a pickle.


@pytest.mark.parametrize("kind", ["characters", "chunks"])
def test_speech_goes_to_another_process(tmp_path, kind):
    speech = librispeech_set(speech_folder(), ["dev"], tmp_path)
    texts = [row["wrd"] for row in speech.rows]
    if kind == "characters":
        tokens = Tokens.of_characters(texts)
    else:
        tokens = Tokens.of_pieces(texts, 60)
    speech.rows[1]["wav"] = str(tmp_path / "gone.flac")
    speech.tokenize(tokens)
    data = speech_dataset(speech)
    expected = collate_speech([data[0], data[1], data[2]])
    # After it was used, too, as a sampler may have done.
    data, collate = pickle.loads(pickle.dumps((data, collate_speech)))
    batch = collate([data[0], data[1], data[2]])
    assert batch.id == expected.id
    assert batch.sig.data.equal(expected.sig.data)
    assert batch.tokens.data.equal(expected.tokens.data)
    assert batch.wrd == [texts[0], texts[2]]
    ((path, _),) = batch.unusable[0]
    assert path.endswith("gone.flac")
