"""An encoder as one graph, for ONNX Runtime or for PyTorch without this package.

Shapes: B items, N samples, T frames, D width.
"""

import contextlib
import importlib.util
import logging
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.nnet.chunks import (
    check_layer,
    num_layers_of,
    select_layer,
    shortest_item,
)
from encodecmae_sb.nnet.masking import frame_mask
from encodecmae_sb.utils.errors import UserError

INPUTS = ("wavs", "lengths")
OUTPUTS = ("frames", "num_frames")
_EXTRA = ("onnx", "onnxruntime", "onnxscript")


class WholeEncoder(nn.Module):
    """Waveforms and their lengths in, frames and their numbers out.

    Items are encoded whole. The frames of an item are those that
    `AudioEncoder.forward` gives for it alone, whatever batch it is in.

    Arguments
    ---------
    encoder : AudioEncoder
    layer : int or str
        As for `encodecmae_sb.nnet.chunks.encode_in_chunks`.

    Raises
    ------
    UserError
        If `layer` is unknown, or if the encoder cannot be exported.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> frames, num_frames = WholeEncoder(encoder)(
    ...     torch.zeros(2, 24000), torch.tensor([24000, 12001])
    ... )
    >>> frames.shape, num_frames
    (torch.Size([2, 75, 64]), tensor([75, 38]))
    """

    def __init__(self, encoder, layer="last"):
        super().__init__()
        check_layer(encoder, layer)
        front_end = encoder.front_end
        if front_end.needs_equal_lengths:
            raise UserError(
                f"An encoder with the front end {type(front_end).__name__} cannot be "
                "exported. EnCodec's convolutions work out their padding from each "
                "length, and its LSTM goes through time in a loop, so a graph would "
                "be right for one length only. Export an encoder with log-mel input, "
                "or use this one with foreign_class."
            )
        self.encoder = encoder.eval()
        self.layer = layer
        # With so much silence after it, any waveform gives two frames or more. Else the
        # exporter would make a graph that refuses a waveform of one frame, or fails.
        self.silence = front_end.hop_length + shortest_item(front_end)

    def forward(self, wavs, lengths):
        """Encodes.

        Arguments
        ---------
        wavs : torch.Tensor
            Mono samples at the encoder's rate in [-1, 1], float32, shape [B, N].
        lengths : torch.Tensor
            Samples of each item, int64, shape [B]. What comes after them is ignored.

        Returns
        -------
        frames : torch.Tensor
            float32, shape [B, T, D], with the layer "all" [layers, B, T, D]. Frames
            after an item's end hold no information.
        num_frames : torch.Tensor
            Frames of each item, int64, at least 1, shape [B].
        """
        front_end, samples = self.encoder.front_end, wavs.shape[1]
        num_frames = front_end.num_frames(lengths).clamp(min=1)
        wavs = wavs * frame_mask(lengths, samples)
        frames = front_end(F.pad(wavs, (0, self.silence)))
        count = num_layers_of(self.encoder, self.layer)
        output = self.encoder.encode(frames, num_frames, num_layers=count)
        wanted = torch.sym_max(front_end.num_frames(samples), 1)
        return select_layer(output, self.layer)[..., :wanted, :], num_frames


def check_extra():
    """Makes sure that what ONNX needs is installed.

    Raises
    ------
    UserError
        If not. The message names the extra.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: pip install -e '.[onnx]' (or "
            "'encodecmae_sb[onnx]'). --format pt2 needs PyTorch alone."
        )


@torch.no_grad()
def trace(whole):
    """The graph of a `WholeEncoder`, for batches and waveforms of any size.

    Arguments
    ---------
    whole : WholeEncoder
        On the CPU.

    Returns
    -------
    torch.export.ExportedProgram
    """
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example = torch.zeros(2, 100 * whole.silence)
    lengths = torch.tensor([example.shape[1], whole.silence])
    with _quietly():
        return torch.export.export(
            whole,
            (example, lengths),
            dynamic_shapes={"wavs": sizes, "lengths": {0: sizes[0]}},
        )


def write_pt2(program, path):
    """Writes a graph as a file that `torch.export.load` reads."""
    # As an open file: torch wants the ending .pt2 of a path.
    with _quietly(), open(path, "wb") as file:
        torch.export.save(program, file)


def write_onnx(program, path):
    """Writes a graph as an ONNX file."""
    with _quietly():
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=INPUTS,
            output_names=OUTPUTS,
        )
        made.save(str(path))


def quantise(path, target):
    """Rounds the weights of an ONNX file to 8 bits; activations follow at run time.

    The front end stays as it is: its energies span too many decades for 8 bits.

    Arguments
    ---------
    path, target : str or Path
        The file to read, and the one to write.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(path)).graph
    front_end = [
        node.name
        for node in graph.node
        if any("front_end." in name for name in node.input)
    ]
    with _quietly():
        quantize_dynamic(
            str(path),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=front_end,
            # Unsigned: products of signed and unsigned bytes saturate on CPUs without
            # VNNI.
            weight_type=QuantType.QUInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )


def open_pt2(path):
    """What a file of `write_pt2` computes: a function like `WholeEncoder.forward`."""
    with _quietly(), open(path, "rb") as file:
        return torch.export.load(file).module()


def open_onnx(path):
    """What an ONNX file computes: a function like `WholeEncoder.forward`.

    As many threads compute as PyTorch has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )

    def compute(*inputs):
        given = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(OUTPUTS, given)]

    return compute


@contextlib.contextmanager
def _quietly():
    """Without the exporters' notes on packages and on their own future."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx._internal.exporter._registration", "root")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
