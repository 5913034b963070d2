"""What the Pallas kernels cost on TPUs, by the real TPU compiler and without a TPU: `python -m benchmarks.kernels`.

Counts the instructions that the compiler schedules (`vlm_jax.plan.bundles`), a lower bound that leaves out stalls;
where memory is the bound, that is said. Prints a table and writes `benchmarks/results/kernels.json`.
"""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

from vlm_jax.nn.kernels.geometry import Geometry
from vlm_jax.nn.kernels.whole_image import kernel_name
from vlm_jax.plan import bundles

RESULTS = pathlib.Path(__file__).parent / "results" / "kernels.json"
CHIPS = ("v5e", "v6e", "v5p")
ROWS = 32
# What for, time, heads, their width, first keys that count, options.
ATTENTION = (
    ("B/16", 196, 12, 64, 196, {}),
    ("B/16, 4 tokens of padding", 200, 12, 64, 196, {}),
    ("B/16 at 256", 256, 12, 64, 256, {}),
    ("text, padding masked", 64, 12, 64, 64, {"masked": True}),
    ("B/16 with heads of 128", 200, 6, 128, 196, {}),
    ("L/16", 200, 16, 64, 196, {}),
    ("So400m/14", 256, 16, 72, 256, {}),
)
NORMS = (("B/16", 200, 768), ("So400m/14", 256, 1152))


def attention_calls(time: int, heads: int, head_dim: int, keys: int, options: dict) -> dict[str, bundles.Call]:
    width = heads * head_dim
    g = Geometry(ROWS, time, width, heads, keys, 2, **options)
    qkv, x = (f"bf16[{ROWS},{time},{n}]" for n in (3 * width, width))
    shape = lambda *sizes: ",".join(map(str, (ROWS, *sizes)))
    ids = (f"s32[{shape(g.tiles, 8, g.tile)}]", f"s32[{shape(time, 128)}]") if g.masked else ()
    backward = (qkv, x, x, f"f32[{shape(*g.statistics)}]", *ids)
    return {"forward": (kernel_name("forward", g), (qkv, *ids)), "backward": (kernel_name("backward", g), backward)}


def norm_calls(time: int, width: int) -> dict[str, bundles.Call]:
    name = f"add_norm_{{}}_b{ROWS}_t{time}_d{width}"
    x, vector = f"bf16[{ROWS},{time},{width}]", f"f32[1,{width}]"
    return {
        "forward": (name.format("forward"), (x, x, vector, vector)),
        "backward": (name.format("backward"), (x, x, x, vector)),
    }


def main() -> None:
    cases = {f"attention {c[1]} x {c[2]} x {c[3]} ({c[0]})": attention_calls(*c[1:]) for c in ATTENTION}
    cases |= {f"add + norm {c[1]} x {c[2]} ({c[0]})": norm_calls(*c[1:]) for c in NORMS}
    calls = [call for case in cases.values() for call in case.values()]
    found = {chip: bundles.counts(calls, chip) for chip in CHIPS}
    rows = []
    print(f"thousand cycles of {ROWS} rows: forward + backward; h: HBM is the bound\n")
    print(f"{'':<58}" + "".join(f"{chip:>18}" for chip in CHIPS))
    for name, case in cases.items():
        cells = []
        for chip in CHIPS:
            stages = {stage: found[chip][call] for stage, call in case.items()}
            rows.append({"kernel": name, "chip": chip, "rows": ROWS})
            for stage, (counted, moving) in stages.items():
                rows[-1][stage] = {"bundles": counted, "memory_cycles": moving}
            cells.append(" + ".join(f"{max(v) / 1e3:.0f}{'h' * bool(np.argmax(v))}" for v in stages.values()))
        print(f"{name:<58}" + "".join(f"{cell:>18}" for cell in cells))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"jax": jax.__version__, "estimates": True, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
