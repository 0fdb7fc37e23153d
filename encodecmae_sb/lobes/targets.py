"""What a yaml can name as `targets` besides the codec."""

import math
from pathlib import Path

import torch

from encodecmae_sb.nnet.chunks import CHUNK
from encodecmae_sb.nnet.clusters import ClusterTargets
from encodecmae_sb.nnet.loss import default_weights
from encodecmae_sb.nnet.quantise import (
    LevelFreeMel,
    projected_codes,
    residual_codes,
    standardise,
)
from encodecmae_sb.nnet.targets import (
    Label,
    Targets,
    build,
    identify,
    licence_of,
    n_codebooks_of,
    weights_of,
)
from encodecmae_sb.pretrained.describe import module_key
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.pretrained.target_files import (
    load_targets,
    read_licence,
    read_settings,
)
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.precision import exact_float32
from encodecmae_sb.utils.values import are_weights


class _OfFile(Targets):
    """Targets that `recipes/fit_targets.py` has fitted and written to a file."""

    file_kind = None

    def fingerprint(self):
        """That of the file."""
        return self.file_fingerprint

    @classmethod
    def label_of(cls, file, *args, **kwargs):
        """`Label` of a file, from its header alone."""
        if cls.__module__ != __name__:  # a subclass may give other codes
            return super().label_of(file, *args, **kwargs)
        _, fingerprint = read_settings(file, cls.file_kind)
        return Label(cls.kind, cls._name_of(file), fingerprint)

    @classmethod
    def _name_of(cls, file):
        return f"{cls.__name__} {Path(file).name}"


class _MelTargets(_OfFile):
    """Codes of `LevelFreeMel` frames.

    They do not depend on the level of a recording, and only on what is before the end
    of their frame.
    """

    def __init__(self, file, n_codebooks=None):
        settings, tensors, fingerprint = load_targets(file, self.file_kind)
        available, size = tensors["codebooks"].shape[:2]
        n_codebooks = available if n_codebooks is None else n_codebooks
        if not 1 <= n_codebooks <= available:
            raise UserError(
                f"n_codebooks={n_codebooks}, but {file} has {available}: give a number "
                f"from 1 to {available}, or fit others: python recipes/fit_targets.py "
                f"{self.file_kind} FILE --n_codebooks {n_codebooks}"
            )
        super().__init__(n_codebooks, size, self._name_of(file))
        self.file_fingerprint = fingerprint
        self.mel = LevelFreeMel(settings["n_mels"], settings["stack"])
        self.context_samples = self.mel.context_samples
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.train(False)

    @classmethod
    def n_codebooks_of(cls, file, n_codebooks=None):
        """As given; default: all that the header of the file names."""
        settings, _ = read_settings(file, cls.file_kind)
        return settings["n_codebooks"] if n_codebooks is None else n_codebooks

    @torch.no_grad()
    def encode(self, wavs, lengths=None):
        """Codes [B, T, Q]; `lengths` do not matter to them. See `Targets.encode`."""
        with exact_float32(wavs.device.type):
            frames = standardise(self.mel(wavs), self.mean, self.std)
            codes = self._codes(frames.flatten(0, 1))
        return codes.unflatten(0, frames.shape[:2])


class MelRVQ(_MelTargets):
    """Residual k-means of level-free log-mel.

    Source: the targets of MuQ (arXiv 2501.01108), fitted by k-means.

    Arguments
    ---------
    file : str or Path
        Made by `python recipes/fit_targets.py mel_rvq FILE`.
    n_codebooks : int, optional
        How many of the residual codebooks to use; default: all.

    Raises
    ------
    UserError
        If there is no such file, or it has fewer codebooks.

    Example
    -------
    >>> from encodecmae_sb.pretrained.target_files import save_targets
    >>> file = getfixture("tmp_path") / "mel_rvq.safetensors"
    >>> tables = {"mean": torch.zeros(64), "std": torch.ones(64)}
    >>> tables["codebooks"] = torch.randn(8, 16, 64)
    >>> settings = {"n_mels": 64, "stack": 1, "n_codebooks": 8}
    >>> _ = save_targets(file, "mel_rvq", settings, tables)
    >>> targets = MelRVQ(file)
    >>> targets.encode(torch.rand(2, 24000)).shape
    torch.Size([2, 75, 8])
    >>> MelRVQ.label_of(file) == targets.label
    True
    """

    file_kind = "mel_rvq"

    def _codes(self, frames):
        return residual_codes(frames, self.codebooks[: self.n_codebooks])[0]


