"""The X-ARES encoder class: what X-ARES checks, and how it finds the class."""

import importlib
import importlib.util

import pytest
import torch

from encodecmae_sb import xares
from encodecmae_sb.nnet.chunks import encode_in_chunks


@pytest.fixture
def user_file(encoder_folder, tmp_path, monkeypatch):
    """The file that the documentation tells users to write, importable."""
    text = xares.__doc__.partition("::\n\n")[2].partition("\n\nand run")[0]
    lines = [line.removeprefix("    ") for line in text.splitlines()]
    source = "\n".join(lines).replace("results/mini/1234/encoder", str(encoder_folder))
    (tmp_path / "xares_user_file.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "xares_user_file.py"
    importlib.sys.modules.pop("xares_user_file", None)


def test_the_documented_file(user_file):
    module = importlib.import_module(user_file.removesuffix(".py"))
    # X-ARES takes the one name with this ending.
    (name,) = [name for name in dir(module) if name.endswith("Encoder")]
    encoder = getattr(module, name)()
    assert type(encoder).__name__ == "MiniEncoder"
    assert isinstance(encoder, torch.nn.Module)
    assert isinstance(encoder.sampling_rate, int)
    audio = torch.randn(2, 50000)  # louder than full scale, as in X-ARES' own check
    embeddings = encoder(audio)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape[::2] == (2, encoder.output_dim)
    assert torch.isfinite(embeddings).all()


def test_one_class_in_the_module():
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["XaresEncoder"]


@torch.no_grad()
def test_embeddings_are_those_of_the_encoder(encoder_folder):
    encoder = xares.XaresEncoder(encoder_folder)
    audio = torch.rand(2, 150000) - 0.5
    want = torch.stack(encode_in_chunks(encoder.encoder, audio))
    assert torch.equal(encoder(audio), want)
    assert (encoder(audio[0]) - want[:1]).abs().max() < 1e-4
    assert not encoder(audio).requires_grad


def test_hop_size_places_frames_of_long_audio(encoder_folder):
    encoder = xares.XaresEncoder(encoder_folder)
    seconds = 60
    frames = encoder(torch.zeros(1, seconds * encoder.sampling_rate)).shape[1]
    assert frames == pytest.approx(1000 * seconds / encoder.hop_size_in_ms, abs=2)


@pytest.mark.parametrize("samples", [1, 300, 96001])
def test_any_length(encoder_folder, samples):
    assert xares.XaresEncoder(encoder_folder)(torch.zeros(2, samples)).shape[1] >= 1


def test_bad_input(encoder_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="mel256-ec-base"):
        xares.XaresEncoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="at least one"):
        xares.XaresEncoder(encoder_folder)(torch.zeros(2, 0))


# In an environment that has it: pip install -e '.[test]' xares==0.1.3
@pytest.mark.skipif(
    importlib.util.find_spec("xares") is None,
    reason="xares is not installed (see the comment above this test)",
)
def test_the_check_of_xares(user_file):
    from xares.audio_encoder_checker import check_audio_encoder
    from xares.utils import attr_from_py_path

    encoder = attr_from_py_path(user_file, endswith="Encoder")()
    assert check_audio_encoder(encoder) is True
