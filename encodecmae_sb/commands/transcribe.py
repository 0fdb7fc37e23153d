"""Transcribes audio files with an exported recogniser.

    python recipes/transcribe.py RECOGNISER_FOLDER AUDIO_FILE [AUDIO_FILE ...]

Prints a line for each file: its path, a tab, its text.
"""

import argparse

from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.pretrained.folder import check_folder


def main(argv):
    """Transcribes the files that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recogniser", help="folder that recipes/asr_ctc.py exported")
    parser.add_argument("audio", nargs="+", help="WAV, FLAC, OGG or MP3 files")
    args = parser.parse_args(argv)
    folder = check_folder(args.recogniser, "recogniser")
    recogniser = foreign_class(
        source=str(folder.resolve()),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    )
    for path in args.audio:
        print(f"{path}\t{recogniser.transcribe_file(path)}")
    return 0
