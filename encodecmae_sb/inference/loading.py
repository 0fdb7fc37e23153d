"""`load`: the interface of a trained model, wherever it is."""

from pathlib import Path

from speechbrain.inference.interfaces import foreign_class
from torch import nn

from encodecmae_sb.pretrained.folder import MADE, folder_kind
from encodecmae_sb.pretrained.hub import HubFolder, is_hub_name
from encodecmae_sb.pretrained.published import find_model, load_encoder_source

from .classifier import EnCodecMAEClassifier
from .encoder import EnCodecMAEEncoder
from .recogniser import EnCodecMAEASR

_INTERFACES = {
    made.__name__: made
    for made in (EnCodecMAEASR, EnCodecMAEClassifier, EnCodecMAEEncoder)
}


def load(source, kind=None, run_opts=None):
    """Loads a trained model; nothing that comes from the hub is run.

    From the hub come plain values and safetensors; the classes are those of this
    package. A folder on this machine is loaded by SpeechBrain, which builds what its
    `hyperparams.yaml` names.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported; the name of published weights; or user/name or
        user/name@revision on the hub. A folder comes before a name.
    kind : str, optional
        "encoder", "recogniser" or "classifier"; default: whatever it is.
    run_opts : dict, optional
        SpeechBrain's run options: device, precision.

    Returns
    -------
    EnCodecMAEEncoder, EnCodecMAEASR or EnCodecMAEClassifier
        `hub_name` is user/name@commit if it came from the hub, else None.

    Raises
    ------
    FileNotFoundError
        If there is nothing of that name.
    UserError
        If it is something else, or cannot be fetched or loaded.

    Example
    -------
    >>> from encodecmae_sb.pretrained.folder import export_encoder
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> transformer = ResiDualTransformer(64, 2, 4, 96)
    >>> export_encoder(AudioEncoder(LogMel(), transformer), folder)
    >>> load(folder).encode_batch(torch.zeros(1, 24000))[0].shape
    torch.Size([1, 75, 64])
    """
    local = Path(source).expanduser()
    if kind is None and local.is_dir():
        kind = folder_kind(local)
    elif kind is None and not is_hub_name(source):
        kind = "encoder"  # published weights
    found = find_model(source, kind)
    if isinstance(found, Path):
        interface = foreign_class(
            source=str(found.resolve()),
            pymodule_file="custom_interface.py",
            classname=MADE[kind].interface,
            run_opts=run_opts,
        )
    elif isinstance(found, HubFolder):
        loaded = found.load()
        modules = {k: v for k, v in loaded.parts.items() if isinstance(v, nn.Module)}
        hparams = {**loaded.parts, **loaded.settings}
        made = _INTERFACES[MADE[loaded.kind].interface]
        interface = made(modules, hparams, run_opts)
    else:
        encoder = load_encoder_source(found)
        interface = EnCodecMAEEncoder({"encoder": encoder}, {}, run_opts)
    interface.hub_name = found.name if isinstance(found, HubFolder) else None
    return interface
