"""NSynth: 305 979 notes of 4 s; the label is the pitch, as a MIDI number.

https://magenta.tensorflow.org/datasets/nsynth. Official parts: no instrument of the
training part is in another part. As in HEAR, only the 88 pitches of a piano, 21 to 108,
are used. Other pitches are rare, and not in every part.
"""

import json

from encodecmae_sb.data.clips import Clip
from encodecmae_sb.data.corpora import missing, need

RATE = 16000
LAYOUT = """\
  nsynth-train/examples.json   nsynth-train/audio/bass_synthetic_033-022-050.wav
  nsynth-valid/...   nsynth-test/..."""

_PITCHES = range(21, 109)


def find_clips(folder):
    """Clips of the three parts."""
    clips = []
    for part in ("train", "valid", "test"):
        home = need(folder, f"nsynth-{part}", LAYOUT)
        table = need(home, "examples.json", LAYOUT)
        audio = need(home, "audio", LAYOUT)
        try:
            notes = json.loads(table.read_text(encoding="utf-8"))
            pitches = {name: int(note["pitch"]) for name, note in notes.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise missing(home, f"examples.json with pitches ({error})", LAYOUT) from (
                error
            )
        clips += [
            Clip(name, str(audio / f"{name}.wav"), (str(pitch),), part)
            for name, pitch in sorted(pitches.items())
            if pitch in _PITCHES
        ]
    return clips
