"""Input pipelines side by side: images a second for each core, memory over 100,000 examples, opening a large index.

    python -m benchmarks.data [--seconds=2] [--rounds=3] [--cores=2] [--images=500] [--output=benchmarks/results]

JPEG of 640 x 480 becomes 224 x 224 with its caption's tokens, in shuffled batches: by this package, by tf.data and by
torch with webdataset, as far as they are installed (pip install tensorflow-cpu torch==2.13.0 torchvision webdataset).
Every measurement has a process of its own that is bound to its cores, and in each round all take turns. Counted are
images a second of wall time, for each core, and of CPU time (all threads and workers), which other programs on the
machine disturb less. What is read was just written, so it comes from memory; nothing here measures a disk.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.data_peers import BATCH, OURS, PIPELINES, TEXT, open_tars
from benchmarks.images import jpeg, photograph
from benchmarks.sources import large_index, seconds
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.tools import bench
from vlm_jax.data.writers import convert

INTERPOLATIONS = ("bicubic", "bilinear")
SHARDS = 10
SMALL = (84, 112)  # height and width of the images that memory is looked at over
MARKS = (0, 0.1, 0.5, 1)  # of the examples: where memory is looked at
TARS = (1, 1000)  # that the samples of the large index lie in
VERSIONS = ("jax", "grain", "pillow", "simplejpeg", "numpy", "tensorflow-cpu", "tensorflow", "torch", "torchvision")
VERSIONS += ("webdataset", "pillow-simd", "cykooz-resizer")


class Photographs:
    """Noise with the bytes of photographs (640 x 480: 73 kB), each with a caption of its own."""

    name, fingerprint, class_names = "photographs", "", ()

    def __init__(self, count: int, height: int, width: int, different: int):
        scenes = Shapes(size=min(count, 1000), image_size=8)
        self._count, self._captions = count, [scenes[k]["text"][0] for k in range(len(scenes))]
        self._images = [jpeg(photograph(height, width, k), quality=95) for k in range(different)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> dict:
        caption = self._captions[k % len(self._captions)]
        return {"image": self._images[k % len(self._images)], "text": f"{caption}, picture {k}"}


def write(folder: pathlib.Path, source: Photographs) -> None:
    convert(source, folder / "tar", "tar", shard_records=-(-len(source) // SHARDS))
    open_tars(folder)  # indexes them


def speed(folder: pathlib.Path, name: str, duration: float) -> dict[str, dict[str, float]]:
    """Images a second of wall and of CPU time, by interpolation, on the cores that this process may use."""
    entry, cores, found = PIPELINES[name], len(os.sched_getaffinity(0)), {}
    for interpolation in INTERPOLATIONS:
        batches = iter(entry.make(folder, cores, interpolation, **entry.options))
        measured = bench.measure(batches, BATCH, warm_up=3, seconds=duration, step_s=0)
        if hasattr(batches, "close"):
            batches.close()
        found[interpolation] = {
            "per_core": measured.images / measured.seconds / cores,
            "per_cpu_second": measured.images / measured.cpu_seconds,
        }
    return found


def memory(folder: pathlib.Path, workers: int) -> dict[str, Any]:
    """Megabytes that this process and its workers hold at `MARKS`, and examples a second."""
    source = open_tars(folder)
    pipeline = Pipeline(source, ImageTransform(64), TEXT, workers=workers, threads=2)
    batches = pipeline.batches(seed=0, batch_size=BATCH, rows=np.arange(BATCH))
    seen, held, begin = 0, [], time.perf_counter()
    for mark in (int(part * len(source)) for part in MARKS):
        while seen < max(mark, 8 * BATCH):  # at the start everything is loaded, and some batches prepared ahead
            next(batches)
            seen += BATCH
        held.append(round(bench.megabytes(), 1))
    batches.close()
    return {"workers": workers, "megabytes": held, "examples_per_s": round(seen / (time.perf_counter() - begin))}


def opening(folder: pathlib.Path, path: str) -> dict[str, float]:
    """Milliseconds to open an index, with its fingerprint, to read a sample then, and another."""
    storage, opened = Storage(cache_dir=str(folder / "cache")), []

    def open_() -> None:
        opened.append(WebDataset(path, storage=storage))
        assert len(opened[0]) and opened[0].fingerprint

    open_s, first_s = seconds(open_), seconds(lambda: opened[0][len(opened[0]) // 3])
    order = np.random.default_rng(0).integers(0, len(opened[0]), 1000).tolist()
    later_s = seconds(lambda: [opened[0][k] for k in order]) / len(order)
    milliseconds = {"open_ms": open_s, "first_read_ms": first_s, "random_read_ms": later_s}
    return {"samples": len(opened[0]), **{name: round(1e3 * value, 3) for name, value in milliseconds.items()}}


def forget(folder: pathlib.Path) -> None:
    """Takes files out of the system's page cache, where it offers that, as after a restart of the machine."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(cores: int, function: str, *arguments: Any) -> dict[str, Any]:
    """What a function of this module returns, in a process of its own on the last so many cores.

    Raises: RuntimeError, the last line that it said.
    """
    command = [sys.executable, "-m", "benchmarks.data", "--one", json.dumps([function, *map(str, arguments)])]
    allowed = sorted(os.sched_getaffinity(0))[-cores:]
    bind = functools.partial(os.sched_setaffinity, 0, allowed)
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bind)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(function: str, folder: str, *arguments: str) -> dict[str, Any]:
    folder = pathlib.Path(folder)
    if function == "speed":
        return speed(folder, arguments[0], float(arguments[1]))
    return memory(folder, int(arguments[0])) if function == "memory" else opening(folder, arguments[0])


