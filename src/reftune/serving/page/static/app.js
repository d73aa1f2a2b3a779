// The frame: tabs, the key, what the server has.

import { refreshAdapters, startAdapters } from "./adapters.js";
import { Refused, ask, whenLocked } from "./api.js";
import { chooseAdapter, showModels, startChat } from "./chat.js";
import { byId, count } from "./dom.js";
import { refreshJobs, startJobs } from "./job.js";
import { redraw } from "./table.js";
import { startTrain } from "./train.js";

const TABS = ["chat", "train", "adapters"];
let base = "";
let newest = 0;

whenLocked(askForKey);
startChat();
startTrain(() => base);
startJobs({ chat, ended: refresh });
startAdapters({ chat, changed: refresh });
startTabs();
refresh();

/** What is served is asked for again. */
async function refresh() {
  const mine = ++newest;
  try {
    const [models, adapters] = await Promise.all([ask("GET", "/v1/models"), ask("GET", "/v1/reft_adapters")]);
    // what was asked for later knows more
    if (mine !== newest) return;
    base = models.data.find((model) => !model.parent)?.id ?? "";
    const loaded = Object.fromEntries(adapters.data.map((adapter) => [adapter.id, adapter]));
    showModels(base, loaded);
    byId("server").textContent = `${base} · ${count(adapters.data.length, "adapter")}`;
    byId("server").classList.remove("error");
    const trains = await refreshJobs();
    for (const off of document.querySelectorAll(".off")) off.hidden = trains;
    document.querySelector(".trains").hidden = !trains;
    redraw();
    await refreshAdapters(trains, loaded);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    byId("server").textContent = error.message;
    byId("server").classList.add("error");
  }
}

async function chat(name) {
  location.hash = "chat";
  showTab();
  chooseAdapter(name);
  await refresh();
}

function startTabs() {
  for (const name of TABS)
    byId(`tab-${name}`).addEventListener("click", () => {
      location.hash = name;
    });
  byId("tabs").addEventListener("keydown", (event) => {
    const at = TABS.findIndex((name) => byId(`tab-${name}`) === event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at + TABS.length - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    location.hash = TABS[to % TABS.length];
    byId(`tab-${TABS[to % TABS.length]}`).focus();
  });
  addEventListener("hashchange", () => {
    showTab();
    refresh();
  });
  // others may have loaded adapters meanwhile
  addEventListener("focus", refresh);
  showTab();
}

function showTab() {
  const chosen = TABS.find((name) => location.hash === `#${name}`) ?? TABS[0];
  for (const name of TABS) {
    byId(`panel-${name}`).hidden = name !== chosen;
    byId(`tab-${name}`).setAttribute("aria-selected", String(name === chosen));
    byId(`tab-${name}`).tabIndex = name === chosen ? 0 : -1;
  }
}

function askForKey(isWrong) {
  const dialog = byId("lock");
  byId("lock-note").textContent = isWrong ? "That key is not right." : "";
  dialog.oncancel = (event) => event.preventDefault();
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    byId("lock-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      resolve(byId("lock-key").value);
    };
  });
}
