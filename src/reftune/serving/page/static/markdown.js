// Markdown as elements: what models write in chats. Markup in it is text, pictures are links, and only links to web
// pages and mail addresses can be followed. Time grows with the length of the text: models write strange things.

import { h } from "./dom.js";

const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?: +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE = /^(?:https?:\/\/|mailto:)/i;

/** A fragment for a text. */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split(/\r?\n/), 0));
  return fragment;
}

function blocks(lines, depth) {
  if (depth > DEEPEST) return [h("p", {}, lines.join("\n"))];
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [element, next] =
      fence(lines, at) ??
      heading(lines, at) ??
      rule(lines, at) ??
      quote(lines, at, depth) ??
      list(lines, at, depth) ??
      table(lines, at) ??
      paragraph(lines, at);
    found.push(element);
    at = next;
  }
  return found;
}

function fence(lines, at) {
  const begun = FENCE.exec(lines[at]);
  if (!begun) return null;
  const sign = begun[1];
  let end = at + 1;
  // a fence without an end, as while the text still grows, goes to the end of the text
  while (end < lines.length && !isFenceEnd(lines[end], sign)) end += 1;
  const code = h("code", {}, lines.slice(at + 1, end).join("\n"));
  return [h("pre", { tabindex: "0", "aria-label": begun[2] ? `Code, ${begun[2]}` : "Code" }, code), end + 1];
}

function isFenceEnd(line, sign) {
  const text = line.trim();
  return text.length >= sign.length && text === sign[0].repeat(text.length);
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  // the page's own headings come first
  return found && [h(`h${Math.min(found[1].length + 2, 6)}`, {}, inline(found[2])), at + 1];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [h("hr"), at + 1] : null;
}

function quote(lines, at, depth) {
  const inside = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const found = QUOTE.exec(lines[end]);
    if (!found) break;
    inside.push(found[1]);
  }
  return inside.length ? [h("blockquote", {}, blocks(inside, depth + 1)), end] : null;
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const isOrdered = first[2].length > 1;
  const items = [];
  let end = at;
  while (end < lines.length) {
    const begun = ITEM.exec(lines[end]);
    if (!begun || RULE.test(lines[end]) || begun[2].length > 1 !== isOrdered) break;
    const width = begun[1].length + begun[2].length + 1;
    const inside = [begun[3]];
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      const indent = line.length - line.trimStart().length;
      if (line.trim() && indent < Math.min(width, 2)) {
        // a paragraph goes on in lines that begin at the margin
        const isNew =
          !lines[end - 1].trim() || ITEM.test(line) || HEADING.test(line) || FENCE.test(line) || QUOTE.test(line);
        if (isNew) break;
      } else if (line.trim() && indent < width && ITEM.test(line)) {
        break;
      }
      inside.push(line.slice(Math.min(indent, width)));
      end += 1;
    }
    items.push(inside);
  }
  const parts = items.map((inside) => h("li", {}, tight(blocks(inside, depth + 1))));
  const start = isOrdered ? Number.parseInt(first[2], 10) : 1;
  return [h(isOrdered ? "ol" : "ul", { start: start === 1 ? null : start }, parts), end];
}

/** Items of one paragraph without its margins. */
function tight(found) {
  return found[0]?.tagName === "P" ? [...found[0].childNodes, ...found.slice(1)] : found;
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-") || !TABLE.test(lines[at + 1]))
    return null;
  const head = cells(lines[at]);
  if (cells(lines[at + 1]).length !== head.length) return null;
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) rows.push(cells(lines[end]));
  const row = (tag, texts) =>
    h(
      "tr",
      {},
      head.map((_, i) => h(tag, {}, inline(texts[i] ?? ""))),
    );
  const made = h(
    "table",
    {},
    h("thead", {}, row("th", head)),
    h(
      "tbody",
      {},
      rows.map((texts) => row("td", texts)),
    ),
  );
  return [h("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Table" }, made), end];
}

function cells(line) {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((text) => text.trim());
}

function paragraph(lines, at) {
  let end = at + 1;
  while (
    end < lines.length &&
    lines[end].trim() &&
    !FENCE.test(lines[end]) &&
    !HEADING.test(lines[end]) &&
    !QUOTE.test(lines[end]) &&
    !ITEM.test(lines[end]) &&
    !RULE.test(lines[end])
  )
    end += 1;
  const text = lines
    .slice(at, end)
    .map((line) => line.trim())
    .join("\n");
  return [h("p", {}, inline(text)), end];
}

