"""How fast each format is opened and read at random, on one thread.

    python -m benchmarks.sources [--records=5000] [--bytes=30000] [--index=10000000]

Random bytes stand for images: nothing is decoded. What is read was just written, so that it comes from memory and the
figures are those of the code; a disk or a network adds its own time. The last line opens an index of so many samples.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import tempfile
import time

import numpy as np

from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources import tar_index
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage, local_file
from vlm_jax.data.writers import convert

SHARDS = 5


class Noise:
    """Records of random bytes."""

    name, fingerprint, class_names = "noise", "", ()

    def __init__(self, records: int, size: int):
        self.records, self.size = records, size

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, k: int) -> dict:
        return {"image": b"\xff\xd8\xff" + np.random.default_rng(k).bytes(self.size - 3), "text": [f"caption {k}"]}


def formats(folder: pathlib.Path, storage: Storage) -> dict:
    """Name -> (format of `convert`, function that opens it)."""
    at = lambda form: str(folder / form)
    return {
        "WebDataset": ("tar", lambda: WebDataset(at("tar"), storage=storage)),
        "ArrayRecord": ("array_record", lambda: ArrayRecord(at("array_record"), storage=storage)),
        "Parquet, groups of 100": ("parquet", lambda: Parquet(at("parquet"), text_column="text", cache_mb=0)),
        "Listing": ("folder", lambda: Listing(f"{at('folder')}/*/metadata.jsonl", storage=storage)),
    }


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def large_index(folder: pathlib.Path, samples: int, storage: Storage, tars: int = 1) -> str:
    """The folder of tars whose indexes say that they hold so many samples, of two members, together."""
    large, each = folder / f"large_{tars}", samples // tars
    convert(Noise(1, 100), folder / "one", "tar")
    large.mkdir()
    paths = [large / f"{k:05}.tar" for k in range(tars)]
    for path in paths:
        shutil.copyfile(folder / "one/00000.tar", path)
    one = tar_index.make_tar_index(local_file(paths[0]), storage)
    members = len(one.arrays["offset"])
    columns = {name: np.tile(one.arrays[name], each) for name in ("offset", "size", "extension")}
    keys = {"keys": np.full(9 * each, ord("0"), np.uint8), "key_ends": 9 * np.arange(1, each + 1)}
    index = Index(one.meta, {"first": members * np.arange(each + 1), **columns, **keys})
    indexes([local_file(path) for path in paths], tar_index.KIND, lambda _: index, storage)
    return str(large)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("records", 5000), ("bytes", 30_000), ("index", 10_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    source = Noise(args.records, args.bytes)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        storage = Storage(cache_dir=str(folder / "cache"))
        print(f"| {args.records} records of {args.bytes} bytes | first open, ms | later, ms | random reads/s |")
        print("|---|---|---|---|")
        for label, (form, open_) in formats(folder, storage).items():
            convert(source, folder / form, form, shard_records=-(-args.records // SHARDS))
            first, later = seconds(open_), min(seconds(open_) for _ in range(3))
            opened = open_()
            reads = 200 if form == "parquet" else args.records
            order = np.random.default_rng(0).permutation(args.records)[:reads].tolist()
            rate = reads / seconds(lambda opened=opened, order=order: [opened[k] for k in order])
            print(f"| {label} | {1e3 * first:.0f} | {1e3 * later:.1f} | {rate:.0f} |", flush=True)
        path = large_index(folder, args.index, storage)
        opened = seconds(lambda: WebDataset(path, storage=storage)[args.index - 1])
        print(f"\nan index of {args.index} samples opened, and the last one read, in {1e3 * opened:.1f} ms")


if __name__ == "__main__":
    main()
