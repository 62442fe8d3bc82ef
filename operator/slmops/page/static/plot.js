// SPDX-License-Identifier: Apache-2.0
// One metric: canary against stable over time, with its bounds. SVG, read with the pointer or the arrow keys.

import { h, s } from "./dom.js";
import { amount, clock, plural } from "./words.js";

const WIDTH = 380;
const HEIGHT = 190;
const LEFT = 52;
const RIGHT = 12;
const TOP = 18;
const BOTTOM = 24;
const chosen = new Map(); // plot -> index of the mark that is read

export function plotKey(plot) {
  return `${plot.metric}/${plot.variant}`;
}

// Moves what is read: to the mark nearest to a place from 0 to 1, or by a number of marks.
export function pointAt(plot, share) {
  const [from, to] = spanOf(plot);
  const at = from + share * (to - from);
  let best = 0;
  plot.marks.forEach((mark, index) => {
    if (Math.abs(mark[0] - at) < Math.abs(plot.marks[best][0] - at)) best = index;
  });
  chosen.set(plotKey(plot), best);
}

export function step(plot, by) {
  const last = plot.marks.length - 1;
  const now = chosen.has(plotKey(plot)) ? chosen.get(plotKey(plot)) : last;
  chosen.set(plotKey(plot), Math.max(0, Math.min(last, now + by)));
}

export function leave(plot) {
  chosen.delete(plotKey(plot));
}

// The share of the plot's width that a place from 0 to 1 of the whole drawing stands for.
export function shareOf(place) {
  return Math.max(0, Math.min(1, (place * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)));
}

function spanOf(plot) {
  const from = plot.marks[0][0];
  const to = plot.marks[plot.marks.length - 1][0];
  return to > from ? [from, to] : [from - 30, to + 30];
}

// Rounds a step up to 1, 2 or 5 times a power of ten.
function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw * 0.999);
}

function rangeOf(plot) {
  const values = plot.marks.flatMap((mark) => mark.slice(1, 4)).filter((value) => value !== null);
  const bounds = [plot.maximum, plot.minimum].filter((value) => value !== null);
  if (!values.length) values.push(0, ...bounds);
  let low = Math.min(...values);
  let high = Math.max(...values);
  // A bound that is far off would flatten the lines; it is named below the plot then.
  const reach = Math.max(high - low, Math.abs(high) * 0.5, 1e-9);
  for (const bound of bounds) {
    if (bound >= low - 3 * reach && bound <= high + 3 * reach) {
      low = Math.min(low, bound);
      high = Math.max(high, bound);
    }
  }
  if (plot.unit && low >= 0 && low <= (high - low) * 1.5) low = 0;
  if (high - low < 1e-9) high = low + (Math.abs(low) || 1) * 0.2;
  const tick = niceStep((high - low) / 3.2);
  return [Math.floor(low / tick + 1e-9) * tick, Math.ceil(high / tick - 1e-9) * tick, tick];
}

function line(marks, column, x, y, name) {
  let path = "";
  let open = false;
  for (const mark of marks) {
    if (mark[column] === null) open = false;
    else {
      path += `${open ? "L" : "M"}${x(mark[0]).toFixed(1)} ${y(mark[column]).toFixed(1)}`;
      open = true;
    }
  }
  return s("path", { d: path || "M0 0", class: `line ${name}` });
}

