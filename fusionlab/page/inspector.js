// Everything about the shown token: verdict, weights (which can be tried), the likeliest of each model, and its KL curves.

import { curveLegend, curvePanels } from "./curves.js";
import { chipOf, el, hueOf, nats, number, oneLine, percent, setAttribute, shortened } from "./dom.js";
import { rowOf } from "./payload.js";
import { endsAnswer, entryText, tokenText, verdictOn, weightsOf } from "./tokens.js";

export const LISTED = 8;

export class Inspector {
  /**
   * @param {{force: (i: number, alpha: Object<string, number>|null) => void,
   *   choose: (i: number, tokenId: number) => void, goOn: (i: number, alpha: Object<string, number>) => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.heading = el("div", { class: "name" });
    this.verdict = el("p", { class: "verdict" });
    this.notes = el("p", { class: "note" });
    this.panels = el("div", { class: "panels" });
    this.keys = el("div");
    this.about = el("span");
    this.curves = el("section", { class: "curves", "aria-label": "KL curves of one token" }, el("h3", {}, this.about), this.keys, this.panels);
    this.weights = el("div");
    this.lists = el("div", { class: "lists" });
    this.help = el("p", { class: "note" });
    this.node = el("section", { class: "inspector", "aria-label": "Inspector of one token" },
      this.heading, this.verdict, this.notes, this.weights, this.lists, this.help);
  }

  setTrace(trace) {
    this.trace = trace;
    this.shown = this.listed = null;
    this.weights.replaceChildren();
    this.curves.hidden = !trace.grid || !trace.size || !trace.experts.length;
    if (!trace.size) {
      for (const part of [this.verdict, this.notes, this.lists, this.help]) part.replaceChildren();
      this.heading.replaceChildren(el("p", { class: "note", text: "Nothing to inspect." }));
      return;
    }
    if (trace.experts.length) this.buildWeights();
  }

  buildWeights() {
    const { trace } = this;
    this.inputs = trace.experts.map((expert, e) => el("input", {
      type: "number", min: 0, max: this.greatest(), step: 0.05, class: "weight", "aria-label": `Weight of ${expert.name} at this token`,
      on: { change: () => this.tryWeights(e), keydown: (event) => event.stopPropagation() },
    }));
    this.cells = trace.experts.map(() => ["forward", "reverse", "evidence"].map(() => el("td")));
    const head = el("tr", {}, ...["", "weight", "KL(R‖Q)·κ", "KL(Q‖R)·κ", "evidence"].map((text) => el("th", { text, scope: "col" })));
    const rows = trace.experts.map((expert, e) => el("tr", {},
      el("th", { scope: "row" }, chipOf(trace, e), " ", el("span", { text: expert.name })),
      el("td", {}, this.inputs[e]), ...this.cells[e]));
    this.reached = ["", "forward", "reverse", ""].map(() => el("td"));
    const last = el("tr", { class: "reached" }, el("th", { scope: "row", text: "reached by fusion" }), ...this.reached);
    this.reset = el("button", { type: "button", text: "Solved weights", on: { click: () => this.actions.force(this.shown, null) } });
    this.goOn = el("button", {
      type: "button", class: "primary", text: "Write on from here with these weights",
      on: { click: () => this.actions.goOn(this.shown, this.alphaInUse()) },
    });
    this.choices = el("p", { class: "actions" }, this.reset, this.goOn);
    this.weights.replaceChildren(
      el("h4", { text: "Weights and targets, in nats" }),
      el("table", { class: "weights" }, el("thead", {}, head), el("tbody", {}, ...rows, last)), this.choices);
  }

  /** The weight up to which the trace's tables say what would happen. */
  greatest() {
    return this.trace.grid ? this.trace.grid[this.trace.grid.length - 1] : 2;
  }

