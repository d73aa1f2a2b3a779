// Elements from what they have. Texts stay texts: nothing here or elsewhere makes markup of a string.

const SVG = "http://www.w3.org/2000/svg";

/** h("button", {class: "primary", onclick: go}, "Go"): attributes by name, `on…` listeners, children or texts. */
export function h(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A text area as high as its text, up to what CSS allows. */
export function grow(area) {
  area.style.height = "auto";
  if (area.scrollHeight) area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** A button that asks once more before it does what cannot be undone. */
export function confirmButton(words, question, act) {
  let timer = 0;
  const calm = () => {
    clearTimeout(timer);
    timer = 0;
    button.textContent = words;
    button.classList.remove("danger");
  };
  const button = h(
    "button",
    {
      type: "button",
      class: "quiet",
      onblur: calm,
      onclick: () => {
        if (timer) {
          calm();
          act();
          return;
        }
        button.textContent = question;
        button.classList.add("danger");
        timer = setTimeout(calm, 6000);
      },
    },
    words,
  );
  return button;
}

/** 1234567 → "1.2 MB". */
export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["bytes", "kB", "MB", "GB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) {
    count /= 1000;
    at += 1;
  }
  return `${at ? count.toPrecision(3) : count} ${units[at]}`;
}

/** Seconds in words: "8 s", "2 min", "1 h 5 min". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 90) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
