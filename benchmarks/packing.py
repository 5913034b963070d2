"""Packing beside padding: how full rows are, and images a second of a training step, at the same images and model.

    python -m benchmarks.packing [--width=768] [--depth=1] [--tokens=512] [--windows=1] [--rounds=3] [--output=FILE]

Both take images of the same shapes and resolutions with their captions. Packed, they share rows of `--tokens`
patches; padded, each has a row of its own, as long as the largest budget (NaFlex). A step is loss and gradients of
SigLIP's two towers in f32; the padded one goes through the same program, with one image a row.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax import flops
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text
from vlm_jax.mesh import Layout
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.contrastive import Contrastive

TEXT = Text(length=64)
BUDGETS = Packing().budgets
PADDED = Packing(budgets=BUDGETS, tokens=max(BUDGETS), images=1, examples=1, rows=1, text_tokens=TEXT.length)


class Photographs:
    """Noise in the shapes of photographs, with captions of 5 to 30 bytes."""

    name, fingerprint, class_names = "photographs", "", ()
    shapes = ((480, 640), (640, 480), (500, 500), (360, 640), (600, 400), (427, 640))

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        height, width = self.shapes[rng.integers(len(self.shapes))]
        pixels = np.full((height, width, 3), rng.integers(256), np.uint8)
        return {"image": pixels, "text": "a" * int(rng.integers(5, 31))}


def prepare(packing: Packing, examples: int, width: int, depth: int) -> tuple[dict[str, float], Callable[[], object]]:
    """What the rows of `examples` images hold, and a step over all of them that has been compiled."""
    rows = examples // packing.examples * packing.rows
    pipeline = Pipeline(Photographs(), image=ImageTransform(), text=TEXT, packing=packing, threads=0)
    batches = pipeline.batches(seed=0, batch_size=rows, rows=np.arange(rows))
    begin = time.perf_counter()
    batch = next(batches)
    prepared = time.perf_counter() - begin
    batches.close()

    shape = {"width": width, "depth": depth, "num_heads": width // 32, "dtype": "float32"}
    text = {"length": TEXT.length, "pool": "mean", "pad_id": TEXT.pad_id, "eos_id": TEXT.eos_id, "mask_padding": True}
    model = TwoTower(image=ViT(**shape), text=TextTransformer(**shape, vocab_size=TEXT.vocab_size, **text))
    task, mesh = Contrastive(model, packing=packing), Layout().make(jax.devices()[:1], 1)
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    variables = jax.jit(task.init)(jax.random.key(0))
    arrays = jax.device_put({name: batch[name] for name in task.batch_spec(rows)})
    step = jax.jit(lambda variables, batch: jax.value_and_grad(lambda v: task.loss(v, batch, ctx)[0])(variables))
    run = lambda: jax.block_until_ready(step(variables, arrays))
    run()
    pairs = int(batch["pair_mask"].sum())
    found = {
        "rows": rows,
        "pairs": pairs,
        "left_out": examples - pairs,
        "image_fill": round(float((batch["image_segment_ids"] > 0).mean()), 4),
        "text_fill": round(float((batch["text_segment_ids"] > 0).mean()), 4),
        "gflop_per_image": round(flops.count(step, variables, arrays) / pairs / 1e9, 2),
        "prepared_images_per_s": round(pairs / prepared, 1),
    }
    return found, run


def measure(
    packings: Mapping[str, Packing], examples: int, width: int, depth: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Of each packing what its rows hold, and images a second in its fastest step; they take turns."""
    prepared = {name: prepare(packing, examples, width, depth) for name, packing in packings.items()}
    seconds = fastest({name: run for name, (_, run) in prepared.items()}, rounds)
    return {
        name: found | {"images_per_s": round(found["pairs"] / seconds[name], 2)}
        for name, (found, _) in prepared.items()
    }


def fastest(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each one's fastest run; they take turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="of a packed row")
    parser.add_argument("--windows", type=int, default=1, help="of eight rows, in one batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    images, texts = options.tokens // 64, options.tokens // 4
    packed = Packing(tokens=options.tokens, images=images, text_tokens=texts, examples=options.tokens * 27 // 512)
    results = {
        "device": jax.devices()[0].device_kind,
        "width": options.width,
        "depth": options.depth,
        "tokens": options.tokens,
    }
    packings, examples = {"packed": packed, "padded": PADDED}, options.windows * packed.examples
    results |= measure(packings, examples, options.width, options.depth, options.rounds)
    results["speedup"] = round(results["packed"]["images_per_s"] / results["padded"]["images_per_s"], 2)
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
