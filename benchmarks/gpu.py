"""Training speed of SigLIP on one GPU, beside open_clip: pairs a second, MFU and peak memory, at the same shapes.

    python -m benchmarks.gpu [--sizes=S,B,L] [--batch=256] [--output=DIR]

Both take whole training steps (two towers, sigmoid loss, AdamW) on one random batch that stays on the device, in bf16
with f32 parameters; open_clip compiled by torch.compile, with fused attention and a fused optimizer. Every measurement
has a process of its own, and those of the two take turns. On a machine without a GPU, `--width=64 --depth=2 --batch=4`
shows that it runs.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_jax.flops import peak_tflops
from vlm_jax.models.tower import SIZES, Size

OURS, PEER = "vlm_jax", "open_clip"
IMAGE, LENGTH, VOCAB = 224, 64, 32_000
MIB = 2**20


def geometry(size: str, width: int | None = None, depth: int | None = None) -> Size:
    """Of both towers; with a `width` of its own, heads are 32 wide."""
    found = SIZES[size]
    if width is not None:
        found = Size(width, found.depth, 4 * width, width // 32)
    return found._replace(depth=depth or found.depth)


def random_batch(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [batch, 224, 224, 3], tokens int32 [batch, 64]."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (batch, IMAGE, IMAGE, 3), np.uint8),
        rng.integers(2, VOCAB, (batch, LENGTH)).astype(np.int32),
    )


def timed(step: Callable[[], Any], wait: Callable[[], None], repeats: int, rounds: int = 5) -> list[float]:
    """Seconds a step, of `rounds` times `repeats` steps in a row, after two to warm up."""
    for _ in range(2):
        step()
    wait()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        wait()
        seconds.append((time.perf_counter() - begin) / repeats)
    return seconds


def measure_ours(size: Size, batch: int, repeats: int) -> dict[str, Any]:
    """This package's own step: recipe, sharding and jit as in training."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that the peak is what the step needs
    import jax

    from vlm_jax import config as configs
    from vlm_jax import mesh as meshes
    from vlm_jax import program, startup
    from vlm_jax.experiment import open_experiment
    from vlm_jax.overrides import override

    config = configs.load("siglip_b16:smoke")
    changes = {f"task.model.{tower}.{k}": v for tower in ("image", "text") for k, v in size._asdict().items()}
    changes |= {f"task.model.{tower}.remat": "none" for tower in ("image", "text")}  # the fastest on GPUs
    changes |= {"task.model.text.out_dim": size.width, "batch_size": batch, "total_examples": 10_000 * batch}
    for key, value in changes.items():
        override(config, key, str(value))
    with tempfile.TemporaryDirectory() as folder:
        experiment = open_experiment(config, pathlib.Path(folder))
    plan = startup.make_plan(experiment, jax.devices()[:1])
    update = program.jitted_update(plan)
    images, tokens = random_batch(batch)
    rows = np.arange(batch)
    arrays = meshes.put({"image": images, "text": tokens, "caption_id": rows.astype(np.int32)}, rows, batch, plan.mesh)
    held = {"state": startup.initialise(plan)}

    def step():
        held["state"], held["metrics"] = update(held["state"], arrays)

    seconds = timed(step, lambda: jax.block_until_ready(held), repeats)
    assert np.isfinite(held["metrics"]["loss"])
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {"seconds": seconds, "peak": peak, "device": device.device_kind, "flops": program.model_flops(plan)}


