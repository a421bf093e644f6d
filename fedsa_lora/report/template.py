"""The page of a report. A module and not a template file, because Flower's app bundles carry no `.j2`."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f5f7f9; --ink: #1c2127; --muted: #56606a; --line: #dfe3e7;
  --accent: #0072b2;
  --good: #00694c; --good-bg: #e6f5f0; --bad: #a33f00; --bad-bg: #fdeee4; --even: #4a545e;
  --even-bg: #eef1f4; }
@media (prefers-color-scheme: dark) { :root {
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
@media (min-width: 900px) { .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); align-items: start;
    grid-auto-flow: dense; }
  .figures .full { grid-column: 1 / -1; } }
figure { margin: 0; }
figcaption { color: var(--muted); font-size: .92rem; margin-top: .5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; margin: .6rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--card); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td.words { text-align: left; white-space: normal; }
.noted th:last-child { text-align: left; }
tr.ours > * { font-weight: 650; }
tr.harmed td:nth-child(4) { color: var(--bad); font-weight: 650; }
details { border-top: 1px solid var(--line); padding: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem;
  margin: .6rem 0; }
dl.facts dt { color: var(--muted); } dl.facts dd { margin: 0; }
footer { color: var(--muted); font-size: .88rem; margin-top: 2.5rem; }
@media (max-width: 640px) { main { padding: 1rem .9rem 3rem; } h2 { margin-top: 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; } .tiles .value { font-size: 1.3rem; }
  th, td { padding: .4rem .6rem; }
  table { font-size: .86rem; } tbody th:first-child { white-space: normal; } td.words { min-width: 8rem; } }
"""

PAGE = """
{% macro table(data, label, note) %}
<div class="scroll" role="region" aria-label="{{ label }}" tabindex="0">
<table{% if note %} class="noted"{% endif %}>
<thead><tr>{% for name in data.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in data.rows %}
<tr{% if row.kind %} class="{{ row.kind }}"{% endif %}><th scope="row">{{ row.name }}</th>
{%- for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}
{%- if note %}<td class="words">{{ row.note }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · fedsa-lora report</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<p class="meta"><span class="state {{ state }}">{{ state }}</span> {{ meta }}</p>
<h1>{{ title }}</h1>
{% if description %}<p>{{ description }}</p>{% endif %}
{% if changes.rows %}{{ table(changes, "Changed by the command", false) }}{% endif %}
</header>
{% if stopped %}
<section class="banner {{ stopped.tone }}">
<h2>{{ stopped.heading }}</h2>
{% if stopped.reason %}<pre>{{ stopped.reason }}</pre>{% endif %}
<p>{{ stopped.shown }}</p>
</section>
{% endif %}
{% if results %}
<section class="banner {{ verdict.tone }}">
<h2>Better together than alone? {{ verdict.answer }}.</h2>
<p>{{ verdict.sentence }}</p>
</section>
<dl class="tiles">
{% for tile in tiles %}
<div><dt>{{ tile.name }}</dt><dd class="value">{{ tile.value }}</dd>
<dd class="note">{{ tile.note }}</dd></div>
{% endfor %}
</dl>
<div class="columns">
<section class="card">
<h3>What it cost</h3>
<ul>{% for line in cost %}<li>{{ line }}</li>{% endfor %}</ul>
{% if uploads.rows %}{{ table(uploads, "Uploads", false) }}{% endif %}
</section>
<section class="card">
<h3>What left the clients</h3>
<ul>{% for line in left %}<li>{{ line }}</li>{% endfor %}</ul>
</section>
</div>
<h2>{{ measure }}</h2>
<p>Each client is measured on its own test examples, on which it was not trained.
The weighted mean counts a client by its number of test examples. Before aggregation means
with the client's own A, as it had just trained it.</p>
{{ table(reached, measure, false) }}
{% for line in left_out %}<p>{{ line }}</p>
{% endfor %}
{% endif %}
{% if figures %}
<h2>Figures</h2>
<div class="figures">
{% for figure in figures %}
<figure{% if figure.full %} class="full"{% endif %}>
<div role="img" aria-label="{{ figure.alt }}">
{% for picture in figure.pictures %}
{{ picture }}
{% endfor %}
</div>
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% if results %}
<h2>Measures of personalisation</h2>
{{ table(measures, "Measures of personalisation", true) }}
{% endif %}
{% if unlearning.rows %}
<h2>Unlearning</h2>
{{ table(unlearning, "Unlearning", true) }}
{% endif %}
{% if clients.rows %}
<h2>Clients</h2>
<details{% if clients.rows | length <= 20 %} open{% endif %}>
<summary>{{ clients_title }}</summary>
{{ table(clients, "Clients", true) }}
</details>
{% endif %}
{% if notes %}
<h2>Notes</h2>
<ul>
{% for note in notes %}<li>{{ note }}</li>{% endfor %}
</ul>
{% endif %}
{% if remarks.rows %}
<h2>Answers that failed</h2>
<details{% if remarks.rows | length <= 20 %} open{% endif %}>
<summary>What clients told as an error, what was lost, and what the server rejected or clipped</summary>
{{ table(remarks, "Answers that failed", true) }}
</details>
{% endif %}
<h2>Details</h2>
{% if rounds.rows %}
<details>
<summary>Rounds</summary>
{{ table(rounds, "Rounds", false) }}
</details>
{% endif %}
<details>
<summary>Configuration</summary>
<pre tabindex="0">{{ config }}</pre>
</details>
{% if environment %}
<details>
<summary>Environment</summary>
<dl class="facts">
{% for name, value in environment.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}
</dl>
</details>
{% endif %}
<h2>Run it again</h2>
{% if command %}
<p>With the versions listed under Environment:</p>
<pre tabindex="0">{{ command }}</pre>
{% else %}
<p>The command was not recorded; the configuration above holds every setting of this run.</p>
{% endif %}
<footer>
<p>Method: FedSA-LoRA, <a href="https://arxiv.org/abs/2410.01463">arXiv:2410.01463</a>.
Run directory: <code class="wrap">{{ directory }}</code></p>
</footer>
</main>
</body>
</html>
"""
