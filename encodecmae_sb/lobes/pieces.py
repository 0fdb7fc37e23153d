"""Encoding audio of any length, in pieces as long as those of pretraining."""

from dataclasses import dataclass

import torch

from encodecmae_sb.errors import UserError

# As long as the crops of pretraining: 4 s.
PIECE = 96000
# A tail of at most this many samples after whole pieces is dropped.
SHORTEST_TAIL = 2048


@dataclass
class _Piece:
    item: int
    start: int
    samples: int


def encode_in_pieces(encoder, wavs, lengths=None, layer="last", batch_size=16):
    """Encodes each item in pieces of 4 s and joins their frames.

    A last piece of 2048 samples or fewer after whole ones is dropped. The result
    for an item does not depend on the batch it came in, beyond float noise.

    Arguments
    ---------
    encoder : AudioEncoder
        In eval mode.
    wavs : torch.Tensor
        Samples at 24 kHz in [-1, 1], shape [B, N], on any device.
    lengths : list of int, optional
        Valid samples of each item; default: all.
    layer : int or str
        `"last"`: the output; `"last_no_norm"`: the last layer's activation without
        the final norm; a number: the activation of that layer, counted from 0,
        the last one being the output; `"all"`: all of them.
    batch_size : int
        Pieces encoded at once.

    Returns
    -------
    list of torch.Tensor
        For each item [T_i, D], with `"all"` [layers, T_i, D], on the encoder's
        device.

    Raises
    ------
    ValueError
        If an item is shorter than a frame or `layer` is unknown.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96)).eval()
    >>> frames, = encode_in_pieces(encoder, torch.zeros(1, 150000))
    >>> frames.shape
    torch.Size([469, 64])
    """
    check_layer(encoder, layer)
    lengths = [wavs.shape[1]] * len(wavs) if lengths is None else lengths
    pieces = []
    for item, length in enumerate(lengths):
        sizes = _piece_sizes(length)
        if encoder.front_end.num_frames(sizes[-1]) < 1:
            raise UserError(
                f"item {item} is {length} samples long, which is less than a frame "
                "of the encoder's front end"
            )
        pieces += [_Piece(item, PIECE * i, size) for i, size in enumerate(sizes)]

    device = next(encoder.parameters()).device
    joined = [None] * len(lengths)
    by_length = sorted(pieces, key=lambda piece: -piece.samples)
    for group in _groups(by_length, batch_size, encoder.front_end.needs_equal_lengths):
        batch = wavs.new_zeros(len(group), group[0].samples)
        for row, piece in zip(batch, group, strict=True):
            stop = piece.start + piece.samples
            row[: piece.samples] = wavs[piece.item, piece.start : stop]
        frames = [encoder.front_end.num_frames(piece.samples) for piece in group]
        num_frames = None
        if len(set(frames)) > 1:
            num_frames = torch.tensor(frames, device=device)
        out = select_layer(encoder(batch.to(device), num_frames), layer)
        for i, piece in enumerate(group):
            if joined[piece.item] is None:
                # Once and for all: pieces that wait to be joined would take as much.
                total = num_joined_frames(encoder, lengths[piece.item])
                shape = (*out.shape[:-3], total, out.shape[-1])
                joined[piece.item] = out.new_empty(shape)
            first = piece.start // PIECE * encoder.front_end.num_frames(PIECE)
            rows = joined[piece.item][..., first : first + frames[i], :]
            rows.copy_(out[..., i, : frames[i], :])
    return joined


def num_joined_frames(encoder, samples):
    """Frames that `encode_in_pieces` makes of an item; below 1 it is too short.

    Arguments
    ---------
    encoder : AudioEncoder
    samples : int
        Length at 24 kHz.

    Returns
    -------
    int

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> num_joined_frames(encoder, 150000)
    469
    """
    return sum(map(encoder.front_end.num_frames, _piece_sizes(samples)))


def _piece_sizes(samples):
    whole, tail = divmod(samples, PIECE)
    return [PIECE] * whole + [tail] * (tail > SHORTEST_TAIL or not whole)


def check_layer(encoder, layer):
    """Raises a ValueError if `layer` is not one that `select_layer` knows."""
    if layer in ("last", "last_no_norm", "all"):
        return
    if isinstance(layer, int) and 0 <= layer < encoder.num_layers:
        return
    raise UserError(
        f"layer={layer!r}: allowed are 'last', 'last_no_norm', 'all' and the numbers "
        f"0 to {encoder.num_layers - 1}."
    )


def select_layer(output, layer):
    """Chooses from a `TransformerOutput`: [B, T, D], or [layers, B, T, D]."""
    if layer == "last_no_norm":
        return output.layers[-1]
    layers = output.layers[:-1] + [output.last]
    if layer == "all":
        return torch.stack(layers)
    return layers[-1 if layer == "last" else layer]


def _groups(pieces, batch_size, equal_lengths):
    """Cuts a list of pieces, longest first, into batches."""
    group = []
    for piece in pieces:
        changed = group and equal_lengths and piece.samples != group[0].samples
        if len(group) == batch_size or changed:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
