// The linked views on one trace: token strip, weight heatmap, KL curves, inspector, comparison of texts.
//
// One selection (an index of a token) links all of them, and one constraint: a preview is solved again in the browser,
// from the tables of the trace, by resolve.js. Model text is only ever set with textContent. No dependency, no request.

import { comparison } from "./compare.js";
import { download, el } from "./dom.js";
import { Heatmap } from "./heatmap.js";
import { shadowHost } from "./host.js";
import { Inspector } from "./inspector.js";
import { growTrace, readTrace } from "./payload.js";
import { completeConstraint, Resolver } from "./resolve.js";
import { Strip, stripLegend } from "./strip.js";
import { describeToken, greatestWeight, recordedSolution } from "./tokens.js";

/**
 * What `fusionlab.trace_payload.trace_payload(trace)` gives; see its docstring. Never written by hand.
 * @typedef {Object} Payload
 *
 * A constraint in the form of `KLConstraint.to_dict()`, and the method. Fields that are left out keep their value.
 * @typedef {Object} Constraint
 * @property {number} [scale]
 * @property {"both"|"forward"|"reverse"} [direction]
 * @property {number} [alpha_max]
 * @property {number|null} [budget]   nats
 * @property {{experts: Object<string, number>, tokens: Object<string, number|Object<string, number>>}|null} [force]
 * @property {string} [method]
 *
 * @typedef {Object} Options
 * @property {boolean} [live]   a kernel can go on from here: candidates and weights become what-ifs (default false)
 *
 * A change of the user's, made in the inspector. `alpha` maps the names of experts to weights.
 * @typedef {{index: number, token_id: number}|{index: number, alpha: Object<string, number>}} WhatIf
 *
 * What a constraint would do to the trace as it stands.
 * @typedef {Object} Preview
 * @property {Constraint} constraint  complete, with `method`
 * @property {number[]} changed       tokens whose most likely token would be another one, ascending; -1 never occurs
 * @property {number[]} uncertain     tokens of which this cannot be told from the trace
 * @property {string|null} note       in words, where the method could not be solved again as it is
 *
 * @typedef {Object} Handle
 * @property {(payload: Payload) => void} setPayload      another trace; the selection is kept where it still exists
 * @property {(payload: Payload) => void} appendToken     more tokens of the same trace: `trace_payload(trace, start=n)`
 * @property {(constraint: Constraint, how?: {preview?: boolean}) => Preview} setConstraint
 *     preview (default true): solve again and mark what would change; false: the trace is now one of this constraint
 * @property {(index: number) => void} select             counted from 0; clipped to the trace
 * @property {(callback: (index: number) => void) => void} onSelect
 * @property {(callback: (whatIf: WhatIf) => void) => void} onWhatIf    only called with options.live
 * @property {(alternatives: {name: string, token_ids: number[], pieces: string[]}[]) => void} setAlternatives
 * @property {() => string} exportSVG                     the heatmap as a self-contained SVG document
 * @property {() => Promise<Blob>} exportPNG              the same as a PNG, at twice the size
 * @property {() => void} destroy                         listeners and nodes are gone afterwards
 */

/**
 * Show a trace in an element, in a shadow root of its own.
 * @param {HTMLElement} element
 * @param {Payload} payload
 * @param {Options} [options]
 * @returns {Handle}
 */
export function mountViews(element, payload, options = {}) {
  return new Views(element, payload, options).handle();
}

const SETTLE_MS = 250; // after the last change, labels for screen readers are brought up to date

