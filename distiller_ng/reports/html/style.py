"""The page's style: readable on a phone and on paper, in light and dark, with WCAG AA contrast (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONTRASTS", "PALETTES", "SERIES", "STYLE"]

#: How many colours series of a chart take in turn; beyond them dashes tell them apart.
SERIES = 6
PALETTES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#ffffff",
        "card": "#f4f6f9",
        "text": "#171c24",
        "soft": "#4a5462",
        "rule": "#d4dae3",
        "link": "#1a56b0",
        "good": "#0b6438",
        "bad": "#a3261f",
        "warn": "#7a4b00",
        "warn-page": "#fff6e3",
        "c0": "#1f5fbf",
        "c1": "#b3480f",
        "c2": "#0b7261",
        "c3": "#8a3ab0",
        "c4": "#7d5a00",
        "c5": "#b02a5b",
    },
    "dark": {
        "page": "#11141a",
        "card": "#1b2029",
        "text": "#edf0f5",
        "soft": "#b4bdca",
        "rule": "#3a424e",
        "link": "#8fc0ff",
        "good": "#6ad79c",
        "bad": "#ff9f96",
        "warn": "#ffcf7a",
        "warn-page": "#2b2415",
        "c0": "#7db4ff",
        "c1": "#ffab73",
        "c2": "#5fd6bf",
        "c3": "#d7a1f5",
        "c4": "#e8c35a",
        "c5": "#ff96ba",
    },
}
_COLOURS = tuple(f"c{number}" for number in range(SERIES))
#: ``(foreground, background)`` of all text on the page (numbers in marks too): at least 4.5 to 1 in both palettes.
CONTRASTS: tuple[tuple[str, str], ...] = (
    *((one, page) for one in ("text", "soft", "link", "good", "bad", "warn", *_COLOURS) for page in ("page", "card")),
    ("text", "warn-page"),
    ("warn", "warn-page"),
    ("soft", "warn-page"),
)


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def _series() -> str:
    return "\n".join(
        f".line.{c} {{ stroke: var(--{c}); }} .fill.{c} {{ fill: var(--{c}); }} .key.{c} {{ color: var(--{c}); }} "
        f".key-{c} {{ background: var(--{c}); }}"
        for c in _COLOURS
    )


_COLOURED = f"""
:root {{ color-scheme: light dark; {_variables(PALETTES["light"])} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(PALETTES["dark"])} }} }}
@media print {{ :root {{ color-scheme: light; {_variables(PALETTES["light"])} }} }}
{_series()}
"""

STYLE = (
    _COLOURED
    + """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.25rem 3rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1, h2, h3, h4 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; letter-spacing: -0.015em; margin: 0.1rem 0 0.3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.8rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 1.9rem 0 0.6rem; }
h4 { font-size: 0.95rem; margin: 1.3rem 0 0.4rem; }
p { max-width: 46rem; margin: 0.4rem 0; }
a { color: var(--link); }
.eyebrow { color: var(--soft); font-size: 0.82rem; font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase;
  margin: 0; }
.soft { color: var(--soft); }
.small { font-size: 0.9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; padding: 0; margin: 0.9rem 0 0;
  font-size: 0.92rem; }
nav a { display: inline-block; padding: 0.3rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16.5rem), 1fr)); gap: 0.8rem;
  margin: 1.3rem 0 0.5rem; padding: 0; list-style: none; }