  tryWeights() {
    for (const input of this.inputs) if (Number(input.value) > this.greatest()) input.value = this.greatest();
    const values = this.inputs.map((input) => Number(input.value));
    if (values.some((value) => !Number.isFinite(value) || value < 0)) return;
    this.actions.force(this.shown, Object.fromEntries(this.trace.expertKeys.map((name, e) => [name, values[e]])));
  }

  alphaInUse() {
    return Object.fromEntries(this.trace.expertKeys.map((name, e) => [name, Number(this.inputs[e].value)]));
  }

  /**
   * @param {Object} view  {solved, resolver|null, constraint, previewing, live}
   * @param {number} i     the token to show
   */
  show(view, i) {
    const { trace } = this;
    if (!trace.size) return;
    this.shown = i;
    const { solved } = view;
    const weights = weightsOf(trace, solved, i);
    this.showHeading(view, i);
    const onlyMean = trace.experts.length > 1 && !["evidence", "predicted"].includes(view.constraint.method);
    if (view.resolver) {
      this.about.textContent = `KL against the weight, at token ${i + 1}: ${shortened(tokenText(trace, i), 24)}`;
      this.panels.replaceChildren(...curvePanels(trace, view.resolver.token(i), Array.from(weights), view.constraint, onlyMean));
      this.keys.replaceChildren(curveLegend(view.constraint, onlyMean));
    }
    if (trace.experts.length) this.showWeights(view, i, weights);
    this.showLists(view, i, weights);
  }

  showHeading(view, i) {
    const { trace } = this;
    const { columns } = trace;
    const [start, stop, text] = trace.groups.find(([from, to]) => i >= from && i < to) ?? [i, i + 1, trace.pieces[i]];
    const id = columns.token_ids.values[i];
    const name = stop - start > 1 ? oneLine(text) : tokenText(trace, i);
    this.heading.replaceChildren(el("strong", { text: name, dir: "auto" }),
      el("span", { text: `token ${i + 1} of ${trace.size} · id ${id}` }));
    this.verdict.textContent = verdictOn(trace, view.solved, i);
    const notes = [];
    if (stop - start > 1) notes.push(`byte piece ${i - start + 1} of ${stop - start} of “${oneLine(text)}”`);
    if (endsAnswer(trace, id)) notes.push(`the end of the answer, written as ${oneLine(trace.pieces[i])}`);
    const draft = columns.draft.values[i];
    if (draft) notes.push(draft & 2 ? "drafted and accepted" : "drafted, not accepted");
    if (columns.clamped.values[i]) notes.push(`${columns.clamped.values[i]} vocabulary entries clamped at the floor`);
    if (view.solved.estimated.includes(i)) notes.push("several experts share this token under a budget: weights are estimates");
    this.notes.textContent = notes.join("; ");
    this.notes.hidden = !notes.length;
  }

  showWeights(view, i, weights) {
    const { trace } = this;
    const { columns } = trace;
    const { scale, direction, force } = view.constraint;
    const root = this.node.getRootNode();
    this.inputs.forEach((input, e) => {
      if (root.activeElement !== input) input.value = String(Number(weights[e].toFixed(3)));
      input.disabled = !view.resolver && !view.live;
    });
    const used = { forward: direction !== "reverse", reverse: direction !== "forward" };
    this.cells.forEach(([forward, reverse, evidence], e) => {
      forward.textContent = nats(scale * rowOf(columns.target_forward, i)[e]);
      reverse.textContent = nats(scale * rowOf(columns.target_reverse, i)[e]);
      forward.classList.toggle("unused", !used.forward);
      reverse.classList.toggle("unused", !used.reverse);
      evidence.textContent = number(rowOf(columns.evidence, i)[e], 1);
    });
    this.reached[1].textContent = nats(view.solved.forward[i]);
    this.reached[2].textContent = nats(view.solved.reverse[i]);
    const forced = force?.tokens && force.tokens[i] !== undefined;
    setAttribute(this.reset, "hidden", !forced);
    setAttribute(this.goOn, "hidden", !(forced && view.live));
    setAttribute(this.choices, "hidden", !forced);
  }

