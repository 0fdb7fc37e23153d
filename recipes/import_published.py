"""An encoder folder from the authors' published weights.

    python recipes/import_published.py --list
    python recipes/import_published.py mel256-ec-base_st encoders/mel256-ec-base_st
    python recipes/import_published.py downloaded.pt encoders/downloaded

The folder is what a recipe of this package exports: `foreign_class`, the lobe
`EnCodecMAE` and recipes/embed.py take it. Where the weights hold the codec of their
targets, the folder has it as `codec.safetensors`, for `--codec` of pretraining.
"""

import argparse
from pathlib import Path

from encodecmae_sb.pretrained.published import (
    CODEC_FILE,
    PUBLISHED,
    REPOSITORY,
    import_published,
)
from encodecmae_sb.utils.experiment import quit_on_user_errors


def names():
    """The names that can be fetched, a line each."""
    lines = [f"  {name:20s} {what}" for name, what in PUBLISHED.items()]
    return f"Published weights in {REPOSITORY}:\n" + "\n".join(lines)


def main():
    """Parses the command line and makes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="name (see --list) or .pt file")
    parser.add_argument("output_folder", type=Path, help="the encoder folder to make")
    parser.add_argument(
        "--list", action="version", version=names(), help="show the names and exit"
    )
    args = parser.parse_args()
    published = import_published(args.source, args.output_folder)
    encoder = published.model.encoder
    print(
        f"Made {args.output_folder}: an encoder of {encoder.num_layers} layers, "
        f"{encoder.transformer.num_heads} heads, {encoder.dim} wide."
    )
    print(
        "Next:\n"
        f"  python recipes/embed.py {args.output_folder} AUDIO_FILE\n"
        "      features of a file"
    )
    if published.codec is not None:
        print(
            "  python recipes/pretrain.py hparams/base.yaml --data_folder FOLDER "
            f"--codec {args.output_folder / CODEC_FILE}\n"
            "      pretraining with the targets of these weights"
        )


if __name__ == "__main__":
    with quit_on_user_errors():
        main()
