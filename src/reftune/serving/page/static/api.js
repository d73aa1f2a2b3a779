// What the page asks its server. All addresses are relative to the page's, so that a proxy's prefix stays.

import { keepKey, keptKey } from "./store.js";

const ROOT = new URL("../", document.baseURI);
let key = keptKey();
let asking = null;
let askForKey = async () => null;

/** The server refused, or was not reached; the message says why. `status` is 0 where there was no answer. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** `ask(isWrong)` resolves to the key that the visitor types. */
export function whenLocked(ask) {
  askForKey = ask;
}

/** The answer's JSON. */
export async function ask(method, path, body, options = {}) {
  return (await request(method, path, body, options)).json();
}

/** A file of the server's, as a Blob. */
export async function download(path) {
  return (await request("GET", path)).blob();
}

/** The pieces of an answer's text, as they are made. */
export async function* stream(path, body, signal) {
  const reply = await request("POST", path, { ...body, stream: true }, { signal });
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, 500);
    const choice = chunk.choices[0];
    const piece = choice && (choice.delta ? choice.delta.content : choice.text);
    if (piece) yield piece;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Refused("the connection to the server broke off");
      }
      if (part.done) return;
      const lines = (rest + part.value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(method, path, body, { signal } = {}) {
  for (;;) {
    const used = key;
    const reply = await sent(method, path, body, signal, used);
    if (reply.ok) return reply;
    if (reply.status !== 401) throw await refusal(reply);
    // another request may have been given the right one meanwhile
    if (used === key) await unlocked(used !== null);
  }
}

async function unlocked(isWrong) {
  asking ??= askForKey(isWrong).finally(() => {
    asking = null;
  });
  key = await asking;
  keepKey(key);
}

async function sent(method, path, body, signal, used) {
  const headers = used ? { authorization: `Bearer ${encoded(used)}` } : {};
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) headers["content-type"] = "application/json";
  try {
    const content = body === undefined || isForm ? body : JSON.stringify(body);
    return await fetch(new URL(path.replace(/^\//, ""), ROOT), { method, headers, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server did not answer; is it still running?");
  }
}

/** Headers are bytes to a browser: those of UTF-8, which servers read. */
function encoded(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

async function refusal(reply) {
  let message = "";
  try {
    const found = await reply.json();
    message = found.error?.message ?? found.message ?? (typeof found.detail === "string" ? found.detail : "");
  } catch {
    /* it was no JSON */
  }
  return new Refused(message || `the server answered with status ${reply.status}`, reply.status);
}
