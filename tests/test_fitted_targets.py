"""Targets besides the codec: how they are fitted, and what their codes depend on."""

import itertools
import math
from functools import partial

import pytest
import torch
from commands import run_recipe
from fitted import (  # noqa: F401
    KINDS,
    MEL_KINDS,
    SIZES,
    fitted_targets,
    named,
    some_speech,
)
from teachers import make_encoder, noises

from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.data.codes import StoredCodes
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.lobes import (
    Clusters,
    Codec,
    MaskedCodecLoss,
    MelRVQ,
    SeveralTargets,
)
from encodecmae_sb.lobes import targets as lobes
from encodecmae_sb.nnet.chunks import CHUNK
from encodecmae_sb.nnet.clusters import ClusterTargets
from encodecmae_sb.nnet.loss import default_weights
from encodecmae_sb.nnet.quantise import LevelFreeMel, residual_codes, standardise
from encodecmae_sb.nnet.targets import identify, licence_of, weights_of
from encodecmae_sb.pipelines import extract as pipeline
from encodecmae_sb.pipelines.fit_targets import Clips, fit_mel_rvq
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.licence import ENCODEC
from encodecmae_sb.utils.errors import UserError


@pytest.fixture(scope="module")
def speech(corpus):
    """Held-out recordings one after another, samples [N]."""
    files = sorted((corpus / "dev").glob("*.flac"))
    return torch.cat([read_audio(file, 24000) for file in files])[: 24000 * 5]


@pytest.mark.parametrize("kind", MEL_KINDS)
def test_the_level_does_not_matter(fitted, speech, kind):
    targets = named(fitted[0], kind)()
    codes = targets.encode(speech[None])
    assert len(codes.unique()) > 20
    for gain in (0.1, 10.0):
        other = targets.encode(gain * speech[None])
        assert (other != codes).double().mean() < 2e-3
    # Only digital silence is at the absolute floor: it is one constant code.
    assert len(targets.encode(torch.zeros(1, 3200)).unique(dim=1)[0]) == 1


def test_frames_keep_how_the_level_changes():
    """Within a frame with the one before it."""
    noise = torch.randn(1, 6400, generator=torch.Generator().manual_seed(0))
    louder = noise.clone()
    louder[:, 3200:] *= 10
    mel = LevelFreeMel(n_mels=24, stack=2)
    differ = (mel(noise) - mel(louder)).abs().amax(-1)[0]
    assert (differ[:10] < 1e-3).all()
    assert (differ[10:12] > 0.5).all()
    assert (differ[12:] < 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_does_not_depend_on_its_batch(fitted, speech, kind):
    targets = named(fitted[0], kind)()
    lengths = torch.tensor([24000, 9600, 16123])
    wavs = torch.zeros(3, 24000)
    for row, length in zip(wavs, lengths.tolist(), strict=True):
        row[:length] = speech[length : 2 * length]
    codes = targets.encode(wavs, lengths)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, 75, targets.n_codebooks)
    assert codes.min() >= 0
    assert codes.max() < targets.codebook_size
    for row, wav, length in zip(codes, wavs, lengths, strict=True):
        alone = targets.encode(wav[None, :length], length[None])[0]
        frames = int(length) // 320
        assert torch.equal(alone[:frames], row[:frames])


def extracted(targets, corpus, folder):
    """Stored codes of the files to validate on."""
    (prepared,) = prepare_corpora(corpus, folder)
    pipeline.open_folder(targets, folder / "codes")
    settings = torch.device("cpu"), 2, 0, 1.0
    manifests = [prepared.valid_csv]
    pipeline.extract(targets, manifests, folder / "codes", *settings, quiet=True)
    stored = StoredCodes(folder / "codes")
    (codes,) = stored.of_manifests(manifests, targets.n_codebooks, "")
    return stored, codes


