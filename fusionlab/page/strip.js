// The emitted text, token by token: hue for the expert with the greatest weight, depth for the weight, signs for flips.

import { el, endChip, hueOf, number, pieceNodes, setAttribute } from "./dom.js";
import { describeToken, endsAnswer, entryText, groupIndexes, strongestExpert, weightsOf } from "./tokens.js";

export class Strip {
  /** @param {{select: (i: number) => void, hover: (i: number|null) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.node = el("div", {
      class: "strip", role: "listbox", "aria-label": "Emitted tokens", "aria-orientation": "horizontal", dir: "auto",
      on: {
        mouseover: (event) => this.hover(event),
        mouseleave: () => actions.hover(null),
        click: (event) => this.at(event, (i) => actions.select(i)),
        focusin: (event) => this.at(event, (i, group) => {
          if (group !== this.groupOf[this.selected]) actions.select(i);
        }),
        keydown: (event) => this.move(event),
      },
    });
  }

  /** Build the tokens of a trace; what they look like comes with `paint`. */
  setTrace(trace) {
    const focused = this.node.contains(this.node.getRootNode().activeElement);
    this.trace = trace;
    this.groupOf = groupIndexes(trace);
    this.looks = [];
    this.chosen = this.current = undefined; // groups
    this.spans = trace.groups.map(([start, , text]) => {
      const nodes = endsAnswer(trace, trace.columns.token_ids.values[start]) ? [endChip(text)] : pieceNodes(text);
      const options = { class: "token", role: "option", "data-token": start, tabindex: -1, "aria-selected": "false" };
      return el("span", options, el("span", { class: "piece" }, ...nodes));
    });
    this.node.replaceChildren(...this.spans);
    if (!trace.size) this.node.append(el("span", { class: "note", text: "No token was emitted." }));
    this.refocus = focused;
  }

  /** Colours and marks of a solution; only what differs from before is touched. */
  paint(solved, greatest) {
    const { trace } = this;
    this.solved = solved;
    const [changed, uncertain] = [new Set(solved.changed), new Set(solved.uncertain)];
    trace.groups.forEach(([start, stop], group) => {
      const look = this.lookOf(start, stop, solved, greatest, changed, uncertain);
      const key = look.join("|");
      if (this.looks[group] === key) return;
      this.looks[group] = key;
      const [expert, share, mark, would, unsure] = look;
      const span = this.spans[group];
      // the mark of a piece that ends in a line break stands before the break
      const last = span.firstChild.lastChild;
      const isBroken = mark && last.className === "break";
      const classes = [["flip", mark], ["broken", isBroken], ["would", would], ["unsure", unsure], ["current", group === this.current]];
      span.className = ["token", hueOf(expert), ...classes.filter(([, wanted]) => wanted).map(([name]) => name)].join(" ");
      span.style.setProperty("--share", share);
      setAttribute(span, "data-mark", mark || null);
      if (last.className === "break") setAttribute(last, "data-mark", mark || null);
      setAttribute(span, "data-would", would || null);
    });
  }

  lookOf(start, stop, solved, greatest, changed, uncertain) {
    const { trace } = this;
    let [expert, weight, mark, would, unsure] = [0, 0, "", "", false];
    for (let i = start; i < stop; i++) {
      const weights = weightsOf(trace, solved, i);
      const strongest = strongestExpert(weights);
      if (weights.length && weights[strongest] > weight) [expert, weight] = [strongest, weights[strongest]];
      const by = solved.flippedBy[i];
      if (by >= 0 && !mark) mark = `▲${trace.experts.length > 1 ? trace.experts[by].letter : ""}`;
      if (changed.has(i) && !would) would = entryText(trace, solved.choice[i]);
      unsure ||= uncertain.has(i);
    }
    const share = weight < 0.005 ? 0 : Math.min(1, 0.12 + (0.88 * weight) / greatest);
    return [expert, share.toFixed(2), mark, would, unsure];
  }

