// Experts by tokens: the weight of each as a colour, flips and changes as signs, and below how far each token moved.

import { nats, number, oneLine, setAttribute, shortened, svg } from "./dom.js";
import { nextToken } from "./strip.js";
import { tokenText, weightsOf } from "./tokens.js";

// One hue from light to dark (dark page: dark to light): order survives every kind of colour blindness, and print.
const RAMPS = {
  light: [[238, 242, 247], [168, 207, 233], [58, 141, 200], [11, 60, 110], [4, 30, 62]],
  dark: [[36, 41, 50], [26, 78, 122], [48, 134, 196], [140, 200, 240], [235, 247, 255]],
};
const INK = { light: "#1b2028", dark: "#e8ebf0" };
const SOFT = { light: "#59626f", dark: "#a7b0bd" };
const PAPER = { light: "#ffffff", dark: "#16181d" };
const ALERT = { light: "#c2410c", dark: "#ff9b5e" };
const BAR = { light: "#7a8494", dark: "#8b95a5" };
const ROW = 24;
const TOP = 40; // colour bar, and signs above the first row
const MOVED = 30; // bars of KL(P~||P)
const LABELS = 66;
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";

let ramps = 0; // ids of gradients are one name space a page

/** The colour of a share of the greatest weight, as CSS reads it. */
export function rampColor(share, theme) {
  const stops = RAMPS[theme];
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const left = Math.min(stops.length - 2, Math.floor(place));
  const mixed = stops[left].map((value, c) => Math.round(value + (place - left) * (stops[left + 1][c] - value)));
  return `rgb(${mixed.join(" ")})`;
}

export class Heatmap {
  /** @param {{select: (i: number) => void, hover: (i: number|null) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.theme = "light";
    this.row = 0;
    this.node = svg("svg", {
      class: "heatmap", role: "grid", tabindex: 0, "aria-label": "Weights: experts by tokens",
      on: {
        click: (event) => this.at(event, (i) => actions.select(i)),
        mousemove: (event) => this.at(event, (i) => actions.hover(i)),
        mouseleave: () => actions.hover(null),
        keydown: (event) => this.move(event),
      },
    });
  }

  /** Draw for a trace at a width in pixels. */
  setTrace(trace, width) {
    this.trace = trace;
    this.width = width;
    const [n, e] = [trace.size, trace.experts.length];
    this.name = trace.experts.map(({ letter, name }) => `${letter} ${shortened(name, 15)}`);
    this.left = Math.max(68, 18 + 7.4 * Math.max(0, ...this.name.map((name) => [...name].length)));
    this.step = n ? Math.min(34, Math.max(2.5, (width - this.left - 12) / n)) : 0;
    const full = Math.max(width, Math.ceil(this.left + n * this.step + 12));
    this.bottom = TOP + e * ROW;
    const height = this.bottom + MOVED + LABELS;
    this.node.replaceChildren();
    for (const [name, value] of Object.entries({ width: full, height, viewBox: `0 0 ${full} ${height}` })) {
      this.node.setAttribute(name, value);
    }
    this.cells = [];
    this.drawFrame(full);
    this.drawn = null;
  }

