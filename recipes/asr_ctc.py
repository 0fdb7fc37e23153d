r"""Fine-tunes CTC speech recognition on a pretrained encoder.

    python recipes/asr_ctc.py hparams/asr_ctc_mini.yaml
    python recipes/asr_ctc.py hparams/asr_ctc.yaml --data_folder /data/LibriSpeech \
        --encoder_folder results/base/1234/encoder --protocol finetuned

`--protocol frozen` is the paper's: the encoder stays as it is, two BiLSTM layers
learn on a weighted sum of its layers. `--protocol finetuned` trains the encoder
along, after `freeze_steps`. `--pretrained False` replaces its weights by random
ones, to see what pretraining is worth.

Makes, in the output folder: `asr/`, which `foreign_class` loads; `metrics.json`;
`wer_<set>.txt` with alignments; `left_out.csv`; checkpoints. A run that was
interrupted goes on when the same command is given again.
"""

import sys
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.brains.ctc import CTCBrain
from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.data.speech import (
    leave_out_short,
    librispeech_set,
    manifest_set,
    speech_dataset,
)
from encodecmae_sb.data.tokenizer import Tokens, check_characters
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.inference.recogniser import build_searcher, export_recogniser
from encodecmae_sb.pretrained.folder import encoder_yaml
from encodecmae_sb.utils.digests import digest, weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    main_process_first,
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.identity import named

PROTOCOLS = ("frozen", "finetuned")
VALID = "valid"  # what the figures of the validation are called

_ROW = ("ID", "duration", "wrd")  # what the training depends on of an utterance


def load_sets(hparams):
    """Training, validation and test sets, as the yaml names them."""
    given = [part for part in ("train", "valid", "test") if hparams[f"{part}_csv"]]
    if given and len(given) < 3 and not hparams["data_folder"]:
        raise UserError(
            f"Of train_csv, valid_csv and test_csv only {', '.join(given)} given, and "
            "no data_folder whose parts could stand for the rest: give all three."
        )
    folder = hparams["data_folder"] or speech_folder()
    save, share = hparams["save_folder"], hparams["max_unusable"]
    rate = hparams["source_sample_rate"]

    def load(part):
        files, splits = hparams[f"{part}_csv"], hparams[f"{part}_splits"]
        if files is None:
            splits = [splits] if isinstance(splits, str) else splits
            if not isinstance(splits, list) or not all(
                isinstance(split, str) for split in splits
            ):
                raise UserError(
                    f"{part}_splits={splits}: names of folders are allowed, one or a "
                    f'list, such as --{part}_splits "[dev-clean, dev-other]"'
                )
            groups = [[split] for split in splits] if part == "test" else [splits]
            return [
                librispeech_set(folder, names, save, share, rate) for names in groups
            ]
        files = [files] if isinstance(files, str) else files
        if part != "test" and len(files) > 1:
            raise UserError(f"{part}_csv={files}: give one manifest.")
        return [manifest_set(file, folder, rate, share) for file in files]

    (train,), (valid,) = load("train"), load("valid")
    return train, valid, load("test")


def set_names(sets):
    """A short name for each test set, no two the same, and none that of validation."""
    names = []
    for part in sets:
        stem = name = Path(part.name).stem
        count = 0
        while name in (*names, VALID):
            count += 1
            name = f"{stem}_{count}"
        names.append(name)
    return names


def make_tokens(hparams, train):
    """The vocabulary, from the training transcripts."""
    texts = [row["wrd"] for row in train.rows]
    if hparams["token_type"] == "char":
        return Tokens.of_characters(texts)
    if hparams["token_type"] in ("bpe", "unigram"):
        return Tokens.of_pieces(texts, hparams["vocab_size"], hparams["token_type"])
    raise UserError(
        f"token_type={hparams['token_type']!r}: allowed are char, bpe and unigram."
    )


def encoder_identity(hparams, encoder):
    """Which weights the training starts from."""
    if not hparams["pretrained"]:
        return named("random weights", digest(encoder_yaml(encoder.encoder)))
    return named(str(hparams["encoder_folder"]), weights_key(encoder.encoder)[:12])