  /** Mark the selected token and the one that is shown; `focus`: move the keyboard there. */
  point(selected, shown, focus) {
    this.selected = selected;
    this.shown = shown;
    const [chosen, current] = [this.groupOf[selected], this.groupOf[shown]];
    if (chosen !== this.chosen) {
      this.spans[this.chosen]?.setAttribute("aria-selected", "false");
      if (this.spans[this.chosen]) this.spans[this.chosen].tabIndex = -1;
      this.spans[chosen]?.setAttribute("aria-selected", "true");
      if (this.spans[chosen]) this.spans[chosen].tabIndex = 0;
      this.chosen = chosen;
    }
    if (current !== this.current) {
      this.spans[this.current]?.classList.remove("current");
      this.spans[current]?.classList.add("current");
      this.current = current;
    }
    if (focus || this.refocus) this.spans[chosen]?.focus({ preventScroll: false });
    this.refocus = false;
  }

  /** Labels for screen readers; apart from `paint`, which runs on every frame of a drag. */
  settle() {
    this.spans.forEach((span, group) => {
      span.setAttribute("aria-label", describeToken(this.trace, this.solved, this.trace.groups[group][0]));
    });
  }

  at(event, act) {
    const group = this.spans.indexOf(event.target.closest(".token"));
    if (group >= 0) act(this.trace.groups[group][0], group);
  }

  hover(event) {
    this.at(event, (i, group) => {
      if (group !== this.groupOf[this.shown]) this.actions.hover(i);
    });
  }

  move(event) {
    const next = nextToken(event, this.trace, this.selected, (i) => this.solved.flippedBy[i] >= 0 || this.solved.changed.includes(i));
    if (next === null) return;
    event.preventDefault();
    this.actions.select(next, true);
  }
}

/** Where a key leads from a token: arrows by token, up and down among the marked ones, Home, End; null for other keys. */
export function nextToken(event, trace, selected, isMarked) {
  if (event.ctrlKey || event.metaKey || event.altKey || !trace.size) return null;
  const search = (step) => {
    for (let i = selected + step; i >= 0 && i < trace.size; i += step) if (isMarked(i)) return i;
    return selected;
  };
  const moves = {
    ArrowRight: () => Math.min(trace.size - 1, selected + 1), ArrowLeft: () => Math.max(0, selected - 1),
    ArrowDown: () => search(1), ArrowUp: () => search(-1), Home: () => 0, End: () => trace.size - 1,
  };
  return event.key in moves ? moves[event.key]() : null;
}

/** What colours and signs mean, and what each expert did. */
export function stripLegend(trace, solved, greatest) {
  if (!trace.experts.length) return el("p", { class: "note", text: "No experts: this is the large model alone." });
  const head = el("tr", {}, ...["Expert", `Weight 0 to ${number(greatest)}`, "Mean weight", "Tokens flipped"]
    .map((text) => el("th", { text, scope: "col" })));
  const rows = trace.experts.map((expert, e) => {
    let [flips, total] = [0, 0];
    for (let i = 0; i < trace.size; i++) {
      if (solved.flippedBy[i] === e) flips += 1;
      total += weightsOf(trace, solved, i)[e];
    }
    const ramp = el("span", { class: `ramp ${hueOf(e)}`, "aria-hidden": "true" },
      ...[0, 0.25, 0.5, 0.75, 1].map((share) => el("i", { css: { "--share": share } })));
    const share = trace.size ? ` (${((100 * flips) / trace.size).toFixed(1)} %)` : "";
    return el("tr", {},
      el("td", {}, el("span", { class: `chip ${hueOf(e)}`, text: expert.letter }), " ", el("span", { text: expert.name })),
      el("td", {}, ramp), el("td", { text: number(total / Math.max(1, trace.size)) }),
      el("td", { text: `${flips} of ${trace.size}${share}` }));
  });
  const several = trace.experts.length > 1;
  return el("div", {},
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
    el("p", { class: "note" }, "Colour: the expert with the greatest weight; deeper means more weight. ",
      el("span", { class: "flip", "data-mark": several ? "▲A" : "▲" }, el("span", { class: "piece", text: "flipped" })),
      " the fused model’s first choice is not the large model’s own",
      several ? "; the letter names the expert that pushed most. " : ". ",
      el("span", { class: "would-sample", text: "dashed" }),
      " under the constraint above, the small word over it would win instead."));
}
