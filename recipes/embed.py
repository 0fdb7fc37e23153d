"""Features of audio files from an exported encoder.

    python recipes/embed.py ENCODER_FOLDER AUDIO_FILE [AUDIO_FILE ...]

Writes, beside each audio file or into --output_folder, a NumPy file `NAME.npy` of
shape [frames, width], float32; about 75 frames a second.
"""

import argparse
from pathlib import Path

import numpy as np
from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.errors import UserError
from encodecmae_sb.experiment import quit_on_user_errors


def main():
    """Parses the command line and embeds each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="folder that a recipe exported")
    parser.add_argument("audio", nargs="+", help="WAV, FLAC, OGG or MP3 files")
    parser.add_argument(
        "--layer",
        default="last",
        help="last, last_no_norm, all, or the number of a layer counted from 0",
    )
    parser.add_argument("--output_folder", type=Path, help="default: beside the audio")
    args = parser.parse_args()
    if not (Path(args.encoder) / "hyperparams.yaml").is_file():
        raise UserError(
            f"{args.encoder} is no encoder folder: it holds no hyperparams.yaml. Give "
            "the folder that a recipe exported, e.g. results/mini/1234/encoder"
        )
    encoder = foreign_class(
        source=str(Path(args.encoder).resolve()),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
    )
    layer = int(args.layer) if args.layer.isdigit() else args.layer
    for path in map(Path, args.audio):
        features = encoder.encode_file(path, layer).numpy()
        folder = args.output_folder or path.parent
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{path.stem}.npy"
        np.save(target, features)
        print(f"{target}: {' x '.join(map(str, features.shape))}")


if __name__ == "__main__":
    with quit_on_user_errors():
        main()
