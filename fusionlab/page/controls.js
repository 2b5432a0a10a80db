// The constraint's controls, and the views with them: what pages, saved notebooks and widgets show.

import { el, number, setAttribute } from "./dom.js";
import { shadowHost } from "./host.js";
import { completeConstraint } from "./resolve.js";
import { mountViews } from "./views.js";

/**
 * @typedef {import("./views.js").Payload} Payload
 * @typedef {import("./views.js").Handle} Handle
 * @typedef {import("./views.js").Preview} Preview
 *
 * @typedef {Object} TraceOptions
 * @property {boolean} [live]             as in mountViews; also: releasing a control asks for a new generation
 * @property {number} [forwardPasses]     forward passes since the last generation (default 0)
 * @property {boolean} [controls]         show the controls of the constraint (default true)
 * @property {HTMLElement} [controlsPlace] where to put them; not given, above the views
 * @property {string[]} [methods]         also offered beside those that the trace can be solved again with: a kernel can
 * @property {boolean} [prompt]           show the prompt and how the trace was made (default true)
 *
 * @typedef {Handle & {
 *   onConstraint: (callback: (preview: Preview, released: boolean) => void) => void,
 *   setForwardPasses: (count: number) => void,
 * }} TraceHandle
 *     onConstraint: on every frame of a drag that shows something new (released = false), and once with true when the
 *     control is let go. `preview.changed[0]` is the first token to write again.
 */


const PRESETS = [
  ["Paper", "κ = 1, both directions, weights up to 2", { scale: 1, direction: "both", alpha_max: 2, budget: null }],
  ["Large untouched", "κ = 0: every weight is 0", { scale: 0, direction: "both", alpha_max: 2, budget: null }],
  ["Cautious", "κ = 1 within a budget of 0.2 nats a token", { scale: 1, direction: "both", alpha_max: 2, budget: 0.2 }],
  ["Strong", "κ = 1.6: more than half as much change again", { scale: 1.6, direction: "both", alpha_max: 2, budget: null }],
];
const METHOD_WORDS = {
  exact: "The minimum of J over every weight; of several experts the one with the least J.",
  grid: "The paper’s search: J at 0, 0.1, 0.2 …; of several experts the one with the least J.",
  evidence: "Each expert’s own minimum, times how well it predicted the text so far.",
  static: "The same weight κ for every expert at every token: proxy tuning.",
  average: "The mean of the experts’ changes, times κ.",
  joint: "J over all weights at once.",
  predicted: "Weights by regression, corrected once.",
};
const DIRECTIONS = [["both", "both"], ["forward", "KL(P̃‖P)"], ["reverse", "KL(P‖P̃)"]];
const BUDGETS = [0.005, 5]; // nats, ends of a slider on a logarithmic scale

/**
 * Controls and views of one trace, linked. This is what pages, saved notebooks and widgets show.
 * @param {HTMLElement} element
 * @param {Payload} payload
 * @param {TraceOptions} [options]
 * @returns {TraceHandle}
 */
export function mountTrace(element, payload, options = {}) {
  const prompt = el("div", { class: "prompt", dir: "auto" });
  const facts = el("dl", { class: "facts" });
  const place = el("div");
  const details = el("details", {}, el("summary", { text: "How this was made" }), facts);
  const controls = new Controls(options.methods);
  const apart = options.controlsPlace ? shadowHost(options.controlsPlace, controls.node) : null;
  const content = el("div", { class: "trace" },
    options.prompt === false ? null : el("section", { "aria-label": "Prompt" }, el("h3", { text: "Prompt" }), prompt),
    options.controls === false || apart ? null : controls.node, place, options.prompt === false ? null : details);
  const host = shadowHost(element, content);
  let views;
  try {
    views = mountViews(place, payload, options);
  } catch (error) {
    apart?.leave();
    host.leave();
    throw error;
  }
  const listeners = [];
  let pending = null;
  let frame = 0;

  function describe(trace) {
    prompt.textContent = trace.prompt;
    facts.replaceChildren(...trace.facts.map(([label, words]) => el("div", {}, el("dt", { text: label }), el("dd", { text: words }))));
    controls.setTrace(trace, views.views.base);
    controls.report(views.views.preview(), trace);
  }
  function apply(released) {
    cancelAnimationFrame(frame);
    frame = 0;
    if (pending === null) return;
    const preview = views.setConstraint(pending);
    pending = released ? null : pending;
    report(preview, released);
  }
  function report(preview, released) {
    controls.report(preview, views.views.trace);
    for (const listener of listeners) listener(preview, released);
  }
  controls.onChange = (changes, released) => {
    pending = { ...views.views.constraint, ...changes }; // what came before and was not shown yet is dropped
    if (released) apply(true);
    else if (!frame) frame = requestAnimationFrame(() => apply(false));
  };
  views.onForce((preview) => report(preview, false));
  controls.setForwardPasses(options.forwardPasses ?? 0, Boolean(options.live));
  describe(views.views.trace);

  return {
    ...views,
    setPayload(next) {
      pending = null;
      views.setPayload(next);
      describe(views.views.trace);
    },
    appendToken(next) {
      views.appendToken(next);
      controls.report(views.views.preview(), views.views.trace);
    },
    setConstraint(changes, how) {
      const preview = views.setConstraint(changes, how);
      controls.show(preview.constraint);
      controls.report(preview, views.views.trace);
      return preview;
    },
    onConstraint: (listener) => listeners.push(listener),
    setForwardPasses: (count) => controls.setForwardPasses(count, Boolean(options.live)),
    destroy() {
      cancelAnimationFrame(frame);
      views.destroy();
      apart?.leave();
      host.leave();
    },
  };
}

