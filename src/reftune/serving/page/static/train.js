// Training: from the table and the settings to a job.

import { Refused, ask } from "./api.js";
import { byId } from "./dom.js";
import { follow } from "./job.js";
import { isBlank, split, whyNot } from "./rows.js";
import { bodyOf, settings, shareOf, startSettings } from "./settings.js";
import { previews, startTable, table, toLines } from "./table.js";

let baseOf = () => "";

export function startTrain(base) {
  baseOf = base;
  startTable();
  startSettings(previews);
  byId("teach").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
}

async function start() {
  const problem = whyNot(table.rows, table.form) ?? nameProblem();
  if (problem) {
    tell(problem, true);
    return;
  }
  byId("start").disabled = true;
  tell("Sending the examples…");
  try {
    const rows = table.rows.filter((row) => !isBlank(row));
    const [trained, held] = split(rows, shareOf(settings, rows.length));
    const body = { model: baseOf(), ...bodyOf(settings), training_file: await upload(trained, "examples.jsonl") };
    if (held.length) body.validation_file = await upload(held, "held-out.jsonl");
    const job = await ask("POST", "/v1/fine_tuning/jobs", body);
    tell("");
    await follow(job.id);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(error.message, true);
  } finally {
    byId("start").disabled = false;
  }
}

function nameProblem() {
  const name = settings.suffix?.trim() ?? "";
  if (/^([a-z0-9][\w.-]*)?$/i.test(name)) return null;
  return `The name “${name}” cannot be: use letters, digits, “_”, “.” and “-”, beginning with one of the first two.`;
}

async function upload(rows, name) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", new Blob([toLines(rows)], { type: "application/jsonl" }), name);
  return (await ask("POST", "/v1/files", form)).id;
}

function tell(words, isError = false) {
  byId("start-note").textContent = words;
  byId("start-note").classList.toggle("error", isError);
}
