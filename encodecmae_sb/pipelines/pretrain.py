"""What pretraining and self-training share, from the corpora to the results."""

from pathlib import Path

import numpy as np
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.brains.pretrain import PretrainBrain
from encodecmae_sb.bundled import corpus_folders
from encodecmae_sb.data.codes import NAMED_BY, StoredCodes
from encodecmae_sb.data.crops import FixedCrops, RandomCrops
from encodecmae_sb.data.manifest import check_folders, prepare_corpora
from encodecmae_sb.data.procedural.corpus import PROCEDURAL
from encodecmae_sb.data.shards.reading import (
    ShardCrops,
    find_packed_codes,
    holds_shards,
    prepare_shards,
)
from encodecmae_sb.data.unusable import UnusableFiles
from encodecmae_sb.evaluation.plots import draw_curves
from encodecmae_sb.lobes import Codec, CodecLatents
from encodecmae_sb.nnet.encodec import FrozenCodec
from encodecmae_sb.nnet.targets import build, licence_of, weights_of
from encodecmae_sb.pretrained.codec_files import checksum
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.licence import targets_licence
from encodecmae_sb.pretrained.pretraining import note_licence, read_licence
from encodecmae_sb.utils.digests import digest
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import main_process_first, write_metrics
from encodecmae_sb.utils.identity import data_identity, named

from .altered import (
    AUTO,
    MOST_COPIES,
    MOST_HOURS,
    add_copies,
    copies_identity,
    limit_copies,
    no_copies,
)

COMPUTED = "computed for each crop"  # what an identity says where none are stored


def prepare_data(hparams, path, shards=False):
    """Manifests of the corpora, and the list of files that cannot be used.

    With `altered_copies`, the files to train on have copies. The key then says how many
    of each file: a number, also where it said auto.

    Arguments
    ---------
    hparams : dict
    path : Path
        Of the list, a CSV file.
    shards : bool
        Whether data folders may be folders of shards, or procedural audio.

    Returns
    -------
    corpora : list of Corpus
    unusable : UnusableFiles
    """
    copies = choose_copies(hparams)
    folders = hparams["data_folder"] or corpus_folders()
    save, max_unusable = hparams["save_folder"], hparams["max_unusable"]
    if shards and holds_shards(folders):
        corpora = main_process_first(prepare_shards, folders, save)
    else:
        corpora = main_process_first(
            prepare_corpora, folders, save, max_unusable, shards
        )
    copies = hparams["altered_copies"] = limit_copies(corpora, copies)
    if copies:
        begun = bool(hparams["checkpointer"].list_checkpoints())
        arguments = corpora, copies, hparams["seed"], save, begun
        corpora = main_process_first(add_copies, *arguments)
    num_files = sum(corpus.num_files for corpus in corpora)
    unusable = UnusableFiles(path, num_files, max_unusable)
    if if_main_process():
        for corpus in corpora:
            unusable.add(corpus.unusable)
    return corpora, unusable


def holds_procedural(data_folders):
    """Whether procedural audio is among the data folders, so nothing can be stored.

    Arguments
    ---------
    data_folders : str, Path or list of them

    Returns
    -------
    bool
    """
    return PROCEDURAL in check_folders(data_folders, remote=True, procedural=True)


def choose_copies(hparams):
    """How many altered copies of each file are asked for, before audio is read.

    Arguments
    ---------
    hparams : dict

    Returns
    -------
    int or "auto"
        For `encodecmae_sb.pipelines.altered.add_copies`. 0, with a message, where
        `auto` meets audio that has no copies. A run whose checkpoints come from some
        number of copies goes on with it under `auto`.

    Raises
    ------
    UserError
        If `altered_copies` is neither auto nor a number from 0 to 100, or a number
        above 0 where there can be no copies.
    """
    copies = hparams.get("altered_copies", 0)
    number = isinstance(copies, int) and not isinstance(copies, bool)
    if copies != AUTO and not (number and 0 <= copies <= MOST_COPIES):
        raise UserError(
            f"altered_copies={copies}: give how many altered copies of each file are "
            f"to be made, from 0 to {MOST_COPIES}; or auto: one, if there are at most "
            f"{MOST_HOURS:g} h of audio with it."
        )
    against = copies and _against_copies(hparams)
    if copies == AUTO and "checkpointer" in hparams:
        recorded = hparams["checkpointer"].recorded("altered_copies")
        if recorded is not None:
            copies = recorded["value"] if isinstance(recorded, dict) else 0
    if copies and against:
        return no_copies(copies, *against)
    return copies