class RandomProjection(_MelTargets):
    """The nearest of random directions, for random projections of level-free log-mel.

    Source: BEST-RQ (arXiv 2202.01855). All codebooks have the same weight in the loss.

    Arguments
    ---------
    file : str or Path
        Made by `python recipes/fit_targets.py random_projection FILE`.
    n_codebooks : int, optional
        How many of the projections to use; default: all.

    Raises
    ------
    UserError
        If there is no such file, or it has fewer codebooks.

    Example
    -------
    >>> from encodecmae_sb.nnet.quantise import draw_projections
    >>> from encodecmae_sb.pretrained.target_files import save_targets
    >>> file = getfixture("tmp_path") / "random_projection.safetensors"
    >>> projections, codebooks = draw_projections(64, 4, 16, 8, seed=0)
    >>> tables = {"projections": projections, "codebooks": codebooks}
    >>> tables |= {"mean": torch.zeros(64), "std": torch.ones(64)}
    >>> settings = {"n_mels": 64, "stack": 1, "n_codebooks": 4}
    >>> _ = save_targets(file, "random_projection", settings, tables)
    >>> RandomProjection(file, n_codebooks=2).encode(torch.rand(2, 24000)).shape
    torch.Size([2, 75, 2])
    """

    file_kind = "random_projection"

    @classmethod
    def weights_of(cls, file, n_codebooks=None):
        """The same for all."""
        return [1.0] * cls.n_codebooks_of(file, n_codebooks)

    def _codes(self, frames):
        count = self.n_codebooks
        return projected_codes(frames, self.projections[:count], self.codebooks[:count])


class Clusters(_OfFile, ClusterTargets):
    """Clusters of an encoder's layer, for plain pretraining.

    Arguments
    ---------
    file : str or Path
        Made by `python recipes/fit_targets.py clusters FILE`. It has the clusters and
        the name of the encoder.
    encoder : str or Path, optional
        Where the encoder is now: a folder that a recipe exported, or a published name.
        Default: as the file says.

    Raises
    ------
    FileNotFoundError
        If there is no such encoder.
    UserError
        If there is no such file, or if the encoder is another one.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> from encodecmae_sb.pretrained.folder import export_encoder
    >>> from encodecmae_sb.pretrained.target_files import save_targets
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> export_encoder(encoder, folder)
    >>> settings = {"encoder": str(folder), "layer": "last_no_norm"}
    >>> settings["encoder_key"] = module_key(load_encoder_source(folder))
    >>> file = getfixture("tmp_path") / "clusters.safetensors"
    >>> tables = {"centroids": torch.randn(10, 64)}
    >>> _ = save_targets(file, "clusters", settings, tables)
    >>> Clusters(file).encode(torch.zeros(2, 24000)).shape
    torch.Size([2, 75, 1])
    """

    file_kind = "clusters"

    def __init__(self, file, encoder=None):
        settings, tensors, fingerprint = load_targets(file, self.file_kind)
        source = encoder or settings["encoder"]
        teacher = load_encoder_source(source).eval()
        key = module_key(teacher)
        if key != settings["encoder_key"]:
            raise UserError(
                f"targets: {file} has clusters of another encoder than {source} is now "
                f"({settings['encoder_key']}, not {key}). Give the argument `encoder` "
                "the right one, or fit again: python recipes/fit_targets.py clusters "
                f"FILE --encoder_folder {source}"
            )
        ClusterTargets.__init__(
            self, teacher, settings["layer"], tensors["centroids"], source, key
        )
        self.name = self._name_of(file)
        self.file_fingerprint = fingerprint

    @classmethod
    def n_codebooks_of(cls, file, encoder=None):
        """One."""
        return 1

    @classmethod
    def licence_of(cls, file, encoder=None):
        """That of the encoder, which need not be there any more."""
        return read_licence(file, cls.file_kind)


