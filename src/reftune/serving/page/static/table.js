// The table of examples: rows are typed, pasted, uploaded, changed, and kept in this browser.

import { byId, count, grow, h } from "./dom.js";
import { FORMS, isBlank, parse, recordOf, told } from "./rows.js";
import { showPreviews } from "./preview.js";
import { keep, kept } from "./store.js";

const SHOWN = 50;

export const table = kept("table", { rows: [], form: "messages", pasted: "", showsTokens: false });
let shown = SHOWN;
let timer = 0;

export function startTable() {
  byId("form").append(...Object.entries(FORMS).map(([form, words]) => h("option", { value: form }, words)));
  byId("form").value = table.form;
  byId("form").addEventListener("change", (event) => {
    table.form = event.target.value;
    changed();
  });
  byId("paste-text").value = table.pasted;
  byId("paste-text").addEventListener("input", (event) => {
    table.pasted = event.target.value;
    save();
  });
  byId("paste-add").addEventListener("click", () => add(byId("paste-text").value));
  byId("upload").addEventListener("change", upload);
  byId("ten").addEventListener("click", async () => add(await (await fetch("demo_inbox.jsonl")).text()));
  byId("add-row").addEventListener("click", () => addRow());
  byId("more-rows").addEventListener("click", () => {
    shown += SHOWN;
    draw();
  });
  byId("show-tokens").addEventListener("click", () => {
    table.showsTokens = !table.showsTokens;
    draw();
    save();
  });
  byId("save-rows").addEventListener("click", saveAsFile);
  byId("clear-rows").addEventListener("click", () => {
    remove(0, table.rows.length);
    byId("paste").open = true;
  });
  for (const name of ["dragover", "drop"]) byId("panel-train").addEventListener(name, dropped);
  addEventListener("pagehide", () => {
    if (timer) saveNow();
  });
  byId("paste").open = !table.rows.length;
  draw();
}

/** The rows that are trained, as lines of a file. */
export function toLines(rows) {
  return rows.map((row) => `${JSON.stringify(recordOf(row, table.form))}\n`).join("");
}

// --- more and fewer rows ---------------------------------------------------------------------------------------------

function add(text, at = table.rows.length) {
  const found = parse(text);
  const wasEmpty = table.rows.every(isBlank);
  if (found.rows.length) {
    if (wasEmpty) {
      table.rows = [];
      at = 0;
      if (found.form) table.form = found.form;
    }
    table.rows.splice(at, 0, ...found.rows);
  }
  byId("form").value = table.form;
  byId("paste-text").value = table.pasted = found.leftOver;
  byId("paste").open = Boolean(found.leftOver) || !table.rows.length;
  const words = [found.rows.length ? `${count(found.rows.length, "row")} added.` : ""];
  if (found.form && found.form !== table.form && found.rows.length)
    words.push(`All rows are trained as ${FORMS[table.form]}.`);
  tell(words.join(" "), found.problems);
  changed();
}

async function upload(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) add(await file.text());
}

function dropped(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (event.type === "drop" && file) file.text().then((text) => add(text));
}

function addRow() {
  table.rows.push({ prompt: "", answer: "" });
  shown = Math.max(shown, table.rows.length);
  changed();
  byId("rows").querySelector(".row:last-child textarea").focus();
}

function remove(at, many) {
  const gone = table.rows.splice(at, many);
  if (!gone.length) return;
  changed();
  const back = h(
    "button",
    {
      type: "button",
      onclick: () => {
        table.rows.splice(at, 0, ...gone);
        byId("rows-note").replaceChildren();
        changed();
      },
    },
    "Undo",
  );
  byId("rows-note").replaceChildren(
    h("p", {}, many === 1 ? `Row ${at + 1} is deleted. ` : `${count(gone.length, "row")} deleted. `, back),
  );
  (byId("rows").querySelectorAll(".row")[at]?.querySelector(".remove") ?? back).focus();
}

