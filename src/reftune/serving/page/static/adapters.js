// Adapters: what each is, and what can be done with it.

import { Refused, ask, download } from "./api.js";
import { rounded } from "./curve.js";
import { byId, bytes, confirmButton, count, h } from "./dom.js";
import { groupWords } from "./preview.js";
import { saveBlob } from "./table.js";

let callbacks = { chat: () => {}, changed: async () => {} };

export function startAdapters(given) {
  callbacks = given;
}

/** Of a server that trains, all with their files; of another, those that are loaded, from `loaded`. */
export async function refreshAdapters(trains, loaded) {
  const found = trains
    ? (await ask("GET", "/v1/reft/adapters")).data
    : Object.values(loaded).map((adapter) => ({ ...adapter, loaded: true, job: null }));
  // as they are, where nothing is new: somebody may be about to press a button
  const key = JSON.stringify(found);
  if (byId("adapter-list").dataset.key === key) return;
  byId("adapter-list").dataset.key = key;
  const cards = found.map((adapter) => card(adapter));
  byId("adapter-list").replaceChildren(
    ...(cards.length ? cards : [h("p", { class: "hint" }, "There are no adapters yet.")]),
  );
}

function card(adapter) {
  const note = h("p", { class: "outcome", role: "status" });
  return h(
    "article",
    { class: "card", "aria-label": adapter.id },
    h(
      "div",
      { class: "head" },
      h("h2", {}, adapter.id),
      h("span", { class: `chip ${adapter.loaded ? "succeeded" : ""}` }, adapter.loaded ? "loaded" : "not loaded"),
    ),
    h(
      "dl",
      {},
      facts(adapter).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    h("div", { class: "buttons" }, actions(adapter, note)),
    note,
  );
}

function facts(adapter) {
  const edits = (adapter.groups ?? []).map(
    (group) => `${groupWords(group)}: ${group.intervention}${group.r ? ` of rank ${group.r}` : ""}`,
  );
  const losses = [
    adapter.train_loss !== null && adapter.train_loss !== undefined && `training ${rounded(adapter.train_loss)}`,
    adapter.valid_loss !== null && adapter.valid_loss !== undefined && `held-out rows ${rounded(adapter.valid_loss)}`,
  ].filter(Boolean);
  const size = [
    bytes(adapter.bytes),
    adapter.parameters && `${adapter.parameters.toLocaleString("en")} parameters`,
  ].filter(Boolean);
  const data = [adapter.rows && count(adapter.rows, "row"), adapter.filename && `from ${adapter.filename}`].filter(
    Boolean,
  );
  return [
    ["Edits", edits.join("; ")],
    ["Size", size.join(", ")],
    ["Data", data.join(" ")],
    ["Loss", losses.join(", ")],
    [
      "Made",
      adapter.job && adapter.created_at
        ? new Date(adapter.created_at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })
        : "given when the server was started",
    ],
  ].filter(([, value]) => value);
}

function actions(adapter, note) {
  const path = `/v1/reft/adapters/${encodeURIComponent(adapter.id)}`;
  const doing = (act) => async () => {
    note.classList.remove("error");
    note.textContent = "…";
    try {
      await act();
      note.textContent = "";
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      note.textContent = error.message;
      note.classList.add("error");
    }
  };
  const press = (words, act) => h("button", { type: "button", onclick: doing(act) }, words);
  const change =
    (method, what = "") =>
    async () => {
      await ask(method, path + what);
      await callbacks.changed();
    };
  const chat = adapter.loaded && h("button", { type: "button", onclick: () => callbacks.chat(adapter.id) }, "Chat");
  if (!adapter.job) return [chat];
  return [
    chat,
    adapter.loaded ? press("Unload", change("POST", "/unload")) : press("Load", change("POST", "/load")),
    press("Download", async () =>
      saveBlob(await download(`${path}/download`), `${adapter.id.replace(/[^\w.-]+/g, "-")}.zip`),
    ),
    confirmButton("Delete", "Delete its files for good?", doing(change("DELETE"))),
  ];
}
