// The chat: each message goes to the base model and to the adapter, each of which has a conversation of its own.

import { Refused, ask, stream } from "./api.js";
import { byId, count, grow, h } from "./dom.js";
import { markdown } from "./markdown.js";
import { keep, kept } from "./store.js";
import { legend, tokenStrip } from "./tokens.js";

// turns that a reload brings back
const KEPT_TURNS = 50;
const SIDES = ["base", "adapter"];

const state = kept("chat", {
  adapter: "",
  strength: 1,
  system: "",
  kind: "chat",
  maxTokens: 256,
  temperature: 0,
  draft: "",
  showsTokens: false,
  turns: [],
});
let known = { base: "", adapters: {} };
let running = null;

export function startChat() {
  const fields = {
    system: "system",
    kind: "kind",
    "max-tokens": "maxTokens",
    temperature: "temperature",
    prompt: "draft",
  };
  for (const [id, name] of Object.entries(fields)) {
    const field = byId(id);
    field.value = state[name];
    field.addEventListener("input", () => {
      state[name] = field.type === "number" ? field.valueAsNumber : field.value;
      save();
    });
    if (field.tagName === "TEXTAREA") field.addEventListener("input", () => grow(field));
  }
  byId("adapter").addEventListener("change", (event) => {
    state.adapter = event.target.value;
    save();
    showChoice();
  });
  for (const id of ["strength", "strength-number"])
    byId(id).addEventListener("input", (event) => setStrength(event.target));
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-chat").addEventListener("click", startAnew);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("panel-chat").hidden) running?.abort();
  });
  showStrength();
  for (const turn of state.turns) byId("thread").append(turnElement(turn));
  showEmptiness();
}

/** What is served now: the base model's name, and of each ReFT adapter what it edits. */
export function showModels(base, adapters) {
  known = { base, adapters };
  const names = Object.keys(adapters);
  if (!names.includes(state.adapter)) state.adapter = names[0] ?? "";
  const options = (names.length ? names : [""]).map((name) => h("option", { value: name }, name || "none is loaded"));
  // as it is, where it is right already: somebody may be choosing
  if ([...byId("adapter").options].map((option) => option.value).join("\n") !== names.join("\n") || !names.length)
    byId("adapter").replaceChildren(...options);
  byId("adapter").disabled = !names.length;
  showChoice();
}

/** One that is loaded, or has been a moment ago. */
export function chooseAdapter(name) {
  state.adapter = name;
  save();
  showModels(known.base, { [name]: {}, ...known.adapters });
  byId("prompt").focus();
}

// --- choices ---------------------------------------------------------------------------------------------------------

function save() {
  const turns = state.turns.slice(-KEPT_TURNS);
  // where there is no room for the conversation, the settings are kept at least
  if (!keep("chat", { ...state, turns })) keep("chat", { ...state, turns: [] });
}

function setStrength(field) {
  const value = field.valueAsNumber;
  if (Number.isNaN(value)) return;
  state.strength = Math.max(-10, Math.min(10, value));
  save();
  showStrength(field);
}

function showStrength(changed = null) {
  for (const id of ["strength", "strength-number"]) if (byId(id) !== changed) byId(id).value = state.strength;
  const words =
    state.strength === 0
      ? "0 is the base model, given the adapter’s prompt."
      : state.strength < 0
        ? "Below 0 the adapter’s edits are turned round."
        : Math.abs(state.strength) > 2
          ? "Beyond 2 answers often fall apart."
          : "";
  byId("strength-hint").textContent = words;
  byId("strength-hint").hidden = !words;
}

function showChoice(otherwise = "") {
  byId("adapter").value = state.adapter;
  const has = Boolean(state.adapter);
  for (const id of ["strength", "strength-number"]) byId(id).disabled = !has;
  byId("prompt").placeholder = has ? "Ask both models the same" : "Ask the base model";
  byId("note").textContent =
    has && isAlone(state.adapter)
      ? "This adapter was trained on single questions, so it is asked each one by itself."
      : otherwise;
}

function isAlone(name) {
  const style = known.adapters[name]?.style;
  return Boolean(style) && style.style !== "messages";
}

function startAnew() {
  running?.abort();
  state.turns = [];
  save();
  byId("thread").replaceChildren();
  showEmptiness();
  showChoice();
  byId("prompt").focus();
}

function showEmptiness() {
  byId("new-chat").disabled = !state.turns.length;
  byId("thread").classList.toggle("empty", !state.turns.length);
  if (state.turns.length) byId("thread").querySelector(".welcome")?.remove();
  else
    byId("thread").replaceChildren(
      h(
        "div",
        { class: "welcome" },
        h("h2", {}, "Ask both, compare"),
        h(
          "p",
          {},
          "Each message goes to the base model and to the adapter, and their answers grow side by side. ",
          "Under your message you see which of its tokens the adapter edits.",
        ),
      ),
    );
}

// --- asking ----------------------------------------------------------------------------------------------------------

async function send() {
  const text = byId("prompt").value;
  if (running) return;
  if (!text.trim()) {
    byId("note").textContent = "Write a message first.";
    byId("prompt").focus();
    return;
  }
  const turn = {
    text,
    adapter: state.adapter,
    strength: state.strength,
    kind: state.kind,
    system: state.system,
    answers: {},
    tokens: null,
  };
  for (const side of SIDES) if (side === "base" || turn.adapter) turn.answers[side] = { text: "", note: "" };
  state.turns.push(turn);
  state.draft = byId("prompt").value = "";
  grow(byId("prompt"));
  showEmptiness();
  const element = turnElement(turn);
  byId("thread").append(element);
  scrollTo(0, document.documentElement.scrollHeight);
  running = new AbortController();
  setRunning(true);
  const { signal } = running;
  await Promise.all([
    ...Object.keys(turn.answers).map((side) => answered(turn, side, element, signal)),
    marked(turn, element, signal),
  ]);
  running = null;
  setRunning(false);
  save();
}

