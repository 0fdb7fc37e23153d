"""Trains a small neural codec with EnCodec's interface, from scratch.

    python recipes/train_codec.py hparams/codec_mini.yaml [--data_folder FOLDER]

Makes `codec.safetensors`, which pretraining takes as `--codec FILE`;
`metrics.json` with its quality on audio it was not trained on; and pairs of WAV
files, an original and its reconstruction, to listen to.
"""

import sys
from pathlib import Path

import torch

from encodecmae_sb.brains.codec import CodecBrain
from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.audio import write_audio
from encodecmae_sb.data.crops import CropCollator, FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import prepare_corpora
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.evaluation.codec import codec_report
from encodecmae_sb.lobes import Codec
from encodecmae_sb.nnet.codec_training import init_seanet_
from encodecmae_sb.pretrained.codec_files import save_codec
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import (
    quit_on_user_errors,
    start_experiment,
    write_metrics,
)
from encodecmae_sb.utils.identity import data_identity


def main(argv):
    """Trains, measures, writes; all settings come from the yaml."""
    hparams, run_opts, _ = start_experiment(argv)
    if torch.distributed.is_initialized():
        # Codebooks are learnt from one process's frames; several would drift apart.
        raise UserError("The codec trains in one process: start it without torchrun.")
    begin, end = hparams["quantize_from"], hparams["training_steps"]
    if not 0 < begin < end:
        raise UserError(
            f"quantize_from={begin}, training_steps={end}: the codebooks start after "
            "quantize_from steps, which must be fewer than training_steps and above 0."
        )
    rate = hparams["codec_net"].sample_rate
    if hparams["sample_rate"] != rate:
        raise UserError(
            f"sample_rate={hparams['sample_rate']}: the codec needs {rate}."
        )
    output, save = Path(hparams["output_folder"]), Path(hparams["save_folder"])
    share = hparams["max_unusable"]
    folders = hparams["data_folder"] or corpus_folders()
    corpora = prepare_corpora(folders, save, share, procedural=True)
    heldout = []
    if hparams["valid_folder"]:
        heldout = prepare_corpora(hparams["valid_folder"], save / "valid", share)
    unusable = UnusableFiles(
        output / "unusable_files.csv",
        sum(corpus.num_files for corpus in corpora + heldout),
        share,
    )
    for corpus in corpora + heldout:
        unusable.add(corpus.unusable)
    train = RandomCrops(
        [corpus.train_csv for corpus in corpora],
        hparams["crop_seconds"],
        hparams["sample_rate"],
        hparams["seed"],
        hparams["corpus_weights"],
    )
    valid = FixedCrops(
        [corpus.valid_csv for corpus in heldout or corpora],
        hparams["valid_items"],
        crop_seconds=4.0,
        sample_rate=hparams["sample_rate"],
    )
    unusable.add(valid.unusable)

    init_seanet_(hparams["codec_net"])
    brain = CodecBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        unusable=unusable,
    )
    brain.identify(data=data_identity(corpora + heldout))
    brain.fit_crops(train, valid)
    finish(brain, valid, output)


def finish(brain, valid, output):
    """Writes the codec, reads it back, and measures what was read."""
    path = output / "codec.safetensors"
    save_codec(
        brain.net,
        path,
        {
            "n_filters": str(brain.hparams.n_filters),
            "steps": str(brain.optimizer_step),
            "licence": "Apache-2.0",
        },
    )
    codec = Codec(path, n_codebooks=brain.hparams.n_codebooks)
    loader = torch.utils.data.DataLoader(valid, 8, collate_fn=CropCollator())
    metrics = codec_report(codec.net, loader)
    write_metrics(output, {"steps": brain.optimizer_step, **metrics})
    for index in (0, len(valid) // 2):
        wav = valid[index]["wav"]
        wav = 0.7 * wav / wav.abs().max().clamp(min=1e-5)
        made = codec.decode(codec.encode(wav[None]))[0, : len(wav)]
        for name, samples in (("original", wav), ("reconstruction", made)):
            file = output / f"listen_{index}_{name}.wav"
            write_audio(file, samples.numpy(), codec.sample_rate)

    print("\nThe codec, on audio that it was not trained on:")
    for name, value in metrics.items():
        print(f"  {name:18s} {value:8.3f}")
    print(
        f"Codec:      {path} ({path.stat().st_size / 1e6:.1f} MB)\n"
        f"To listen:  {output}/listen_*.wav\n"
        f"Use it:     python recipes/pretrain.py hparams/mini.yaml --codec {path}"
    )


if __name__ == "__main__":
    with quit_on_user_errors():
        main(sys.argv[1:])
