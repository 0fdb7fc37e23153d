"""The codec by name or by file, as a yaml asks for it."""

import torch

from encodecmae_sb.nnet.encodec import FrozenCodec
from encodecmae_sb.nnet.level import (
    REFERENCE,
    at_reference,
    check_normalise,
    measure_levels,
)
from encodecmae_sb.nnet.targets import Label
from encodecmae_sb.pretrained.codec_files import OFFICIAL, checksum, load_network
from encodecmae_sb.pretrained.licence import targets_licence
from encodecmae_sb.utils.digests import with_normalisation


class Codec(FrozenCodec):
    """A frozen EnCodec, loaded; see `FrozenCodec` for what it does.

    Arguments
    ---------
    source : str
        `encodec_24khz`: the official weights, fetched once and cached by torch
        (CC BY-NC 4.0); `bundled`: the small codec in this package; else the path
        of a checkpoint: `.safetensors` as `save_codec` writes it, or a torch
        state dict with EnCodec's names (such as `encodec_24khz-d7cc33bc.th`).
    n_codebooks : int
        How many of the residual codebooks to use.
    normalise : str, optional
        "level": each item is brought to one level before it is encoded. This is for an
        encoder whose front end does the same: codes that depend on the level could not
        be predicted from frames that do not.

    Raises
    ------
    CodecError
        If the source is unknown, unreachable, unreadable, not a 24 kHz mono
        EnCodec, or has fewer codebooks than asked for.
    UserError
        If there is no such normalisation.

    Example
    -------
    >>> import torch
    >>> codec = Codec("bundled")
    >>> codes = codec.encode(torch.rand(2, 24000) - 0.5)
    >>> codes.shape
    torch.Size([2, 75, 8])
    >>> codec.decode(codes).shape
    torch.Size([2, 24000])
    >>> codec.latents(torch.zeros(2, 24000)).shape
    torch.Size([2, 75, 128])
    >>> codec.train().training
    False
    """

    def __init__(self, source=OFFICIAL, n_codebooks=8, normalise=None):
        self.normalise = check_normalise(normalise)
        super().__init__(load_network(str(source)), str(source), n_codebooks)

    @torch.no_grad()
    def encode(self, wavs, lengths=None):
        """Discrete codes; after an item's end there are zeros. See `Targets.encode`."""
        return super().encode(at_reference(wavs) if self.normalise else wavs, lengths)

    def gains(self, wavs):
        """See `FrozenCodec.gains`."""
        if not self.normalise:
            return super().gains(wavs)
        return measure_levels(wavs) / REFERENCE

    def fingerprint(self):
        """`checksum` of the file, and the normalisation if there is one."""
        return with_normalisation(checksum(self.source), self.normalise)

    @classmethod
    def label_of(cls, *args, **kwargs):
        """`Label` of a codec, without loading or fetching it."""
        if cls is not Codec:  # a subclass may give other codes
            return super().label_of(*args, **kwargs)
        given = _arguments(*args, **kwargs)
        own = checksum(given["source"])
        return Label(
            cls.kind, given["source"], with_normalisation(own, given["normalise"])
        )

    @classmethod
    def n_codebooks_of(cls, *args, **kwargs):
        """As given."""
        if cls is not Codec:
            return super().n_codebooks_of(*args, **kwargs)
        return _arguments(*args, **kwargs)["n_codebooks"]

    @classmethod
    def licence_of(cls, *args, **kwargs):
        """That of the codec's weights."""
        return targets_licence(cls.label_of(*args, **kwargs))


def _arguments(source=OFFICIAL, n_codebooks=8, normalise=None):
    return {
        "source": str(source),
        "n_codebooks": n_codebooks,
        "normalise": check_normalise(normalise),
    }
