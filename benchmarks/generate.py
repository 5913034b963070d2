"""Tokens a second of generation on a CPU, beside transformers, with the same weights of a LLaMA and the same prompts.

    python -m benchmarks.generate [--size=135M] [--batches=1,8] [--prompt=64] [--tokens=64] [--output=DIR]

Both write greedily, in f32, with a cache, on all cores; what they write is compared. Weights are random: they decide no
shape. Times are of the fastest of three runs after one that compiles, and a ratio of both is what is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.generate import Sampling
from vlm_jax.models.decoder import KV_HEADS, SIZES
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.tasks.language_model import LanguageModeling

VOCAB = 8192  # of both; a larger one only makes the head a larger share
REPEATS = 3


def peer(size: str, places: int):
    """A LLaMA of transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=KV_HEADS[size],
        intermediate_size=sizes.mlp_dim,
        max_position_embeddings=places,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # as it is initialised it says the same token for ever
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model


def fastest(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What it gives, and seconds of the fastest of some runs."""
    out, seconds = run(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - start)
    return out, min(seconds)


def measure(size: str, batch: int, prompt: int, tokens: int) -> dict[str, float]:
    import torch

    theirs = peer(size, prompt + tokens)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        found = interop.source(folder)
        decoder = dataclasses.replace(configs.build(found.model), scan=True)  # it compiles in seconds
        params = tree.stack(jax.tree.map(jax.numpy.asarray, found.params()), decoder.stacks)
    task = LanguageModeling(TextDecoder(decoder), prompt, sampling=Sampling(max_tokens=tokens))
    answer = task.predict({"params": {"decoder": params}})["answer"]
    text = np.random.default_rng(0).integers(1, VOCAB, (batch, prompt)).astype(np.int32)
    ours, our_seconds = fastest(lambda: np.asarray(answer({"text": text, "text_segment_ids": np.ones_like(text)})))
    options = dict(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    write = functools.partial(theirs.generate, torch.tensor(text).long(), **options)
    with torch.inference_mode():
        other, their_seconds = fastest(lambda: write()[:, prompt:].numpy())
    return {
        "batch": batch,
        "ours": batch * tokens / our_seconds,
        "transformers": batch * tokens / their_seconds,
        "ratio": their_seconds / our_seconds,
        "same_tokens": float((ours == other).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="135M", choices=SIZES)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", default="benchmarks/results")
    a = parser.parse_args()
    rows = [measure(a.size, int(batch), a.prompt, a.tokens) for batch in a.batches.split(",")]
    print("| batch | ours, tokens/s | transformers, tokens/s | ratio | same tokens |\n|---|---|---|---|---|")
    for row in rows:
        print("| {batch} | {ours:.1f} | {transformers:.1f} | {ratio:.2f} | {same_tokens:.1%} |".format(**row))
    folder = pathlib.Path(a.output)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"size": a.size, "prompt": a.prompt, "tokens": a.tokens, "rows": rows}
    (folder / "generate.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