/** Words in place of views: an error, or what is being waited for. */
export function mountMessage(element, words, kind = "error") {
  const content = el("p", { class: `message ${kind}`, role: kind === "error" ? "alert" : "status", text: words });
  const host = shadowHost(element, content);
  return { destroy: () => host.leave() };
}

class Controls {
  constructor(alsoOffered = []) {
    this.alsoOffered = alsoOffered;
    this.onChange = () => {};
    this.inputs = {};
    this.values = {};
    this.fields = el("div", { class: "fields" },
      this.slider("scale", "Scale κ", 0, 2, 0.01), this.slider("alpha_max", "Greatest weight", 0.1, 2, 0.05,
        "No expert’s weight goes above this."), this.budgetField(), this.directionField(), this.methodField());
    this.presets = el("div", { class: "presets", role: "group", "aria-label": "Presets" });
    this.summary = el("p", { class: "summary", role: "status" });
    this.passes = el("p", { class: "passes" });
    this.note = el("p", { class: "note" });
    this.node = el("section", { class: "controls", "aria-label": "Constraint" },
      el("div", { class: "top" }, el("h3", { text: "Constraint" }), this.presets), this.fields,
      el("div", { class: "outcome" }, this.summary, this.passes), this.note);
  }

  field(name, label, body, words) {
    this.values[name] = el("output", { class: "value" });
    this.words = { ...this.words, [name]: el("p", { class: "note", id: `about-${name}`, text: words }) };
    return el("div", { class: `field field-${name}` }, el("div", { class: "label" }, label, this.values[name]), body, this.words[name]);
  }

  slider(name, label, min, max, step, words = "") {
    const input = el("input", {
      type: "range", min, max, step, id: `control-${name}`, "aria-describedby": `about-${name}`,
      on: {
        input: () => this.change({ [name]: Number(input.value) }, false),
        change: () => this.change({ [name]: Number(input.value) }, true),
      },
    });
    this.inputs[name] = input;
    return this.field(name, el("label", { for: `control-${name}`, text: label }), input, words);
  }

  budgetField() {
    const toNats = (place) => BUDGETS[0] * (BUDGETS[1] / BUDGETS[0]) ** place;
    const read = () => (this.isBound.checked ? Number(toNats(Number(input.value)).toPrecision(2)) : null);
    const input = el("input", {
      type: "range", min: 0, max: 1, step: 0.005, id: "control-budget", "aria-label": "Budget in nats", "aria-describedby": "about-budget",
      on: { input: () => this.change({ budget: read() }, false), change: () => this.change({ budget: read() }, true) },
    });
    this.isBound = el("input", { type: "checkbox", id: "control-bound", on: { change: () => this.change({ budget: read() }, true) } });
    this.inputs.budget = input;
    this.placeOf = (budget) => Math.log(budget / BUDGETS[0]) / Math.log(BUDGETS[1] / BUDGETS[0]);
    return this.field("budget", el("label", {}, this.isBound, " Budget"), input,
      "No token moves further than KL(P̃‖P) = budget: its weights are shortened until they fit.");
  }

  directionField() {
    this.directions = DIRECTIONS.map(([value, text]) => {
      const input = el("input", { type: "radio", name: `direction-${(groups += 1)}`, value, on: { change: () => this.change({ direction: value }, true) } });
      return [input, el("label", {}, input, el("span", { text }))];
    });
    for (const [input] of this.directions) input.name = this.directions[0][0].name;
    return this.field("direction", el("span", { text: "Direction" }),
      el("div", { class: "segments", role: "radiogroup", "aria-label": "Direction", "aria-describedby": "about-direction" },
        ...this.directions.map(([, label]) => label)), "");
  }

