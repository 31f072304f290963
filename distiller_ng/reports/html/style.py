"""The page's style: readable on a phone, in light and dark, with contrast of at least 4.5 to 1 for text (layer 4)."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f3f5f8; --text: #1a1f27; --soft: #4d5663; --rule: #d5dae1;
  --good: #0b6b3a; --bad: #a3261f; --c0: #1f5fbf; --c1: #b3480f; --c2: #0b7261;
  --c3: #8a3ab0; --c4: #8a6100; --c5: #b02a5b; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1c2129; --text: #eceff3; --soft: #b3bcc8;
  --rule: #39414c; --good: #63d196; --bad: #ff9a90; --c0: #7db4ff; --c1: #ffab73; --c2: #5fd6bf; --c3: #d7a1f5;
  --c4: #e8c35a; --c5: #ff96ba; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.25rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0.25rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--rule); padding-bottom: 0.25rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; }
p, li { max-width: 46rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 0.6rem; padding: 0.8rem 1rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
td.number, th.number { text-align: right; }
figure { margin: 1rem 0; }
figcaption { font-weight: 600; margin-bottom: 0.3rem; }
svg { width: 100%; height: auto; max-width: 44rem; background: var(--card); border-radius: 0.6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 1.5rem; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .axis, .name { fill: var(--soft); font-size: 12px; }
.name { fill: var(--text); }
.line { fill: none; stroke-width: 2; }
.front { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 4; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); }
.dot.c3 { fill: var(--c3); } .dot.c4 { fill: var(--c4); } .dot.c5 { fill: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0; margin: 0.4rem 0 0;
  font-size: 0.88rem; }
.key { display: inline-block; width: 1.5rem; height: 0; border-top: 3px solid; margin-right: 0.4rem;
  vertical-align: middle; }
.key.d1 { border-top-style: dashed; } .key.d2 { border-top-style: dotted; }
.key.c0 { color: var(--c0); } .key.c1 { color: var(--c1); } .key.c2 { color: var(--c2); }
.key.c3 { color: var(--c3); } .key.c4 { color: var(--c4); } .key.c5 { color: var(--c5); }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { background: var(--card); border-radius: 0.6rem; padding: 0.9rem; overflow-x: auto; font-size: 0.85rem;
  line-height: 1.45; }
summary { cursor: pointer; }
@media print { body { max-width: none; } }
"""
