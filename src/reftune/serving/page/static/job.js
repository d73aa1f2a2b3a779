// Jobs: how the one that is looked at goes, from its place in the queue to its adapter.

import { Refused, ask } from "./api.js";
import { drawCurve, rounded } from "./curve.js";
import { byId, confirmButton, count, duration, h } from "./dom.js";

const PAUSE = 700;
const HIDDEN_PAUSE = 5000;
const ENDS = ["succeeded", "failed", "cancelled"];
const WORDS = {
  validating_files: "checking the rows",
  queued: "waiting",
  running: "training",
  paused: "paused",
  succeeded: "done",
  failed: "failed",
  cancelled: "cancelled",
};

let jobs = [];
let current = null;
let seen = new Map();
let timer = 0;
let callbacks = { chat: () => {}, ended: () => {} };

export function startJobs(given) {
  callbacks = given;
  new ResizeObserver(() => {
    if (current) curve();
  }).observe(byId("job"));
}

/** Whether the server trains; its newest jobs are shown. */
export async function refreshJobs() {
  try {
    jobs = (await ask("GET", "/v1/fine_tuning/jobs?limit=20")).data;
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return false;
    throw error;
  }
  showEarlier();
  const chosen = jobs.find((job) => job.id === current?.id) ?? jobs.find((job) => !ENDS.includes(job.status));
  if (chosen) await follow(chosen.id);
  return true;
}

/** Look at this job, until it ends. */
export async function follow(id) {
  clearTimeout(timer);
  if (current?.id !== id) seen = new Map();
  current = { id };
  await look();
}

async function look() {
  const { id } = current;
  let told;
  try {
    const job = await ask("GET", `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`);
    await readEvents(id);
    if (current.id !== id) return;
    told = job;
    const hasEnded = ENDS.includes(job.status) && current.status && !ENDS.includes(current.status);
    current = job;
    jobs = [job, ...jobs.filter((one) => one.id !== id)].sort(
      (a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1),
    );
    show(job);
    showEarlier();
    if (hasEnded) callbacks.ended(job);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (current.id === id && error.status) {
      byId("job").hidden = false;
      byId("job").replaceChildren(h("p", { class: "error" }, error.message));
      return;
    }
    // the server may be back soon: a job lives longer than it
    byId("start-note").textContent = error.message;
  }
  byId("busy").hidden = !told || ENDS.includes(told.status) || told.status === "paused";
  clearTimeout(timer);
  if (!told || !ENDS.includes(told.status)) timer = setTimeout(look, document.hidden ? HIDDEN_PAUSE : PAUSE);
}