  methodField() {
    this.method = el("select", {
      id: "control-method", "aria-describedby": "about-method", on: { change: () => this.change({ method: this.method.value }, true) },
    });
    return this.field("method", el("label", { for: "control-method", text: "Method" }), this.method, "");
  }

  change(changes, released) {
    this.current = { ...this.current, ...changes };
    this.showWords();
    this.onChange(changes, released);
  }

  setTrace(trace, base) {
    this.base = base;
    const { methods, note } = trace.resolve;
    this.note.textContent = note ?? "";
    this.note.hidden = !note;
    setAttribute(this.fields, "hidden", !methods.length);
    setAttribute(this.presets, "hidden", !methods.length);
    const listed = [...new Set([...methods, base.method, ...this.alsoOffered])];
    this.method.replaceChildren(...listed.map((name) => el("option", { value: name, text: name })));
    this.inputs.alpha_max.max = trace.grid ? trace.grid[trace.grid.length - 1] : 2;
    const recorded = ["As recorded", "the constraint and method of this trace", base];
    this.presets.replaceChildren(...[recorded, ...PRESETS].map(([text, title, changes]) => el("button", {
      type: "button", text, title, on: { click: () => { this.show({ ...this.current, force: null, ...changes }); this.onChange({ force: null, ...changes }, true); } },
    })));
    this.show(base);
  }

  /** Set every control to a constraint, without telling anyone. */
  show(constraint) {
    this.current = completeConstraint(constraint);
    this.inputs.scale.value = constraint.scale;
    this.inputs.alpha_max.value = constraint.alpha_max;
    this.isBound.checked = constraint.budget !== null;
    this.inputs.budget.value = constraint.budget === null ? this.placeOf(0.2) : this.placeOf(Math.max(constraint.budget, BUDGETS[0]));
    for (const [input] of this.directions) input.checked = input.value === constraint.direction;
    this.method.value = constraint.method;
    this.showWords();
  }

  showWords() {
    const { scale, alpha_max: top, budget, direction, method } = this.current;
    this.values.scale.textContent = number(scale);
    this.values.alpha_max.textContent = number(top);
    this.values.budget.textContent = budget === null ? "none" : `${Number(budget.toPrecision(2))} nats`;
    this.inputs.budget.disabled = budget === null;
    const fixed = method === "static" || method === "average";
    this.words.scale.textContent = fixed ? "With a fixed weight, κ is that weight."
      : scale === 0 ? "The large model as it is: every weight is 0."
        : "Fusion should move a token κ times as far as the expert moved from its base: 1 is the paper, 0 nothing.";
    this.words.direction.textContent = {
      both: "J asks for both: KL(P̃‖P) like KL(R‖Q), and KL(P‖P̃) like KL(Q‖R).",
      forward: "J asks only that KL(P̃‖P) be κ · KL(R‖Q).",
      reverse: "J asks only that KL(P‖P̃) be κ · KL(Q‖R).",
    }[direction];
    this.words.method.textContent = METHOD_WORDS[method] ?? "";
    for (const name of ["alpha_max", "direction"]) {
      this.node.querySelector(`.field-${name}`).classList.toggle("idle", fixed && name === "direction");
    }
  }

  /** What the constraint in use does to the trace. */
  report({ changed, uncertain, constraint }, trace) {
    const isBase = ["scale", "direction", "alpha_max", "budget", "method"].every((key) => constraint[key] === this.base[key])
      && !constraint.force;
    const words = [];
    if (isBase) words.push(el("strong", { text: "As recorded." }), ` Move a control: all ${trace.size} tokens are solved again as you do.`);
    else if (!changed.length) words.push(el("strong", { text: `None of ${trace.size} tokens would change.` }));
    else {
      words.push(el("strong", { text: `${changed.length} of ${trace.size} tokens would change` }),
        `, the first at token ${changed[0] + 1}; what follows it would be written anew.`);
    }
    if (constraint.method !== this.base.method && !trace.resolve.methods.includes(constraint.method)) {
      words.push(` This page cannot solve by ${constraint.method}: it shows exact until the kernel has.`);
    }
    if (uncertain.length) words.push(` Of ${uncertain.length} it cannot be told.`);
    this.summary.replaceChildren(...words);
    this.summary.hidden = !trace.resolve.methods.length;
  }

  setForwardPasses(count, live) {
    this.passes.replaceChildren(el("strong", { class: "counter", text: String(count) }),
      ` forward ${count === 1 ? "pass" : "passes"} since ${live ? "the last generation" : "the recording: solved in this browser"}`);
  }
}

let groups = 0; // radio buttons of one group share a name, and a page may hold several
