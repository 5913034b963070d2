"""Curves and matrices as inline SVG that takes its colours from the page, and thumbnails as data URIs.

matplotlib draws with stand-in colours; they become the CSS variables of the page (`--ink`, `--line-1`, ...), so one
picture serves the light and the dark mode. `Figure` is used directly: pyplot would keep global state.
"""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlm_jax.report.format import number
from vlm_jax.report.series import LINES_A_PANEL, Panel, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE, ALERT = "#010101", "#010102", "#010103"
LINES = [f"#0101{i + 16:02x}" for i in range(LINES_A_PANEL)]
DASHES = ["solid", (0, (4, 2)), (0, (1, 1.5))]  # the second and third colours are told apart in greys as well
CSS = {INK: "var(--soft)", RULE: "var(--rule)", ALERT: "var(--alert)"} | {
    colour: f"var(--line-{i + 1})" for i, colour in enumerate(LINES)
}
MATRIX_SIDE = 64  # rows and columns of a matrix that are shown
LABELLED_SIDE = 32  # with more rows than this, labels would overlap
THUMBNAIL = 160  # pixels of the longer side


def dash(index: int) -> str:
    """SVG's dash pattern of line `index`, for legends outside of the picture."""
    style = DASHES[index * len(DASHES) // LINES_A_PANEL]
    return "" if style == "solid" else " ".join(f"{length * 1.5:g}" for length in style[1])


def curves(panel: Panel) -> str:
    """The lines of a panel over steps; steps with a non-finite value are crosses at the foot of the axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(4.0, 2.2))
    axes = figure.add_axes((0.125, 0.12, 0.855, 0.84))
    shown = [thin(series) for _, series in panel.lines]
    for i, series in enumerate(shown):
        values = np.where(series.finite, series.values, np.nan)
        marker = "o" if len(values) <= 30 else None
        style = DASHES[i * len(DASHES) // LINES_A_PANEL]
        axes.plot(series.steps, values, color=LINES[i], linestyle=style, linewidth=1.4, marker=marker, markersize=2.6)
        lost = series.steps[~series.finite][:100]
        foot = np.full(len(lost), 0.02)
        axes.plot(lost, foot, "x", color=ALERT, markersize=4, transform=axes.get_xaxis_transform(), clip_on=False)
    if panel.log:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        bottom, top = axes.get_ylim()
        if 0 < bottom < 0.5 * top:
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(_value_label))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_step_label))
    axes.minorticks_off()
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    _ink(axes, 8.5)
    return _svg(figure, describe(panel))


def describe(panel: Panel) -> str:
    """The panel in words, for those who do not see it."""
    words = []
    for name, series in panel.lines:
        values = series.values[series.finite]
        if len(values):
            span = f"from {number(values[0])} to {number(values[-1])}, least {number(values.min())}"
            words.append(f"{name} {span}, greatest {number(values.max())}")
        else:
            words.append(f"{name} has no finite value")
    return f"{panel.title} over steps: " + "; ".join(words) + "."


def matrix(title: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """The upper left of `values` `[n, m]` as a picture with its scale beside it, labelled where there is room."""
    from matplotlib.figure import Figure

    values = np.asarray(values, np.float64)[:MATRIX_SIDE, :MATRIX_SIDE]
    n, m = values.shape
    labels, below = ([] if max(n, m) > LABELLED_SIDE else [*map(_short, text)] for text in (rows, columns))
    labels, below = labels if len(labels) == n else [], below if len(below) == m else []
    left, foot = (0.12 + 0.056 * max(map(len, text)) if text else 0.06 for text in (labels, below))
    wide, high = 4.2 * min(1, m / n), 4.2 * min(1, n / m)
    figure = Figure(figsize=(left + wide + 0.7, high + foot + 0.1))
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, foot / height, wide / width, high / height))
    finite = values[np.isfinite(values)]
    low, top = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=_ramp(), vmin=low, vmax=top, interpolation="none", aspect="auto"
    )
    axes.set_xticks(range(len(below)), below, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    scale = figure.add_axes(((left + wide + 0.12) / width, foot / height, 0.1 / width, high / height))
    figure.colorbar(image, cax=scale, format=lambda value, _: number(value, 3)).outline.set(color=RULE, linewidth=0.6)
    for part in (axes, scale):
        _ink(part, 7.5)
        part.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    words = f"{title}: matrix of {n} rows and {m} columns, from {number(low)} to {number(top)}."
    return _svg(figure, words, "labelled" if labels or below else "plain")


def diagonal(values: np.ndarray) -> tuple[float, float] | None:
    """Mean of the diagonal and mean of the rest of a square matrix; None where it has no such parts."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2 or not np.isfinite(values).all():
        return None
    n, trace = len(values), np.trace(values)
    return float(trace / n), float((values.sum() - trace) / (n * n - n))


def thumbnail(image: np.ndarray) -> tuple[str, int, int]:
    """A data URI of a uint8 image `[h, w, 3]`, at most 160 pixels a side, and the size it should be shown at.

    Small pictures stay as they are (PNG), to be enlarged by the page without smoothing; photographs become JPEG.
    """
    from PIL import Image

    picture = Image.fromarray(np.asarray(image)).convert("RGB")
    small = max(picture.size) <= 64
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, **({"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", *picture.size


def _ramp():
    from matplotlib.colors import LinearSegmentedColormap

    # Light to dark in one hue, near even in lightness, so that it reads on paper and in greys too.
    return LinearSegmentedColormap.from_list("ink", ["#f4f1e8", "#c3cdd3", "#7fa3bf", "#37709f", "#123f73", "#0a1f44"])


def _value_label(value: float, _: int) -> str:
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return number(value, 6)


def _step_label(step: float, _: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{unit}"
    return f"{step:g}"


def _short(label: str, length: int = 34) -> str:
    label = " ".join(str(label).split())
    label = label if len(label) <= length else label[: length - 1] + "…"
    return label.replace("$", r"\$")  # between dollars matplotlib would read mathematics


def _ink(axes: Axes, size: float) -> None:
    axes.tick_params(color=INK, labelcolor=INK, labelsize=size, width=0.6, length=2.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set(color=INK, linewidth=0.6)


def _svg(figure: Figure, words: str, kind: str = "curves") -> str:
    import matplotlib

    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    out = io.StringIO()
    # Text stays text: it is smaller than outlines, can be searched, and takes the font of the page. The salt keeps the
    # names inside of one picture apart from those of the next, and the page a function of the run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": words}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has more scripts than we do
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"| font-family: [^;"]*;?| transform="rotate\(-0 [^)]*\)"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub("|".join(CSS), lambda colour: CSS[colour[0]], svg)
    view = re.search(r'viewBox="([^"]*)"', svg)[1]
    head = f'<svg class="{kind}" viewBox="{view}" role="img" aria-label="{html.escape(words)}">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, svg).strip()
