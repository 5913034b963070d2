"""One page that shows a run: `WORKDIR/report.html`, a single file that asks nothing of the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from vlm_jax.report import pictures
from vlm_jax.report.artifacts import Gallery, Matrix, Table
from vlm_jax.report.format import number
from vlm_jax.report.series import COUNT, Panel, Series, collect, evaluation_panels, natural, training_panels
from vlm_jax.report.style import CSS
from vlm_jax.report.writers import read_metrics, replace_file

MOST_PANELS = 48
MOST_TABLE_ROWS = 200
MOST_GALLERY_ROWS, MOST_GALLERY_IMAGES = 24, 12

# Even a caption that smuggled markup in could load nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    config_text: str,
    artifacts: Mapping[str, Matrix | Gallery | Table] | None = None,
    notes: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Writes `workdir/report.html` from `workdir/metrics.jsonl` and what the evaluators gave back; returns its path.

    Meant to be written anew after each evaluation: it takes well under two seconds, its size does not grow with the
    length of the run, and it is replaced in one step. A missing, short or torn metrics file gives a shorter page.

    Args:
      config_text: the resolved config, shown as it is.
      artifacts: by evaluator or name; shown in their order.
      notes: lines for the reader's attention, shown at the top.
      facts: name and value for the header beside what the metrics tell, such as `{"Device": "8 x TPU v5e"}`.
    """
    workdir = Path(workdir)
    series = collect(read_metrics(workdir / "metrics.jsonl"))
    header = _facts(series) | dict(facts or {})
    parts = [
        f"<header><h1>{escape(title)}</h1>",
        f"<dl>{''.join(map(_fact, header.items()))}</dl>" if header else "",
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else "",
        "</header>",
        _evaluation(series),
        _training(series),
        *(_artifact(name, artifact) for name, artifact in (artifacts or {}).items()),
        f"<details><summary>Config</summary><pre>{escape(config_text)}</pre></details>",
    ]
    path = workdir / "report.html"
    _write(path, title, parts)
    return path


def write_page(
    path: Path,
    *,
    title: str,
    artifacts: Mapping[str, Matrix | Gallery | Table],
    notes: Sequence[str] = (),
) -> None:
    """Writes a page of artifacts alone, in the style of the report."""
    head = f'<header><h1>{escape(title)}</h1><ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>'
    parts = [f"{head}</header>", *(_artifact(name, artifact) for name, artifact in artifacts.items())]
    _write(path, title, parts)


def _write(path: Path, title: str, parts: Sequence[str]) -> None:
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    body = "\n".join(part for part in parts if part)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode("utf-8", "replace"))


def _facts(series: Mapping[str, Series]) -> dict[str, str]:
    """What the metrics themselves say of how far the run is."""
    facts = {}
    if series:
        facts["Step"] = f"{max(s.last()[0] for s in series.values()):,}"
    for name, title, show in (
        ("train/examples_seen", "Examples seen", number),
        ("train/loss", "Loss", number),
    ):
        if name in series:
            facts[title] = show(series[name].last()[1])
    return facts


def _fact(item: tuple[str, str]) -> str:
    return f"<div><dt>{escape(item[0])}</dt><dd>{escape(str(item[1]))}</dd></div>"


def _section(title: str, *parts: str, source: str = "") -> str:
    title = escape(title[:1].upper() + title[1:])
    source = f' <span class="soft">{escape(source)}</span>' if source else ""
    return f"<section><h2>{title}{source}</h2>\n" + "\n".join(parts) + "</section>"


def _training(series: Mapping[str, Series]) -> str:
    panels = training_panels(series)
    if not panels:
        return _section("Training", '<p class="soft">No training metrics were written yet.</p>')
    flat = [line for panel in panels if _flat(panel) for line in panel.lines]
    same = ", ".join(f"{name} {number(series.values[0])}" for name, series in flat)
    steady = f'<p class="soft">The same at every step: {escape(same)}.</p>' if flat else ""
    return _section("Training", _grid([panel for panel in panels if not _flat(panel)]), steady)


def _flat(panel: Panel) -> bool:
    return all(series.constant for _, series in panel.lines)


