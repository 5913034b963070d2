"""`score`: how well image and caption of each record fit, by the model of a workdir; `curate --scores` ranks by it."""

from __future__ import annotations

import argparse
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.reader import Reader
from vlm_jax.data.tools.chunks import Chunks
from vlm_jax.data.tools.files import write_whole
from vlm_jax.data.tools.measure import default_output
from vlm_jax.errors import UserError

if TYPE_CHECKING:
    from vlm_jax.library import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the cosine of each record's image and its best caption, by the last good checkpoint of a run, as lines "
        'of {"key", "score"}. Interrupted, the same command goes on.'
    )
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of the run whose model is asked")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="default: params")
    parser.add_argument("--output", metavar="DIR", help="default: reports/NAME of the source, as for `inspect`")
    parser.add_argument("--batch_size", type=int, metavar="N", default=256)
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="that decode; default: one for each core")


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    if flags.batch_size < 1 or flags.threads < 0:
        raise UserError("wanted are --batch_size of at least 1 and --threads of at least 0.")
    if not (Path(flags.workdir) / "config.json").is_file():
        raise UserError(f"--workdir={flags.workdir} is no workdir: it has no config.json.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Scores, writes, and says how the scores are spread."""
    from vlm_jax.library import load  # the one tool that needs jax

    model = load(flags.workdir, flags.weights, batch_size=flags.batch_size)
    if model.text is None:
        raise UserError(f"--workdir={flags.workdir}: its model reads no text, so that captions have no score.")
    folder = Path(flags.output or default_output(source))
    about = {"workdir": str(Path(flags.workdir).absolute()), "weights": flags.weights, "step": model.step}
    chunks = Chunks(folder / "scored", source, len(source), about)
    with ThreadPoolExecutor(flags.threads or os.cpu_count() or 1) as pool:
        read = Reader(source, model.image, needs_text=True)
        chunks.make("scoring", lambda part: score_lines(model, read, pool, part))
    write_whole(folder / "scores.jsonl", (f"{line}\n" for line in chunks))
    values = array("d", (json.loads(line)["score"] for line in chunks))
    yield f"{folder}/scores.jsonl: {len(values):,} of {len(source):,} records, by step {model.step} of {flags.workdir}"
    if values:
        marks = zip(("min", "p5", "median", "p95", "max"), np.percentile(values, (0, 5, 50, 95, 100)))
        yield "score  " + "  ".join(f"{name} {value:.3f}" for name, value in marks)


def score_lines(model: Model, read: Reader, pool: ThreadPoolExecutor, part: slice) -> list[str]:
    """Lines on the records of `part` that can be read."""

    def load(index: int):
        try:
            record = read.record(index)
            example = read.example(record, index)
        except UnreadableRecord:
            return None
        return str(record.get("key", index)), example

    found = [item for item in pool.map(load, range(part.start, part.stop)) if item is not None]
    if not found:
        return []
    scores = best_cosines(model, [example.image for _, example in found], [example.texts for _, example in found])
    return [json.dumps({"key": key, "score": round(float(score), 6)}) + "\n" for (key, _), score in zip(found, scores)]


def best_cosines(
    model: Model, images: Sequence[UInt8[np.ndarray, "s s 3"]], captions: Sequence[Sequence[str]]
) -> Float[np.ndarray, "n"]:
    """For each image the cosine with its best caption, of which there is at least one."""
    owner = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    pictures = model.encode_image(images)
    texts = model.encode_text([text for own in captions for text in own])
    best = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(best, owner, (pictures[owner] * texts).sum(-1))
    return best
