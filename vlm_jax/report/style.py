"""The look of the page: one column on a phone, a grid on a wide screen, paper by day and slate by night."""

CSS = """
:root { color-scheme: light dark;
  --paper: #fdfcf9; --ink: #1d1f21; --soft: #5c6166; --rule: #dfdcd4; --wash: #f4f2ec;
  --good: #2b7a48; --alert: #b3361f;
  --line-1: #1f5f9e; --line-2: #c2571a; --line-3: #2b7a48; --line-4: #7b4fa3; --line-5: #9a7209; --line-6: #5a6570;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15171a; --ink: #e4e2dc; --soft: #a0a5aa; --rule: #33373c; --wash: #1d2024;
  --good: #7fcb9a; --alert: #f08a72;
  --line-1: #79b0ea; --line-2: #f0a06c; --line-3: #7fcb9a; --line-4: #c4a4e8; --line-5: #dbb957; --line-6: #a9b4bf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 var(--sans);
  -webkit-text-size-adjust: 100%; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.2;
  text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2rem; margin: 0 0 1.25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; padding-top: .6rem; border-top: 1px solid var(--ink); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; }
p { max-width: 70ch; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .86rem; }
td.soft { font-size: inherit; }
h2 .soft, th .soft { font: .8rem var(--sans); margin-left: .5em; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem 1.5rem; margin: 0 0 1.5rem;
  border-top: 1px solid var(--ink); padding-top: 1rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.notes { margin: 0 0 1.5rem; padding: .7rem 1rem .7rem 2rem; background: var(--wash);
  border-left: 3px solid var(--line-5); font-size: .92rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem 1.4rem .28rem 0; text-align: left; vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 500; font-size: .8rem; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
tbody th { font-weight: 400; }
tbody th[colspan] { font-family: var(--serif); font-weight: 600; padding-top: .9rem; }
tbody tr + tr td, tbody tr + tr th:not([colspan]) { border-top: 1px solid var(--rule); }
tr.group + tr > * { border-top: 0 !important; }
.number { text-align: right; white-space: nowrap; }
@media (max-width: 40rem) { table { font-size: .82rem; } th, td { padding-right: .55rem; } }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 2rem 2.25rem; }
figure { margin: 0; min-width: 0; }
.grid + .soft, div + .soft { margin-top: 1.5rem; }
.beside { display: grid; gap: 2rem 3rem; align-items: start; }
.beside > * { min-width: 0; }
@media (min-width: 62rem) { .beside:has(.grid) { grid-template-columns: auto 1fr; }
  .beside .grid { grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); } }
.grid h3 { margin: 0 0 .35rem; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
svg text { font-family: var(--sans); font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }
.legend svg { flex: none; width: 20px; height: 8px; }
.legend b { font-weight: 500; color: var(--ink); font-variant-numeric: tabular-nums; }
.alert { color: var(--alert); }
.matrix { max-width: 40rem; }
.matrix .labelled { min-width: 34rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .8rem; margin: 0 0 1.4rem; }
.strip figure { width: 100%; }
.strip img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; background: var(--wash);
  border-bottom: 3px solid var(--rule); }
.strip .good img { border-color: var(--good); }
.strip .bad img { border-color: var(--alert); }
.strip .pixels { image-rendering: pixelated; }
.strip figcaption { font-size: .78rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
.good .mark { color: var(--good); } .bad .mark { color: var(--alert); }
.mark { font-weight: 700; margin-right: .3em; }
pre { font: .8rem/1.5 var(--mono); background: var(--wash); padding: 1rem; overflow-x: auto; margin: .8rem 0 0; }
summary { cursor: pointer; font-family: var(--serif); font-weight: 600; font-size: 1.3rem; }
details { margin-top: 3rem; padding-top: .6rem; border-top: 1px solid var(--ink); }
footer { margin-top: 3rem; color: var(--soft); font-size: .8rem; }
@media print { body { font-size: 10pt; } main { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""