class Views {
  constructor(element, payload, options) {
    const trace = readTrace(payload); // first: what cannot be read leaves nothing behind
    this.options = options;
    this.listeners = { select: [], whatIf: [] };
    const actions = { select: (i, focus) => this.select(i, focus), hover: (i) => this.hover(i) };
    this.strip = new Strip(actions);
    this.heatmap = new Heatmap(actions);
    this.inspector = new Inspector({
      force: (i, alpha) => this.force(i, alpha),
      choose: (index, tokenId) => this.tell("whatIf", { index, token_id: tokenId }),
      goOn: (index, alpha) => this.tell("whatIf", { index, alpha }),
    });
    this.legend = el("div", { class: "legend" });
    this.answers = el("section", { class: "comparison", "aria-label": "Comparison of answers" });
    this.said = el("p", { class: "hidden-text", "aria-live": "polite" });
    this.frame = el("div", { class: "heatmap-frame" }, this.heatmap.node);
    this.buildLayout();
    this.host = shadowHost(element, this.layout, (theme) => this.setTheme(theme));
    this.resizing = new ResizeObserver(() => this.fit());
    this.resizing.observe(this.frame);
    this.selected = null; // the first flipped token of the first trace: what a reader came for
    this.setTrace(trace);
  }

  buildLayout() {
    const hint = el("p", { class: "note hint" }, "Point at a token to look at it, click to keep it. ",
      ...[["←", "→"], ["↑", "↓"]].flatMap(([one, other], at) => [
        el("kbd", { text: one }), " ", el("kbd", { text: other }), at ? " by marked token." : " by token, "]));
    const saves = el("span", { class: "saves" }, ...[["SVG", () => this.saveSVG()], ["PNG", () => this.savePNG()]].map(
      ([kind, save]) => el("button", { type: "button", text: kind, title: `Save the heatmap as ${kind}`, on: { click: save } })));
    this.map = el("section", { "aria-label": "Weight heatmap" }, el("h3", {}, el("span", { text: "Weights, expert by token" }), saves), this.frame);
    const reading = el("div", { class: "reading" },
      el("section", { "aria-label": "Text" }, el("h3", { text: "Emitted text" }), hint, this.strip.node, this.legend), this.map, this.inspector.curves);
    this.layout = el("div", { class: "views" }, reading, this.inspector.node, this.answers, this.said);
  }

  handle() {
    return {
      setPayload: (payload) => this.setPayload(payload),
      appendToken: (payload) => this.appendToken(payload),
      setConstraint: (constraint, how) => this.setConstraint(constraint, how),
      select: (index) => this.select(index),
      onSelect: (callback) => this.listeners.select.push(callback),
      onWhatIf: (callback) => this.listeners.whatIf.push(callback),
      onForce: (callback) => { this.forced = callback; },
      setAlternatives: (alternatives) => this.setAlternatives(alternatives),
      exportSVG: () => this.heatmap.toSVG(),
      exportPNG: () => this.heatmap.toPNG(),
      destroy: () => this.destroy(),
      views: this,
    };
  }

  // -- what is shown ------------------------------------------------------------------------------

  setPayload(payload) {
    this.setTrace(readTrace(payload));
  }

  appendToken(payload) {
    const follows = this.trace.size === 0 || this.selected === this.trace.size - 1;
    const trace = growTrace(this.trace, payload);
    if (follows) this.selected = trace.size - 1; // whoever looks at the end goes on looking at the end
    this.setTrace(trace);
  }

  setTrace(trace) {
    this.trace = trace;
    this.resolver = trace.grid && trace.experts.length ? new Resolver(trace) : null;
    this.base = completeConstraint(trace.constraint, { method: trace.method });
    this.constraint = this.base;
    this.previewing = false;
    this.recorded = recordedSolution(trace);
    this.greatest = greatestWeight(trace);
    this.solved = this.recorded;
    this.selected ??= Math.max(0, trace.columns.flipped_by.values.findIndex((expert) => expert >= 0));
    this.selected = Math.min(this.selected, Math.max(0, trace.size - 1));
    this.hovered = null;
    this.map.hidden = !trace.experts.length || !trace.size;
    this.strip.setTrace(trace);
    this.inspector.setTrace(trace);
    this.answers.replaceChildren(...withHeading("The same prompt, answered by others", comparison(trace)));
    this.fit(true);
    this.paint();
  }

  setAlternatives(alternatives) {
    this.trace.alternatives = alternatives.map((answer) => ({
      groups: answer.pieces.map((piece, i) => [i, i + 1, piece]), ...answer,
    }));
    this.answers.replaceChildren(...withHeading("The same prompt, answered by others", comparison(this.trace)));
  }