// --- within a line ---------------------------------------------------------------------------------------------------

/** Texts and elements. */
export function inline(text, depth = 0) {
  const found = [];
  // signs of which it is known that none comes any more
  const gone = new Set();
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) found.push(plain);
    plain = "";
  };
  while (at < text.length) {
    const part = depth > DEEPEST ? null : special(text, at, depth, gone);
    if (part === null) {
      plain += text[at];
      at += 1;
    } else if (typeof part[0] === "string") {
      plain += part[0];
      at = part[1];
    } else {
      flush();
      found.push(part[0]);
      at = part[1];
    }
  }
  flush();
  return found;
}

/** What begins here and where it ends, null if this is a letter like any other. */
function special(text, at, depth, gone) {
  switch (text[at]) {
    case "\n":
      return [h("br"), at + 1];
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
    case "`":
      return code(text, at, gone);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth, gone);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth, gone) : null;
    case "[":
      return link(text, at, depth, gone);
    case "h":
    case "H":
      return address(text, at);
    default:
      return null;
  }
}

function code(text, at, gone) {
  const sign = run(text, at);
  const end = gone.has(sign) ? -1 : closing(text, at + sign.length, sign);
  if (end < 0) {
    gone.add(sign);
    return [sign, at + sign.length];
  }
  return [h("code", {}, text.slice(at + sign.length, end).trim()), end + sign.length];
}

function run(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return text.slice(at, end);
}

/** Where a run of just these signs is. */
function closing(text, from, sign) {
  let end = text.indexOf(sign, from);
  while (end >= 0) {
    const whole = run(text, end);
    if (whole.length === sign.length && text[end - 1] !== sign[0]) return end;
    end = text.indexOf(sign, end + whole.length);
  }
  return -1;
}

const TAGS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

function emphasis(text, at, depth, gone) {
  const whole = run(text, at);
  const isWord = text[at] === "_" && /\w/.test(text[at - 1] ?? "");
  const after = text[at + whole.length] ?? " ";
  if (/\s/.test(after) || isWord || whole.length > 3) return [whole, at + whole.length];
  const sign = whole.length === 3 ? whole.slice(0, 2) : whole;
  const tag = TAGS[sign];
  if (!tag || gone.has(sign)) return [whole, at + whole.length];
  let end = text.indexOf(sign, at + sign.length);
  while (end >= 0 && !closes(text, end, sign)) end = text.indexOf(sign, end + run(text, end).length);
  if (end < 0) {
    gone.add(sign);
    return [whole, at + whole.length];
  }
  // of a longer run that ends here, the last signs are ours: **a *b***
  const last = run(text, end).length - sign.length;
  const inside = text.slice(at + sign.length, end + last);
  return [h(tag, {}, inline(inside, depth + 1)), end + last + sign.length];
}

function closes(text, end, sign) {
  const length = run(text, end).length;
  if (/\s/.test(text[end - 1])) return false;
  if (sign[0] === "_" && /\w/.test(text[end + length] ?? "")) return false;
  return length === sign.length || length === 3;
}

const LONGEST_LINK = 2000;

function link(text, at, depth, gone) {
  if (gone.has("](")) return null;
  const middle = text.indexOf("](", at);
  if (middle < 0) {
    gone.add("](");
    return null;
  }
  const end = text.slice(middle, middle + LONGEST_LINK).indexOf(")");
  const words = text.slice(at + 1, middle);
  if (end < 0 || words.length > LONGEST_LINK || words.includes("[")) return null;
  const to = text
    .slice(middle + 2, middle + end)
    .trim()
    .split(/\s/)[0];
  // what cannot be followed stays as it was written
  if (!SAFE.test(to)) return null;
  return [anchor(to, inline(words, DEEPEST)), middle + end + 1];
}

function address(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return null;
  const found = /^https?:\/\/[^\s<>"`*]+/i.exec(text.slice(at, at + LONGEST_LINK));
  if (!found) return null;
  const to = found[0].replace(/[.,;:!?)\]'_]+$/, "");
  return [anchor(to, [to]), at + to.length];
}

function anchor(to, inside) {
  return h("a", { href: to, target: "_blank", rel: "noopener noreferrer" }, inside);
}
