"""Makes audible what a pretrained model imagines where audio is hidden.

    python recipes/reconstruct.py AUDIO_FILE PRETRAINING_OUTPUT_FOLDER
    python recipes/reconstruct.py speech.wav results/mini/1234 --gaps 0.5-0.7,1.2-1.5

Hides gaps, as in training or where --gaps says, predicts their codes with the run's
newest checkpoint, and decodes. Writes `codec.wav` (the codec's own reconstruction),
`masked.wav` (the same, silent where hidden), `filled.wav` (the gaps filled in),
`spectrograms.png` and `metrics.json`. Audio that is longer than a crop of the training
is processed in chunks of that length.
"""

import argparse
import sys
from pathlib import Path

from encodecmae_sb.data.audio import write_audio
from encodecmae_sb.evaluation.reconstruct import (
    draw_spectrograms,
    fill_in,
    given_gaps,
    load_run,
    measure,
    random_gaps,
    silence,
)
from encodecmae_sb.inference.encoder import read_file
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import quit_on_user_errors, write_metrics
from encodecmae_sb.utils.files import check_writable
from encodecmae_sb.utils.grid import HOP


def parse(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("audio", type=Path, help="WAV, FLAC, OGG or MP3 file")
    add("run", type=Path, help="output folder of recipes/pretrain.py")
    add("--gaps", help="seconds, such as 0.5-0.7,1.2-1.5; default: as in training")
    add("--seed", type=int, default=0, help="of gaps and draws")
    add("--temperature", type=float, default=0.0, help="0: the most probable codes")
    add("--codec", help="encodec_24khz, bundled or a file; default: the run's")
    add("--output_folder", type=Path, help="default: RUN/reconstructions/AUDIO_NAME")
    return parser.parse_args(argv)


def main(argv):
    """Hides, predicts, decodes, writes."""
    args = parse(argv)
    if args.seed < 0:
        raise UserError(f"seed={args.seed}: 0 or more is allowed.")
    run = load_run(args.run, args.codec)
    wav = read_file(args.audio, run.codec.sample_rate)
    if len(wav) < 2 * HOP:
        raise UserError(f"{args.audio} is shorter than two frames (27 ms).")
    output = args.output_folder or args.run / "reconstructions" / args.audio.stem
    check_writable(output)
    if args.gaps is None:
        hidden = random_gaps(run, len(wav), args.seed)
    else:
        hidden = given_gaps(args.gaps, len(wav), run.codec.sample_rate)
    done = fill_in(run, wav, hidden, args.temperature, args.seed)

    gains = done.gains.repeat_interleave(HOP)
    codec, filled = (
        (run.codec.decode(codes[None])[0] * gains)[: len(wav)]
        for codes in (done.codes, done.filled)
    )
    sounds = {"codec": codec, "masked": silence(codec, hidden), "filled": filled}
    for name, samples in sounds.items():
        write_audio(
            output / f"{name}.wav",
            samples.clamp(-1, 1).numpy(),
            run.codec.sample_rate,
        )
    titles = ("The codec's own reconstruction", "Hidden", "Filled in by the model")
    draw_spectrograms(
        dict(zip(titles, sounds.values(), strict=True)),
        hidden,
        output / "spectrograms.png",
    )
    report(args, run, done, output)


def report(args, run, done, output):
    """Writes metrics.json, prints the table and what was made."""
    metrics = {
        "audio": str(args.audio),
        "checkpoint": str(run.checkpoint),
        "codec": run.codec.source,
        **measure(run, done),
    }
    write_metrics(output, metrics)
    print(
        f"{metrics['hidden_frames']} of {metrics['frames']} frames hidden. Accuracy of "
        "the most probable codes on them, in %.\n"
        f"Chance is {100 * metrics['chance']:.2f} (1/{run.codec.codebook_size}). "
        "Constant: always the commonest of the visible codes.\n"
        "Validation: what the run reported, over its own files; and over those of each "
        "corpus.\n"
        "  codebook   accuracy   constant   validation"
        + "".join(f"   {prefix[:-1]:>10}" for prefix in run.prefixes[1:])
    )
    for q in range(1, done.codes.shape[1] + 1):
        names = (f"gap_accuracy_{q}", f"constant_accuracy_{q}")
        shown = [f"{q:8d}", *(f"{100 * metrics[name]:8.1f}" for name in names)]
        for prefix in run.prefixes:
            accuracy = metrics[f"{prefix}validation_accuracy_{q}"]
            shown.append(f"{100 * accuracy:10.1f}")
        print("  " + "   ".join(shown))
    print(
        f"\nMade in {output}:\n"
        "  codec.wav          the codec's own reconstruction\n"
        "  masked.wav         the same, silent where hidden\n"
        "  filled.wav         the gaps filled in by the model\n"
        "  spectrograms.png   the three of them\n"
        "  metrics.json       the figures above"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
