"""Packed conversations beside padded ones: tokens a second of training a small decoder, and places that nothing is in.

    python -m benchmarks.packing_text [--width=256] [--depth=2] [--length=512] [--rows=16] [--rounds=5] [--output=FILE]

Both take the same conversations, drawn scenes that are told and one to eight questions about each. Packed, they share
`--rows` rows of `--length` tokens; padded, each has a row of its own, as long as the longest of them. A step is loss
and gradients in f32; what counts as a token is one of a conversation, in both.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.packing import fastest
from vlm_jax import flops
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.shapes.captions import description
from vlm_jax.data.text import Text
from vlm_jax.mesh import Layout
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.language_model import LanguageModeling

MOST = 8  # questions of a conversation


class Told:
    """Scenes in a sentence, and one to eight questions about each with their answers."""

    name, fingerprint, class_names = "told", "", ()
    shapes = Shapes(size=10_000)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict:
        asked = self.shapes.shuffled_questions(index)
        asked = asked[: np.random.default_rng(index).integers(1, MOST + 1)]
        told = f"{description(self.shapes.scene(index))}. "
        messages = []
        for number, question in enumerate(asked):
            content = told + question.question if number == 0 else question.question
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": question.answer}]
        return {"messages": messages}


def layouts(length: int, rows: int) -> dict[str, tuple[Conversations, Text]]:
    """How the same conversations are written packed and padded: the first ones, until one finds no room any more."""
    source, text, padded = Told(), _text(length), Conversations(images=None)
    window, packed = [], None
    while True:
        window.append(padded.laid(source[len(window)]["messages"], (), text))
        count = len(window)
        wanted = Conversations(images=None, examples=count, rows=rows, per_row=count)
        if sum(map(len, wanted.plan(window, text))) < count:
            break
        packed = wanted
    longest = max(len(laid.tokens) for laid in window[:-1])
    return {"packed": (packed, text), "padded": (padded, _text(-(-longest // 8) * 8))}


def _text(length: int) -> Text:
    return Text(length=length, canonicalise="none", pad="pad")


def prepare(
    conversations: Conversations, text: Text, examples: int, sizes: Mapping[str, int]
) -> tuple[dict[str, float], Callable[[], object]]:
    """What the rows of so many conversations hold, and a step over all of them that has been compiled."""
    rows, length = examples // conversations.examples * conversations.rows, text.length
    pipeline = Pipeline(Told(), ImageTransform(), text, conversations=conversations, threads=0, shuffle=False)
    batches = pipeline.batches(seed=0, batch_size=rows, rows=np.arange(rows))
    batch = next(batches)
    batches.close()

    shape = {"num_heads": 4, "num_kv_heads": 4, "dtype": "float32", "scan": False, "remat": "none"}
    decoder = LanguageModel(vocab_size=text.vocab_size, length=length, **shape, **sizes)
    task, mesh = LanguageModeling(TextDecoder(decoder), length), Layout().make(jax.devices()[:1])
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    variables = jax.jit(task.init)(jax.random.key(0))
    arrays = jax.device_put({name: batch[name] for name in task.batch_spec(rows)})
    step = jax.jit(lambda variables, batch: jax.value_and_grad(lambda v: task.loss(v, batch, ctx)[0])(variables))
    run = lambda: jax.block_until_ready(step(variables, arrays))
    loss, _ = run()
    there = batch["text_segment_ids"] > 0
    found = {
        "rows": rows,
        "length": length,
        "conversations": int(batch["text_segment_ids"].max(axis=1).sum()),
        "tokens": int(there.sum()),
        "wasted": round(1 - float(there.mean()), 4),
        "loss": round(float(loss), 5),
        "mflop_per_token": round(flops.count(step, variables, arrays) / int(there.sum()) / 1e6, 2),
    }
    return found, run


def measure(length: int, rows: int, rounds: int, **sizes: int) -> dict[str, dict[str, float]]:
    """Of each layout what its rows hold, and tokens a second in its fastest step; they take turns."""
    both = layouts(length, rows)
    examples = both["packed"][0].examples
    prepared = {name: prepare(*layout, examples, sizes) for name, layout in both.items()}
    seconds = fastest({name: run for name, (_, run) in prepared.items()}, rounds)
    return {
        name: found | {"tokens_per_s": round(found["tokens"] / seconds[name])} for name, (found, _) in prepared.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--length", type=int, default=512, help="of a packed row")
    parser.add_argument("--rows", type=int, default=16, help="of packed conversations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    sizes = {"width": options.width, "depth": options.depth, "mlp_dim": 8 * options.width // 3}
    results = {"device": jax.devices()[0].device_kind, **sizes}
    results |= measure(options.length, options.rows, options.rounds, **sizes)
    packed, padded = results["packed"], results["padded"]
    results["speedup"] = round(packed["tokens_per_s"] / padded["tokens_per_s"], 2)
    results["flop_ratio"] = round(padded["mflop_per_token"] / packed["mflop_per_token"], 2)
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