function tell(words, problems) {
  const listed = problems.slice(0, 5).map((problem) => h("li", {}, `${problem}.`));
  if (problems.length > 5) listed.push(h("li", {}, `… and ${problems.length - 5} more.`));
  byId("paste-note").replaceChildren(
    h("p", {}, words),
    ...(problems.length
      ? [h("p", { class: "error" }, "Not read, and left in the box above:"), h("ul", { class: "error" }, listed)]
      : []),
  );
  byId("rows-note").replaceChildren(h("p", {}, problems.length ? "" : words));
}

function saveAsFile() {
  const rows = table.rows.filter((row) => !isBlank(row));
  saveBlob(new Blob([toLines(rows)], { type: "application/jsonl" }), "examples.jsonl");
}

export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- keeping ---------------------------------------------------------------------------------------------------------

function changed() {
  draw();
  save();
}

function save() {
  clearTimeout(timer);
  timer = setTimeout(saveNow, 200);
}

function saveNow() {
  clearTimeout(timer);
  timer = 0;
  if (!keep("table", table)) {
    byId("rows-note").replaceChildren(
      h(
        "p",
        { class: "error" },
        "The table is too large for this browser to keep: save it as a file before you leave.",
      ),
    );
  }
}

// --- what is seen ----------------------------------------------------------------------------------------------------

function draw() {
  const { rows } = table;
  const head = h(
    "div",
    { role: "row", class: "head-row" },
    ["Row", "Prompt", "Answer", ""].map((name) =>
      h("span", { role: "columnheader" }, name || h("span", { class: "unseen" }, "Delete")),
    ),
  );
  byId("rows").replaceChildren(...(rows.length ? [head] : []), ...rows.slice(0, shown).map(rowElement));
  byId("rows").querySelectorAll("textarea").forEach(grow);
  byId("more-rows").hidden = rows.length <= shown;
  byId("more-rows").textContent = `Show ${Math.min(SHOWN, rows.length - shown)} more of ${rows.length}`;
  for (const id of ["show-tokens", "save-rows", "clear-rows"]) byId(id).hidden = !rows.length;
  byId("show-tokens").setAttribute("aria-pressed", String(table.showsTokens));
  byId("show-tokens").textContent = table.showsTokens ? "Hide tokens" : "Show tokens";
  showCount();
  previews();
}

/** After the panel was hidden, or its width changed. */
export function redraw() {
  byId("rows").querySelectorAll("textarea").forEach(grow);
  previews();
}

function showCount() {
  const many = table.rows.filter((row) => !isBlank(row)).length;
  byId("rows-count").textContent = many ? count(many, "row") : "";
}

export function previews() {
  showPreviews(table.showsTokens ? table.rows.slice(0, shown) : []);
}

function rowElement(row, i) {
  const extra = told(row);
  const field = (name, words) =>
    h(
      "div",
      { role: "cell" },
      h("textarea", {
        rows: 1,
        value: row[name],
        "aria-label": `${words} of row ${i + 1}`,
        placeholder: words,
        oninput: (event) => {
          row[name] = event.target.value;
          grow(event.target);
          showCount();
          save();
          previews();
        },
        onpaste: (event) => pasted(event, i),
        onkeydown: (event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            addRow();
          }
        },
      }),
      name === "prompt" && extra && h("p", { class: "hint" }, extra),
    );
  return h(
    "div",
    { role: "row", class: "row" },
    h("span", { role: "rowheader" }, String(i + 1)),
    field("prompt", "Prompt"),
    field("answer", "Answer"),
    h(
      "span",
      { role: "cell" },
      h(
        "button",
        { type: "button", class: "quiet remove", "aria-label": `Delete row ${i + 1}`, onclick: () => remove(i, 1) },
        "×",
      ),
    ),
    h("div", { class: "preview", role: "cell", hidden: true }),
  );
}

/** Cells of a spreadsheet that are pasted into a cell are rows. */
function pasted(event, i) {
  const text = event.clipboardData.getData("text/plain");
  if (!text.includes("\t") || !parse(text).rows.length) return;
  event.preventDefault();
  const isFree = isBlank(table.rows[i]);
  if (isFree) table.rows.splice(i, 1);
  add(text, isFree ? i : i + 1);
}
