r"""Trains CTC speech recognition on a pretrained encoder.

    python recipes/asr_ctc.py hparams/asr_ctc_mini.yaml
    python recipes/asr_ctc.py hparams/asr_ctc_frozen.yaml \
        --data_folder /data/LibriSpeech --encoder_folder results/base/1234/encoder

The yaml says whether the encoder stays as it is (asr_ctc_frozen.yaml, as in the paper)
or is trained along (asr_ctc_finetuned.yaml). `--pretrained False` replaces its weights
by random ones, to see what pretraining is worth.

Makes, in the output folder: `asr/`, which `foreign_class` loads; `metrics.json`;
`wer_<set>.txt` with alignments; `left_out.csv`; checkpoints. A run that was
interrupted goes on when the same command is given again.
"""

import sys
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.brains.ctc import CTCBrain, check_validated
from encodecmae_sb.data import speech
from encodecmae_sb.data.tokenizer import check_characters, make_tokens
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.inference.recogniser import build_searcher, export_recogniser
from encodecmae_sb.lobes import AdaptedEnCodecMAE
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.pretrained.published import (
    encoder_identity,
    encoder_licence,
    source_name,
)
from encodecmae_sb.utils import experiment
from encodecmae_sb.utils.identity import named


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = experiment.start_experiment(argv, can_test=True)
    output, checkpointer = Path(hparams["output_folder"]), hparams["checkpointer"]
    if run_opts.test_only:
        check_validated(checkpointer)
    encoder = hparams["encoder"]()

    sets = experiment.main_process_first(speech.load_sets, hparams)
    train, valid, *tests = sets
    texts = [row["wrd"] for row in train.rows]
    tokens = make_tokens(texts, hparams["token_type"], hparams["vocab_size"])
    for part in (valid, *tests):
        check_characters(tokens, part.rows, part.name)
    for part in sets:
        part.tokenize(tokens)
    head = hparams["head"](encoder.dim, len(tokens))
    describe(encoder)  # what could not be exported at the end is refused now
    rate = hparams["sample_rate"]
    for part in (train, valid):  # of the test sets nothing is left out
        samples = torch.tensor([int(rate * row["duration"]) for row in part.rows])
        num_steps = head.num_outputs(encoder.num_frames(samples))
        speech.leave_out_short(part, num_steps.tolist())
    searched = hparams["beam_search"], hparams["kenlm_model_path"]
    searcher = build_searcher(tokens, *searched)
    total = sum(len(part.rows) + len(part.left_out) for part in sets)
    unusable = UnusableFiles(output / "left_out.csv", total, hparams["max_unusable"])
    protocol = "frozen" if encoder.freeze else "finetuned"
    if isinstance(encoder, AdaptedEnCodecMAE):
        protocol = f"adapters ({encoder.in_words()})"
    if if_main_process():
        unusable.add([item for part in sets for item in part.left_out])
        print(
            f"{'Pretrained' if hparams['pretrained'] else 'Random'} encoder, "
            f"{protocol}; head: {head.in_words()}; {len(tokens)} tokens.\n"
            f"Training on {len(train.rows)} utterances, {train.seconds / 60:.1f} min; "
            f"validating on {len(valid.rows)}; {len(unusable)} left out."
        )

    source, pretrained = hparams["encoder_folder"], hparams["pretrained"]
    origin = (  # `inference.recogniser.read_training` reads it
        f"Trained on {len(train.rows)} utterances ({train.seconds / 3600:.2f} h) of "
        f"{hparams['data_folder'] or 'the bundled corpus'}: {train.name}. Encoder "
        f"{source_name(source, encoder.encoder)}"
        f"{'' if pretrained else ' with NEW RANDOM WEIGHTS'}."
    )
    licence = encoder_licence(source)
    checkpointer.add_recoverables({"encoder": encoder, "head": head})
    brain = CTCBrain(
        {"encoder": encoder, "head": head},
        hparams["opt_class"],
        hparams,
        run_opts,
        checkpointer,
        tokens=tokens,
        unusable=unusable,
    )
    brain.identify(
        data=speech.sets_identity([train, valid]),
        encoder=encoder_identity(encoder.encoder, source, pretrained),
        tokens=named(f"{len(tokens)} of type {hparams['token_type']}", tokens.digest()),
    )
    train, valid, *datasets = (speech.speech_dataset(part, rate) for part in sets)
    brain.fit_speech(train, valid)

    if brain.test_only:
        checkpointer.recover_if_possible()  # where the training ended, for `steps`
    metrics = {"protocol": protocol, "head": head.in_words(), "pretrained": pretrained}
    metrics |= {"precision": brain.precision, "steps": brain.optimizer_step}
    for name, dataset in zip(speech.set_names(tests), datasets, strict=True):
        figures = brain.evaluate_set(dataset, searcher, output / f"wer_{name}.txt")
        metrics |= {f"{name}/{key}": value for key, value in figures.items()}
    best = min(brain.history.rows, key=lambda row: row["cer"])
    metrics["left_out"] = len(unusable)
    metrics |= {f"valid/{key}": best[key] for key in ("epoch", "wer", "cer")}
    if if_main_process():
        finish(encoder, head, tokens, hparams, metrics, output, origin, licence)


def finish(encoder, head, tokens, hparams, metrics, output, origin, licence):
    """Writes metrics and the recogniser, and says what to do next."""
    experiment.write_metrics(output, metrics)
    origin = (
        f"{origin} CTC, protocol {metrics['protocol']}, head: {metrics['head']}, "
        f"{metrics['steps']} steps. Word and character error rates in per cent; test "
        "sets with beam search, validation greedy."
    )
    figures = {key: metrics[key] for key in metrics if key.endswith(("/wer", "/cer"))}
    settings = hparams["beam_search"], output / "asr", origin, figures
    kenlm = hparams["kenlm_model_path"]
    export_recogniser(encoder, head, tokens, *settings, kenlm, licence)
    print("\nset              WER %    CER %")
    for name in (key.removesuffix("/wer") for key in figures if key.endswith("/wer")):
        print(
            f"{name:15s} {figures[f'{name}/wer']:6.1f}   {figures[f'{name}/cer']:6.1f}"
        )
    print(
        f"\nMade in {output}:\n"
        f"  asr/             the recogniser, for foreign_class\n"
        f"  metrics.json     the figures above\n"
        f"  wer_*.txt        every utterance, aligned with its transcript\n"
        f"  left_out.csv     {metrics['left_out']} utterances left out\n"
        "Next:\n"
        f"  python recipes/transcribe.py {output / 'asr'} AUDIO_FILE"
    )


if __name__ == "__main__":
    with experiment.quit_on_user_errors():
        main(sys.argv[1:])
