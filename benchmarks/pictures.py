"""Memory of the losses against batch size and against devices, as one SVG."""

from __future__ import annotations

import pathlib
from typing import Any

MIB = 2**20
COLOURS = {
    "vlm_jax": "#1f5f9e",
    "differentiated ring": "#c2571a",
    "all-gather, chunks": "#2b7a48",
    "dense": "#7b4fa3",
    "open_clip": "#9a7209",
}
TITLES = {"sigmoid": "Sigmoid", "infonce": "InfoNCE"}
COVERING = ("vlm_jax", "differentiated ring")  # drawn over others of the same height


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the picture: a row of panels for each loss, memory of one device upwards."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "losses", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10})
    import matplotlib.pyplot as plt

    compiled, kept = results["compiled"], results["kept"]
    largest = max(row["devices"] for row in compiled)
    share = min(row["batch"] // row["devices"] for row in compiled if row["devices"] != largest)
    machine = next(row["machine"] for row in compiled if row["devices"] == largest)
    local = results["kept_local_batch"]
    panels = (
        (f"temporaries, {machine}", "pairs in the batch", "batch", [r for r in compiled if r["devices"] == largest]),
        (
            "temporaries",
            f"devices, {share:,} pairs each",
            "devices",
            [r for r in compiled if r["batch"] == share * r["devices"]],
        ),
        ("kept for backward, f32", f"devices, {local:,} pairs each", "devices", kept),
    )
    figure, grid = plt.subplots(2, 3, figsize=(11, 6.4), sharey=True, layout="constrained")
    for loss, row in zip(TITLES, grid):
        for axes, (title, label, key, rows) in zip(row, panels):
            rows = [r for r in rows if r["loss"] == loss]
            for variant in reversed(COLOURS):  # ours on top
                _line(axes, variant, key, [r for r in rows if r["variant"] == variant])
            _dress(axes, f"{TITLES[loss]}: {title}", label, sorted({r[key] for r in rows}), results["limit"])
        row[0].set_ylabel("MiB a device")
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines() if line.get_label() in COLOURS}
    handles = {name: handles[name] for name in COLOURS if name in handles}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _line(axes, variant: str, key: str, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row[key])
    at, memory = [r[key] for r in rows], [r["memory"] / MIB for r in rows]
    if not rows:
        return
    style = {"color": COLOURS[variant], "label": variant, "linestyle": "--" if variant in COVERING else "-"}
    axes.plot(at, memory, marker="o", markersize=4, clip_on=False, zorder=3, **style)
    refused = [(x, y) for x, y, r in zip(at, memory, rows) if not r.get("fits", True)]
    if refused:
        axes.plot(*zip(*refused), color=COLOURS[variant], marker="x", markersize=11, markeredgewidth=2, linestyle="")


def _dress(axes, title: str, label: str, at: list[int], limit: int | None) -> None:
    axes.set(title=title, xlabel=label, xscale="log")
    axes.set_xticks(at, [_short(x) for x in at])
    axes.xaxis.minorticks_off()
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set_yticks([0, 1, 10, 100, 1000, 10000], ["0", "1", "10", "100", "1,000", "10,000"])
    axes.set_ylim(0, 60000)
    if limit:
        axes.axhline(limit / MIB, color="#888888", linewidth=1, linestyle="--")
        axes.text(at[0], limit / MIB * 1.15, "HBM of the chip", color="#666666", fontsize=8)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _short(number: int) -> str:
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return str(number)
