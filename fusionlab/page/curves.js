// For the shown token: both KLs, their targets and J against the weight of each expert alone, and the weight in use.

import { chipOf, el, hueOf, nats, number, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [260, 161];
const BOX = { left: 48, right: 12, top: 10, bottom: 29 };
const POINTS = 80;

/** Panels for one token; token is of resolve.js, weights (E,). Nodes, empty where there is nothing to draw. */
export function curvePanels(trace, token, weights, constraint, onlyMean) {
  const top = trace.grid[trace.grid.length - 1];
  const scale = constraint.scale;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return trace.experts.map((expert, e) => {
    const axis = token.axes[e];
    const aims = onlyMean ? [mean(token.targetForward), mean(token.targetReverse)]
      : [token.targetForward[e], token.targetReverse[e]];
    const panel = drawPanel({
      axis, top, weight: weights[e], targets: aims, aims: aims.map((aim) => scale * aim), constraint, alone: weights.filter((w) => w > 1e-4).length < 2,
    });
    const words = el("figcaption", {}, chipOf(trace, e), " ", el("strong", { text: expert.name }),
      el("span", { class: "value", text: `α = ${number(weights[e])}` }));
    return el("figure", { class: `panel ${hueOf(e)}` }, words, panel);
  });
}

function drawPanel({ axis, top, weight, targets, aims, constraint, alone }) {
  const forward = [];
  const reverse = [];
  const places = Array.from({ length: POINTS + 1 }, (_, i) => (top * i) / POINTS);
  for (const a of places) {
    forward.push(Math.max(0, axis.forward(a)));
    reverse.push(Math.max(0, axis.reverse(a)));
  }
  const [byForward, byReverse] = [constraint.direction !== "reverse", constraint.direction !== "forward"];
  const at = [Math.max(0, axis.forward(weight)), Math.max(0, axis.reverse(weight))];
  const budget = constraint.budget;
  const least = 0.5 * Math.max(...targets); // so that at a small scale the curves keep a shape
  const wanted = Math.max(least, 1.5 * aims[0], 1.5 * aims[1], 1.2 * at[0], 1.2 * at[1], budget !== null && budget < 4 * Math.max(...aims, 0.01) ? 1.2 * budget : 0);
  const highest = Math.max(Math.min(wanted, 1.05 * Math.max(forward[POINTS], reverse[POINTS])), 1e-6);
  const x = (a) => BOX.left + (a / top) * (WIDTH - BOX.left - BOX.right);
  const y = (value) => BOX.top + (1 - value / highest) * (HEIGHT - BOX.top - BOX.bottom);
  const objective = places.map((_, i) => (byForward ? (forward[i] - aims[0]) ** 2 : 0) + (byReverse ? (reverse[i] - aims[1]) ** 2 : 0));
  const unit = objective[0] || Math.max(...objective) || 1;
  const floor = y(0);
  const clip = `panel-clip-${(clips += 1)}`;
  const curve = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(places[i]).toFixed(1)} ${y(Math.min(value, 3 * highest)).toFixed(1)}`).join("");
  const valley = objective.map((value, i) => `L${x(places[i]).toFixed(1)} ${y(Math.min(1, value / unit) * highest).toFixed(1)}`).join("");
  const shown = svg("g", { "clip-path": `url(#${clip})` },
    svg("path", { class: "valley", d: `M${x(0)} ${floor}${valley}L${x(top)} ${floor}Z` }),
    byForward ? target("forward", y(aims[0])) : null, byReverse ? target("reverse", y(aims[1])) : null,
    budget !== null ? svg("line", { class: "bound", x1: x(0), x2: x(top), y1: y(budget), y2: y(budget) }) : null,
    svg("path", { class: `forward${byForward ? "" : " unused"}`, d: curve(forward) }),
    svg("path", { class: `reverse${byReverse ? "" : " unused"}`, d: curve(reverse) }),
    svg("line", { class: "chosen", x1: x(weight), x2: x(weight), y1: BOX.top, y2: floor }),
    alone ? svg("circle", { class: "forward-dot", cx: x(weight), cy: y(at[0]), r: 3 }) : null,
    alone ? svg("circle", { class: "reverse-dot", cx: x(weight), cy: y(at[1]), r: 3 }) : null);
  const ticks = [0, 0.5, 1, 1.5, 2].filter((a) => a <= top).map((a) => svg("text", {
    x: x(a), y: HEIGHT - 14, "text-anchor": "middle", text: String(a),
  }));
  const limit = constraint.alpha_max < top
    ? svg("rect", { class: "beyond", x: x(constraint.alpha_max), y: BOX.top, width: x(top) - x(constraint.alpha_max), height: floor - BOX.top })
    : null;
  return svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `KL(P̃‖P) ${nats(at[0])} and KL(P‖P̃) ${nats(at[1])} nats at weight ${number(weight)} alone; `
      + `targets ${nats(aims[0])} and ${nats(aims[1])}`,
  },
  svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", { x: BOX.left, y: BOX.top - 3, width: WIDTH - BOX.left - BOX.right + 3, height: floor - BOX.top + 4 }))),
  shown, limit, svg("path", { class: "axis", d: `M${x(0)} ${BOX.top}V${floor}H${x(top)}` }), ...ticks,
  svg("text", { x: BOX.left - 5, y: floor, "text-anchor": "end", text: "0" }),
  svg("text", { x: BOX.left - 5, y: BOX.top + 8, "text-anchor": "end", text: nats(highest) }),
  svg("text", { x: WIDTH - BOX.right, y: HEIGHT - 2.5, "text-anchor": "end", text: "weight α" }));
}

function target(kind, y) {
  return svg("line", { class: `target ${kind}`, x1: BOX.left, x2: WIDTH - BOX.right, y1: y, y2: y });
}

let clips = 0; // ids of clip paths are one name space a page

/** What the lines of the panels are. */
export function curveLegend(constraint, onlyMean) {
  const line = (kind, text) => el("span", { class: "key" }, svg("svg", { width: 22, height: 10, "aria-hidden": "true" },
    svg("line", { class: kind, x1: 1, x2: 21, y1: 5, y2: 5 })), el("span", { text }));
  const area = el("span", { class: "key" }, svg("svg", { width: 22, height: 10, "aria-hidden": "true" },
    svg("rect", { class: "valley", width: 22, height: 10 })), el("span", { text: "J, as a share of J at α = 0" }));
  return el("p", { class: "keys" }, line("forward", "KL(P̃‖P)"), line("reverse", "KL(P‖P̃)"),
    line("target forward", `${onlyMean ? "mean " : ""}targets, × κ`), area, constraint.budget === null ? null : line("bound", "budget"));
}
