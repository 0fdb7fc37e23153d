"""Cuts audio of any length into chunks, encodes them, and joins their frames.

One rule for the lobe, the interfaces, HEAR, X-ARES, classification and probes:

- A chunk is 4 s long, as the crops of pretraining are, unless another length is given.
- The rest after whole chunks is a chunk, too; but a rest of 2048 samples or fewer is
  dropped.
- All frames that the front end gives for a chunk alone are valid, even the last one of
  codec latents, which is partial. So the frames of an item do not depend on its batch.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

from .level import measure_levels

# Raise it when the frames of an item change: stored frames are then computed again.
FRAMES_VERSION = 2
# As long as the crops of pretraining: 4 s.
CHUNK = 4 * SAMPLE_RATE
# A tail of at most this many samples after whole chunks is dropped.
SHORTEST_TAIL = 2048


@dataclass
class _Chunk:
    """Samples of an item, and the frames that they become."""

    item: int
    start: int
    samples: int
    first_frame: int
    frames: int


def is_dropped(tail, num_whole):
    """Whether `tail` samples that are left after `num_whole` whole chunks are dropped.

    Example
    -------
    >>> is_dropped(2048, 1), is_dropped(2049, 1), is_dropped(2048, 0)
    (True, False, False)
    """
    return num_whole > 0 and tail <= SHORTEST_TAIL


def chunk_sizes(samples, chunk=CHUNK):
    """Samples of each chunk of an item; there is at least one.

    Example
    -------
    >>> chunk_sizes(200000), chunk_sizes(97000)
    ([96000, 96000, 8000], [96000])
    """
    if chunk is None:
        return [samples]
    whole, tail = divmod(samples, chunk)
    return [chunk] * whole + [tail] * (not is_dropped(tail, whole))


def _num_frames(front_end, samples, whole_codec_frames):
    """Frames of a chunk; below 1 it is too short."""
    return samples // HOP if whole_codec_frames else front_end.num_frames(samples)


def num_joined_frames(front_end, samples, chunk=CHUNK, whole_codec_frames=False):
    """Frames that `encode_in_chunks` makes of an item; below 1 it is too short.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    samples : int
        Length at 24 kHz.
    chunk, whole_codec_frames
        As for `encode_in_chunks`.

    Returns
    -------
    int

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> [num_joined_frames(LogMel(), n) for n in (96000, 97000, 150000)]
    [300, 300, 469]
    """
    sizes = chunk_sizes(samples, chunk)
    return sum(_num_frames(front_end, size, whole_codec_frames) for size in sizes)


def shortest_item(front_end, whole_codec_frames=False):
    """Samples of the shortest item that has a frame.

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> shortest_item(LogMel()), shortest_item(LogMel(hop_length=318, centered=False))
    (1, 637)
    """
    if whole_codec_frames:
        return HOP
    return 1 if _fills_up(front_end) else front_end.win_length


def _fills_up(front_end):
    """Whether the last frame may be partial; if not, each needs a whole window."""
    return front_end.num_frames(1) > 0


def seconds_per_frame(front_end):
    """Distance of joined frames in seconds, on average.

    (In published log-mel encoders it is less within a chunk.)

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> round(1 / seconds_per_frame(LogMel(hop_length=318, centered=False)), 6)
    75.0
    """
    return CHUNK / front_end.sample_rate / front_end.num_frames(CHUNK)


def frame_starts(front_end, frames):
    """Samples at which joined frames start.

    Arguments
    ---------
    front_end : LogMel or CodecLatents
    frames : torch.Tensor
        Numbers of frames counted from 0, any shape.

    Returns
    -------
    torch.Tensor
        Of the same shape.

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> published = LogMel(hop_length=318, centered=False)
    >>> frame_starts(published, torch.tensor([0, 1, 299, 300]))
    tensor([    0,   318, 95082, 96000])
    """
    per_chunk = front_end.num_frames(CHUNK)
    whole = frames.div(per_chunk, rounding_mode="floor")
    return whole * CHUNK + frames % per_chunk * front_end.hop_length


def frame_middle(front_end):
    """Middle of the samples that the first frame describes.

    In samples from the start; sample i lasts from i to i + 1.

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> frame_middle(LogMel()), frame_middle(LogMel(hop_length=318, centered=False))
    (160.0, 318.5)
    """
    fills_up = _fills_up(front_end)
    return (front_end.hop_length if fills_up else front_end.win_length) / 2


def encode_in_chunks(
    encoder,
    wavs,
    lengths=None,
    layer="last",
    batch_size=16,
    chunk=CHUNK,
    whole_codec_frames=False,
    levels=None,
):
    """Encodes each item in chunks and joins their frames.

    The result for an item does not depend on the batch it came in, beyond float noise.

    Arguments
    ---------
    encoder : AudioEncoder
    wavs : torch.Tensor
        Samples at 24 kHz in [-1, 1], shape [B, N], on any device.
    lengths : list of int, optional
        Valid samples of each item; default: all.
    layer : int or str
        `"last"`: the output; `"last_no_norm"`: the last layer's activation without
        the final norm; a number: the activation of that layer, counted from 0,
        the last one being the output; `"all"`: all of them.
    batch_size : int, optional
        Chunks encoded at once; None: all.
    chunk : int, optional
        Samples of a chunk; None: items are encoded whole.
    whole_codec_frames : bool
        Give a chunk `samples // 320` frames, the whole ones of the codec, and silence
        after its end. The published implementation does this with padded batches, but
        not with long audio.
    levels : torch.Tensor, optional
        For a front end with `normalise`: of the recordings that the items are parts of,
        shape [B]. Default: each item is a whole recording.

    Returns
    -------
    list of torch.Tensor
        For each item [T_i, D], with `"all"` [layers, T_i, D], on the encoder's
        device.

    Raises
    ------
    UserError
        If an item is shorter than a frame or `layer` is unknown.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96)).eval()
    >>> frames, = encode_in_chunks(encoder, torch.zeros(1, 150000))
    >>> frames.shape
    torch.Size([469, 64])
    """
    check_layer(encoder, layer)
    lengths = [wavs.shape[1]] * len(wavs) if lengths is None else lengths
    front_end = encoder.front_end
    chunks, totals = [], []
    for item, length in enumerate(lengths):
        start = total = 0
        for size in chunk_sizes(length, chunk):
            frames = _num_frames(front_end, size, whole_codec_frames)
            if frames < 1:
                raise UserError(
                    f"item {item} is {length} samples long, which is less than a frame "
                    "of the encoder's front end"
                )
            chunks.append(_Chunk(item, start, size, total, frames))
            start, total = start + size, total + frames
        totals.append(total)

    device = next(encoder.parameters()).device
    if normalises(front_end):
        levels = measure_levels(wavs, lengths) if levels is None else levels
        levels = levels.to(device).unbind()
    joined = [None] * len(lengths)
    chunks.sort(key=lambda chunk: -chunk.samples)
    batch_size = batch_size or len(chunks)
    for first in range(0, len(chunks), batch_size):
        group = chunks[first : first + batch_size]
        waves = [wavs[p.item, p.start : p.start + p.samples] for p in group]
        counts = [p.frames for p in group]
        told = [levels[p.item] for p in group] if normalises(front_end) else None
        frames = _front_end_frames(front_end, waves, max(counts), device, told)
        num_frames = None
        if min(counts) < frames.shape[1]:
            num_frames = torch.tensor(counts).to(device)
        output = encoder.encode(
            frames, num_frames, num_layers=num_layers_of(encoder, layer)
        )
        # Unbind the rows: the gradient of an indexed row would be as large as all rows.
        rows = select_layer(output, layer).unbind(-3)
        for p, row in zip(group, rows, strict=True):
            if joined[p.item] is None:
                # Allocate the whole output now: collecting chunks first would double
                # the memory.
                shape = (*row.shape[:-2], totals[p.item], row.shape[-1])
                joined[p.item] = row.new_empty(shape)
            place = slice(p.first_frame, p.first_frame + p.frames)
            joined[p.item][..., place, :] = row[..., : p.frames, :]
    return joined


def normalises(front_end):
    """Whether a front end takes the levels of recordings.

    Example
    -------
    >>> from encodecmae_sb.lobes import LogMel
    >>> normalises(LogMel()), normalises(LogMel(normalise="level"))
    (False, True)
    """
    # One of the user's own need not have the attribute.
    return getattr(front_end, "normalise", None) is not None


def _front_end_frames(front_end, waves, num_frames, device, levels=None):
    """Frames of waveforms, the longest first, padded: [B, num_frames or more, F]."""
    if front_end.needs_equal_lengths:
        frames = []
        numbers = range(len(waves))
        for _, same in itertools.groupby(numbers, key=lambda i: len(waves[i])):
            same = list(same)
            wavs = torch.stack([waves[i] for i in same]).to(device)
            told = levels and [levels[i] for i in same]
            frames += _run(front_end, wavs, told)
        return pad_sequence(frames, batch_first=True)
    wavs = pad_sequence(waves, batch_first=True)
    needed = (num_frames - 1) * front_end.hop_length + shortest_item(front_end)
    wavs = F.pad(wavs, (0, max(0, needed - wavs.shape[1]))).to(device)
    return _run(front_end, wavs, levels)


def _run(front_end, wavs, levels):
    if levels is None:
        return front_end(wavs)
    return front_end(wavs, torch.stack(levels))


def pad_items(items, num_frames):
    """Pads the result of `encode_in_chunks` to a batch.

    Arguments
    ---------
    items : list of torch.Tensor
        Each [T_i, D] or [layers, T_i, D].
    num_frames : int
        Length of the result, T.

    Returns
    -------
    torch.Tensor
        [B, T, D] or [layers, B, T, D], zeros after the end of an item.

    Example
    -------
    >>> pad_items([torch.ones(4, 2, 8), torch.ones(4, 3, 8)], 5).shape
    torch.Size([4, 2, 5, 8])
    """
    missing = [num_frames - item.shape[-2] for item in items]
    padded = [
        F.pad(item, (0, 0, 0, n)) if n else item
        for item, n in zip(items, missing, strict=True)
    ]
    return torch.stack(padded, dim=-3)


def check_layer(encoder, layer):
    """Raises a UserError if `layer` is not one that `select_layer` knows."""
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
    layers = output.layers
    if output.last is not None:
        layers = layers[:-1] + [output.last]
    if layer == "all":
        return torch.stack(layers)
    return layers[-1 if layer == "last" else layer]


def num_layers_of(encoder, layer):
    """Number of layers to compute for `layer`."""
    return layer + 1 if isinstance(layer, int) else encoder.num_layers


def unused_modules(encoder, layer):
    """Parts of an encoder that `layer` does not depend on.

    Arguments
    ---------
    encoder : AudioEncoder
    layer : int or str
        As for `encode_in_chunks`.

    Returns
    -------
    list of torch.nn.Module

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 3, 4, 96))
    >>> len(unused_modules(encoder, "last")), len(unused_modules(encoder, 0))
    (0, 3)
    """
    transformer, needed = encoder.transformer, num_layers_of(encoder, layer)
    unused = [*transformer.layers[needed:]]
    if not transformer.shared_ffn:
        unused += transformer.feed_forwards[needed:]
    if needed < encoder.num_layers or layer == "last_no_norm":
        unused.append(transformer.final_norm)
    return unused
