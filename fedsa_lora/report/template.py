"""The pages of reports. A module and not template files, because Flower's app bundles carry no `.j2`."""

HEAD = """
{% macro table(data, label) %}
<div class="scroll" role="region" aria-label="{{ label }}" tabindex="0">
<table{% if data.kind %} class="{{ data.kind }}"{% endif %}>
<thead><tr>{% for name in data.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in data.rows %}
<tr{% if row.kind %} class="{{ row.kind }}"{% endif %}><th scope="row">
{%- if row.link %}<a href="#{{ row.link }}">{{ row.name }}</a>{% else %}{{ row.name }}{% endif %}
{%- if "explained" in data.kind %}<span class="meaning">{{ row.note }}</span>{% endif %}</th>
{%- for cell in row.cells %}
{%- if cell.order %}<td data-value="{{ cell.order }}">{{ cell.text }}</td>
{%- elif cell.strong %}<td><strong>{{ cell.text }}</strong></td>
{%- else %}<td>{{ cell.text }}</td>
{%- endif %}
{%- endfor %}
{%- if "noted" in data.kind %}<td class="words">{{ row.note }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro figure(data) %}
<figure{% if data.full %} class="full"{% endif %}>
<div role="img" aria-label="{{ data.alt }}">
{% for picture in data.pictures %}
{{ picture }}
{% endfor %}
</div>
{% if data.caption %}<figcaption>{{ data.caption }}</figcaption>{% endif %}
</figure>
{% endmacro %}
{% macro gallery(figures) %}
{% if figures %}
<h2>Figures</h2>
<div class="figures">
{% for drawn in figures %}
{{ figure(drawn) }}
{% endfor %}
</div>
{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · fedsa-lora report</title>
<style>{{ style }}</style>
</head>
<body>
<main>
"""

FOOT = """</main>
<script>{{ script }}</script>
</body>
</html>
"""

PAGE = (
    HEAD
    + """<header>
<p class="meta"><span class="state {{ state }}">{{ state }}</span> {{ meta }}</p>
<h1>{{ title }}</h1>
{% if description %}<p>{{ description }}</p>{% endif %}
{% if changes.rows | length > 6 %}
<details>
<summary>{{ changes.rows | length }} settings changed by the command</summary>
{{ table(changes, "Changed by the command") }}
</details>
{% elif changes.rows %}
{{ table(changes, "Changed by the command") }}
{% endif %}
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
{% if uploads.rows %}{{ table(uploads, "Uploads") }}{% endif %}
</section>
<section class="card">
<h3>What left the clients</h3>
<ul>{% for line in left %}<li>{{ line }}</li>{% endfor %}</ul>
</section>
</div>
<h2>{{ measure }}</h2>
<p>Each client is measured on its own test examples, on which it was not trained.
The weighted mean weights a client by its number of test examples. Before aggregation means
with the A that the client had just trained.</p>
{{ table(reached, measure) }}
{% for line in left_out %}<p>{{ line }}</p>
{% endfor %}
{% endif %}
{{ gallery(figures) }}
{% if results %}
<h2>Measures of personalisation</h2>
{{ table(measures, "Measures of personalisation") }}
{% endif %}
{% for title, found in afterwards.items() %}
<h2>{{ title }}</h2>
{{ table(found, title) }}
{% endfor %}
{% if clients.rows %}
<h2>Clients</h2>
<details{% if clients.rows | length <= 20 %} open{% endif %}>
<summary>{{ clients_title }}</summary>
{{ table(clients, "Clients") }}
</details>
{% if sections %}
<details{% if sections | length <= 20 %} open{% endif %}>
<summary>{{ sections_title }}</summary>
{% for client in sections %}
<details>
<summary>{{ client.heading }}</summary>
<div class="client" id="{{ client.id }}">
{{ figure(client.figure) }}
{{ table(client.measures, "Measures of client " ~ client.name) }}
{% if client.note %}<p class="meta row">{{ client.note }}</p>{% endif %}
{% if client.classes.rows %}
<div class="row">{{ table(client.classes, "Classes of client " ~ client.name) }}</div>
{% endif %}
</div>
</details>
{% endfor %}
</details>
{% endif %}
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
<summary>Errors of clients, lost answers, and what the server rejected or clipped</summary>
{{ table(remarks, "Answers that failed") }}
</details>
{% endif %}
<h2>Details</h2>
{% if rounds.rows %}
<details>
<summary>Rounds</summary>
{{ table(rounds, "Rounds") }}
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
<p>Or from every setting as it was, in the folder that this run directory is in:</p>
{% else %}
<p>The command was not recorded. In the folder that this run directory is in:</p>
{% endif %}
<pre tabindex="0">{{ again }}</pre>
<footer>
{% if files %}
<p>In the run directory, beside this page:
{% for name in files %}<a href="{{ name }}">{{ name }}</a>{{ ", " if not loop.last }}{% endfor %}</p>
{% endif %}
<p>Method: FedSA-LoRA, <a href="https://arxiv.org/abs/2410.01463">arXiv:2410.01463</a>.
Run directory: <code class="wrap">{{ directory }}</code></p>
</footer>
"""
    + FOOT
)

SIDE_BY_SIDE = (
    HEAD
    + """
<header>
<h1>{{ title }}</h1>
{{ table(runs, "Runs") }}
{% for name, moments in resumed if moments %}<p>{{ name }} was resumed {{ moments }}.</p>
{% endfor %}
{% if reports %}
<p>Their own reports:
{% for name, place in reports %}
<a href="{{ place }}">{{ name }}</a>{{ ", " if not loop.last }}
{%- endfor %}</p>
{% endif %}
</header>
<section class="banner {{ verdict.tone }}">
<h2>{{ verdict.answer }}</h2>
<p>{{ verdict.sentence }}</p>
</section>
<h2>Settings that differ</h2>
{% if settings.rows %}
{{ table(settings, "Settings that differ") }}
{% else %}
<p>None, except possibly paths and titles.</p>
{% endif %}
{% if versions.rows %}{{ table(versions, "Versions that differ") }}{% endif %}
<h2>{{ measure }}</h2>
{{ table(results, measure) }}
<h2>Cost</h2>
{{ table(costs, "Cost") }}
{{ gallery(figures) }}
{% if clients.rows %}
<h2>Clients</h2>
<details{% if clients.rows | length <= 20 %} open{% endif %}>
<summary>Each client in both runs</summary>
{{ table(clients, "Clients") }}
</details>
{% endif %}
"""
    + FOOT
)
