// How an adapter is taught: what is left empty is chosen by the server.

import { byId } from "./dom.js";
import { keep, kept } from "./store.js";

const HYPER = ["n_epochs", "batch_size", "learning_rate_multiplier"];
const FEW = 20;
export const settings = kept("settings", {});

export function startSettings(onChange) {
  for (const field of fields()) {
    field.addEventListener("input", () => {
      settings[field.dataset.setting] = field.value;
      keep("settings", settings);
      show();
      if (field.dataset.setting !== "suffix") onChange();
    });
  }
  byId("reset-settings").addEventListener("click", () => {
    for (const name of Object.keys(settings)) if (name !== "suffix") delete settings[name];
    keep("settings", settings);
    show();
    onChange();
  });
  show();
}

const fields = () => document.querySelectorAll("[data-setting]");

function show() {
  for (const field of fields())
    if (field.value !== (settings[field.dataset.setting] ?? "")) field.value = settings[field.dataset.setting] ?? "";
  const changed = Object.entries(settings).filter(
    ([name, value]) => value && name !== "suffix" && name !== "own",
  ).length;
  byId("teach-settings").firstElementChild.textContent = changed
    ? `Settings: ${changed} chosen by you`
    : "Settings: all are chosen for you";
  document.querySelector("[data-setting=own]").parentElement.hidden = settings.positions !== "own";
}

/** The `reft` of a job, without what is automatic. */
export function reftOf(chosen) {
  const found = {};
  const positions = chosen.positions === "own" ? (chosen.own ?? "").trim() : chosen.positions;
  if (positions) found.positions = positions;
  if (chosen.layers?.trim()) found.layers = chosen.layers.trim();
  if (chosen.r) found.r = Number(chosen.r);
  if (chosen.intervention) found.intervention = chosen.intervention;
  return found;
}

/** The body of a job, but for its files. */
export function bodyOf(chosen) {
  const hyper = Object.fromEntries(HYPER.map((name) => [name, chosen[name] ? Number(chosen[name]) : "auto"]));
  const body = { method: { type: "supervised", supervised: { hyperparameters: hyper } } };
  const reft = reftOf(chosen);
  if (Object.keys(reft).length) body.reft = reft;
  if (chosen.suffix?.trim()) body.suffix = chosen.suffix.trim();
  for (const name of ["seed", "max_length"]) if (chosen[name]) body[name] = Number(chosen[name]);
  return body;
}

/** The part of the rows that is held out. */
export function shareOf(chosen, many) {
  return chosen.held ? Number(chosen.held) : many < FEW ? 0 : 0.1;
}