def main(argv):
    """Runs the experiment that the command line describes."""
    hparams, run_opts, _ = start_experiment(argv, can_test=True)
    output = Path(hparams["output_folder"])
    protocol = hparams["protocol"]
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol={protocol!r}: allowed are {', '.join(PROTOCOLS)}.")
    checkpointer = hparams["checkpointer"]
    saved = checkpointer.list_checkpoints()
    if run_opts.test_only and not any("cer" in checkpoint.meta for checkpoint in saved):
        raise UserError(
            f"--test_only, but {checkpointer.checkpoints_dir} holds no checkpoint that "
            "was validated: run without it first."
        )
    encoder = hparams[f"{protocol}_encoder"]()

    train, valid, tests = main_process_first(load_sets, hparams)
    rate = hparams["sample_rate"]
    tokens = make_tokens(hparams, train)
    head = hparams[f"{protocol}_head"](encoder.dim, len(tokens))
    for part in (valid, *tests):
        check_characters(tokens, part.rows, part.name)
    for part in (train, valid):  # of the test sets nothing is left out
        leave_out_short(
            part,
            tokens,
            lambda seconds: head.num_outputs(
                int(encoder.num_frames(torch.tensor(int(rate * seconds))))
            ),
        )
    searcher = build_searcher(
        tokens, hparams["beam_search"], hparams["kenlm_model_path"]
    )
    all_sets = (train, valid, *tests)
    unusable = UnusableFiles(
        output / "left_out.csv",
        sum(len(part.rows) + len(part.left_out) for part in all_sets),
        hparams["max_unusable"],
    )
    if if_main_process():
        for part in all_sets:
            unusable.add(part.left_out)
        print(
            f"{'Pretrained' if hparams['pretrained'] else 'Random'} encoder, "
            f"{protocol}; head: {head.describe()}; {len(tokens)} tokens.\n"
            f"Training on {len(train.rows)} utterances, {train.seconds / 60:.1f} min; "
            f"validating on {len(valid.rows)}; {len(unusable)} left out.",
            flush=True,
        )

    checkpointer.add_recoverables({"encoder": encoder, "head": head})
    brain = CTCBrain(
        modules={"encoder": encoder, "head": head},
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
        tokens=tokens,
        unusable=unusable,
    )
    sets = (train, valid)
    rows = [[row[key] for key in _ROW] for part in sets for row in part.rows]
    brain.identify(
        data=named([part.name for part in sets], digest(rows)),
        encoder=encoder_identity(hparams, encoder),
        tokens=named(f"{len(tokens)} of type {hparams['token_type']}", tokens.digest()),
    )
    brain.fit_speech(
        speech_dataset(train, tokens, rate), speech_dataset(valid, tokens, rate)
    )

    if brain.test_only:
        checkpointer.recover_if_possible()  # where the training ended, for `steps`
    metrics = {
        "protocol": protocol,
        "head": head.describe(),
        "pretrained": hparams["pretrained"],
        "precision": brain.precision,
        "steps": brain.optimizer_step,
    }
    for name, part in zip(set_names(tests), tests, strict=True):
        figures = brain.evaluate_set(
            speech_dataset(part, tokens, rate), searcher, output / f"wer_{name}.txt"
        )
        metrics.update({f"{name}/{key}": value for key, value in figures.items()})
    metrics["left_out"] = len(unusable)
    best = min(brain.history.rows, key=lambda row: row["cer"])
    metrics.update({f"{VALID}/{key}": best[key] for key in ("epoch", "wer", "cer")})
    if if_main_process():
        finish(encoder, head, tokens, hparams, metrics, output)


def finish(encoder, head, tokens, hparams, metrics, output):
    """Writes metrics and the recogniser, and says what to do next."""
    write_metrics(output, metrics)
    sets = [key.removesuffix("/wer") for key in metrics if key.endswith("/wer")]
    figures = {key: metrics[key] for key in metrics if key.endswith(("/wer", "/cer"))}
    export_recogniser(
        encoder,
        head,
        tokens,
        hparams["beam_search"],
        output / "asr",
        f"CTC, protocol {hparams['protocol']}, head: {metrics['head']}, "
        f"{metrics['steps']} steps. Word and "
        "character error rates in per cent; test sets with beam search, validation "
        "greedy.",
        figures,
        hparams["kenlm_model_path"],
    )
    print("\nset              WER %    CER %")
    for name in sets:
        wer, cer = metrics[f"{name}/wer"], metrics[f"{name}/cer"]
        print(f"{name:15s} {wer:6.1f}   {cer:6.1f}")
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
    with quit_on_user_errors():
        main(sys.argv[1:])
