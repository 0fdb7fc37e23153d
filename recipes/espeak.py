"""Speak as the program espeak-ng does, with the library in the wheel espeakng-loader.

    python recipes/espeak.py -v en-gb+m3 -p 45 -s 160 -w OUT.wav hello

recipes/make_corpus.py calls it once for each utterance where the program is not
installed: the library's noise goes on from one text to the next, so only a new process
says the same twice. It imports nothing large, to start in some 50 ms. Its functions are
those of espeak-ng's speak_lib.h.
"""

import argparse
import ctypes
import itertools
import wave
from pathlib import Path

RATE, PITCH = 1, 3  # espeak_PARAMETER
SYNCHRONOUS, DONT_EXIT = 2, 0x8000
UTF8, SSML, END_PAUSE = 0x1, 0x10, 0x1000
POINTER = ctypes.POINTER(ctypes.c_short)


class Voice(ctypes.Structure):
    """espeak_VOICE."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("name", "languages", "identifier")),
        *((name, ctypes.c_ubyte) for name in ("gender", "age", "variant", "unused")),
        *(("score", ctypes.c_int), ("spare", ctypes.c_void_p)),
    ]


def open_library():
    """The library and the rate of its samples."""
    import espeakng_loader  # an optional extra

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path()).parent
    options = str(data).encode(), DONT_EXIT
    return library, library.espeak_Initialize(SYNCHRONOUS, 0, *options)


def choose_voice(library, name):
    """Sets a voice, LANGUAGE+VARIANT, by the name of its file or by its language."""
    if library.espeak_SetVoiceByName(name.encode()) == 0:
        return
    language, plus, variant = name.partition("+")
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(Voice))
    for voice in itertools.takewhile(bool, library.espeak_ListVoices(None)):
        # The first byte is the language's rank.
        if voice.contents.languages[1:].decode() == language:
            file = voice.contents.identifier.decode()
            if library.espeak_SetVoiceByName(f"{file}{plus}{variant}".encode()) == 0:
                return
    raise SystemExit(f"espeak-ng has no voice {name}")


def speak(library, text):
    """16-bit samples of a text in SSML, as bytes."""
    parts = []

    @ctypes.CFUNCTYPE(ctypes.c_int, POINTER, ctypes.c_int, ctypes.c_void_p)
    def keep(samples, count, events):
        if samples and count:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(keep)
    text = text.encode()
    size, flags = ctypes.c_size_t(len(text) + 1), UTF8 | SSML | END_PAUSE
    if library.espeak_Synth(text, size, 0, 1, 0, flags, None, None):
        raise SystemExit("espeak-ng could not speak")
    return b"".join(parts)


def main():
    """Speaks what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", nargs="?", help="SSML")
    parser.add_argument("-v", dest="voice", default="en")
    parser.add_argument("-p", dest="pitch", type=int, default=50)
    parser.add_argument("-s", dest="speed", type=int, default=175)
    parser.add_argument("-m", action="store_true", help="SSML, always on")
    parser.add_argument("-w", dest="wav", help="file to write")
    parser.add_argument("--version", action="store_true")
    args = parser.parse_args()
    library, rate = open_library()
    if args.version:
        library.espeak_Info.restype = ctypes.c_char_p
        print(f"eSpeak NG text-to-speech: {library.espeak_Info(None).decode()}")
        return
    choose_voice(library, args.voice)
    library.espeak_SetParameter(RATE, args.speed, 0)
    library.espeak_SetParameter(PITCH, args.pitch, 0)
    samples = speak(library, args.text)
    with wave.open(args.wav, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)


if __name__ == "__main__":
    main()
