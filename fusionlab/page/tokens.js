// What is said of one token: its text, its verdict, and where its numbers come from.

import { rowOf } from "./payload.js";
import { number, oneLine } from "./dom.js";

export const END_MARK = "■ end";

/** Whether a token id ends an answer. */
export function endsAnswer(trace, id) {
  return trace.endIds.includes(id);
}

/** A token's text on one line; the one that ends the answer gets a mark instead. */
export function speltOut(trace, id, text) {
  return endsAnswer(trace, id) ? END_MARK : oneLine(text);
}

/** The text of a vocabulary entry, on one line. */
export function entryText(trace, entry) {
  if (entry < 0) return "?";
  const id = trace.vocabulary.ids[entry];
  const text = speltOut(trace, id, trace.vocabulary.texts[entry]);
  return text.includes("\ufffd") ? `${text} #${id}` : text;
}

/** The emitted token's text, on one line. */
export function tokenText(trace, i) {
  return speltOut(trace, trace.columns.token_ids.values[i], trace.pieces[i]);
}

/** What the trace itself decided, in the form of Resolver.solve. */
export function recordedSolution(trace) {
  const { columns, size } = trace;
  const choice = Int32Array.from({ length: size }, (_, i) => rowOf(columns.top, i, 0)[0] ?? -1);
  return {
    alpha: columns.alpha.values, forward: columns.kl_forward.values, reverse: columns.kl_reverse.values,
    choice, flippedBy: columns.flipped_by.values, changed: [], uncertain: [], estimated: [],
  };
}

/** Weights (E,) of a token in a solution. */
export function weightsOf(trace, solved, i) {
  const count = trace.experts.length;
  return solved.alpha.subarray(i * count, (i + 1) * count);
}

/** The expert with the greatest weight; 0 where there is none. */
export function strongestExpert(weights) {
  let best = 0;
  for (let e = 1; e < weights.length; e++) if (weights[e] > weights[best]) best = e;
  return best;
}

/** The greatest weight of a trace, as the end of every scale of colour; steady while a constraint is dragged. */
export function greatestWeight(trace) {
  let greatest = 0.05;
  for (const weight of trace.columns.alpha.values) if (weight > greatest) greatest = weight;
  return greatest;
}

/** In a sentence or two: whose choice the token was, and what a new constraint does to it. */
export function verdictOn(trace, solved, i) {
  const quoted = (entry) => `“${entryText(trace, entry)}”`;
  const by = solved.flippedBy[i];
  const choice = trace.choice[i];
  const words = [by < 0
    ? `Not flipped: the large model’s own choice, ${quoted(choice)}, is also the fused one.`
    : `Flipped by ${trace.experts[by].name}: the large model alone would have chosen ${quoted(choice)}.`];
  const written = rowOf(trace.columns.top, i, 0)[0];
  if (solved.uncertain.includes(i)) words.push("Whether another token would win cannot be told from this trace.");
  else if (solved.changed.includes(i)) words.push(`Under this constraint ${quoted(solved.choice[i])} would win.`);
  if (written !== undefined && trace.columns.token_ids.values[i] !== trace.vocabulary.ids[written]) {
    words.push(trace.sampled ? "The emitted token was sampled; it is not the fused model’s first choice."
      : "The emitted token is not the fused model’s first choice: it was chosen otherwise.");
  }
  return words.join(" ");
}

/** A whole token for a screen reader. */
export function describeToken(trace, solved, i) {
  const weights = weightsOf(trace, solved, i);
  const listed = trace.experts.map((expert, e) => `${expert.name} weight ${number(weights[e])}`).join(", ");
  return `Token ${i + 1} of ${trace.size}: ${tokenText(trace, i)}. ${listed ? `${listed}. ` : ""}${verdictOn(trace, solved, i)}`;
}

/** Which group of tokens, shown as one text, each token belongs to. */
export function groupIndexes(trace) {
  const groupOf = new Int32Array(trace.size);
  trace.groups.forEach(([start, stop], group) => groupOf.fill(group, start, stop));
  return groupOf;
}