def _against_copies(hparams):
    """Why there can be no copies and what to do, or None."""
    folders, codes_folder = hparams["data_folder"], hparams.get("codes_folder")
    if folders and (holds_shards(folders) or holds_procedural(folders)):
        return (
            "copies can only be made of files in a folder, not of shards or "
            "procedural audio",
            "Give --altered_copies 0; input_augment alters such audio",
        )
    if codes_folder:
        return (
            f"codes_folder={codes_folder} has no codes of copies",
            "Leave codes_folder out (store_targets stores them), or give "
            "--altered_copies 0",
        )
    save = Path(hparams["save_folder"]).resolve()
    for folder in check_folders(folders) if folders else ():
        if save.is_relative_to(folder):
            return (
                f"copies would lie in {save}, which is in data_folder={folder}",
                "Give an --output_folder outside of it, or --altered_copies 0",
            )
    return None


def open_codes(hparams, label, named_by=NAMED_BY):
    """The stored codes, if there are any.

    Arguments
    ---------
    hparams : dict
    label : Label
        Of the targets that are asked for.
    named_by : list of str
        See `targets_option`, for the command that an error names.

    Returns
    -------
    StoredCodes or None

    Raises
    ------
    UserError
        If the codes are of other targets, or cannot be stored.
    """
    folders, codes_folder = hparams["data_folder"], hparams["codes_folder"]
    if folders and holds_shards(folders):
        if codes_folder:
            raise UserError(
                f"codes_folder={codes_folder}, but codes for shards are in the shards. "
                "Leave codes_folder out, or pack the codes: python "
                "recipes/make_shards.py ANOTHER_FOLDER --data_folder FOLDER "
                f"--codes_folder {codes_folder}"
            )
        stored = find_packed_codes(folders)
        where = "the shards"
    else:
        if codes_folder and folders and holds_procedural(folders):
            raise UserError(
                f"codes_folder={codes_folder}, but procedural audio is new in every "
                "draw, so its codes cannot be stored. Leave codes_folder out."
            )
        stored = StoredCodes(codes_folder) if codes_folder else None
        where = codes_folder
    if stored is not None:
        sizes = hparams["n_codebooks"], hparams["codebook_size"]
        stored.check(label, *sizes, folders, named_by)
        if if_main_process():
            print(f"Codes: read from {where}", flush=True)
    return stored


