"""Exports an encoder as one graph, checks the graph, and measures it.

Shapes: B items, N samples, T frames, D width.
"""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.audio import read_audio
from encodecmae_sb.nnet.chunks import select_layer, shortest_item
from encodecmae_sb.pretrained.graphs import (
    WholeEncoder,
    check_extra,
    open_onnx,
    open_pt2,
    quantise,
    trace,
    write_onnx,
    write_pt2,
)
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.files import whole_file
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE
from encodecmae_sb.utils.precision import best_precision

from .benchmark.measure import describe_machine, median_time, time_call

ONNX, PT2 = "onnx", "pt2"
# Largest difference of a float32 graph from PyTorch, and largest error of an 8-bit
# one: the norm of the differences over the norm of the frames.
_TOLERANCE = 1e-4
_INT8_TOLERANCE = 0.1
# Lengths of the items of each batch that is compared, in samples.
_BATCHES = [
    *[(n,) for n in (1, HOP - 1, HOP, HOP + 1, 3 * HOP + 1, SAMPLE_RATE // 3)],
    *[(n * SAMPLE_RATE + 7,) for n in (1, 4, 30)],
    (SAMPLE_RATE, SAMPLE_RATE, SAMPLE_RATE, SAMPLE_RATE),
    (4 * SAMPLE_RATE, SAMPLE_RATE // 2 + 1, 1),
    (2 * SAMPLE_RATE - 1, 10 * SAMPLE_RATE + 1),
]
_TIMED = 4 * SAMPLE_RATE


@dataclass
class Agreement:
    """How far a graph is from the encoder.

    Arguments
    ---------
    batches : int
        How many were compared.
    largest : float
        Largest difference of a value.
    relative : float
        Norm of all differences over the norm of all frames.
    """

    batches: int
    largest: float
    relative: float


@dataclass
class Row:
    """A line of the table: a way to compute, its agreement on 4 s, its time, its size.

    Arguments
    ---------
    name : str
    agreement : Agreement
    seconds : float
        For 4 s of audio.
    megabytes : float or None
        Of the file.
    note : str
    """

    name: str
    agreement: Agreement
    seconds: float
    megabytes: float | None = None
    note: str = ""

    def __str__(self):
        speed = _TIMED / SAMPLE_RATE / self.seconds
        size = f"{self.megabytes:8.1f}" if self.megabytes else " " * 8
        return (
            f"{self.name:<20}{self.agreement.largest:>12.1e}"
            f"{self.agreement.relative:>12.1e}{1000 * self.seconds:>10.1f}"
            f"{speed:>12.1f}{size}  {self.note}"
        ).rstrip()


@functools.cache
def speech():
    """Half a minute of bundled speech, float32, shape [N].

    Example
    -------
    >>> len(speech()) > 31 * 24000
    True
    """
    files = sorted(speech_folder().glob("dev/9001/1/*.flac"))
    return torch.cat([read_audio(path, SAMPLE_RATE) for path in files])


@torch.inference_mode()
def measure_agreement(compute, encoder, layer="last", batches=None):
    """Compares a graph with `AudioEncoder.forward` of each item alone.

    Arguments
    ---------
    compute : callable
        As `WholeEncoder.forward`.
    encoder : AudioEncoder
    layer : int or str
        As for `encodecmae_sb.nnet.chunks.encode_in_chunks`.
    batches : list of tuple of int, optional
        Samples of the items of each batch. Default: a dozen batches of 1 to 4 items,
        from one sample to 30 s.

    Returns
    -------
    Agreement
        Not a number or infinite where the graph gives such values, or other numbers
        of frames.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> found = measure_agreement(WholeEncoder(encoder), encoder, batches=[(700, 9)])
    >>> found.largest < 1e-4
    True
    """
    batches, audio = batches or _BATCHES, speech()
    shortest = shortest_item(encoder.front_end)
    found, expected = [], []
    for lengths in batches:
        # Each item begins elsewhere, and has sound after its end.
        starts = [HOP * 10 * number for number in range(len(lengths))]
        wavs = torch.stack([audio[start:][: max(lengths)] for start in starts])
        frames, num_frames = compute(wavs, torch.tensor(lengths))
        items = zip(wavs, lengths, frames.unbind(-3), num_frames.tolist(), strict=True)
        for wav, length, row, count in items:
            alone = F.pad(wav[:length], (0, max(0, shortest - length)))
            output = encoder(alone[None])
            alone = select_layer(output, layer)[..., 0, :, :]
            row = row[..., :count, :]
            if row.shape != alone.shape:
                return Agreement(len(batches), float("inf"), float("inf"))
            found.append(row.flatten())
            expected.append(alone.flatten())
    expected = torch.cat(expected).double()
    difference = torch.cat(found).double() - expected
    relative = difference.norm() / expected.norm()
    return Agreement(len(batches), difference.abs().max().item(), relative.item())


def deploy(source, output, format=None, int8=False, layer="last"):
    """Writes an encoder as one graph, unless the graph disagrees with the encoder.

    Arguments
    ---------
    source : str or Path
        An encoder's folder, or the name of published weights.
    output : str or Path
        The file to write; one that is there is replaced.
    format : str, optional
        "onnx" or "pt2"; default: "pt2" for a name that ends so, else "onnx".
    int8 : bool
        Round the weights to 8 bits. Only with "onnx".
    layer : int or str
        As for `encodecmae_sb.nnet.chunks.encode_in_chunks`.

    Returns
    -------
    dict of str to Agreement
        Of the graph over a dozen batches: "float32" and, with `int8`, "int8".
    list of Row
        What was measured on 4 s of speech.

    Raises
    ------
    FileNotFoundError
        If there is no such folder and no such name.
    UserError
        If it is no encoder folder; the encoder cannot be exported; the extra is not
        installed; the file cannot be written; or the graph disagrees. Then there is no
        new file.
    """
    output = Path(output).expanduser()
    format = format or (PT2 if output.suffix == f".{PT2}" else ONNX)
    if format == PT2 and int8:
        raise UserError("int8 is for ONNX: leave out --int8, or give --format onnx.")
    if format == ONNX:
        check_extra()
    encoder = load_encoder_source(source)
    whole = WholeEncoder(encoder, layer)
    with _writable(output) as scratch:
        program = trace(whole)
        write, open_graph = (
            (write_onnx, open_onnx) if format == ONNX else (write_pt2, open_pt2)
        )
        write(program, scratch)
        compute = open_graph(scratch)
        # A .pt2 takes no waveform of a single frame: torch.export cannot have both.
        batches = [b for b in _BATCHES if format == ONNX or max(b) > whole.silence]
        found = measure_agreement(compute, encoder, layer, batches)
        _check(found, "float32", _TOLERANCE, found.largest)
        agreements = {"float32": found}
        rows = _pytorch_rows(encoder, layer)
        name = {ONNX: "ONNX Runtime", PT2: "torch.export"}[format]
        rows.append(_row(f"{name} float32", compute, encoder, layer, scratch))
        if int8:
            quantise(scratch, scratch)
            compute = open_graph(scratch)
            found = measure_agreement(compute, encoder, layer)
            _check(found, "int8", _INT8_TOLERANCE, found.relative)
            agreements["int8"] = found
            rows.append(_row(f"{name} int8", compute, encoder, layer, scratch))
    return agreements, rows


@contextlib.contextmanager
def _writable(path):
    """As `whole_file`; says what to do where nothing can be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with whole_file(path) as scratch:
            yield scratch
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Give the name of a file "
            "in a folder that you may write to, on a disk with room."
        ) from error


def _check(agreement, name, tolerance, value):
    if not value <= tolerance:  # not a number is refused, too
        raise UserError(
            f"The {name} graph disagrees with PyTorch: largest difference "
            f"{agreement.largest:.1e}, relative error {agreement.relative:.1e}; at "
            f"most {tolerance:.0e} is allowed. No file was written. Use the encoder "
            "with foreign_class, or report this with your versions of torch, onnx and "
            "onnxruntime."
        )


def _pytorch_rows(encoder, layer):
    """PyTorch in float32 and in bf16."""
    in_float32 = _encode(encoder, layer, torch.float32)
    in_bf16 = _encode(encoder, layer, torch.bfloat16)
    note = ""
    if best_precision("cpu") != "bf16":
        note = "this CPU is not made for bf16"
    return [
        _row("PyTorch float32", in_float32, encoder, layer),
        _row("PyTorch bf16", in_bf16, encoder, layer, note=note),
    ]


def _encode(encoder, layer, dtype):
    """The encoder as a function of waveforms that are all of the same length."""

    def compute(wavs, lengths):
        autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            frames = select_layer(encoder(wavs), layer).float()
        return frames, encoder.front_end.num_frames(lengths)

    return compute


def _row(name, compute, encoder, layer, path=None, note=""):
    """Measures on 4 s of speech."""
    agreement = measure_agreement(compute, encoder, layer, [(_TIMED,)])
    wavs, lengths = speech()[None, :_TIMED], torch.tensor([_TIMED])

    @torch.inference_mode()
    def call():
        compute(wavs, lengths)

    # One call is enough where it takes seconds.
    seconds = time_call(call)
    if seconds < 2:
        seconds = median_time(call, 1)
    size = path and path.stat().st_size / 1e6
    return Row(name, agreement, seconds, size, note)


def table(rows):
    """The rows as text, with the machine.

    Example
    -------
    >>> text = table([Row("PyTorch float32", Agreement(1, 0.0, 0.0), 0.05)])
    >>> text.splitlines()[-1].split()
    ['PyTorch', 'float32', '0.0e+00', '0.0e+00', '50.0', '80.0']
    """
    machine = describe_machine(torch.device("cpu"))
    head = (
        f"{_TIMED // SAMPLE_RATE} s of speech, 1 item, on {machine['processor']}, "
        f"threads: {machine['threads']}, load: {machine['load_average']}"
    )
    columns = (
        f"{'computed with':<20}{'difference':>12}{'relative':>12}{'ms':>10}"
        f"{'x real time':>12}{'MB':>8}"
    )
    return "\n".join([head, columns, *map(str, rows)])
