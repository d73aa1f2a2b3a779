// Examples: from what people paste or upload to the table's rows, and from rows to the records of a training file.
//
// A row is {prompt, answer} and, where its record had them, `before` (the turns before the prompt) and `rest` (other
// columns). Nothing is guessed: what cannot be read is told with its line, and handed back.

export const FORMS = {
  messages: "chat messages",
  prompt: "plain text: the answer goes on where the prompt ends",
  instruction: "instructions, put by the Alpaca template",
};
// columns, by the form that `reftune train` would give them
const COLUMNS = [
  ["prompt", "completion", "prompt"],
  ["instruction", "output", "instruction"],
  ["question", "answer", "instruction"],
  ["text", "label", "instruction"],
  ["sentence", "label", "instruction"],
];
const HEADS = [
  ...COLUMNS.map(([prompt, answer]) => [prompt, answer]),
  ["prompt", "answer"],
  ["prompt", "response"],
  ["input", "output"],
  ["question", "response"],
  ["user", "assistant"],
  ["message", "answer"],
  ["source", "target"],
];
const LONGEST_SHOWN = 60;
// columns that a chat template is given
const CHAT_ONLY = ["tools", "documents", "chat_template_kwargs"];

/** {rows, form, problems, leftOver}: `form` is null where the source does not say, `leftOver` what was not read. */
export function parse(text) {
  const trimmed = text.replace(/^\ufeff/, "").trim();
  if (!trimmed) return { rows: [], form: null, problems: ["There is nothing to read."], leftOver: "" };
  return trimmed[0] === "{" || trimmed[0] === "[" ? parseJson(trimmed) : parseTable(trimmed);
}

// --- JSON ------------------------------------------------------------------------------------------------------------

function parseJson(text) {
  if (text[0] === "[") {
    try {
      const found = JSON.parse(text);
      return read(found.map((record, i) => [`Entry ${i + 1}`, record, JSON.stringify(record)]));
    } catch (error) {
      return { rows: [], form: null, problems: [`This is no JSON list: ${error.message}`], leftOver: text };
    }
  }
  const lines = text.split(/\r?\n/);
  return read(
    lines.map((line, i) => [`Line ${i + 1}`, line.trim() && parsed(line), line]).filter(([, record]) => record !== ""),
  );
}

function parsed(line) {
  try {
    return JSON.parse(line);
  } catch (error) {
    return error;
  }
}

function read(records) {
  const rows = [];
  const problems = [];
  const left = [];
  const forms = new Set();
  for (const [where, record, source] of records) {
    try {
      if (record instanceof Error) throw new Error(`is no JSON (${record.message})`);
      const [row, form] = rowOf(record);
      rows.push(row);
      forms.add(form);
    } catch (error) {
      problems.push(`${where} ${error.message}`);
      left.push(source);
    }
  }
  return { rows, form: forms.size === 1 ? [...forms][0] : null, problems, leftOver: left.join("\n") };
}

function rowOf(record) {
  if (record === null || typeof record !== "object" || Array.isArray(record))
    throw new Error("is no object with columns");
  const { messages, ...rest } = record;
  if (messages) return [withRest(rowOfTurns(messages), rest), "messages"];
  if (Array.isArray(record.prompt) || Array.isArray(record.completion)) {
    const { prompt, completion, ...others } = record;
    return [withRest(rowOfTurns([].concat(turns(prompt, "user"), turns(completion, "assistant"))), others), "messages"];
  }
  for (const [first, second, form] of COLUMNS) {
    if (isText(record[first]) && isText(record[second])) {
      const { [first]: prompt, [second]: answer, ...others } = record;
      return [withRest({ prompt: String(prompt), answer: String(answer) }, others), form];
    }
  }
  const names = Object.keys(record).join(", ").slice(0, LONGEST_SHOWN);
  throw new Error(
    `has ${names ? `the columns ${names}` : "no columns"}; what is needed is “messages”, ` +
      "or “prompt” and “completion”, or “instruction” and “output”",
  );
}

const isText = (value) => typeof value === "string" || typeof value === "number";
const turns = (value, role) => (Array.isArray(value) ? value : [{ role, content: String(value ?? "") }]);

function rowOfTurns(messages) {
  if (!Array.isArray(messages) || messages.length < 2) throw new Error("has no “messages” of at least two turns");
  const last = messages.at(-1);
  const before = messages.at(-2);
  if (last.role !== "assistant" || before.role !== "user")
    throw new Error("does not end with a turn of the user and one of the assistant");
  if (typeof last.content !== "string" || typeof before.content !== "string" || Object.keys(last).length > 2) {
    throw new Error("has a last turn that is not just text, which this table cannot show; use `reftune train` for it");
  }
  const row = { prompt: before.content, answer: last.content };
  return messages.length > 2 ? { ...row, before: messages.slice(0, -2) } : row;
}

function withRest(row, rest) {
  return Object.keys(rest).length ? { ...row, rest } : row;
}

// --- tables ----------------------------------------------------------------------------------------------------------