def build_targets(hparams, label, stored):
    """The targets that the yaml names, where they have to be computed.

    A front end that is a codec's encoder gets its network, and the loss the weights of
    the codebooks.

    Arguments
    ---------
    hparams : dict
    label : Label
        As `identify` gave it.
    stored : StoredCodes or None
        From which targets are read instead.

    Returns
    -------
    Targets or None
        None if they are read.

    Raises
    ------
    UserError
        If they do not have the model's codebooks, or cannot be built.
    """
    front_end, targets = hparams["model"].encoder.front_end, None
    sizes = hparams["n_codebooks"], hparams["codebook_size"]
    if stored is None:
        targets = main_process_first(build, hparams["targets"])
        if targets.label != label:
            raise UserError(
                f"targets: {label} has the fingerprint {label.fingerprint} at first, "
                f"and {targets.label.fingerprint} when it is built again. Does its "
                "constructor draw random numbers? Give it a seed of its own."
            )
        if (targets.n_codebooks, targets.codebook_size) != sizes:
            raise UserError(
                f"n_codebooks={sizes[0]}, codebook_size={sizes[1]}, but {targets.label}"
                f" has {targets.n_codebooks} and {targets.codebook_size}. Give "
                f"--n_codebooks {targets.n_codebooks} --codebook_size "
                f"{targets.codebook_size}."
            )
    source = front_end_codec(hparams, label)
    if source is not None:
        same = isinstance(targets, FrozenCodec)
        front_end.use(targets if same else main_process_first(Codec, source))
    weights = hparams.get("codebook_weights")
    if weights is None:
        weights = main_process_first(weights_of, hparams["targets"])
        if weights is not None and len(weights) != sizes[0]:
            raise UserError(
                f"n_codebooks={sizes[0]}, but {label} has {len(weights)}. Give "
                f"--n_codebooks {len(weights)}."
            )
    if weights is not None:
        hparams["loss_fn"].set_weights(weights)
    return targets


def front_end_codec(hparams, label):
    """The codec whose latents the model hears; None with another front end.

    It is that of the targets. If these are no codec, the key `codec` names it. (In
    self-training it comes with the teacher, and the yaml names none.)

    Arguments
    ---------
    hparams : dict
    label : Label
        Of the targets.

    Returns
    -------
    str or None
    """
    if not isinstance(hparams["model"].encoder.front_end, CodecLatents):
        return None
    return label.name if label.kind == FrozenCodec.kind else hparams.get("codec")


def find_licence(hparams, label):
    """The licence that a model has from its targets, its codec or what it starts from.

    It is noted beside the checkpoints, for what starts from one of them. So make sure
    before that they are of this run.

    Arguments
    ---------
    hparams : dict
    label : Label
        Of the targets.

    Returns
    -------
    Licence or None
    """
    licence = targets_licence(label) or licence_of(hparams["targets"])
    source = front_end_codec(hparams, label)
    if licence is None and source is not None:
        licence = Codec.licence_of(source)
    if licence is None and hparams.get("init") is not None:
        licence = read_licence(hparams["save_folder"])
    if if_main_process():
        note_licence(hparams["save_folder"], licence)
    return licence


def build_crops(hparams, corpora, unusable, stored=None, command=""):
    """Random crops to train on, fixed ones to validate on.

    Arguments
    ---------
    hparams : dict
    corpora : list of Corpus
    unusable : UnusableFiles
        Notes the files that could not be read.
    stored : StoredCodes, optional
        Whose codes the crops bring.
    command : str
        The command that extracts missing codes, for the error.

    Returns
    -------
    train : RandomCrops
    valid : FixedCrops
    """
    train_csvs = [corpus.train_csv for corpus in corpora]
    valid_csvs = [corpus.valid_csv for corpus in corpora]
    train_codes = valid_codes = None
    unreadable = []
    if stored is not None:
        n_codebooks = hparams["n_codebooks"]
        codes = stored.of_manifests(train_csvs + valid_csvs, n_codebooks, command)
        train_codes, valid_codes = codes[: len(corpora)], codes[len(corpora) :]
        unreadable = [item for files in codes for item in files.unreadable]
    folders = hparams["data_folder"]
    random_crops = ShardCrops if folders and holds_shards(folders) else RandomCrops
    settings = hparams["crop_seconds"], hparams["sample_rate"], hparams["seed"]
    weights = hparams["corpus_weights"]
    train = random_crops(train_csvs, *settings, weights, train_codes)
    valid = FixedCrops(
        valid_csvs,
        hparams["valid_items"],
        *settings,
        valid_codes,
        utterances=bool(hparams.get("monitors")),
    )
    if if_main_process():
        unusable.add(unreadable)
        unusable.add(valid.unusable)
        endless = sum(np.isinf(seconds).sum() for seconds in train.durations)
        heard = f"{train.num_files - endless} files"
        copies = sum(corpus.num_copies for corpus in corpora)
        if copies:
            heard += f" ({copies} of them altered copies)"
        if endless:
            heard += " and procedural audio without end"
        else:
            heard += f", {train.total_seconds / 3600:.2f} h"
        print(
            f"Training on {heard}; "
            f"validating on {len(valid)}; {len(unusable)} files left out.",
            flush=True,
        )
    return train, valid


