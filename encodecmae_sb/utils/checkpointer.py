"""Checkpoints that exist either whole or not at all."""

import json
import os
import shutil

import yaml
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from .errors import UserError
from .files import check_writable, write_text
from .identity import differences

logger = get_logger(__name__)

_UNFINISHED = "unfinished-"
_CONTENTS = "contents.json"
_META = "CKPT.yaml"  # SpeechBrain's
_IDENTITY = "identity.json"


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, safe against being killed while it saves.

    A checkpoint is written under another name, listed file by file, flushed to
    the disk and only then renamed. Recovery skips a checkpoint that is not whole,
    with a warning, and takes the one before it.

    Arguments are those of `speechbrain.utils.checkpoints.Checkpointer`.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> saver = AtomicCheckpointer(getfixture("tmp_path"), {"model": model})
    >>> first, second = saver.save_checkpoint(), saver.save_checkpoint()
    >>> second.paramfiles["model"].write_bytes(b"half")
    4
    >>> saver.recover_if_possible().path == first.path
    True
    """

    def __init__(self, *args, **kwargs):
        check_writable(args[0] if args else kwargs["checkpoints_dir"])
        super().__init__(*args, **kwargs)
        self._warned = set()
        self._identity = None

    def identify(self, identity, ignored=()):
        """Sets the training that the checkpoints belong to; written beside them.

        Arguments
        ---------
        identity : dict
            Everything that the result depends on, as plain values; see `identity`.
        ignored : collection of str
            Keys that may differ.

        Raises
        ------
        UserError
            If there are checkpoints of another training, or of an unknown one.
        """
        self._identity = identity
        if not self.list_checkpoints():
            return
        file = self.checkpoints_dir / _IDENTITY
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.checkpoints_dir} holds checkpoints, but no readable "
                f"{file.name}, which says which training they belong to ({error}). "
                "Give another --output_folder."
            ) from error
        different = differences(before, identity)
        if different := [row for row in different if row[0] not in ignored]:
            listed = "\n".join(f"  {key}: {a} -> {b}" for key, a, b in different)
            raise UserError(
                f"{self.checkpoints_dir} holds checkpoints of another training (old -> "
                f"new):\n{listed}\nTo go on with it, give the old values, and the "
                "old files. To train with the new ones, give another --output_folder."
            )

    def recorded(self, key):
        """What the checkpoints that are there say in their identity under a key.

        Arguments
        ---------
        key : str

        Returns
        -------
        object
            None if there is no such key, or no readable identity.
        """
        return read_identity(self.checkpoints_dir).get(key)

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(_UNFINISHED + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(_UNFINISHED + path.name)

    def save_checkpoint(self, *args, **kwargs):
        """Saves a checkpoint.

        Returns
        -------
        Checkpoint
            None on other processes than the main one.

        Raises
        ------
        UserError
            If it cannot be written, for lack of space or rights. Earlier checkpoints
            stay as they are.
        """
        try:
            saved = super().save_checkpoint(*args, **kwargs)
            if saved is None:
                ddp_barrier()  # until the main process has renamed the folder
                return None
            _write_contents(saved.path)
            self._write_identity()
            final = saved.path.with_name(saved.path.name.removeprefix(_UNFINISHED))
            if final.exists():  # saved again under a name of the user's choice
                shutil.rmtree(final)
            os.rename(saved.path, final)
            _flush(self.checkpoints_dir)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its file writer.
            if isinstance(error, RuntimeError) and "writ" not in str(error):
                raise
            self._remove_unfinished()
            raise UserError(
                f"The checkpoint could not be saved in {self.checkpoints_dir}: "
                f"{error}. Make room, or make the folder writable, and run the same "
                "command again: it goes on from the last complete checkpoint."
            ) from error
        ddp_barrier()
        files = {name: final / path.name for name, path in saved.paramfiles.items()}
        return saved._replace(path=final, paramfiles=files)

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Saves a checkpoint, then deletes the least important ones.

        As in SpeechBrain, but with a new list of `importance_keys` in each call.
        SpeechBrain's default is one list that every call appends to: each save would
        sort the checkpoints once more than the save before.
        """
        super().save_and_keep_only(
            *args, importance_keys=list(importance_keys), **kwargs
        )

    def list_checkpoints(self):
        """Lists the complete checkpoints and warns about the others."""
        complete = []
        for folder in self._list_checkpoint_dirs():
            if problem := _incomplete(folder):
                if folder not in self._warned:
                    logger.warning(
                        f"Checkpoint {folder} is incomplete ({problem}), from a run "
                        "that was killed or a disk that was full: it is passed over, "
                        "and the one before it is used."
                    )
                self._warned.add(folder)
            else:
                complete.append(folder)
        return self._construct_checkpoint_objects(complete)

    def recover_if_possible(self, *args, **kwargs):
        """Recovers the newest complete checkpoint, if there is one.

        Returns
        -------
        Checkpoint
            None if there is none.
        """
        if if_main_process() and (left := self._remove_unfinished()):
            logger.warning(
                f"The run was killed while it saved {', '.join(left)}: going on from "
                "the checkpoint before."
            )
        return super().recover_if_possible(*args, **kwargs)

    def load_checkpoint(self, checkpoint):
        """Loads a checkpoint.

        Raises
        ------
        UserError
            If it was made with another configuration.
        """
        try:
            super().load_checkpoint(checkpoint)
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"Checkpoint {checkpoint.path} does not fit this configuration: "
                f"{error}\nRun with the hyperparameters it was made with (a copy of "
                "them is beside it, in hyperparams.yaml), or start afresh with "
                "another --output_folder."
            ) from error

    def _write_identity(self):
        if self._identity is not None:
            text = json.dumps(self._identity, indent=2)
            write_text(self.checkpoints_dir / _IDENTITY, text)

    def _remove_unfinished(self):
        left = sorted(self.checkpoints_dir.glob(_UNFINISHED + "*"))
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return [folder.name for folder in left]


def read_identity(folder):
    """The identity of the training whose checkpoints lie in a folder.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    dict
        Empty if there is none that can be read.
    """
    try:
        return json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def find_checkpoint(folder):
    """A checkpoint that is already there; nothing is written.

    Arguments
    ---------
    folder : Path
        A checkpoint, or a folder of checkpoints, of which the newest is taken.

    Returns
    -------
    Path or None
        None if the folder is no checkpoint and holds none.

    Raises
    ------
    UserError
        If no checkpoint there is complete.
    """
    found = [folder] if (folder / _META).is_file() else list(folder.glob("CKPT+*"))
    problems = {path: _incomplete(path) for path in found}
    complete = [path for path, problem in problems.items() if not problem]
    if found and not complete:
        listed = "\n".join(f"  {path}: {why}" for path, why in problems.items())
        raise UserError(f"No checkpoint is complete:\n{listed}\nGive another one.")
    return max(complete, key=_time, default=None)


def _time(checkpoint):
    meta = yaml.safe_load((checkpoint / _META).read_text(encoding="utf-8"))
    return meta["unixtime"]


def _write_contents(folder):
    sizes = {}
    for path in folder.iterdir():
        _flush(path)
        sizes[path.name] = path.stat().st_size
    (folder / _CONTENTS).write_text(json.dumps(sizes))
    _flush(folder / _CONTENTS)
    _flush(folder)


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _incomplete(folder):
    """What is wrong with a checkpoint folder, or an empty string."""
    try:
        sizes = json.loads((folder / _CONTENTS).read_text())
    except (OSError, ValueError):
        return f"no readable {_CONTENTS}"
    if not isinstance(sizes, dict):
        return f"no readable {_CONTENTS}"
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return ""
