"""Exported encoders, loaded as a user would."""

from speechbrain.inference.interfaces import foreign_class


def load(folder, **run_opts):
    """The interface of an encoder's folder."""
    return foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="EnCodecMAEEncoder",
        run_opts={"device": "cpu", **run_opts},
    )