  drawFrame(full) {
    const { trace, theme, left, step } = this;
    const gap = step > 8 ? 1 : 0;
    const names = this.name.map((text, e) => svg("text", {
      x: left - 8, y: TOP + e * ROW + 16, "text-anchor": "end", fill: INK[theme], text,
    }));
    const rows = trace.experts.map((_, e) => {
      this.cells[e] = Array.from({ length: trace.size }, (_unused, i) => svg("rect", {
        role: "gridcell", id: `cell-${e}-${i}`, x: left + i * step, y: TOP + e * ROW + 1, width: Math.max(1, step - gap),
        height: ROW - 2, rx: step > 8 ? 2 : 0,
      }));
      return svg("g", { role: "row", "aria-label": trace.experts[e].name }, ...this.cells[e]);
    });
    const every = Math.max(1, Math.ceil(12 / Math.max(step, 1e-9)));
    const labels = trace.pieces.flatMap((_, i) => (i % every ? [] : [this.label(i, SOFT[theme], 400)]));
    this.signs = svg("g", { "pointer-events": "none" });
    [this.flips, this.dots, this.flipOf, this.wouldBe] = [[], [], new Int32Array(trace.size).fill(-1), []];
    this.bars = trace.pieces.map((_, i) => svg("rect", { x: left + i * step, width: Math.max(1, step - gap), height: 0, fill: BAR[theme] }));
    this.scaleKey = null;
    this.cursor = svg("g", { "pointer-events": "none" });
    this.scale = svg("g", { "pointer-events": "none" });
    const line = svg("line", { x1: left, x2: full - 12, y1: this.bottom + MOVED, y2: this.bottom + MOVED, stroke: BAR[theme] });
    this.node.append(svg("g", { "font-size": 12, "font-family": FONT }, this.scale, ...names, ...rows, svg("g", { "pointer-events": "none" }, ...this.bars), line,
      svg("text", { x: left - 8, y: this.bottom + MOVED - 4, "text-anchor": "end", fill: SOFT[theme], text: "KL(P̃‖P)" }),
      svg("g", { "font-size": 11 }, ...labels), this.signs, this.cursor));
  }

  label(i, fill, weight) {
    const [x, y] = [this.left + (i + 0.5) * this.step + 3, this.bottom + MOVED + 9];
    return svg("text", {
      x, y, fill, "font-weight": weight, "text-anchor": "end", transform: `rotate(-55 ${x} ${y})`,
      text: oneLine(shortened(tokenText(this.trace, i).replace(/^␣+(?=[^␣])/, ""), 10)),
    });
  }

  /** Colours and signs of a solution. */
  paint(solved, greatest) {
    const { trace, theme } = this;
    this.solved = solved;
    this.greatest = greatest;
    const key = `${theme} ${greatest}`;
    const [n, e] = [trace.size, trace.experts.length];
    const before = this.drawn?.key === key ? this.drawn.alpha : null;
    for (let i = 0; i < n; i++) {
      for (let x = 0; x < e; x++) {
        const weight = solved.alpha[i * e + x];
        if (before !== null && before[i * e + x] === weight) continue;
        this.cells[x][i].setAttribute("fill", rampColor(weight / greatest, theme));
      }
    }
    this.drawn = { key, alpha: Float32Array.from(solved.alpha) };
    this.paintSigns(solved);
    let farthest = 0;
    for (const value of solved.forward) if (value > farthest) farthest = value;
    this.bars.forEach((bar, i) => {
      const height = farthest ? ((MOVED - 8) * Math.max(0, solved.forward[i])) / farthest : 0;
      bar.setAttribute("height", height.toFixed(1));
      bar.setAttribute("y", (this.bottom + MOVED - height).toFixed(1));
    });
    if (key === this.scaleKey && farthest === this.farthest) return;
    [this.scaleKey, this.farthest] = [key, farthest];
    this.drawScale(farthest);
  }

  /** A triangle on the expert that flips a token, a dot over a token that would change; drawn once, then moved. */
  paintSigns(solved) {
    const { trace, theme, left, step } = this;
    const changed = new Set(solved.changed);
    const size = Math.min(5, Math.max(2, step / 2.6));
    for (let i = 0; i < trace.size; i++) {
      const [by, would] = [solved.flippedBy[i], changed.has(i)];
      const x = left + (i + 0.5) * step;
      if (by !== this.flipOf[i]) {
        this.flipOf[i] = by;
        this.flips[i] ??= this.signs.appendChild(svg("path", {
          d: `M0 ${-size} L${-size} ${size} L${size} ${size} Z`, fill: "#f2b134", stroke: "#1b2028", "stroke-width": 1,
        }));
        setAttribute(this.flips[i], "transform", by < 0 ? null : `translate(${x} ${TOP + by * ROW + ROW / 2})`);
        setAttribute(this.flips[i], "display", by < 0 ? "none" : null);
      }
      if (would !== Boolean(this.wouldBe[i])) {
        this.wouldBe[i] = would;
        this.dots[i] ??= this.signs.appendChild(svg("circle", { cx: x, cy: TOP - 6, r: Math.min(3.5, Math.max(2, step / 3)), fill: ALERT[theme] }));
        setAttribute(this.dots[i], "display", would ? null : "none");
      }
    }
  }

