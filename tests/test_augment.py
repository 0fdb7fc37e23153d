"""What the model hears: each effect as it was asked for, and drawn from seeds alone."""

import math

import pytest
import soundfile
import torch
from random_values import noise

from encodecmae_sb.data.manifest import prepare_corpora, read_manifest
from encodecmae_sb.lobes import InputAugment, augment
from encodecmae_sb.nnet.draws import uniform
from encodecmae_sb.utils.errors import UserError

EFFECTS = ("level", "equaliser", "room", "noise", "background")
BACKGROUND = torch.randn(200_000, generator=torch.Generator().manual_seed(1))


def make(**options):
    """An augmentation of the given effects alone; each is certain by default."""
    given = {key.partition("_")[0] for key in options}
    off = {f"{name}_probability": float(name in given) for name in EFFECTS}
    augment = InputAugment(background_seconds=1, **{**off, **options})
    augment.background = BACKGROUND.view(-1, 64)
    return augment


def seeds(count):
    return torch.arange(count) * 2**40 + 12345


def power(wavs):
    return wavs.square().mean(-1)


def test_draws_are_even():
    draws = uniform(seeds(20000), 3, 2)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts = torch.histc(column, 20, 0, 1)
        assert (counts / 1000 - 1).abs().max() < 0.15
    assert torch.corrcoef(draws.T)[0, 1].abs() < 0.03


def test_an_item_is_altered_by_its_seed_alone():
    """Not by the batch, the order in it, or what it is padded to."""
    every = make(**{f"{name}_probability": 0.6 for name in EFFECTS})
    wavs, lengths = 0.3 * noise(8, 9600), torch.tensor([9600, 3000] * 4)
    wavs = wavs * (torch.arange(9600) < lengths[:, None])
    clean = wavs.clone()
    heard = every(wavs, lengths, seeds(8))
    assert torch.equal(wavs, clean)
    assert torch.equal(heard, every(wavs, lengths, seeds(8)))
    assert heard[1, 3000:].abs().max() == 0
    order = torch.tensor([5, 2, 7])
    some = every(wavs[order], lengths[order], seeds(8)[order])
    torch.testing.assert_close(some, heard[order])
    for i in range(8):
        alone = every(
            wavs[i : i + 1, : lengths[i]], lengths[i : i + 1], seeds(8)[i, None]
        )
        torch.testing.assert_close(alone[0], heard[i, : lengths[i]], atol=1e-6, rtol=0)
    other = every(wavs, lengths, seeds(8) + 1)
    assert ((other - heard).abs().amax(1) > 1e-4).sum() >= 6


@pytest.mark.parametrize("effect", EFFECTS)
def test_probability(effect):
    wavs, lengths = noise(1, 640).expand(2000, -1), torch.full((2000,), 640)
    heard = make(**{f"{effect}_probability": 0.3})(wavs, lengths, seeds(2000))
    changed = ~(heard == wavs).all(1)
    assert abs(changed.float().mean() - 0.3) < 0.04
    off = make(**{f"{effect}_probability": 0.0})
    assert torch.equal(off(wavs, lengths, seeds(2000)), wavs)


def test_effects_are_drawn_apart():
    """One effect is the same with the others or without."""
    wavs, lengths = noise(50, 640), torch.full((50,), 640)
    alone = make(noise_probability=0.5)(wavs, lengths, seeds(50))
    both = make(noise_probability=0.5, level_db=6)(wavs, lengths, seeds(50))
    gains = (both / alone).median(1).values
    torch.testing.assert_close(both, gains[:, None] * alone)
    chosen = ~(alone == wavs).all(1)
    assert torch.corrcoef(torch.stack([gains, chosen.float()]))[0, 1].abs() < 0.3


def test_level():
    wavs, lengths = noise(1, 320).expand(1000, -1), torch.full((1000,), 320)
    heard = make(level_db=8)(wavs, lengths, seeds(1000))
    gains = 10 * (power(heard) / power(wavs)).log10()
    assert gains.min() >= -8.01
    assert gains.max() <= 8.01
    assert abs(gains.std() - 16 / math.sqrt(12)) < 0.4
    torch.testing.assert_close(heard, wavs * 10 ** (gains / 20)[:, None])


def impulses(count, **options):
    """Responses to an impulse in the middle of 1 s."""
    wavs = torch.zeros(count, 24000)
    wavs[:, 12000] = 1
    return make(**options)(wavs, torch.full((count,), 24000), seeds(count))


def test_equaliser():
    """Smooth, within its range, without delay, and of the same power."""
    heard = impulses(50, equaliser_db=6)
    torch.testing.assert_close(power(heard), torch.full((50,), 1 / 24000))
    assert (heard.argmax(1) == 12000).all()
    after, before = heard[:, 12001:13000], heard[:, 11001:12000].flip(1)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    db = 20 * torch.fft.rfft(heard).abs().log10()
    spread = db.amax(1) - db.amin(1)
    assert spread.max() <= 12.1
    assert spread.median() > 5
    octave = (db[:, 8000] - db[:, 4000]).abs()
    assert octave.max() > 5  # neighbours are drawn apart
    assert (db[:, 4400] - db[:, 4000]).abs().max() < 2.5


def test_room():
    """Echoes follow, and fall as fast as they should."""
    heard = impulses(200, room_seconds=[0.2, 0.2])
    torch.testing.assert_close(power(heard), torch.full((200,), 1 / 24000))
    assert heard[:, :12000].abs().max() < 1e-5
    assert heard[:, 12001:12070].abs().max() < 1e-5
    assert (heard.argmax(1) == 12000).all()
    echoes = heard / heard[:, 12000, None]
    energy = echoes[:, 12001:].square().sum(1)
    assert energy.max() <= 1.01
    assert energy.min() >= 10**-1.51
    curve = 10 * echoes[:, 12100:14100].square().mean(0).view(10, 200).mean(1).log10()
    slope = (curve[-1] - curve[0]) / 9 * (24000 / 200)  # dB a second
    assert abs(slope + 60 / 0.2) < 15


