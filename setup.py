"""Installs encodecmae_sb: pip install -e ."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "encodecmae_sb/__init__.py").read_text()
).group(1)
# What recipes/export_onnx.py needs: 38 MB to fetch, 120 MB installed.
ONNX = ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.6"]

setup(
    name="encodecmae_sb",
    version=VERSION,
    description="EnCodecMAE for SpeechBrain: universal audio representations",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["encodecmae_sb", "encodecmae_sb.*"]),
    package_data={
        # The bundled corpus, codec and yamls; `hparams` is a link to the folder here.
        "encodecmae_sb.bundled": ["*.safetensors", "corpus/**/*", "hparams/*.yaml"],
        # The template of reports, and a table of published scores.
        "encodecmae_sb.evaluation": ["page/*", "*.csv"],
    },
    entry_points={
        "console_scripts": ["encodecmae_sb = encodecmae_sb.__main__:main"],
    },
    install_requires=[
        # torchaudio 2.11.0 refuses to import beside a newer torch, and 2.11.1 cannot be
        # loaded beside torch 2.11, although it says so. Below 2.8, SpeechBrain 1.1 and
        # torchaudio disagree on audio backends.
        "torch>=2.8,<2.12",
        "torchaudio>=2.8,<2.11.1",
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
        "requests",
        "jinja2",
    ],
    extras_require={
        # Speech for recipes/make_corpus.py. Its licence is GPL-3.0.
        "espeak": ["espeakng-loader"],
        "onnx": ONNX,
        "remote": ["fsspec", "s3fs"],
        "tensorboard": ["tensorboard"],
        "umap": ["umap-learn"],
        "wandb": ["wandb>=0.31"],
        # setuptools: tests build a wheel; older ones need the package wheel, too.
        "test": [
            *("pytest>=8", "pytest-xdist", "ruff==0.17.5", "webdataset"),
            *("setuptools>=70.1", "tensorboard", *ONNX),
        ],
    },
)
