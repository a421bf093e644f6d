"""The style sheet of a report, for screens of every width, light and dark, and for paper."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f5f7f9; --ink: #1c2127; --muted: #56606a; --line: #dfe3e7;
  --accent: #0072b2;
  --good: #00694c; --good-bg: #e6f5f0; --bad: #a33f00; --bad-bg: #fdeee4; --even: #4a545e;
  --even-bg: #eef1f4; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #171b20; --card: #1f252b; --ink: #e6e9ec; --muted: #a3acb5; --line: #333a42;
  --accent: #56b4e9;
  --good: #5fd6b0; --good-bg: #14302a; --bad: #ffae70; --bad-bg: #38240f; --even: #c3cad1;
  --even-bg: #262d34; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: .2rem 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: 0 0 .7rem; max-width: 75ch; }
a { color: var(--accent); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; margin: .5rem 0 1rem; }
p, li, dd, h1, .wrap { overflow-wrap: anywhere; }
.meta { color: var(--muted); font-size: .92rem; margin: 0; }
.state { display: inline-block; padding: .05rem .6rem; border-radius: 99px; font-weight: 600;
  background: var(--even-bg); color: var(--even); }
.state.completed { background: var(--good-bg); color: var(--good); }
.state.failed { background: var(--bad-bg); color: var(--bad); }
.banner { border-left: 5px solid; border-radius: 8px; padding: .9rem 1.1rem; margin: 1.2rem 0; }
.banner p:last-child { margin-bottom: 0; }
.banner h2 { margin: 0 0 .3rem; font-size: 1.25rem; }
.banner pre { background: none; border: 0; padding: 0; margin: 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.banner pre + p { margin-top: .6rem; }
.good { background: var(--good-bg); border-color: var(--good); } .good h2 { color: var(--good); }
.bad { background: var(--bad-bg); border-color: var(--bad); } .bad h2 { color: var(--bad); }
.even, .unknown { background: var(--even-bg); border-color: var(--even); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
  margin: 1rem 0; padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }
.tiles dt { color: var(--muted); font-size: .86rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.45rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.tiles .note { color: var(--muted); font-size: .86rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: 1.2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem; }
.card ul { margin: 0; padding-left: 1.1rem; } .card li { margin-bottom: .35rem; }
.figures { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.8rem 1.6rem; }
@media screen and (min-width: 900px) {
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); align-items: start; grid-auto-flow: dense; }
  .figures .full { grid-column: 1 / -1; } }
figure { margin: 0; }
figcaption { color: var(--muted); font-size: .92rem; margin-top: .5rem; }
.values { display: block; color: var(--muted); font-size: .92rem; margin-top: .3rem; }
.values input { width: 8rem; max-width: 40%; vertical-align: middle; accent-color: var(--accent); }
.values output { color: var(--ink); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; margin: .6rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--card); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td.words, .worded td { text-align: left; white-space: normal; }
td.words { min-width: 14rem; }
@media screen and (min-width: 641px) { .wide th, .wide td { padding: .45rem .5rem; }
  .wide td.words { min-width: 8rem; } .wide td:nth-child(4) { white-space: normal; } }
.noted th:last-child, .worded th { text-align: left; }
.meaning { display: block; max-width: 60ch; color: var(--muted); font-size: .94em; font-weight: 400;
  white-space: normal; }
th button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
th button::after { content: "\\2195"; color: var(--muted); padding-left: .25em; }
[aria-sort=ascending] button::after { content: "\\2191"; color: inherit; }
[aria-sort=descending] button::after { content: "\\2193"; color: inherit; }
tr.ours > * { font-weight: 650; }
tr.harmed td:nth-child(4) { color: var(--bad); font-weight: 650; }
details { border-top: 1px solid var(--line); padding: .7rem 0; }
details details { margin-left: 1rem; }
.client { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: .4rem 1.6rem; align-items: start; margin-top: .6rem; }
.client > * { min-width: 0; }
.client .row { grid-column: 1 / -1; }
summary { cursor: pointer; font-weight: 600; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem;
  margin: .6rem 0; }
dl.facts dt { color: var(--muted); } dl.facts dd { margin: 0; }
footer { color: var(--muted); font-size: .88rem; margin-top: 2.5rem; }
@media screen and (max-width: 640px) { main { padding: 1rem .9rem 3rem; } h2 { margin-top: 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; } .tiles .value { font-size: 1.3rem; }
  th, td { padding: .4rem .6rem; }
  table { font-size: .86rem; } tbody th:first-child { white-space: normal; }
  table:not(.sortable) td { white-space: normal; } details details { margin-left: 0; } }
@media print {
  @page { margin: 12mm; }
  html { font-size: 11px; }
  body { font-size: 1rem; }
  main { max-width: none; padding: 0; }
  h2, h3, summary { break-after: avoid; }
  figure, .banner, .card, .tiles div, tr, dl.facts dt { break-inside: avoid; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures .full { grid-column: 1 / -1; }
  .scroll, pre { overflow: visible; }
  .scroll { border: 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 7.5pt; }
  th, td, tbody th:first-child { white-space: normal; padding: 2pt 3pt; }
  th:first-child { position: static; }
  td.words { min-width: 9em; }
  th button::after, .values { display: none; }
}
"""
