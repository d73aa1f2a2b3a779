// The loss over the steps, as a picture of the page's width and in its colours.

import { h, svg } from "./dom.js";

const HEIGHT = 190;
const LEFT = 40;
const RIGHT = 14;
const TOP = 12;
const BOTTOM = 26;

/** train and valid: [[step, loss], …] in order; total: steps of the whole job. */
export function drawCurve(box, train, valid, total) {
  const width = Math.max(220, box.clientWidth || 320);
  const points = [...train, ...valid];
  if (!points.length) {
    box.replaceChildren(h("p", { class: "hint" }, "The curve begins with the first step."));
    return;
  }
  const most = Math.max(total || 0, ...points.map(([step]) => step), 2);
  const ticks = ticksTo(Math.max(...points.map(([, loss]) => loss)));
  const top = ticks.at(-1);
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * (step - 1)) / (most - 1);
  const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - loss / top);
  const lines = ticks.map((tick) => [
    svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text", { x: LEFT - 7, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
  ]);
  const ends = [
    [1, "start"],
    [most, "end"],
  ].map(([step, anchor]) =>
    svg("text", { x: x(step), y: HEIGHT - 6, "text-anchor": anchor }, anchor === "end" ? `step ${step}` : "1"),
  );
  const picture = svg(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-label": words(train, valid),
    },
    lines.flat(),
    ends,
    line(train, "train", x, y),
    line(valid, "valid", x, y),
    valid.map(([step, loss]) => svg("circle", { class: "valid", cx: x(step), cy: y(loss), r: 3 })),
    last(train, x, y),
  );
  box.replaceChildren(
    picture,
    h(
      "p",
      { class: "key" },
      h("span", { class: "train" }, `training ${train.length ? rounded(train.at(-1)[1]) : ""}`),
      valid.length > 0 && h("span", { class: "valid" }, `held-out rows ${rounded(valid.at(-1)[1])}`),
    ),
  );
}

function line(points, name, x, y) {
  const path = points.map(([step, loss], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("");
  return svg("path", { class: name, d: path || "M0 0" });
}

function last(points, x, y) {
  return points.length
    ? svg("circle", { class: "train", cx: x(points.at(-1)[0]), cy: y(points.at(-1)[1]), r: 3.5 })
    : null;
}

/** From 0 in round steps, the last not below `value`. */
function ticksTo(value) {
  const rough = Math.max(value, 1e-6) / 3;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= rough);
  return Array.from({ length: Math.ceil(value / step - 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(6)));
}

export const rounded = (loss) =>
  loss === null || loss === undefined ? "" : loss >= 10 ? loss.toFixed(1) : loss.toPrecision(3);

function words(train, valid) {
  const said = (name, points) =>
    `${name} ${[points[0], points.at(-1)].map(([step, loss]) => `${rounded(loss)} at step ${step}`).join(", ")}`;
  return [train.length && said("Loss in training", train), valid.length && said("on held-out rows", valid)]
    .filter(Boolean)
    .join("; ");
}