  drawScale(farthest) {
    const { theme, left } = this;
    const stops = RAMPS[theme].map((_, i, all) => svg("stop", { offset: i / (all.length - 1), "stop-color": rampColor(i / (all.length - 1), theme) }));
    const id = `ramp-${(ramps += 1)}`;
    const words = (x, text) => svg("text", { x, y: 16, "font-size": 11, fill: SOFT[theme], text });
    this.scale.replaceChildren(svg("defs", {}, svg("linearGradient", { id }, ...stops)),
      svg("rect", { x: left + 64, y: 8, width: 96, height: 9, rx: 2, fill: `url(#${id})` }), words(left, "weight α"), words(left + 53, "0"),
      words(left + 165, `${number(this.greatest)}`), words(left + 208, `bars to ${nats(farthest)} nats`));
  }

  /** Mark the token that is shown. */
  point(shown) {
    const { trace, theme, left, step } = this;
    if (!trace.size) return;
    const x = left + shown * step;
    const frame = svg("rect", {
      x: x - 1.5, y: TOP - 1.5, width: Math.max(1, step - (step > 8 ? 1 : 0)) + 3, height: this.bottom - TOP + MOVED + 3, rx: 3,
      fill: "none", stroke: INK[theme], "stroke-width": 1.75,
    });
    this.cursor.replaceChildren(frame, this.label(shown, INK[theme], 700));
    this.shown = shown;
    if (trace.experts.length) this.node.setAttribute("aria-activedescendant", `cell-${Math.min(this.row, trace.experts.length - 1)}-${shown}`);
  }

  /** Scroll a frame that is narrower than the figure to where the shown token is. */
  reveal(frame) {
    const x = this.left + this.shown * this.step;
    if (x < frame.scrollLeft + this.left || x > frame.scrollLeft + frame.clientWidth - 20) frame.scrollLeft = x - frame.clientWidth / 2;
  }

  /** Labels for screen readers; apart from `paint`, which runs on every frame of a drag. */
  settle() {
    const { trace } = this;
    for (let i = 0; i < trace.size; i++) {
      const weights = weightsOf(trace, this.solved, i);
      trace.experts.forEach(({ name }, e) => {
        const flipped = this.solved.flippedBy[i] === e ? ", flipped by it" : "";
        this.cells[e][i].setAttribute("aria-label", `${name}, token ${i + 1} ${tokenText(trace, i)}: ${number(weights[e])}${flipped}`);
      });
    }
  }

  at(event, act) {
    const x = event.clientX - this.node.getBoundingClientRect().left - this.left;
    const i = Math.floor(x / this.step);
    if (x >= 0 && i < this.trace.size) act(i);
  }

  move(event) {
    const { trace } = this;
    if (trace.experts.length > 1 && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      this.row = Math.min(trace.experts.length - 1, Math.max(0, this.row + (event.key === "ArrowDown" ? 1 : -1)));
      event.preventDefault();
      this.point(this.shown);
      return;
    }
    const next = nextToken(event, trace, this.shown, (i) => this.solved.flippedBy[i] >= 0);
    if (next === null) return;
    event.preventDefault();
    this.actions.select(next);
  }

  /** The figure as a document of its own, in light colours, without the selection. */
  toSVG() {
    const twin = new Heatmap({ select: () => {}, hover: () => {} });
    twin.setTrace(this.trace, Math.max(480, this.width));
    twin.paint(this.solved, this.greatest);
    twin.settle();
    for (const name of ["tabindex", "class"]) setAttribute(twin.node, name, null);
    const [width, height] = [twin.node.getAttribute("width"), twin.node.getAttribute("height")];
    twin.node.prepend(svg("rect", { width, height, fill: PAPER.light }));
    return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(twin.node)}`;
  }

  /** The same as a PNG, at twice the size. */
  async toPNG() {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(this.toSVG())}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.naturalWidth, 2 * image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser made no image."))), "image/png");
    });
  }
}
