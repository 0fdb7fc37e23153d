"""Installs encodecmae_sb: pip install -e ."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "encodecmae_sb/__init__.py").read_text()
).group(1)

setup(
    name="encodecmae_sb",
    version=VERSION,
    description="EnCodecMAE for SpeechBrain: universal audio representations",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["encodecmae_sb", "encodecmae_sb.*"]),
    # The bundled corpus and codec.
    package_data={"encodecmae_sb.bundled": ["*.safetensors", "corpus/**/*"]},
    install_requires=[
        # torchaudio stops at 2.11 and refuses to import beside a newer torch;
        # below 2.8, SpeechBrain 1.1 and torchaudio disagree on audio backends.
        "torch>=2.8,<2.12",
        "torchaudio>=2.8,<2.12",
        "speechbrain>=1.1,<1.2",
        "hyperpyyaml",
        "encodec>=0.1.1",
        "sentencepiece",
        "soundfile>=0.12",
        "safetensors",
        "numpy",
        "tqdm",
        "matplotlib",
        "scikit-learn",
        "huggingface_hub",
        "pyyaml",
    ],
    extras_require={
        "test": [
            *("pytest>=8", "pytest-xdist", "ruff==0.17.5", "webdataset"),
            "tensorboard",
        ],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb>=0.31"],
    },
)