function parseTable(text) {
  const first = text.split("\n", 1)[0];
  const sign = first.includes("\t") ? "\t" : first.includes(",") || !first.includes(";") ? "," : ";";
  const table = cells(text, sign).filter((row) => row.some((cell) => cell.trim()));
  const head = table[0].map((cell) => cell.trim().toLowerCase());
  const names = HEADS.find((pair) => pair.every((name) => head.includes(name)));
  const [a, b] = names ? names.map((name) => head.indexOf(name)) : [0, 1];
  const data = names ? table.slice(1) : table;
  const rows = [];
  const problems = [];
  const left = [];
  data.forEach((row, i) => {
    const filled = row.findLastIndex((cell) => cell.trim()) + 1;
    if (names ? isText(row[a]) && isText(row[b]) : filled === 2) {
      rows.push({ prompt: row[a].trim(), answer: row[b].trim() });
      return;
    }
    const many = names ? "too few columns" : filled === 1 ? "one column" : `${filled} columns`;
    problems.push(
      `Row ${i + 1 + Boolean(names)} has ${many}; two are needed, prompt and answer` +
        (filled > 2 && !names ? ", or a first row that names the columns “prompt” and “answer”" : ""),
    );
    left.push(row.map((cell) => quoted(cell, sign)).join(sign));
  });
  return {
    rows,
    form: null,
    problems,
    leftOver: left.length && names ? [table[0].join(sign), ...left].join("\n") : left.join("\n"),
  };
}

/** Cells of comma- or tab-separated text; quoted ones may hold signs, lines and doubled quotes. */
export function cells(text, sign) {
  const table = [];
  let row = [];
  let at = 0;
  for (;;) {
    let cell = "";
    if (text[at] === '"' && text.indexOf('"', at + 1) > 0) {
      at += 1;
      for (;;) {
        const end = text.indexOf('"', at);
        if (end < 0) {
          cell += text.slice(at);
          at = text.length;
          break;
        }
        cell += text.slice(at, end);
        at = end + 1;
        if (text[at] !== '"') break;
        cell += '"';
        at += 1;
      }
    }
    const from = at;
    while (at < text.length && text[at] !== sign && text[at] !== "\n") at += 1;
    row.push(cell + text.slice(from, at).replace(/\r$/, ""));
    if (text[at] === sign) {
      at += 1;
      continue;
    }
    table.push(row);
    row = [];
    if (at >= text.length) return table;
    at += 1;
  }
}

function quoted(cell, sign) {
  return /["\n]/.test(cell) || cell.includes(sign) ? `"${cell.replace(/"/g, '""')}"` : cell;
}

// --- back ------------------------------------------------------------------------------------------------------------

/** The record that a row is trained as. */
export function recordOf(row, form) {
  const { prompt, answer, before = [], rest = {} } = row;
  if (form === "instruction") return { ...rest, instruction: prompt, output: answer };
  if (rest.input) {
    // of an instruction, what it is about: other kinds of rows have no place for it but the prompt
    const { input, ...others } = rest;
    return recordOf({ ...row, prompt: `${prompt}\n\n${input}`, rest: others }, form);
  }
  if (form === "prompt") return { ...rest, prompt, completion: answer };
  return { ...rest, messages: [...before, { role: "user", content: prompt }, { role: "assistant", content: answer }] };
}

/** What a row has besides, in words. */
export function told({ before, rest }) {
  const turns = before ? [`${before.length} turn${before.length > 1 ? "s" : ""} before it`] : [];
  return [...turns, ...(rest ? [`with ${Object.keys(rest).join(", ")}`] : [])].join(", ");
}

export const isBlank = (row) => !row.prompt.trim() && !row.answer.trim();

/** Why the rows cannot be trained, in words, or null; blank ones are left out. */
export function whyNot(rows, form) {
  const only =
    form === "messages" ? -1 : rows.findIndex((row) => row.before || CHAT_ONLY.some((name) => row.rest?.[name]));
  if (only >= 0)
    return (
      `Row ${only + 1} has more than a prompt and an answer: ${told(rows[only])}. ` +
      "Only chat messages can hold that; choose them above the table."
    );
  const lacking = rows.flatMap((row, i) =>
    isBlank(row) ? [] : !row.prompt.trim() ? [[i, "prompt"]] : !row.answer.trim() ? [[i, "answer"]] : [],
  );
  if (lacking.length) {
    const [at, what] = lacking[0];
    const others = lacking.length > 1 ? `, and ${lacking.length - 1} more rows lack something` : "";
    return `Row ${at + 1} has no ${what}${others}. Fill it in or delete the row.`;
  }
  return rows.every(isBlank) ? "Add some examples first: what people say, and what the model is to answer." : null;
}

/** Every so manieth row is held out, so that all parts of the table are in both. */
export function split(rows, share) {
  const held = Math.round(rows.length * share);
  if (!held || rows.length < 2) return [rows, []];
  const isHeld = (i) => Math.floor(((i + 1) * held) / rows.length) > Math.floor((i * held) / rows.length);
  return [rows.filter((_, i) => !isHeld(i)), rows.filter((_, i) => isHeld(i))];
}
