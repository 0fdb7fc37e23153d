"""Transcribes audio files with an exported recogniser.

    python recipes/transcribe.py RECOGNISER_FOLDER AUDIO_FILE [AUDIO_FILE ...]

Prints a line for each file: its path, a tab, its text.
"""

import argparse

from speechbrain.inference.interfaces import foreign_class

from encodecmae_sb.pretrained.folder import check_folder
from encodecmae_sb.utils.experiment import quit_on_user_errors


def main():
    """Parses the command line and transcribes each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recogniser", help="folder that recipes/asr_ctc.py exported")
    parser.add_argument("audio", nargs="+", help="WAV, FLAC, OGG or MP3 files")
    args = parser.parse_args()
    folder = check_folder(args.recogniser, "recogniser")
    recogniser = foreign_class(
        source=str(folder.resolve()),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEASR",
    )
    for path in args.audio:
        print(f"{path}\t{recogniser.transcribe_file(path)}")


if __name__ == "__main__":
    with quit_on_user_errors():
        main()
