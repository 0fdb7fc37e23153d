"""What a benchmark is told to measure."""

from dataclasses import dataclass
from pathlib import Path

import torch

from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.experiment import choose_device

from .variants import SETTINGS

SECTIONS = ("step", "settings", "embedding", "loader", "processes")


@dataclass
class Options:
    """What to measure, on what; see recipes/benchmark.py.

    Arguments
    ---------
    hparams : str
        A yaml of pretraining.
    keys : list of str
        Overrides of its keys, as on a command line.
    batch_size : int
        Crops in a step.
    seconds : float
        Length of a crop.
    steps : int
        Measured per setting.
    device : str, optional
        See `choose_device`.
    num_workers : int
        Of the loader.
    only : str
        Sections and settings, separated by commas.
    codec : str
        random_encodec, bundled or a file.
    data_folder : list of str, optional
        Audio for the loader.
    file_seconds : str
        Lengths of the files to embed, separated by commas.
    processes : list of int, optional
        Default: 1 and 2; on GPUs one for each.
    output_folder : Path, optional
        Default: results/benchmark/NAME_OF_THE_YAML.

    Raises
    ------
    FileNotFoundError
        If there is no such yaml.
    UserError
        If a value is not allowed.
    """

    hparams: str
    keys: list = ()
    batch_size: int = 8
    seconds: float = 4.0
    steps: int = 3
    device: str | None = None
    num_workers: int = 2
    only: str = ",".join(SECTIONS)
    codec: str = "random_encodec"
    data_folder: list | None = None
    file_seconds: str = "1,4,10,60"
    processes: list | None = None
    output_folder: Path | None = None

    def __post_init__(self):
        if not Path(self.hparams).is_file():
            raise FileNotFoundError(f"No such hyperparameter file: {self.hparams}")
        for name in ("batch_size", "seconds", "steps"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"{name}={getattr(self, name)}: give a positive number."
                )
        if unknown := set(self.names) - {*SECTIONS, *SETTINGS}:
            raise UserError(
                f"--only {', '.join(sorted(unknown))}: allowed are "
                f"{', '.join(SECTIONS)} and {', '.join(SETTINGS)}."
            )
        try:
            self.file_lengths  # noqa: B018
        except ValueError as error:
            raise UserError(f"file_seconds={self.file_seconds}: {error}.") from error
        device = choose_device(self.device)
        if self.processes is None:
            # A GPU that is named by its number is the only one to use.
            name = self.device or device.type
            most = {"cpu": 2, "cuda": torch.cuda.device_count()}.get(name, 1)
            fitting = [n for n in range(1, most + 1) if self.batch_size % n == 0]
            self.processes = sorted({1, fitting[-1]})
        self.device = str(device)
        for count in self.processes:
            if count < 1 or self.batch_size % count:
                raise UserError(
                    f"batch_size={self.batch_size} crops cannot be shared evenly among "
                    f"{count} processes: give --processes or --batch_size."
                )
        if self.output_folder is None:
            self.output_folder = Path("results/benchmark") / Path(self.hparams).stem

    @property
    def repeats(self):
        """Steps in a row: several on a GPU, so that its queue is filled."""
        return 5 if self.device.startswith("cuda") else 1

    @property
    def names(self):
        """The sections and settings to measure."""
        return self.only.split(",")

    @property
    def file_lengths(self):
        """Seconds of the files to embed."""
        return [float(seconds) for seconds in self.file_seconds.split(",")]