/** All that are new, newest first, page by page. */
async function readEvents(id) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}/events?limit=100`;
  let after = "";
  for (;;) {
    const found = await ask("GET", path + (after && `&after=${encodeURIComponent(after)}`));
    const news = found.data.filter((event) => !seen.has(event.id));
    for (const event of news) seen.set(event.id, event);
    if (!found.has_more || news.length < found.data.length || !found.data.length) return;
    after = found.data.at(-1).id;
  }
}

// --- what is seen ----------------------------------------------------------------------------------------------------

function show(job) {
  const box = byId("job");
  const { step, total_steps: total } = job.progress ?? {};
  const outcome =
    job.status === "succeeded"
      ? [
          h("p", {}, "The adapter is served as ", h("code", {}, job.fine_tuned_model), "."),
          h(
            "button",
            { type: "button", class: "primary", onclick: () => callbacks.chat(job.fine_tuned_model) },
            "Chat with it",
          ),
        ]
      : job.status === "failed"
        ? [h("p", { class: "error" }, job.error?.message ?? "It failed, and nothing says why.")]
        : [];
  // what can be pressed stays the same element while it is the same, so that the focus stays
  const key = `${job.id} ${job.status}`;
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren(
      h(
        "div",
        { class: "head" },
        h("h2", {}, nameOf(job)),
        h("span", { class: `chip ${job.status}`, role: "status" }, WORDS[job.status] ?? job.status),
      ),
      h("progress", { "aria-label": "Steps done", hidden: job.status === "failed" }),
      h("p", { class: "hint steps" }),
      h("div", { class: "outcome" }, outcome),
      h("div", { class: "picture" }),
      h("div", { class: "buttons" }, actions(job)),
      h("details", { class: "log" }, h("summary", {}, "Log"), h("ul", { tabindex: "0" })),
    );
  }
  box.hidden = false;
  const bar = box.querySelector("progress");
  if (total) {
    bar.max = total;
    bar.value = step ?? 0;
  } else if (ENDS.includes(job.status)) bar.hidden = true;
  box.querySelector(".steps").textContent = steps(job);
  const messages = [...seen.values()]
    .filter((event) => event.type !== "metrics")
    .sort((a, b) => a.created_at - b.created_at);
  box
    .querySelector(".log ul")
    .replaceChildren(
      ...messages.map((event) =>
        h(
          "li",
          { class: event.level === "error" ? "error" : "" },
          h("time", {}, new Date(event.created_at * 1000).toLocaleTimeString()),
          ` ${event.message}`,
        ),
      ),
    );
  curve();
}

function curve() {
  const box = byId("job").querySelector(".picture");
  if (!box || byId("panel-train").hidden) return;
  const points = (name) =>
    [...seen.values()]
      .filter((event) => typeof event.data?.[name] === "number")
      .map((event) => [event.data.step, event.data[name]])
      .sort((a, b) => a[0] - b[0]);
  const train = points("train_loss");
  if (!train.length && ENDS.includes(current.status)) {
    box.replaceChildren();
    return;
  }
  drawCurve(box, train, points("valid_loss"), current.progress?.total_steps);
}

function steps(job) {
  const { step, total_steps: total, elapsed, train_loss: loss } = job.progress ?? {};
  if (job.status === "queued")
    return job.queue_position ? `${count(job.queue_position, "job")} before it in the queue` : "begins soon";
  if (!step) return job.status === "running" ? "the model is being loaded" : "";
  const parts = [`step ${step}${total ? ` of ${total}` : ""}`];
  if (job.status === "running" && step === total) parts.push("nearly done");
  else if (job.status === "running" && total && elapsed)
    parts.push(`about ${duration((elapsed / step) * (total - step))} left`);
  if (job.status === "succeeded" && elapsed) parts.push(`took ${duration(elapsed)}`);
  if (loss !== null && loss !== undefined) parts.push(`loss ${rounded(loss)}`);
  return parts.join(" · ");
}

const nameOf = (job) => job.suffix || job.fine_tuned_model || job.id;

function actions(job) {
  const turn = (what) => async () => {
    try {
      await ask("POST", `/v1/fine_tuning/jobs/${encodeURIComponent(job.id)}/${what}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      byId("start-note").textContent = error.message;
    }
    await follow(job.id);
  };
  const press = (words, what) => h("button", { type: "button", onclick: turn(what) }, words);
  if (ENDS.includes(job.status)) return [];
  const cancel = confirmButton("Cancel", "Really cancel?", turn("cancel"));
  return [
    job.status === "running" && press("Pause", "pause"),
    job.status === "paused" && press("Go on", "resume"),
    cancel,
  ];
}

function showEarlier() {
  const others = jobs.filter((job) => job.id !== current?.id);
  byId("earlier").hidden = !others.length;
  const entry = (job) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "quiet", onclick: () => follow(job.id) },
        h("span", { class: "name" }, nameOf(job)),
        h("span", { class: `chip ${job.status}` }, WORDS[job.status] ?? job.status),
        h("time", {}, new Date(job.created_at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })),
      ),
    );
  const list = byId("earlier").querySelector("ul");
  const key = others.map((job) => job.id + job.status).join();
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...others.map(entry));
}