def _evaluation(series: Mapping[str, Series]) -> str:
    evaluations = {name: s for name, s in series.items() if name.startswith("eval/")}
    if not evaluations:
        return ""
    rows, group = [], None
    for name in sorted(evaluations, key=natural):
        evaluator, _, short = name.removeprefix("eval/").rpartition("/")
        if evaluator != group:
            count = evaluations.get(f"eval/{evaluator}/{COUNT}")
            size = f' <span class="soft">{number(count.last()[1])} examples</span>' if count else ""
            rows.append(f'<tr class="group"><th colspan="5" scope="rowgroup">{escape(evaluator)}{size}</th></tr>')
            group = evaluator
        if short == COUNT:
            continue
        last, best = evaluations[name].last(), evaluations[name].best()
        cells = [_score(last[1]), f"{last[0]:,}", *((_score(best[1]), f"{best[0]:,}") if best else ("", ""))]
        numbers = "".join(f'<td class="number{" soft" if i % 2 else ""}">{cell}</td>' for i, cell in enumerate(cells))
        rows.append(f'<tr><th scope="row">{escape(short)}</th>{numbers}</tr>')
    heads = "".join(f'<th scope="col" class="number">{head}</th>' for head in ("last", "at step", "best", "at step"))
    table = (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">metric</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    repeated = [panel for panel in evaluation_panels(evaluations) if any(len(s.steps) > 1 for _, s in panel.lines)]
    return _section("Evaluation", f'<div class="beside">{table}{_grid(repeated) if repeated else ""}</div>')


def _score(value: float) -> str:
    """Fractions with the same number of decimals, so that they line up."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) <= 1 else number(value)


def _grid(panels: Sequence[Panel]) -> str:
    figures = "\n".join(_panel(panel) for panel in panels[:MOST_PANELS])
    more = ""
    if len(panels) > MOST_PANELS:
        names = ", ".join(name for panel in panels[MOST_PANELS:] for name, _ in panel.lines)
        more = f'<p class="soft">Not drawn, but in metrics.jsonl: {escape(names[:2000])}</p>'
    return f'<div><div class="grid">\n{figures}\n</div>{more}</div>'


def _panel(panel: Panel) -> str:
    items = []
    for i, (name, series) in enumerate(panel.lines):
        swatch = (
            f'<svg viewBox="0 0 20 8" aria-hidden="true"><line x1="0" x2="20" y1="4" y2="4" stroke-width="2" '
            f'style="stroke: var(--line-{i + 1})" stroke-dasharray="{pictures.dash(i)}"/></svg>'
        )
        items.append(f"<li>{swatch}<span>{escape(name)} <b>{number(series.last()[1])}</b></span></li>")
    lost = sorted({step for _, series in panel.lines for step in series.steps[~series.finite].tolist()})
    alert = ""
    if lost:
        steps = ", ".join(f"{step:,}" for step in lost[:5]) + (", ..." if len(lost) > 5 else "")
        alert = f'<p class="alert">Not finite at {"step" if len(lost) == 1 else f"{len(lost):,} steps:"} {steps}</p>'
    caption = f'<figcaption><ul class="legend">{"".join(items)}</ul>{alert}</figcaption>'
    return f"<figure><h3>{escape(panel.title)}</h3>{pictures.curves(panel)}{caption}</figure>"


def _artifact(name: str, artifact: Matrix | Gallery | Table) -> str:
    shows = {Matrix: _matrix, Gallery: _gallery, Table: _table}
    show = shows.get(type(artifact))
    if show is None:
        return _section(name, f'<p class="soft">Artifacts of type {escape(type(artifact).__name__)} are not shown.</p>')
    return _section(artifact.title, show(artifact), source=name.split("/")[0])


def _matrix(artifact: Matrix) -> str:
    values = np.asarray(artifact.values)
    if values.ndim != 2 or not values.size:
        return '<p class="soft">The matrix is empty.</p>'
    words = [f"{values.shape[0]:,} rows, {values.shape[1]:,} columns"]
    if max(values.shape) > pictures.MATRIX_SIDE:
        words[0] += f", of which the first {pictures.MATRIX_SIDE} are drawn"
    if (means := pictures.diagonal(values)) is not None:
        words.append(f"mean of the diagonal {number(means[0], 3)}, of the rest {number(means[1], 3)}")
    picture = pictures.matrix(artifact.title, values, artifact.row_labels, artifact.column_labels)
    caption = f"<figcaption>{'; '.join(words)}.</figcaption>"
    return f'<figure class="matrix"><div class="scroll" tabindex="0">{picture}</div>{caption}</figure>'


def _gallery(artifact: Gallery) -> str:
    parts = []
    for heading, images in artifact.rows[:MOST_GALLERY_ROWS]:
        figures = []
        for image, caption, good in images[:MOST_GALLERY_IMAGES]:
            uri, width, height = pictures.thumbnail(image)
            kind, mark = {True: ("good", "✓"), False: ("bad", "✗")}.get(good if good is None else bool(good), ("", ""))
            spoken = {"good": "right: ", "bad": "wrong: "}.get(kind, "")
            pixels = ' class="pixels"' if max(width, height) <= 64 else ""
            label = f'<span class="mark" aria-hidden="true">{mark}</span>' if mark else ""
            figures.append(
                f'<figure class="{kind}"><img src="{uri}" width="{width}" height="{height}"{pixels} '
                f'alt="{escape(spoken + str(caption))}"><figcaption>{label}{escape(str(caption))}</figcaption></figure>'
            )
        parts.append(f'<h3>{escape(str(heading))}</h3><div class="strip">{"".join(figures)}</div>')
    return "\n".join(parts) + _more(len(artifact.rows), MOST_GALLERY_ROWS)


def _table(artifact: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in artifact.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in artifact.rows[:MOST_TABLE_ROWS])
    table = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return table + _more(len(artifact.rows), MOST_TABLE_ROWS)


def _cell(value) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number">{number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def _more(rows: int, shown: int) -> str:
    return f'<p class="soft">The first {shown} of {rows:,} are shown.</p>' if rows > shown else ""