def added(**options):
    wavs, lengths = noise(200, 9600), torch.full((200,), 9600)
    return wavs, make(**options)(wavs, lengths, seeds(200)) - wavs


def test_noise():
    wavs, more = added(noise_snr=[10, 20])
    ratio = 10 * (power(wavs) / power(more)).log10()
    assert 8.5 < ratio.min() < 11
    assert 19 < ratio.max() < 22
    spectrum = torch.fft.rfft(more).abs().square()
    slope = 10 * (spectrum[:, 200:400].mean(1) / spectrum[:, 1600:3200].mean(1)).log10()
    assert slope.min() < 1.5  # white
    assert 7.5 < slope.max() < 10.5  # pink: 3 dB an octave, here three octaves


def test_background():
    """A piece of the audio that was given."""
    wavs, more = added(background_snr=[0, 6])
    ratio = 10 * (power(wavs) / power(more)).log10()
    assert -0.3 < ratio.min() < 0.5
    assert 5.5 < ratio.max() < 6.3
    for piece in more[:5]:
        size = 2**18
        product = torch.fft.rfft(BACKGROUND, size) * torch.fft.rfft(piece, size).conj()
        match = torch.fft.irfft(product).max() / (piece.norm() * 9600**0.5)
        assert match > 0.9


def test_what_is_longer_than_the_background():
    short = InputAugment(background_seconds=1)
    wavs, lengths = noise(2, 320 * 90), torch.tensor([28800, 320])
    assert torch.isfinite(short(wavs, lengths, seeds(2))).all()


def test_silence_and_no_length():
    every = make(**{f"{name}_probability": 1.0 for name in EFFECTS})
    heard = every(torch.zeros(2, 6400), torch.tensor([6400, 0]), seeds(2))
    assert heard.abs().max() == 0


def test_background_by_folder(tmp_path):
    """At one level, with nothing that is kept for validation or test."""
    for number, part in enumerate(["train", "dev", "test", "train", "train"]):
        folder = tmp_path / part
        folder.mkdir(exist_ok=True)
        gain = 0.0 if number == 4 else 0.5 / 10**number
        tone = gain * torch.sin(torch.arange(24000) * (number + 1) / 20)
        soundfile.write(folder / f"{number}.wav", tone.numpy(), 24000, subtype="FLOAT")
    (tmp_path / "train" / "broken.wav").write_bytes(b"no audio")
    made = InputAugment(background=tmp_path, background_seconds=9)
    sound = made.background.flatten()
    assert len(sound) == 48000
    torch.testing.assert_close(
        power(sound.view(2, -1)), torch.ones(2), atol=0.02, rtol=0
    )
    loudest = torch.fft.rfft(sound.view(2, -1)).abs().argmax(1).sort().values
    assert (loudest - 24000 / 20 / (2 * math.pi) * torch.tensor([1, 4])).abs().max() < 2
    assert made.fingerprint() == InputAugment(background=str(tmp_path)).fingerprint()
    assert (
        made.fingerprint() != InputAugment(background=[tmp_path / "dev"]).fingerprint()
    )


@pytest.mark.parametrize("count", [1, 3, 40])
def test_what_is_held_out_is_not_in_the_background(tmp_path, monkeypatch, count):
    """Without parts, too: just what a pretraining on the same folder trains on."""
    folder = tmp_path / "sounds"
    (folder / "one/dev").mkdir(parents=True)
    (folder / "one/test").mkdir()
    for number in range(count):
        for ending in ("wav", "flac") if number % 5 == 0 and count > 1 else ("wav",):
            sound = noise(640, seed=number).numpy()
            soundfile.write(folder / f"one/{number}.{ending}", sound, 24000)
    heard = []
    real = augment.read_audio

    def read_audio(path, *args, **options):
        heard.append(str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(augment, "read_audio", read_audio)
    InputAugment(background=folder)
    if count == 1:  # nothing can be pretrained on it
        assert heard == [str(folder / "one/0.wav")]
        return
    (corpus,) = prepare_corpora(folder, tmp_path / "lists")
    assert sorted(heard) == sorted(r["wav"] for r in read_manifest(corpus.train_csv))
    for part in ("dev", "test"):  # deeper than official parts are
        soundfile.write(folder / f"one/{part}/0.wav", noise(640).numpy(), 24000)
    before = sorted(heard)
    heard.clear()
    InputAugment(background=folder)
    assert sorted(heard) == before


def test_settings_without_meaning(tmp_path):
    for options, message in [
        ({"level_probability": 1.5}, "level_probability=1.5 .* from 0 to 1"),
        ({"noise_snr": 5}, r"noise_snr=5 .*\[5, 30\]"),
        ({"noise_snr": [30, 5]}, "the least and the greatest"),
        ({"room_seconds": [0.1, "x"]}, "the shortest and the longest"),
        ({"equaliser_db": True}, "equaliser_db=True"),
    ]:
        with pytest.raises(UserError, match=message):
            make(**options)
    with pytest.raises(UserError, match="background_seconds=0"):
        InputAugment(background_seconds=0)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        InputAugment(background=tmp_path / "none")
    soundfile.write(tmp_path / "a.wav", torch.zeros(9000).numpy(), 24000)
    with pytest.raises(UserError, match="no audio that can be used"):
        InputAugment(background=tmp_path)
