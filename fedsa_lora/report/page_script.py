"""The script of a report: sorts tables, shows the values of figures, opens the section of a client.

A page without it, or whose reader forbids scripts, has the same content.
"""

import base64
import hashlib

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = [...body.rows].some(row => "value" in row.cells[column].dataset);
      const was = head.getAttribute("aria-sort") ?? (numbers ? "ascending" : "descending");
      const way = was === "descending" ? 1 : -1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way < 0 ? "descending" : "ascending");
      body.append(...[...body.rows].sort((a, b) => order(a.cells[column], b.cells[column], way)));
    });
  });
}

// What was not measured stays last, whichever way a table is sorted.
function order(a, b, way) {
  const [one, other] = [a, b].map(cell => cell.dataset.value ?? cell.textContent.trim());
  const missing = text => text === "" || text === "\\u2013";
  if (missing(one) || missing(other)) return missing(one) - missing(other);
  const numbers = "value" in a.dataset && "value" in b.dataset;
  return way * (numbers ? one - other : one.localeCompare(other, undefined, { numeric: true }));
}

for (const figure of document.querySelectorAll("figure")) {
  const layouts = [...figure.querySelectorAll("svg")].map(svg => [...svg.querySelectorAll(".value")]);
  const count = layouts[0]?.length;
  if (!count) continue;
  const label = document.createElement("label"), slider = document.createElement("input");
  const text = document.createElement("output");
  Object.assign(slider, { type: "range", min: 0, max: count - 1, value: count - 1 });
  label.className = "values";
  label.append("Values ", slider, " ", text);
  figure.append(label);
  const show = index => {
    layouts.forEach(bands => bands.forEach((band, n) => band.classList.toggle("shown", n === index)));
    slider.value = index;
    text.textContent = layouts[0][index].textContent;
    slider.setAttribute("aria-valuetext", text.textContent);
  };
  text.textContent = layouts[0][count - 1].textContent;
  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const bands of layouts) {
    bands.forEach((band, index) => band.addEventListener("pointerenter", () => show(index)));
  }
}

function reveal() {
  let part = document.getElementById(location.hash.slice(1));
  for (; part; part = part.parentElement) if (part.localName === "details") part.open = true;
}
addEventListener("hashchange", reveal);
reveal();
"""

_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# A browser runs this script and no other, and loads nothing, whatever a name in the data should hold.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
