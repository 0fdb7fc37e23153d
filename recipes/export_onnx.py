"""An encoder as one file, for ONNX Runtime or for PyTorch without this package.

The command is `encodecmae_sb/commands/export_onnx.py`; `--help` says what it takes.
"""

from encodecmae_sb.commands import run
from encodecmae_sb.commands.export_onnx import main

if __name__ == "__main__":
    run(main)