class SeveralTargets(Targets):
    """Several targets side by side: their codebooks one after another.

    A target with fewer codes than another never has the codes above its own. After
    MERT (arXiv 2306.00107), which predicts codes of a codec and a spectrum.

    Arguments
    ---------
    parts : list of functools.partial or type
        What `!name:` gives for each.
    weights : list of float, optional
        Share of each part in the loss; default: the same. Within a part its codebooks
        have the weights that they have alone.

    Raises
    ------
    UserError
        If there are no parts, or not as many weights, or one of them is negative.

    Example
    -------
    >>> from functools import partial
    >>> from encodecmae_sb.lobes import Codec
    >>> parts = [partial(Codec, "bundled", 2), partial(Codec, "bundled", 1)]
    >>> targets = SeveralTargets(parts, weights=[3, 1])
    >>> targets.encode(torch.rand(2, 24000)).shape
    torch.Size([2, 75, 3])
    >>> SeveralTargets.weights_of([parts[1], parts[1]], weights=[3, 1])
    [3.0, 1.0]
    """

    def __init__(self, parts, weights=None):
        _check_parts(parts, weights)
        built = [build(part) for part in parts]
        super().__init__(
            sum(part.n_codebooks for part in built),
            max(part.codebook_size for part in built),
            " + ".join(str(part.label) for part in built),
        )
        self.parts = torch.nn.ModuleList(built)
        self.chunk_samples = math.lcm(*(part.chunk_samples for part in built))
        # Clusters are those of pieces of 4 s from the start of a file: whole pieces.
        context = max(part.context_samples for part in built)
        self.context_samples = -(-context // CHUNK) * CHUNK
        self.shortest_tail = max(part.shortest_tail for part in built)
        self.train(False)

    def fingerprint(self):
        """A digest of the parts' own, and of how many codebooks each has."""
        parts = [(part.label, part.n_codebooks) for part in self.parts]
        return _several(parts).fingerprint

    @classmethod
    def label_of(cls, parts, weights=None):
        """`Label`, without loading what need not be loaded."""
        if cls is not SeveralTargets:
            return super().label_of(parts, weights)
        _check_parts(parts, weights)
        return _several([(identify(part), n_codebooks_of(part)) for part in parts])

    @classmethod
    def n_codebooks_of(cls, parts, weights=None):
        """The sum of the parts' own."""
        return sum(map(n_codebooks_of, parts))

    @classmethod
    def weights_of(cls, parts, weights=None):
        """Each part's share, divided among its codebooks."""
        _check_parts(parts, weights)
        result = []
        for part, share in zip(parts, weights or [1.0] * len(parts), strict=True):
            own = weights_of(part)
            if own is None:
                own = default_weights(n_codebooks_of(part)).tolist()
            result += [share * weight / sum(own) for weight in own]
        return result

    @classmethod
    def licence_of(cls, parts, weights=None):
        """The first that a part has."""
        return next(filter(None, map(licence_of, parts)), None)

    def encode(self, wavs, lengths=None):
        """The codes of all parts, [B, T, Q]; see `Targets.encode`."""
        return torch.cat([part.encode(wavs, lengths) for part in self.parts], -1)


def _several(parts):
    """The label of parts, each a label and a number of codebooks."""
    name = " + ".join(str(label) for label, _ in parts)
    content = [[label.kind, label.fingerprint, count] for label, count in parts]
    return Label(Targets.kind, name, digest(content))


def _check_parts(parts, weights):
    if not isinstance(parts, list | tuple) or not parts:
        raise UserError(f"targets: parts={parts}: give a list of targets, each !name:")
    if weights is not None and not are_weights(weights, len(parts)):
        raise UserError(
            f"targets: weights={weights} for {len(parts)} parts: give a list of "
            f"{len(parts)} numbers, none negative and not all 0."
        )