function boundary(plot, value, y, low, high) {
  if (value === null || value < low || value > high) return null;
  return s("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
}

export function drawPlot(plot, waves) {
  const [from, to] = spanOf(plot);
  const [low, high, tick] = rangeOf(plot);
  const x = (at) => LEFT + ((at - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const ticks = [];
  for (let value = low; value <= high + tick / 2; value += tick) ticks.push(value);
  const begun = waves
    .map((wave) => [wave.name, Date.parse(wave.startedAt) / 1000])
    .filter(([, at]) => at > from - 5 && at < to);
  const index = chosen.has(plotKey(plot))
    ? Math.min(chosen.get(plotKey(plot)), plot.marks.length - 1)
    : plot.marks.length - 1;
  const mark = plot.marks[index];
  const failed = plot.marks.filter((entry) => entry[4] === "Fail" && entry[1] !== null);
  const drawing = s(
    "svg",
    {
      class: "drawing", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0,
      "data-plot": plotKey(plot), "aria-label": describe(plot),
    },
    ticks.map((value) => [
      s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: LEFT - 7, y: y(value) + 3.5, "text-anchor": "end" }, amount(value, plot.unit)),
    ]),
    begun.map(([name, at], position) => {
      const room = x((begun[position + 1] || [null, to])[1]) - x(at);
      return [
        s("line", { class: "wave", x1: Math.max(LEFT, x(at)), x2: Math.max(LEFT, x(at)), y1: TOP - 4, y2: HEIGHT - BOTTOM }),
        room > name.length * 6 + 6 &&
          s("text", { class: "tick wave-name", x: Math.max(LEFT, x(at)) + 4, y: TOP - 6 }, name),
      ];
    }),
    s("text", { class: "tick", x: LEFT, y: HEIGHT - 7 }, clock(from)),
    s("text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 7, "text-anchor": "end" }, clock(to)),
    boundary(plot, plot.maximum, y, low, high),
    boundary(plot, plot.minimum, y, low, high),
    line(plot.marks, 3, x, y, "bound"),
    line(plot.marks, 2, x, y, "stable"),
    line(plot.marks, 1, x, y, "canary"),
    failed.map((entry) => cross(x(entry[0]), y(entry[1]))),
    s("line", { class: "cursor", x1: x(mark[0]), x2: x(mark[0]), y1: TOP - 4, y2: HEIGHT - BOTTOM }),
    mark[2] !== null && s("rect", { class: "dot stable", x: x(mark[0]) - 3.5, y: y(mark[2]) - 3.5, width: 7, height: 7 }),
    mark[1] !== null && s("circle", { class: "dot canary", cx: x(mark[0]), cy: y(mark[1]), r: 4.2 }),
  );
  return h(
    "figure",
    { class: "plot", "data-key": plotKey(plot) },
    h(
      "figcaption",
      null,
      h("strong", null, plot.metric),
      plot.variant && h("span", { class: "tag" }, plot.variant),
      plot.verdict && h("span", { class: `verdict ${plot.verdict}` }, plot.verdict),
    ),
    drawing,
    h(
      "p",
      { class: "readout" },
      h("span", { class: "key canary" }, "canary ", h("b", null, amount(mark[1], plot.unit))),
      h("span", { class: "key stable" }, "stable ", h("b", null, amount(mark[2], plot.unit))),
      h("span", { class: "quiet" }, `${clock(mark[0])}${mark[4] && index < plot.marks.length - 1 ? ` ${mark[4]}` : ""}`),
    ),
    h("p", { class: "bounds quiet" }, boundsOf(plot)),
  );
}

function cross(x, y) {
  return s("path", { class: "cross", d: `M${x - 4} ${y - 4}L${x + 4} ${y + 4}M${x + 4} ${y - 4}L${x - 4} ${y + 4}` });
}

function boundsOf(plot) {
  const said = [];
  if (plot.maximum !== null) said.push(`at most ${amount(plot.maximum, plot.unit)}`);
  if (plot.minimum !== null) said.push(`at least ${amount(plot.minimum, plot.unit)}`);
  if (plot.degradation) said.push(`${plot.higherIsBetter ? "below" : "above"} stable by no more than ${degradation(plot)}`);
  return said.length ? said.join(", ") : "no bound";
}

function degradation(plot) {
  const text = plot.degradation;
  if (text.endsWith("%")) return text.replace("%", " %");
  return plot.unit === "share" ? `${Number((Number(text) * 100).toFixed(4))} points` : amount(Number(text), plot.unit);
}

function describe(plot) {
  const mark = plot.marks[plot.marks.length - 1];
  const where = plot.variant ? ` on ${plot.variant}` : "";
  return (
    `${plot.metric}${where}: canary ${amount(mark[1], plot.unit)}, stable ${amount(mark[2], plot.unit)}; ` +
    `${boundsOf(plot)}; ${plural(plot.marks.length, "measurement")}, the last ${plot.verdict || "not judged"}. ` +
    "Arrow keys read earlier ones."
  );
}