  setConstraint(changes, { preview = true } = {}) {
    const wanted = completeConstraint(this.base, changes);
    if (!preview) this.base = wanted;
    this.constraint = wanted;
    this.previewing = sameConstraint(wanted, this.base) === false;
    this.solved = this.previewing && this.resolver ? this.resolver.solve(wanted) : this.recorded;
    this.paint();
    return this.preview();
  }

  preview() {
    const { solved, constraint, trace } = this;
    return { constraint, changed: solved.changed, uncertain: solved.uncertain, note: trace.resolve.note };
  }

  /** Weights to try at one token; null: those of the solver again. */
  force(i, alpha) {
    const held = this.constraint.force ?? { experts: {}, tokens: {} };
    const tokens = { ...held.tokens };
    if (alpha === null) delete tokens[i];
    else tokens[i] = alpha;
    const isEmpty = !Object.keys(tokens).length && !Object.keys(held.experts ?? {}).length;
    this.setConstraint({ ...this.constraint, force: isEmpty ? null : { experts: held.experts ?? {}, tokens } });
    this.forced?.(this.preview());
  }

  paint() {
    const { solved, greatest } = this;
    if (this.trace.size) this.heatmap.paint(solved, greatest);
    this.strip.paint(solved, greatest);
    this.legend.replaceChildren(stripLegend(this.trace, solved, greatest));
    this.point();
    this.settleSoon();
  }

  settleSoon() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLE_MS);
  }

  settle() {
    this.strip.settle();
    if (this.trace.size && !this.map.hidden) this.heatmap.settle();
  }

  point(focus = false) {
    const shown = this.hovered ?? this.selected;
    this.strip.point(this.selected, shown, focus);
    if (!this.map.hidden) this.heatmap.point(shown);
    this.inspector.show({
      solved: this.solved, resolver: this.resolver, constraint: this.constraint, previewing: this.previewing,
      live: Boolean(this.options.live),
    }, shown);
  }

  // -- selection ------------------------------------------------------------------------------------

  select(index, focus = false) {
    if (!this.trace.size) return;
    const next = Math.min(this.trace.size - 1, Math.max(0, Math.trunc(index)));
    const moved = next !== this.selected;
    this.selected = next;
    this.hovered = null;
    this.point(focus);
    if (!this.map.hidden) this.heatmap.reveal(this.frame);
    this.said.textContent = describeToken(this.trace, this.solved, next);
    if (moved) this.tell("select", next);
  }

  hover(index) {
    if (index === this.hovered) return;
    this.hovered = index;
    this.point();
  }

  tell(kind, value) {
    for (const callback of this.listeners[kind]) callback(value);
  }

  // -- size, theme, files ------------------------------------------------------------------------------

  fit(always = false) {
    const width = Math.floor(this.frame.clientWidth) || 640;
    if (!always && width === this.heatmap.width) return;
    this.heatmap.setTrace(this.trace, width);
    if (this.trace.size && this.solved) {
      this.heatmap.paint(this.solved, this.greatest);
      if (!this.map.hidden) this.heatmap.point(this.hovered ?? this.selected);
      this.settleSoon();
    }
  }

  setTheme(theme) {
    this.heatmap.theme = theme;
    if (this.trace) this.fit(true);
  }

  saveSVG() {
    download(this.heatmap.toSVG(), "weights.svg", "image/svg+xml");
  }

  async savePNG() {
    download(await this.heatmap.toPNG(), "weights.png");
  }

  destroy() {
    clearTimeout(this.settling);
    this.resizing.disconnect();
    this.host.leave();
  }
}

function withHeading(text, nodes) {
  return nodes.length ? [el("h3", { text }), ...nodes] : [];
}

function sameConstraint(one, other) {
  const keys = ["scale", "direction", "alpha_max", "budget", "method"];
  return keys.every((key) => one[key] === other[key]) && JSON.stringify(one.force ?? null) === JSON.stringify(other.force ?? null);
}
