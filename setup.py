"""Packaging of nflib; tool settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "nflib" / "version.py").read_text(encoding="utf-8")).group(1)

TRAINING = ["lightning-fabric>=2.4", "tensorboard>=2.16", "tqdm>=4.66"]
SCRIPTS = ["jsonargparse[signatures]>=4.35", "matplotlib>=3.8"]
METRICS = ["pot>=0.9.4"]
HUB = ["huggingface_hub>=0.34"]

setup(
    name="nflib",
    version=VERSION,
    description="Exact likelihoods and samples from transformer autoregressive normalizing flows",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["nflib*", "molecular*", "video*"]),
    package_data={
        "molecular": ["analysis/report/*.css", "analysis/report/*.js", "py.typed", "shipped/**/*"],
        "nflib": ["page.css", "py.typed"],
        "video": ["py.typed", "shipped/**/*"],
    },
    install_requires=["torch>=2.6", "nflows>=0.14", "numpy>=1.26", "scipy>=1.12", "safetensors>=0.4.5"],
    extras_require={
        "training": TRAINING,
        "metrics": METRICS,
        "molecular": [
            *TRAINING,
            *SCRIPTS,
            *METRICS,
            "mdtraj>=1.10",
            "openmm>=8.1",
            "pdbfixer>=1.12",
            "plotly>=6",
            "rdkit>=2024.3",
        ],
        "video": [
            *TRAINING,
            *SCRIPTS,
            "av>=15.1",
            "diffusers>=0.35",
            "pillow>=10",
            "scikit-learn>=1.4",
            "transformers>=4.55",
        ],
        "app": ["gradio>=6"],
        "gpu": ["xformers>=0.0.29"],
        "hub": HUB,
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "dev": [
            *HUB,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff",
            "mypy>=1.11",
            "scikit-learn>=1.4",
            "torchdiffeq>=0.2.3",
            "zuko>=1.3",
            "arviz>=0.20",
        ],
    },
)
