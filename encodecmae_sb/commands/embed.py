"""Features of audio files from an exported encoder.

    python recipes/embed.py ENCODER_FOLDER AUDIO [AUDIO ...]
    python recipes/embed.py ENCODER_FOLDER /data/LibriSpeech --output_folder features

AUDIO is a file (WAV, FLAC, OGG or MP3, of any rate and length) or a folder, searched
with all below it. Every file gives a NumPy file `NAME.npy`, float32, of shape
[frames, width], with `--layer all` [layers, frames, width], about 75 frames a second.
It goes beside the audio or, in the same folders, to --output_folder. Files that differ
only in the extension keep it: `NAME.wav.npy`.

An hour takes as little memory as a minute: each file is read, encoded and written in
stretches. For a large corpus:

- A file gets its name only when it is whole. If the run was killed, give the same
  command again: files that are there are left alone and counted, whatever has happened
  to their audio; `--overwrite` computes them again. (After a power cut, the files of
  the last minute may be damaged: delete those first.)
- `features.json` in --output_folder says how its features were made. A run with
  another encoder, layer or precision is refused. Beside the audio nothing is noted:
  there, a file of the right name counts as done.
- Audio that cannot be used is reported with the reason, skipped and counted. An error
  that affects all files, such as a full disk, ends the run.
- The exit status is 0 if there are features of any file at the end, else 1.
"""

import argparse
from pathlib import Path

from encodecmae_sb.commands import LAYERS, layer
from encodecmae_sb.pipelines.embed import embed


def parse(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("encoder_folder", help="exported folder, published name, or user/name")
    add("audio", nargs="+", help="audio files, or folders of them")
    add("--layer", type=layer, default="last", help=LAYERS)
    add("--output_folder", type=Path, help="default: beside the audio")
    add("--overwrite", action="store_true", help="replace features that are there")
    add("--device", help="cpu, cuda:0, ...; default: a GPU if any")
    add("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    add("--batch_size", type=int, default=8, help="chunks of 4 s; on a GPU more")
    add("--noprogressbar", action="store_true", dest="quiet")
    return parser.parse_args(argv)


def main(argv):
    """Embeds what the command line names; returns the exit status."""
    args = parse(argv)
    embedding = embed(**vars(args))
    print(embedding.summary(args.output_folder))
    return 0 if embedding.num_done + embedding.num_kept else 1
