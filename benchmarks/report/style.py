"""The look of the HTML page: one column on a phone, light and dark, and on paper."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1c21; --soft: #55555f; --line: #d3d3da; --paper: #fdfdfe; --card: #ffffff;
  --link: #00558a; --good: #eef5fa; --mark: #0072b2; --bad: #fdf1e6; --badmark: #d55e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #ececf1; --soft: #b1b1bd; --line: #45454f; --paper: #17171b; --card: #1f1f25;
    --link: #7cc4f2; --good: #1c2a35; --mark: #56b4e9; --bad: #38260f; --badmark: #f08a3c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 0 1rem 4rem; max-width: 74rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, "Segoe UI", "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 2.2rem 0 .6rem; letter-spacing: -.01em; }
h2 {
  font-size: 1.35rem; line-height: 1.25; margin: 2.8rem 0 .7rem; padding-top: .9rem;
  border-top: 2px solid var(--ink);
}
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 48rem; }
header p { color: var(--soft); }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--mark); outline-offset: 2px;
}
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.glance { max-width: 60rem; }
.glance p { margin: 0; font-weight: 600; }
.glance ul { margin: .1rem 0; padding-left: 1.1rem; }
.glance .finding { margin: .7rem 0; }
.finding {
  margin: .45rem 0; padding: .45rem .8rem; background: var(--good);
  border-left: 4px solid var(--mark);
}
.finding.warning { background: var(--bad); border-color: var(--badmark); }
.finding { max-width: none; }
.pictures {
  display: grid; gap: 1.2rem; margin: 1.2rem 0; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr));
}
figure {
  margin: 0; padding: .8rem; min-width: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px;
}
figure svg { display: block; width: 100%; max-width: 40rem; height: auto; margin: 0 auto; }
figure svg text { font-family: system-ui, "Segoe UI", "Liberation Sans", sans-serif !important; }
figure .title { margin: 0 0 .4rem; font-weight: 600; }
figcaption { font-size: .92rem; }
.caption { color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; max-width: 100%; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.heading { margin: 1.4rem 0 0; font-weight: 600; font-size: .92rem; max-width: none; }
th, td {
  padding: .32rem .7rem; text-align: left; vertical-align: top; overflow-wrap: normal;
  border-bottom: 1px solid var(--line);
}
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; max-width: 40rem; }
th { vertical-align: bottom; border-bottom: 2px solid var(--ink); font-weight: 600; }
th:first-child, td:first-child {
  padding-left: 0; position: sticky; left: 0; background: var(--paper);
}
.n { text-align: right; }
th.n { min-width: 4.6rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: .92rem; }
summary h3 { display: inline-block; margin: .4rem 0; }
@media (max-width: 40rem) {
  h1 { font-size: 1.5rem; }
  body { padding: 0 .75rem 3rem; }
  figure { padding: .55rem; }
}
@media print {
  nav, .skip { display: none; }
  figure, tr { break-inside: avoid; }
  body { max-width: none; }
}
"""