def speeds(folder: pathlib.Path, cores: list[int], rounds: int, duration: float) -> dict[str, Any]:
    """Of each pipeline, why it was not measured, or its rates by cores, interpolation and unit, one for each round."""
    found: dict[str, Any] = {name: {} for name in PIPELINES}
    for name, entry in PIPELINES.items():
        if missing := entry.missing():
            found[name]["skipped"] = f"pip install {' '.join(missing)}"
    for turn in range(rounds):
        for count in cores:
            names = [name for name, result in found.items() if not {"skipped", "error"} & set(result)]
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                try:
                    rates = child(count, "speed", folder, name, duration)
                except RuntimeError as error:
                    found[name] = {"error": str(error)}
                    continue
                for interpolation, values in rates.items():
                    slot = found[name].setdefault(str(count), {}).setdefault(interpolation, {})
                    for unit, value in values.items():
                        slot.setdefault(unit, []).append(round(value, 1))
                print(f"round {turn + 1}, {count} cores, {name}: {rates}", file=sys.stderr, flush=True)
    return found


def speed_table(found: dict[str, Any], cores: list[int]) -> str:
    """Markdown: of each pipeline the best round, and the median over rounds of its CPU rate to ours."""
    heads = [f"{n} core{'s' * (n > 1)}: {what}" for n in cores for what in ("images/s/core", "by CPU time", "of ours")]
    rows = [["", "resized", *heads]]
    for name, result in found.items():
        rows += [[name, f"{why}: {result[why]}", *[""] * len(heads)] for why in ("skipped", "error") if why in result]
        for interpolation in INTERPOLATIONS if str(cores[0]) in result else ():
            rows.append([name, interpolation])
            for count in map(str, cores):
                rates, base = (of.get(count, {}).get(interpolation) for of in (result, found[OURS]))
                pairs = zip(rates["per_cpu_second"], (base or rates)["per_cpu_second"])
                rows[-1] += [f"{max(rates[unit]):.0f}" for unit in ("per_core", "per_cpu_second")]
                rows[-1].append(f"{statistics.median(a / b for a, b in pairs):.2f}")
    return markdown(rows)


def memory_table(found: list[dict[str, Any]], examples: int) -> str:
    heads = ["MB at the start", *(f"after {int(part * examples):,}" for part in MARKS[1:]), "examples/s"]
    return markdown([["workers", *heads], *([r["workers"], *r["megabytes"], r["examples_per_s"]] for r in found)])


def index_table(found: list[dict[str, Any]]) -> str:
    heads = ["samples", "in tars", "page cache", "open, ms", "first read, ms", "later reads, ms"]
    names = ("open_ms", "first_read_ms", "random_read_ms")
    rows = [
        [f"{r['samples']:,}", r["tars"], "warm" if r["cached"] else "cold", *(f"{r[name]:.2f}" for name in names)]
        for r in found
    ]
    return markdown([heads, *rows])


def markdown(rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def memories(folder: pathlib.Path, examples: int) -> list[dict[str, Any]]:
    write(folder, Photographs(examples, *SMALL, different=100))
    return [child(len(os.sched_getaffinity(0)), "memory", folder, workers) for workers in (0, 2)]


def openings(folder: pathlib.Path, samples: int) -> list[dict[str, Any]]:
    found = []
    for tars in TARS:
        path = large_index(folder / str(tars), samples, Storage(cache_dir=str(folder / str(tars) / "cache")), tars)
        for cached in (False, True):
            if not cached:
                forget(folder)
            found.append({"tars": tars, "cached": cached} | child(1, "opening", folder / str(tars), path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement, after a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="the most that pipelines are bound to; 1 comes first")
    parser.add_argument("--images", type=int, default=500, help="different ones; they are read again and again")
    parser.add_argument("--examples", type=int, default=100_000, help="that memory is looked at over")
    parser.add_argument("--index", type=int, default=10_000_000, help="samples in the large index")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*json.loads(options.one))))
        return
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system cannot bind a process to cores; Linux can")
    here = len(os.sched_getaffinity(0))
    cores = sorted({1, min(options.cores, here)})
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    results = {
        "machine": {"cores": here, "cpu": cpu_name(), "python": platform.python_version()},
        "versions": {name: installed[name] for name in VERSIONS if name in installed},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        photographs = Photographs(options.images, 480, 640, different=options.images)
        write(folder / "large", photographs)
        results["jpeg_bytes"] = round(np.mean([len(photographs[k]["image"]) for k in range(len(photographs))]))
        results["speed"] = speeds(folder / "large", cores, options.rounds, options.seconds)
        print(speed_table(results["speed"], cores), flush=True)

        results["memory"] = memories(folder / "small", options.examples)
        print("\n" + memory_table(results["memory"], options.examples), flush=True)

        results["index"] = openings(folder / "index", options.index)
        print("\n" + index_table(results["index"]))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "data.json").write_text(json.dumps(results, indent=1) + "\n")


def cpu_name() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