def measure_peer(size: Size, batch: int, repeats: int) -> dict[str, Any]:
    """open_clip's SigLIP towers (timm's for images) and loss, trained as its own loop does with `amp_bf16`."""
    import torch

    open_clip = import_open_clip()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip_model(open_clip, size).to(device)
    loss = open_clip.loss.SigLipLoss()
    adamw = functools.partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = adamw(model.parameters(), fused=device.type == "cuda")
    compiled = torch.compile(model) if device.type == "cuda" else model
    images, tokens = (torch.from_numpy(x).to(device) for x in random_batch(batch))
    held = {}

    def step():
        optimizer.zero_grad()
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            out = compiled(pixels, tokens.long())
            held["loss"] = loss(*out)
        held["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    seconds = timed(step, torch.cuda.synchronize if device.type == "cuda" else lambda: None, repeats)
    assert torch.isfinite(held["loss"])
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    return {"seconds": seconds, "peak": torch.cuda.max_memory_allocated() if cuda else None, "device": name}


def import_open_clip():
    return import_on_torchvision("open_clip")


def import_on_torchvision(name: str):
    """A module; also beside a torch of another build than torchvision's, whose operators are then not there."""
    import torch

    register = torch.library.register_fake
    ignore = lambda name, *args, **kwargs: lambda f: f
    if not torch.cuda.is_available():
        torch.library.register_fake = ignore
    try:
        return importlib.import_module(name)
    finally:
        torch.library.register_fake = register


def open_clip_model(open_clip, size: Size):
    """Towers with the shapes of `siglip_b16` at another size."""
    import timm

    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    text = config["text_cfg"] | {
        "width": size.width,
        "layers": size.depth,
        "heads": size.num_heads,
        "mlp_ratio": size.mlp_dim / size.width,
        "vocab_size": VOCAB,
        "context_length": LENGTH,
        "hf_tokenizer_name": None,
        "tokenizer_kwargs": {},
    }
    vision = config["vision_cfg"] | {"image_size": IMAGE}
    model = open_clip.model.CustomTextCLIP(
        768, vision, text, init_logit_scale=np.log(10), init_logit_bias=-10.0, output_dict=False
    )
    model.visual.trunk = timm.create_model(
        "vit_base_patch16_siglip_224",
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_dim / size.width,
        num_classes=0,
    )
    if size.width != 768:  # the head that CustomTextCLIP made for the shipped width
        model.text.text_projection = type(model.text.text_projection)(size.width, size.width)
    return model


def run_one(which: str, size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", f"--one={which}:{size}", f"--batch={arguments.batch}"]
    command += [
        f"--{name}={getattr(arguments, name)}" for name in ("width", "depth", "repeats") if getattr(arguments, name)
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"which": which, "size": size, "error": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: pairs a second, MFU, peak memory, and the ratio of ours to the peer's."""
    lines = ["| size | batch | | pairs/s | MFU % | peak MiB | ratio |", "|---|---|---|---|---|---|---|"]
    peers = {row["size"]: row for row in rows if row["which"] == PEER and "error" not in row}
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['size']} | | {row['which']} | {row['error']} | | | |")
            continue
        peer = peers.get(row["size"])
        ratio = f"{row['pairs_per_s'] / peer['pairs_per_s']:.2f}" if peer and row["which"] == OURS else ""
        mfu = f"{row['mfu_percent']:.1f}" if row.get("mfu_percent") else ""
        memory = f"{row['peak'] / MIB:,.0f}" if row["peak"] else ""
        speed = f"{row['pairs_per_s']:,.1f}"
        lines.append(f"| {row['size']} | {row['batch']} | {row['which']} | {speed} | {mfu} | {memory} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="S,B,L")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, help="of the towers, in place of the size's")
    parser.add_argument("--depth", type=int, help="of the towers, in place of the size's")
    parser.add_argument("--repeats", type=int, default=10, help="steps between two looks at the clock; five times")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        which, size = arguments.one.split(":")
        sizes = geometry(size, arguments.width, arguments.depth)
        measure = measure_ours if which == OURS else measure_peer
        found = measure(sizes, arguments.batch, arguments.repeats)
        median = float(np.median(found["seconds"]))
        found |= {"which": which, "size": size, "batch": arguments.batch, "pairs_per_s": arguments.batch / median}
        print(json.dumps(found))
        return
    rows = [run_one(which, size, arguments) for size in arguments.sizes.split(",") for which in (OURS, PEER)]
    flops = {row["size"]: row["flops"] for row in rows if row.get("flops")}
    for row in rows:  # the same count for both: three times the forward pass
        peak = peak_tflops(row.get("device", ""))
        if peak and row["size"] in flops:
            rate = flops[row["size"]] / row["batch"] * row["pairs_per_s"]
            row["mfu_percent"] = 100 * rate / (peak * 1e12)
    versions = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    wanted = ("jax", "torch", "timm", "open-clip-torch", "open_clip_torch")
    results = {"versions": {name: versions[name] for name in wanted if name in versions}, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
