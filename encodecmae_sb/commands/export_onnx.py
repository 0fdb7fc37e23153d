"""An encoder as one file, for ONNX Runtime or PyTorch alone.

    python recipes/export_onnx.py ENCODER_FOLDER out.onnx
    python recipes/export_onnx.py ENCODER_FOLDER out.onnx --int8
    python recipes/export_onnx.py ENCODER_FOLDER out.pt2

Inputs: `wavs`, float32, [batch, samples], mono at 24 kHz in [-1, 1], and `lengths`,
int64, [batch], the samples of each item. Outputs: `frames`, float32, [batch, frames,
width], with `--layer all` [layers, batch, frames, width], and `num_frames`, int64,
[batch]. Batch and samples are free.

At the end the file is compared with PyTorch, on a dozen batches. If it disagrees, there
is no file. Then a table shows the differences and the times of PyTorch and of the file.
"""

import argparse

from encodecmae_sb.commands import LAYERS, layer
from encodecmae_sb.pipelines.deploy import ONNX, PT2, deploy, table


def main(argv):
    """Exports what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("encoder_folder", help="folder that a recipe exported, or a published name")
    add("output", help="the file to write")
    add("--format", choices=[ONNX, PT2], help="default: by the ending of the file")
    add("--int8", action="store_true", help="round the weights to 8 bits")
    add("--layer", type=layer, default="last", help=LAYERS)
    args = parser.parse_args(argv)
    agreements, rows = deploy(
        args.encoder_folder, args.output, args.format, args.int8, args.layer
    )
    print(table(rows))
    for name, found in agreements.items():
        print(
            f"{name}: compared with PyTorch on {found.batches} batches, largest "
            f"difference {found.largest:.1e}, relative {found.relative:.1e}"
        )
    print(f"{args.output} is written.")
    return 0
