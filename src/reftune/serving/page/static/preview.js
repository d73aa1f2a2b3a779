// How the rows of the table are tokenised, and which of their tokens would be edited: the server says.

import { Refused, ask } from "./api.js";
import { byId, h } from "./dom.js";
import { isBlank, recordOf } from "./rows.js";
import { reftOf, settings } from "./settings.js";
import { table } from "./table.js";
import { legend, tokenStrip } from "./tokens.js";

const PAUSE = 350;
const AT_ONCE = 100;
let timer = 0;
let last = null;

/** Of the first rows of the table, under each; none: they go. */
export function showPreviews(rows) {
  clearTimeout(timer);
  last?.abort();
  const boxes = [...byId("rows").querySelectorAll(".preview")];
  boxes.forEach((box, i) => {
    box.hidden = !rows[i] || isBlank(rows[i]);
  });
  const wanted = rows.map((row, i) => [row, boxes[i]]).filter(([row]) => !isBlank(row));
  if (!wanted.length) byId("rows-legend").replaceChildren();
  if (!wanted.length || byId("panel-train").hidden) return;
  last = new AbortController();
  const { signal } = last;
  timer = setTimeout(() => fetchPreviews(wanted, signal), PAUSE);
}

async function fetchPreviews(wanted, signal) {
  const marks = [];
  for (let at = 0; at < wanted.length; at += AT_ONCE) {
    const part = wanted.slice(at, at + AT_ONCE);
    try {
      const found = await ask("POST", "/v1/reft/preview", bodyFor(part.map(([row]) => row)), { signal });
      const names = found.groups.map(groupWords);
      found.data.forEach((told, i) => part[i]?.[1].replaceChildren(...previewOf(told, names, marks)));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      byId("rows-legend").replaceChildren(h("p", { class: "error" }, `The tokens cannot be shown: ${error.message}`));
      wanted.forEach(([, box]) => box.replaceChildren());
      return;
    }
  }
  byId("rows-legend").replaceChildren(legend(marks));
}

function bodyFor(rows) {
  const body = { rows: rows.map((row) => recordOf(row, table.form)), limit: AT_ONCE };
  const reft = reftOf(settings);
  if (Object.keys(reft).length) body.reft = reft;
  if (settings.max_length) body.max_length = Number(settings.max_length);
  return body;
}

/** A row's tokens; what edits them is added to `marks`, which are those of all rows. */
function previewOf(told, names, marks) {
  if (told.error) return [h("p", { class: "error" }, told.error.message ?? told.error)];
  const tokens = told.tokens.map((text, i) => {
    const groups = told.edits[i] ?? [];
    if (!groups.length) return { text, mark: null };
    const words = groups.map((group) => names[group] ?? `group ${group}`).join("; ");
    if (!marks.includes(words)) marks.push(words);
    return { text, mark: marks.indexOf(words) };
  });
  const cut = told.cut ? [h("p", { class: "hint" }, `The row is too long: ${told.cut} tokens are cut off.`)] : [];
  return [tokenStrip(tokens, marks, { border: told.prompt_length, label: "Tokens of the row" }), ...cut];
}

/** {positions, layers, …} → "l1, layers 8–29". */
export function groupWords(group) {
  const layers = Array.isArray(group.layers)
    ? `layers ${ranges(group.layers)}`
    : group.layers
      ? `layers ${group.layers}`
      : "all layers";
  return `${group.positions}, ${layers}`;
}

/** [0, 1, 2, 5] → "0–2, 5". */
export function ranges(numbers) {
  const found = [];
  for (const number of [...new Set(numbers)].sort((a, b) => a - b)) {
    if (found.length && found.at(-1)[1] === number - 1) found.at(-1)[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, end]) => (first === end ? `${first}` : `${first}–${end}`)).join(", ");
}
