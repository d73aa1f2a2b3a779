// A prompt's tokens, with those that are edited marked: colour, underline, and words for who sees neither.

import { h } from "./dom.js";

const COLOURS = 10;

/** tokens: [{text, mark}], mark the number of one of `marks` or null; `marks`: what each of them says. */
export function tokenStrip(tokens, marks, { border = null, label = "Tokens of the prompt" } = {}) {
  const spans = tokens.map(({ text, mark }, i) => {
    const name = `token${mark === null ? "" : ` mark mark-${mark % COLOURS}`}${i === border ? " border" : ""}`;
    const told = mark === null ? null : marks[mark];
    return h(
      "span",
      { class: name, title: told },
      visible(text),
      told && h("span", { class: "unseen" }, ` (edited: ${told}) `),
    );
  });
  return h("p", { class: "tokens", tabindex: "0", role: "group", "aria-label": label }, spans);
}

export function legend(marks) {
  const entry = (mark, i) =>
    h("li", {}, h("span", { class: `token mark mark-${i % COLOURS}`, "aria-hidden": "true" }, "a"), mark);
  return h("ul", { class: "legend" }, marks.map(entry));
}

/** Signs for what has no ink. */
export function visible(text) {
  return text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^$/, "∅");
}
