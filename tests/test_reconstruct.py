"""Reconstruction: it measures what validation measures."""

import json
import shutil
import sys

import pytest
import soundfile
import torch
from commands import ROOT, command, execute

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.crops import FixedCrops
from encodecmae_sb.evaluation.reconstruct import (
    draw_mask,
    fill_in,
    given_gaps,
    load_run,
    newest_checkpoint,
    random_gaps,
    silence,
)
from encodecmae_sb.inference.encoder import read_file
from encodecmae_sb.lobes import Codec
from encodecmae_sb.nnet.codec_training import init_seanet_
from encodecmae_sb.nnet.encodec import build_encodec
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.utils.errors import UserError

UTTERANCES = sorted((speech_folder() / "test").rglob("*.flac"))
UTTERANCE = UTTERANCES[0]
SEED = 1234  # of mini.yaml


RECIPE = [sys.executable, ROOT / "recipes/reconstruct.py"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the bundled files, in official parts."""
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    for part, count in (("train", 24), ("dev", 8)):
        (folder / part).mkdir(parents=True)
        for path in sorted((speech_folder() / part).rglob("*.flac"))[:count]:
            shutil.copy(path, folder / part)
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A codec with few codes, so that a tiny model gets some of them right."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = build_encodec(n_filters=4, n_codebooks=8, codebook_size=8)
    init_seanet_(net)
    wavs = torch.stack([read_file(path, 24000)[:24000] for path in UTTERANCES[:8]])
    left = net.encoder(wavs[:, None]).detach().transpose(1, 2).flatten(0, 1)
    for layer in net.quantizer.vq.layers:
        chosen = torch.randperm(len(left), generator=generator)[:8]
        layer._codebook.embed.copy_(left[chosen])
        left = left - layer.decode(layer.encode(left.T[None]))[0].T
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    save_codec(net, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, codec):
    """The output folder of a finished pretraining."""
    output = tmp_path_factory.mktemp("reconstruct") / "run"
    arguments = command(
        output,
        data_folder=corpus,
        codec=codec,
        codebook_size=8,
        training_steps=40,
        valid_interval=40,
        lr=0.003,
        valid_items=8,
        precision="fp32",
    )
    execute(arguments, output.parent)
    return output


@pytest.fixture(scope="module")
def run(finished):
    return load_run(finished)


@pytest.fixture(scope="module")
def wav(run):
    return read_file(UTTERANCE, 24000)


def test_accuracy_is_that_of_the_validation(finished, run):
    assert run.codec.normalise == "level"  # as in the yaml, from save/identity.json
    crops = FixedCrops([finished / "save/speech_valid.csv"], 8, 0.5, 24000, SEED)
    hidden, right = 0, torch.zeros(8)
    for item in crops:
        mask = draw_mask(run.masker, len(item["wav"]), item["seed"])
        done = fill_in(run, item["wav"], mask)
        hidden += int(mask.sum())
        right += done.accuracy * mask.sum()
    assert hidden == 8 * 18  # half of 37 frames
    expected = [run.metrics[f"masked_accuracy_{q}"] * hidden for q in range(1, 9)]
    assert sum(expected) > 100  # else there would be nothing to compare
    # Batches of another size may tip a code or two over.
    assert (right - torch.tensor(expected)).abs().max() < 1.5
    assert abs(right.sum() - sum(expected)) < 2.5


def test_long_audio_is_done_in_chunks(run, wav):
    hidden = random_gaps(run, len(wav), seed=3)
    assert run.crop == 12160
    assert len(hidden) == -(-len(wav) // 320)
    assert not torch.equal(hidden, random_gaps(run, len(wav), seed=4))
    done = fill_in(run, wav, hidden)
    for i, start in enumerate(range(0, len(wav), run.crop)):
        chunk = wav[start : start + run.crop]
        frames = slice(38 * i, 38 * i + -(-len(chunk) // 320))
        padded = torch.nn.functional.pad(chunk, (0, -len(chunk) % 320))
        assert torch.equal(done.codes[frames], run.codec.encode(padded[None])[0])
        assert hidden[frames].sum() == len(chunk) // 320 // 2
        alone = fill_in(run, chunk, hidden[frames])
        assert torch.equal(alone.predicted, done.predicted[frames])
    assert torch.equal(done.filled[~hidden], done.codes[~hidden])
    assert not torch.equal(done.filled[hidden], done.codes[hidden])


def test_the_model_does_not_see_what_is_hidden(run, wav):
    wav = wav[:12160]
    hidden = given_gaps("0.1-0.3", len(wav))
    other = wav.clone()
    other[2880:6720] = 0.3  # in no window of a visible frame
    predicted = [fill_in(run, w, hidden).predicted[hidden] for w in (wav, other)]
    assert torch.equal(*predicted)
    assert not torch.equal(*(run.codec.encode(w[None])[0][9:21] for w in (wav, other)))


def test_temperature_draws_codes_by_seed(run, wav):
    hidden = random_gaps(run, len(wav))
    best = fill_in(run, wav, hidden)
    drawn = [fill_in(run, wav, hidden, 1.0, seed) for seed in (1, 1, 2)]
    assert torch.equal(best.filled, best.predicted)
    assert torch.equal(drawn[0].filled, drawn[1].filled)
    assert not torch.equal(drawn[0].filled, drawn[2].filled)
    cold = fill_in(run, wav, hidden, 1e-4)
    assert (cold.filled == best.filled).double().mean() > 0.99
    # The accuracy is of the most probable codes, whatever is heard.
    assert torch.equal(drawn[0].accuracy, best.accuracy)


def test_from_the_shell(finished, codec, tmp_path):
    options = ["--gaps", "0.5-0.7,1.2-1.5", "--output_folder", tmp_path / "out"]
    printed = execute([*RECIPE, UTTERANCE, finished, *options], tmp_path)
    assert "Chance is 12.50 (1/8)" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    sounds = {"codec.wav", "masked.wav", "filled.wav"}
    assert names == sounds | {"spectrograms.png", "metrics.json"}
    plain, masked, filled = (
        soundfile.read(tmp_path / "out" / f"{name}.wav")[0]
        for name in ("codec", "masked", "filled")
    )
    assert len(plain) == len(masked) == len(filled) == len(read_file(UTTERANCE, 24000))
    # 0.5 s and 0.7 s are within half a frame of frames 38 and 52.
    gap, before = slice(320 * 38, 320 * 52), slice(0, 320 * 38)
    assert abs(masked[gap]).max() == 0 < abs(plain[gap]).max()
    assert (masked[before] == plain[before]).all()
    # The codec's decoder looks back only, so that the beginning is as it was.
    assert abs(filled[before] - plain[before]).max() < 1e-3
    assert abs(filled[gap] - plain[gap]).max() > 1e-3
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["hidden_frames"] == 14 + 22
    for q in range(1, 9):
        assert 0 <= metrics[f"gap_accuracy_{q}"] <= 1
        assert 0 <= metrics[f"constant_accuracy_{q}"] <= 1
    assert metrics["codec"] == str(codec)


def test_silence_is_where_it_was_hidden():
    hidden = torch.tensor([False, True, False])
    quiet = silence(torch.ones(900), hidden)
    assert quiet.nonzero().flatten().tolist() == [*range(320), *range(640, 900)]


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        ("0.5-9", "2.15 s long"),
        ("-0.5-0.7", "START-STOP"),
        ("0.7-0.5", "START must come before STOP"),
        ("0.5-nan", "START must come before STOP"),
        ("abc", "START-STOP"),
        ("2.1466-2.148", "no whole frame"),
    ],
)
def test_gaps_that_cannot_be(wav, gaps, message):
    assert 2.14 < len(wav) / 24000 < 2.155
    with pytest.raises(UserError, match=message):
        given_gaps(gaps, len(wav))


def test_a_chunk_hidden_whole(run, wav):
    with pytest.raises(UserError, match="from 0.51 to 1.01 s"):
        fill_in(run, wav, given_gaps("0.4-1.2", len(wav)))


def copy(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (checkpoint,) = folder.glob("save/CKPT*")
    return folder, checkpoint / "model.ckpt"


def test_checkpoints_that_cannot_be_used(finished, tmp_path):
    folder, weights = copy(finished, tmp_path)
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="complete"):
        load_run(folder)
    torch.save({"weight": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match="complete"):
        load_run(folder)
    # The one before is taken, as by the run itself.
    shutil.copytree(finished / "save", folder / "save", dirs_exist_ok=True)
    (older,) = folder.glob("save/CKPT*")
    newer = shutil.copytree(older, folder / "save/CKPT+newer")
    meta = newer / "CKPT.yaml"
    meta.write_text(meta.read_text().replace("unixtime: 1", "unixtime: 2"))
    assert newest_checkpoint(folder) == newer
    (newer / "model.ckpt").write_bytes(data[: len(data) // 2])
    assert newest_checkpoint(folder) == older
    shutil.rmtree(newer)
    shutil.rmtree(weights.parent)
    with pytest.raises(UserError, match="no checkpoint"):
        load_run(folder)


def test_folders_that_are_no_pretraining(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such folder"):
        load_run(tmp_path / "none")
    for other in (tmp_path, finished / "encoder"):
        with pytest.raises(UserError, match="not a pretraining run"):
            load_run(other)
    folder, _ = copy(finished, tmp_path)
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text() + "\nteacher: results/encoder\n")
    with pytest.raises(UserError, match="self-training"):
        load_run(folder)


def test_a_run_that_names_no_codec(finished, codec, tmp_path):
    folder, _ = copy(finished, tmp_path)
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match="--codec bundled"):
        load_run(folder)
    assert load_run(folder, codec).codec.source == str(codec)


def test_a_codec_without_decoder(finished, codec, tmp_path):
    net = Codec(codec).net
    net.decoder = None
    save_codec(net, tmp_path / "encoder_only.safetensors")
    run = load_run(finished, tmp_path / "encoder_only.safetensors")
    with pytest.raises(UserError, match="without its decoder"):
        run.codec.decode(torch.zeros(1, 3, 8, dtype=torch.int64))