def check_whole(targets, codes):
    """Makes sure that stored codes are those of whole files."""
    for file, path in enumerate(codes.paths):
        wav = read_audio(path, 24000)
        whole = targets.encode(wav[None], torch.tensor([len(wav)]))[0]
        crop = codes.cut(file, 0.0, 1e6)
        assert torch.equal(crop["targets"], whole[: len(wav) // 320])


@pytest.mark.parametrize("kind", KINDS)
def test_stored_codes_are_those_of_the_whole_file(fitted, corpus, tmp_path, kind):
    """However long files are cut; and a crop alone differs at its start only."""
    targets = named(fitted[0], kind)()
    if kind in MEL_KINDS:
        targets.chunk_samples = 9600
    stored, codes = extracted(targets, corpus, tmp_path)
    assert stored.info.fingerprint == identify(named(fitted[0], kind)).fingerprint
    check_whole(targets, codes)
    for file in range(len(codes.paths)):
        if kind not in MEL_KINDS:
            continue
        crop = codes.cut(file, 0.5, 0.5)
        alone = targets.encode(crop["wav"][None])[0]
        assert torch.equal(alone[2:], crop["targets"][2:])


@pytest.mark.parametrize("kind", ["clusters", "several", "without a codec"])
def test_stored_codes_of_clusters_are_those_of_pieces(fitted, tmp_path, kind):
    """Of 4 s from the start of the file, whatever is encoded before a chunk."""
    named_so = named(fitted[0], kind if kind in KINDS else "several")
    if kind not in KINDS:
        named_so = partial(SeveralTargets, named_so.args[0][1:])
    targets = named_so()
    targets.chunk_samples = CHUNK
    stored, codes = extracted(targets, noises(tmp_path / "noises", 1), tmp_path)
    assert stored.info.fingerprint == identify(named_so).fingerprint
    crop = codes.cut(0, 0.0, 1e6)
    assert len(crop["wav"]) == 9 * 24000
    assert len(set(crop["targets"][:, -1].tolist())) > 3
    check_whole(targets, codes)


def test_each_codebook_leaves_less_and_less_than_random_ones(fitted, speech):
    """On recordings that were not fitted to."""
    folder, results = fitted
    left = results["mel_rvq"].left
    assert sorted(left, reverse=True) == left
    assert left[0] < 0.7
    targets = MelRVQ(folder / "mel_rvq")
    frames = standardise(targets.mel(speech[None]), targets.mean, targets.std)[0]
    generator = torch.Generator().manual_seed(0)
    rest, against = [frames], [frames]
    for book in targets.codebooks:
        # Random entries of the same mean and deviation.
        random = torch.randn(book.shape, generator=generator) * book.std(0)
        rest.append(residual_codes(rest[-1], book[None])[1])
        against.append(residual_codes(against[-1], (book.mean(0) + random)[None])[1])
    errors = [float(x.square().mean()) for x in rest]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.8 * float(against[-1].square().mean())


def test_all_codes_are_used(fitted):
    for kind in ("mel_rvq", "clusters"):
        assert all((counts > 0).all() for counts in fitted[1][kind].counts)
    for counts in fitted[1]["random_projection"].counts:
        assert (counts > 0).double().mean() > 0.5


def test_the_fingerprint_is_that_of_the_content(fitted, corpus, tmp_path, monkeypatch):
    first = fitted[1]["mel_rvq"].fingerprint
    again, other = (Clips(corpus, 12, seed, quiet=True) for seed in (0, 1))
    fit = partial(fit_mel_rvq, **SIZES, passes=3)
    assert fit(tmp_path / "a", again).fingerprint == first
    assert fit(tmp_path / "b", other).fingerprint != first
    for kind in KINDS:
        label = named(fitted[0], kind)().label
        with monkeypatch.context() as patch:
            patch.setattr(lobes, "load_targets", None)  # nothing has to be loaded
            patch.setattr("encodecmae_sb.lobes.codec.load_network", None)
            assert identify(named(fitted[0], kind)) == label
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match="changed after it was written"):
        MelRVQ(tmp_path / "a")


def test_a_file_that_cannot_serve(fitted, tmp_path):
    with pytest.raises(UserError, match=r"fit_targets.py mel_rvq .*none.safetensors"):
        identify(partial(MelRVQ, tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="kind and format clusters"):
        MelRVQ(fitted[0] / "clusters")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(UserError, match="cannot be read"):
        MelRVQ(tmp_path / "junk")
    with pytest.raises(UserError, match="from 1 to 4"):
        MelRVQ(fitted[0] / "mel_rvq", n_codebooks=5)


def test_clusters_are_those_of_self_training(fitted, speech, tmp_path):
    clusters = Clusters(fitted[0] / "clusters")
    teacher, centroids = clusters.teacher, clusters.centroids
    same = ClusterTargets(teacher, "last_no_norm", centroids)
    assert torch.equal(clusters.encode(speech[None]), same.encode(speech[None]))
    export_encoder(teacher, tmp_path / "moved")
    moved = Clusters(fitted[0] / "clusters", encoder=tmp_path / "moved")
    assert moved.label == clusters.label
    export_encoder(make_encoder(seed=1), tmp_path / "other")
    with pytest.raises(UserError, match="of another encoder"):
        Clusters(fitted[0] / "clusters", encoder=tmp_path / "other")


def test_several_targets_stand_side_by_side(fitted, speech):
    folder = fitted[0]
    several = named(folder, "several")
    targets = several()
    assert (targets.n_codebooks, targets.codebook_size) == (2 + 4 + 1, 1024)
    codes = targets.encode(speech[None])
    parts = [part().encode(speech[None]) for part in several.args[0]]
    assert torch.equal(codes, torch.cat(parts, -1))
    assert codes[..., 2:6].max() < 32
    assert codes[..., 6].max() < 16
    weights = weights_of(partial(several, weights=[2, 1, 1]))
    paper = default_weights(4).tolist()
    expected = [*(2 * default_weights(2)).tolist(), *paper, 1.0]
    assert weights == pytest.approx(expected)
    # Other parts, other fingerprints; weights change none.
    fewer = partial(
        SeveralTargets, [partial(Codec, "bundled", 1), *several.args[0][1:]]
    )
    assert identify(fewer).fingerprint != targets.fingerprint()
    assert identify(partial(several, weights=[2, 1, 1])) == targets.label
    with pytest.raises(UserError, match="a list of 3 numbers"):
        identify(partial(several, weights=[1]))
    with pytest.raises(UserError, match="none negative"):
        identify(partial(several, weights=[2, 1, -1]))


def test_the_licence_of_what_targets_were_made_with(fitted):
    """The teacher of the clusters has EnCodec's, and need not be there."""
    for kind in KINDS:
        wanted = None if kind in MEL_KINDS else ENCODEC
        assert licence_of(named(fitted[0], kind)) == wanted
    elsewhere = partial(Clusters, fitted[0] / "clusters", encoder="moved")
    assert licence_of(elsewhere) == ENCODEC
    codecs = [partial(Codec, source, 1) for source in ("bundled", "encodec_24khz")]
    assert licence_of(partial(SeveralTargets, codecs, weights=[1, 2])) == ENCODEC
    assert licence_of(partial(SeveralTargets, codecs[:1])) is None


def test_random_projections_have_equal_weights(fitted):
    assert weights_of(named(fitted[0], "random_projection")) == [1.0] * 4
    assert weights_of(named(fitted[0], "mel_rvq")) is None


@pytest.mark.parametrize("values", [[1], [0, 0], [-1, 2], [1, math.nan], "12", 3])
def test_wrong_codebook_weights(values):
    with pytest.raises(UserError, match="list of 2 numbers"):
        MaskedCodecLoss(2).set_weights(values)


def test_the_command(corpus, teacher_folder, tmp_path, capsys):
    file = tmp_path / "new folder/clusters.safetensors"
    options = ["--data_folder", corpus, "--clips", "4", "--codebook_size", "8"]
    options += ["--num_workers", "0", "--device", "cpu"]
    encoder = ["--encoder_folder", teacher_folder]
    run_recipe("fit_targets", "clusters", file, *options, *encoder)
    text = capsys.readouterr().out
    assert f"--targets '!name:encodecmae_sb.lobes.Clusters [\"{file}\"]'" in text
    assert "--n_codebooks 1 --codebook_size 8" in text
    assert Clusters.label_of(file).fingerprint in text
    for arguments, message in [
        (["clusters", file, *encoder], "is there already"),
        (["clusters", tmp_path / "b"], "needs --encoder_folder"),
        (["mel_rvq", tmp_path / "b", *encoder], "mel_rvq has no such option"),
        (["mel_rvq", tmp_path / "b", "--stack", "0"], "at least 1"),
    ]:
        with pytest.raises(SystemExit, match=message):
            run_recipe("fit_targets", *arguments, *options)