def training_identity(hparams, label, corpora, *crops):
    """What a training depends on besides the yaml: data, targets, stored codes.

    Arguments
    ---------
    hparams : dict
    label : Label
        Of the targets.
    corpora : list of Corpus
    *crops : RandomCrops or FixedCrops
        To train and to validate on.

    Returns
    -------
    dict
        For `ResumableBrain.identify`.
    """
    codes = COMPUTED
    stored = [part for some in crops for part in some.targets or ()]
    if stored:
        # How much of each corpus has codes: draws depend on it.
        codes = named("stored", digest([int(part.frames.sum()) for part in stored]))
    # The key `targets` holds the line of the yaml.
    key = "codec" if label.kind == FrozenCodec.kind else "targets_content"
    identity = {
        "data": data_identity(corpora),
        key: named(label.name, label.fingerprint),
        "codes": codes,
        "altered_copies": copies_identity(hparams["altered_copies"]),
    }
    source = front_end_codec(hparams, label)
    if source is not None:
        identity["front_end_codec"] = named(source, checksum(source))
    augment = hparams.get("input_augment")
    if hasattr(augment, "fingerprint"):  # of what it has read from files
        identity["input_augment_content"] = named(
            "audio of input_augment", augment.fingerprint()
        )
    return identity


def make_brain(hparams, run_opts, modules, corpora, unusable):
    """The Brain of a pretraining or self-training.

    Arguments
    ---------
    hparams : dict
    run_opts : speechbrain.core.RunOptions
    modules : dict of str to torch.nn.Module
        Those of the yaml and, unless the crops bring their codes, `targets`.
    corpora : list of Corpus
    unusable : UnusableFiles

    Returns
    -------
    PretrainBrain
    """
    brain = PretrainBrain(
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        unusable=unusable,
        corpora=[corpus.name for corpus in corpora],
    )
    brain.num_copies = sum(corpus.num_copies for corpus in corpora)
    return brain


def write_results(brain, output, labels, how, targets, label=None):
    """Writes metrics, curves and the encoder of a finished run.

    Arguments
    ---------
    brain : PretrainBrain
    output : Path
        The folder to write to.
    labels : dict
        What `metrics.json` says besides the last validation.
    how, targets : str
        How the encoder was trained, and to predict what, for its README.
    label : Label, optional
        Of the targets. With it, decoder and head are exported, too.

    Returns
    -------
    dict
        The row of the last validation.
    """
    first, row = brain.history.rows[0], brain.history.rows[-1]
    files = {
        "precision": brain.precision,
        "unusable_files": len(brain.unusable),
        "altered_files": brain.num_copies,
    }
    init = getattr(brain.hparams, "init", None)
    if init is not None:
        began = {f"initial_{k}": first[k] for k in ("valid_loss", "masked_ce_1")}
        labels = {**labels, "init": str(init), **began}
        how += f", from the weights of {init}"
    write_metrics(output, {**row, **labels, **files})
    draw_curves(brain.history, output / "curves.png")
    trained = f"{how} for {int(row['step'])} steps on {', '.join(brain.corpora)}"
    if brain.num_copies:
        trained += f", with {brain.num_copies} altered copies"
    origin = f"{trained}; targets: {targets}."
    model = brain.hparams.model
    more = {} if label is None else {"model": model, "label": label}
    more["licence"] = brain.licence
    export_encoder(model.encoder, output / "encoder", origin, row, **more)
    return row
