"""CIFAR-10: a trained model, exported and evaluated by transformers in torch, is right on the same images as here."""

import io
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_jax import export
from vlm_jax.evaluate import results

from ..parity import peers

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TEMPLATE = "a photo of a {}"


def right_in_torch(folder, rows, batch=500):
    """Whether each image is classified right, as transformers' own model and processor do it."""
    transformers, torch = peers.transformers(), peers.torch()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    prompts = [TEMPLATE.format(name) for name in CLASSES]
    right = []
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in part]
        inputs = processor(text=prompts, images=images, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs).logits_per_image.argmax(dim=1).numpy()
        right.append(found == [row["label"] for row in part])
    return np.concatenate(right)


def compare(folder, shared, test_images, *flags):
    table = pq.read_table(shared / "cifar10/test-00000-of-00001.parquet").slice(0, test_images)
    pq.write_table(table, folder / "test.parquet")
    train = sorted((shared / "cifar10").glob("train-*.parquet"))
    arguments = [
        "--config=siglip_cifar10:plain",
        f"--workdir={folder}/run",
        f"--config.data.source.path={train[0] if flags else train[0].parent / 'train-*.parquet'}",
        f"--config.evals.zero_shot.source.path={folder}/test.parquet",
        "--config.evaluate_percent=100",
        "--config.checkpoint_percent=100",
        *flags,
    ]
    # One device, which is faster than eight simulated ones.
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-m", "vlm_jax.main", *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert export.main([f"{folder}/run", f"{folder}/hf", "--to=hf"]) == 0
    found = results.read(folder / "run")["zero_shot"].rows()["images"]
    ours = found["top1"][np.argsort(found["index"])]
    rows = table.to_pylist()
    assert [row["class_name"] for row in rows] == [CLASSES[row["label"]] for row in rows]
    theirs = right_in_torch(folder / "hf", rows)
    print(f"top-1 of {len(rows)} images: {ours.mean():.4f} here, {theirs.mean():.4f} in torch")
    np.testing.assert_array_equal(ours, theirs)
    return theirs.mean()


@pytest.mark.full
def test_first_steps(tmp_path, shared_data):
    small = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": 8}
    flags = [f"--config.task.model.image.{field}={value}" for field, value in small.items()]
    flags += ["--config.task.model.text.out_dim=32", "--config.total_examples=6400", "--config.data.cache=False"]
    assert compare(tmp_path, shared_data, 300, *flags, "--config.optimizer.schedule.warmup_steps=5") > 0.12


@pytest.mark.full
def test_the_recipe(tmp_path, shared_data):
    assert compare(tmp_path, shared_data, 10_000) > 0.3
