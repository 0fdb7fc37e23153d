"""Transcribes audio files with an exported recogniser.

    python recipes/transcribe.py RECOGNISER_FOLDER AUDIO_FILE [AUDIO_FILE ...]

Prints a line for each file: its path, a tab, its text.
"""

import argparse

from encodecmae_sb.inference import load


def main(argv):
    """Transcribes the files that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recogniser", help="folder that recipes/asr_ctc.py exported, or user/name"
    )
    parser.add_argument("audio", nargs="+", help="WAV, FLAC, OGG or MP3 files")
    args = parser.parse_args(argv)
    recogniser = load(args.recogniser, "recogniser")
    for path in args.audio:
        print(f"{path}\t{recogniser.transcribe_file(path)}")
    return 0