function setRunning(isRunning) {
  byId("ask").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  byId("thread").setAttribute("aria-busy", String(isRunning));
  byId("note").textContent = isRunning ? "Answering…" : "";
  if (!isRunning) {
    showChoice("Answered.");
    if (document.activeElement === document.body) byId("prompt").focus();
  }
}

/** What a side is asked: its own conversation so far, where the model can take one. */
function promptOf(turn, side) {
  if (turn.kind === "text") return { prompt: turn.text };
  const own = { role: "user", content: turn.text };
  if (side === "adapter" && isAlone(turn.adapter)) return { messages: [own] };
  const messages = turn.system.trim() ? [{ role: "system", content: turn.system }] : [];
  for (const before of state.turns.slice(0, state.turns.indexOf(turn))) {
    const answer = before.answers[side]?.text;
    // a turn without an answer would leave two messages of the user's in a row
    if (answer && before.kind === "chat")
      messages.push({ role: "user", content: before.text }, { role: "assistant", content: answer });
  }
  return { messages: [...messages, own] };
}

async function answered(turn, side, element, signal) {
  const answer = turn.answers[side];
  const box = element.querySelector(`.answer.${side}`);
  const body = {
    model: side === "base" ? known.base : turn.adapter,
    max_tokens: Math.max(1, state.maxTokens || 256),
    temperature: Math.max(0, state.temperature || 0),
    ...promptOf(turn, side),
  };
  if (side === "adapter" && turn.strength !== 1) body.reft_strength = turn.strength;
  let frame = 0;
  const draw = () => {
    frame = 0;
    fill(box, answer, true);
  };
  try {
    for await (const piece of stream(`/v1/${turn.kind === "text" ? "" : "chat/"}completions`, body, signal)) {
      answer.text += piece;
      frame ||= requestAnimationFrame(draw);
    }
    if (!answer.text) answer.note = "The answer is empty.";
  } catch (error) {
    if (error.name === "AbortError") answer.note = "Stopped.";
    else if (error instanceof Refused) {
      answer.note = error.message;
      answer.isError = true;
    } else throw error;
  } finally {
    cancelAnimationFrame(frame);
    fill(box, answer, false);
  }
}

async function marked(turn, element, signal) {
  const model = turn.adapter || known.base;
  try {
    const read = await ask(
      "POST",
      "/tokenize",
      { model, return_token_strs: true, ...promptOf(turn, turn.adapter ? "adapter" : "base") },
      { signal },
    );
    const body = { model, tokens: read.tokens, token_strs: read.token_strs };
    if (read.spans) body.spans = read.spans;
    turn.tokens = await ask("POST", "/v1/reft/marks", body, { signal });
    showTokens(turn, element);
  } catch (error) {
    // why a prompt is refused stands where the answer would
    if (!(error instanceof Refused) && error.name !== "AbortError") throw error;
  }
}

// --- what is seen ----------------------------------------------------------------------------------------------------

function turnElement(turn) {
  const answers = Object.entries(turn.answers).map(([side, answer]) => {
    const title = side === "base" ? "Base model" : turn.adapter;
    const turned =
      side === "adapter" && turn.strength !== 1 ? h("span", { class: "chip" }, `strength ${turn.strength}`) : null;
    const box = h(
      "div",
      { class: `answer ${side}`, role: "region", "aria-label": `Answer: ${title}` },
      h("h3", {}, h("span", { class: "name" }, title), turned),
      h("div", { class: "words" }),
      h("p", { class: "outcome" }),
    );
    fill(box, answer, false);
    return box;
  });
  const element = h(
    "article",
    { class: "turn", "aria-label": "Message and answers" },
    h("p", { class: "mine" }, turn.text),
    h("details", { class: "seen", hidden: true }),
    h("div", { class: "answers" }, answers),
  );
  showTokens(turn, element);
  return element;
}

function showTokens(turn, element) {
  if (!turn.tokens) return;
  following(() => drawTokens(turn.tokens, element));
}

function drawTokens({ tokens, marks, summary }, element) {
  const fold = element.querySelector(".seen");
  fold.replaceChildren(
    h("summary", {}, summary ?? count(tokens.length, "token of the prompt", "tokens of the prompt")),
    legend(marks),
    tokenStrip(tokens, marks),
  );
  fold.hidden = false;
  fold.open = state.showsTokens;
  fold.ontoggle = () => {
    state.showsTokens = fold.open;
    save();
  };
}

function fill(box, answer, isGrowing) {
  following(() => {
    box.classList.toggle("growing", isGrowing);
    box.querySelector(".words").replaceChildren(markdown(answer.text));
    const outcome = box.querySelector(".outcome");
    outcome.textContent = answer.note;
    outcome.classList.toggle("error", Boolean(answer.isError));
  });
}

/** While an answer grows, who is at the end of the page stays there. */
function following(draw) {
  const wasAtEnd = running && innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
  draw();
  if (wasAtEnd) scrollTo(0, document.documentElement.scrollHeight);
}