  showLists(view, i, weights) {
    const { trace } = this;
    const own = trace.experts.map((expert, e) => ({ name: expert.name, symbol: "R", expert: e }));
    const lists = [{ name: "Fused", symbol: "P̃" }, { name: "Large", symbol: "P" }, { name: "Small", symbol: "Q" }, ...own];
    const focused = this.lists.getRootNode().activeElement?.dataset?.choice;
    const fused = this.list(view, i, 0, lists[0], weights);
    if (this.listed === i) this.lists.firstChild.replaceWith(fused); // a constraint moves P~ alone
    else this.lists.replaceChildren(fused, ...lists.slice(1).map((list, d) => this.list(view, i, d + 1, list, weights)));
    this.listed = i;
    if (focused !== undefined) this.lists.querySelector(`[data-choice="${CSS.escape(focused)}"]`)?.focus();
    this.help.textContent = `● emitted · ◇ the large model’s own choice · H: entropy in nats.${
      view.live ? " Choose a candidate to put it here and write on." : ""}`;
  }

  list(view, i, d, { name, symbol, expert }, weights) {
    const { trace } = this;
    const { columns } = trace;
    const emittedId = columns.token_ids.values[i];
    const solvedAgain = d === 0 && view.previewing && view.resolver;
    const entries = solvedAgain ? view.resolver.token(i).top(Float64Array.from(weights), LISTED) : this.stored(i, d);
    const node = el("ol", { "aria-label": `Likeliest tokens under ${name}` });
    let seen = false;
    entries.forEach(({ entry, logprob }, rank) => {
      const id = trace.vocabulary.ids[entry];
      seen ||= id === emittedId;
      node.append(this.entryRow(view, i, {
        text: entryText(trace, entry), title: oneLine(trace.vocabulary.texts[entry]), id, logprob, key: `${d}-${rank}`,
        emitted: id === emittedId, choice: entry === trace.choice[i],
      }));
    });
    if (!entries.length) node.append(el("li", { class: "note", text: "not run" }));
    else if (!seen && !solvedAgain) {
      node.append(this.entryRow(view, i, {
        text: tokenText(trace, i), title: oneLine(trace.pieces[i]), id: emittedId, key: `${d}-outside`,
        logprob: rowOf(columns.logprob, i)[d], emitted: true, outside: true,
      }));
    }
    const entropy = rowOf(columns.entropy, i)[d];
    const title = el("h4", {}, expert === undefined ? null : chipOf(trace, expert),
      el("span", { text: `${name} ${symbol}` }), el("small", { text: solvedAgain ? "solved again" : `H ${number(entropy)}` }));
    return el("section", { class: expert === undefined ? "" : hueOf(expert) }, title, node);
  }

  stored(i, d) {
    const { columns } = this.trace;
    const logprobs = rowOf(columns.top_logprobs, i, d);
    return Array.from(rowOf(columns.top, i, d), (entry, k) => ({ entry, logprob: logprobs[k] })).filter(({ entry }) => entry >= 0);
  }

  entryRow(view, i, { text, title, id, logprob, key, emitted, choice = false, outside = false }) {
    const share = logprob === null || Number.isNaN(logprob) ? 0 : Math.exp(logprob);
    const parts = [el("span", { class: "sign", text: emitted ? "●" : choice ? "◇" : "" }),
      el("span", { class: "text", text, title, dir: "auto" }), el("span", { class: "percent", text: percent(logprob) })];
    const options = { class: `entry${emitted ? " emitted" : ""}${outside ? " outside" : ""}`, css: { "--p": share.toFixed(4) } };
    if (!view.live) return el("li", { ...options, class: `${options.class} plain` }, ...parts);
    const button = el("button", {
      type: "button", "data-choice": key, title: `Put ${title} here and write on`,
      on: { click: () => this.actions.choose(i, id) },
    }, ...parts);
    return el("li", options, button);
  }
}
