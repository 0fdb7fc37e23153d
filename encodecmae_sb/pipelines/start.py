"""What a pretraining starts from: new weights, or those of another pretraining."""

from dataclasses import dataclass

import torch
from speechbrain.utils.distributed import if_main_process

from encodecmae_sb.pretrained.describe import constructor_arguments, to_yaml
from encodecmae_sb.pretrained.pretraining import load_pretraining, note_licence
from encodecmae_sb.utils.digests import weights_key
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import main_process_first
from encodecmae_sb.utils.identity import named

# The parts of a `MaskedCodecModel`, and how the names of their weights begin.
GROUPS = {
    "front end": ("encoder.front_end.",),
    "projection": ("encoder.projection.", "encoder.positions."),
    "transformer": ("encoder.transformer.",),
    "decoder": ("bridge.", "positions.", "decoder."),
    "head": ("head.",),
}


@dataclass
class Part:
    """A group of weights, and how it fits.

    Arguments
    ---------
    weights : dict of str to torch.Tensor
        Those of the source that fit.
    problem : str
        Why the group does not fit as a whole; empty if it does.
    absent : bool
        Whether the source does not have it at all.
    note : str
        Of what is loaded in spite of a problem.
    """

    weights: dict
    problem: str = ""
    absent: bool = False
    note: str = ""


def start_from(hparams, label):
    """Gives the model the weights that the key `init` names.

    A run that has checkpoints goes on from these: nothing is loaded again.

    Arguments
    ---------
    hparams : dict
        Of a yaml with `model`, `checkpointer` and perhaps `init` and `init_strict`. A
        front end on codec latents has its codec already.
    label : Label
        Of the targets.

    Returns
    -------
    dict
        What the run starts from, for `ResumableBrain.identify`; empty without `init`.

    Raises
    ------
    FileNotFoundError
        If there is nothing of that name.
    UserError
        If it cannot be read, if a part of it does not fit and `init_strict` is true,
        or if nothing of it fits.
    """
    source = hparams.get("init")
    if source is None:
        return {}
    strict = hparams["init_strict"]
    if not isinstance(strict, bool):
        raise UserError(f"init_strict={strict}: True or False is allowed.")
    checkpointer, key = hparams["checkpointer"], "initial_weights"
    if checkpointer.list_checkpoints():
        return {key: checkpointer.recorded(key)}
    found = main_process_first(load_pretraining, source)
    model = hparams["model"]
    parts = compare(model, found, found.predicts(label, model.n_codebooks))
    problems = {name: part.problem for name, part in parts.items() if part.problem}
    listed = "".join(f"  {name}: {why}\n" for name, why in problems.items())
    if problems and strict:
        raise UserError(
            f"init={source} does not fit this run:\n{listed}Give this run the same "
            "sizes, front end and targets, or --init_strict False, which loads what "
            "fits and draws the rest anew."
        )
    weights = {k: w for part in parts.values() for k, w in part.weights.items()}
    if not weights:
        raise UserError(f"init={source}: nothing of it fits this run:\n{listed}")
    model.load_state_dict(weights, strict=False)
    if if_main_process():
        note_licence(hparams["save_folder"], found.licence)
        print(f"Starts from {source}:", flush=True)
        for name, part in parts.items():
            print(f"  {name:11s}  {_outcome(name, part)}", flush=True)
    return {key: named(f"{source}: {len(weights)} tensors", weights_key(model)[:12])}


def compare(model, found, same_targets):
    """How the parts of a pretrained model fit another model.

    Arguments
    ---------
    model : MaskedCodecModel
        To be trained.
    found : Pretraining
        What there is.
    same_targets : bool
        Whether both predict the same targets. Otherwise decoder and head do not fit.

    Returns
    -------
    dict of str to Part
        For each of `GROUPS`.
    """
    if found.model is not None:
        theirs = found.model.state_dict()
    else:
        theirs = {f"encoder.{k}": w for k, w in found.encoder.state_dict().items()}
    ours, parts = model.state_dict(), {}
    for name, prefixes in GROUPS.items():
        here, there = _of_group(ours, prefixes), _of_group(theirs, prefixes)
        if name in ("decoder", "head"):
            if found.model is None:
                parts[name] = Part({}, absent=True)
                continue
            if not same_targets:
                known = found.label or "a codec or clusters of their own"
                parts[name] = Part({}, f"it predicts other targets ({known})")
                continue
        if name == "front end":
            problem = _differ(model.encoder.front_end, found.encoder.front_end)
            if not problem and not list(model.encoder.front_end.parameters()):
                # What is frozen in it is a codec, which belongs to the targets.
                same = all(torch.equal(here[k], there[k]) for k in here)
                problem = "" if same else "its codec is another one"
                there = {}
        elif name == "transformer":
            pair = model.encoder.transformer, found.encoder.transformer
            problem = _differ(*pair)
            if problem and not _differ(*pair, apart="num_layers"):
                both = {k: there[k] for k in here if k in there}
                count = min(net.num_layers for net in pair)
                note = f"{count} of {pair[0].num_layers} layers loaded"
                parts[name] = Part(both, problem, note=note)
                continue
        else:
            problem = ""
            if name == "decoder":
                problem = _differ(model.decoder, found.model.decoder)
            problem = problem or _other_shapes(here, there)
        parts[name] = Part({} if problem else there, problem)
    return parts


def _of_group(weights, prefixes):
    return {k: w for k, w in weights.items() if k.startswith(prefixes)}


def _differ(ours, theirs, apart=None):
    """In which arguments two modules differ, as text; but for the argument `apart`."""
    if type(ours) is not type(theirs):
        return f"{type(theirs).__name__} there, {type(ours).__name__} here"
    here, there = (constructor_arguments(module) for module in (ours, theirs))
    return ", ".join(
        f"{name}={there[name]} there, {value} here"
        for name, value in here.items()
        if name != apart and to_yaml(value) != to_yaml(there[name])
    )


def _other_shapes(ours, theirs):
    """The first weight that has another shape, as text."""
    for name in sorted({*ours, *theirs}):
        here, there = (
            list(weights[name].shape) if name in weights else None
            for weights in (ours, theirs)
        )
        if here != there:
            return f"{name} has the shape {there} there, {here} here"
    return ""


def _outcome(name, part):
    """What became of a part, as text."""
    if part.absent:
        return "drawn anew (it was not saved there)"
    if part.problem and part.note:
        return f"{part.note}, what is left drawn anew ({part.problem})"
    if part.problem:
        kept = "this run's own" if name == "front end" else "drawn anew"
        return f"{kept} ({part.problem})"
    return f"loaded, {len(part.weights)} tensors" if part.weights else "the same"