.card { background: var(--card); border-radius: 0.75rem; padding: 0.9rem 1.1rem 1rem; }
.card .what { color: var(--soft); font-size: 0.88rem; font-weight: 600; display: block; }
.card .big { display: block; font-size: 1.75rem; font-weight: 650; line-height: 1.3; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.card .was { display: block; font-size: 0.92rem; }
.card .note { display: block; color: var(--soft); font-size: 0.82rem; line-height: 1.4; margin-top: 0.25rem; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.warnings { background: var(--warn-page); border-left: 4px solid var(--warn); border-radius: 0.4rem;
  padding: 0.8rem 1.1rem; margin: 1.3rem 0 0; }
.warnings h2, .warnings h3 { border: 0; margin: 0 0 0.3rem; padding: 0; font-size: 1rem; color: var(--warn); }
.warnings ul { margin: 0; padding-left: 1.2rem; }
.warnings li { overflow-wrap: anywhere; margin: 0.15rem 0; }
.warnings .serious { font-weight: 600; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; color: var(--soft); font-size: 0.9rem; padding-bottom: 0.3rem; }
th, td { padding: 0.38rem 1.1rem 0.38rem 0; text-align: left; border-bottom: 1px solid var(--rule);
  white-space: nowrap; vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.86rem; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: normal; overflow-wrap: anywhere; max-width: 22rem;
  min-width: clamp(6rem, var(--name, 6rem) + 1.6rem, 22rem); }
.number { text-align: right; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
tr.off td, tr.off th { background: var(--warn-page); }
.meter { display: inline-block; width: 4.5rem; height: 0.5rem; border-radius: 0.25rem; background: var(--rule);
  margin-right: 0.5rem; vertical-align: 0.05rem; overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--c0); }
.charts { display: grid; margin-top: 1.2rem; gap: 1.2rem 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 0.95rem; margin-bottom: 0.35rem; }
.charts svg { display: block; width: 100%; height: auto; max-width: 36rem; background: var(--card);
  border-radius: 0.6rem; }
.gridline { stroke: var(--rule); stroke-width: 1; }
svg text { font-family: inherit; font-size: 12.5px; fill: var(--soft); }
svg .strong { fill: var(--text); }
svg .mark { fill: var(--page); font-size: 11px; font-weight: 700; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.heavy { stroke-width: 3; }
.line.faint { stroke-width: 1; opacity: 0.55; }
.front { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 4; }
.outline { fill: none; stroke: var(--soft); stroke-width: 1; }
.late { opacity: 0.3; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.15rem 1rem; padding: 0; margin: 0.45rem 0 0;
  font-size: 0.87rem; }
ul.stacked { display: block; }
.stacked li { margin: 0.2rem 0; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.4rem; height: 0; border-top: 3px solid; margin-right: 0.4rem;
  vertical-align: middle; }
.key.d1 { border-top-style: dashed; } .key.d2 { border-top-style: dotted; }
.key.box { width: 0.8rem; height: 0.8rem; border: 0; background: currentColor; border-radius: 0.15rem; }
.key.soft { border-top-width: 1px; color: var(--soft); }
.number-key { display: inline-block; min-width: 1.35rem; height: 1.35rem; line-height: 1.35rem; border-radius: 50%;
  text-align: center; font-size: 0.75rem; font-weight: 700; margin-right: 0.45rem; color: var(--page); }
.minis { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr)); gap: 0.9rem 1rem;
  margin: 0.8rem 0; }
.minis svg { display: block; width: 100%; height: auto; background: var(--card); border-radius: 0.4rem; }
.minis figcaption { font-size: 0.8rem; font-weight: 500; line-height: 1.35; overflow-wrap: anywhere;
  margin: 0 0 0.25rem; }
.minis figcaption span { color: var(--soft); display: block; }
pre { background: var(--card); border-radius: 0.6rem; padding: 0.9rem 1.1rem; overflow-x: auto; font-size: 0.85rem;
  line-height: 1.5; margin: 0.6rem 0; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; padding: 0.3rem 0; font-weight: 600; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--soft);
  font-size: 0.87rem; }
@media (max-width: 40rem) {
  body { padding: 1rem 1rem 2rem; }
  h1 { font-size: 1.5rem; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.2rem), 1fr)); gap: 0.6rem; }
  .card { padding: 0.7rem 0.8rem 0.8rem; }
  .card .big { font-size: 1.4rem; }
  th, td { padding-right: 0.8rem; }
  tbody th { max-width: 11rem; min-width: clamp(5rem, var(--name, 5rem) + 1rem, 11rem); }
  .meter { width: 2.6rem; }
  .minis { grid-template-columns: repeat(2, 1fr); }
}
@media print { body { max-width: none; } details > * { display: block; }
  .charts, .minis, .cards, tr { break-inside: avoid; } }
"""
)
