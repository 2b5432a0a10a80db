// The same prompt answered by others, side by side, with the first token at which each goes another way than the fused text.

import { el, endChip, pieceNodes } from "./dom.js";
import { endsAnswer } from "./tokens.js";

/** Columns of texts; empty without alternatives. */
export function comparison(trace) {
  if (!trace.alternatives?.length) return [];
  const fusedIds = Array.from(trace.columns.token_ids.values);
  const others = trace.alternatives.map((answer) => ({ ...answer, parts: commonLength(answer.token_ids, fusedIds) }));
  const longest = Math.min(...others.map(({ parts }) => parts));
  const fused = { name: "fused", groups: trace.groups, token_ids: fusedIds, parts: longest };
  const note = el("p", { class: "note" }, "Each text is faint as far as it agrees with the fused one; ",
    el("span", { class: "parting", text: "▾" }), " marks the first token that differs.");
  return [el("div", { class: "answers" }, ...[fused, ...others].map((answer, place) => answerColumn(trace, answer, place))), note];
}

function answerColumn(trace, { name, groups, token_ids: ids, parts }, place) {
  const text = el("p", { class: "answer", dir: "auto" });
  let marked = false;
  for (const [start, stop, words] of groups) {
    const shared = stop <= parts;
    if (!shared && !marked) {
      marked = true;
      text.append(el("span", { class: "parting", text: "▾", title: `differs from token ${parts + 1} on`, role: "img", "aria-label": "first difference" }));
    }
    text.append(el("span", { class: shared ? "shared" : "own" }, ...(endsAnswer(trace, ids[start]) ? [endChip(words)] : pieceNodes(words))));
  }
  if (!groups.length) text.append(el("span", { class: "note", text: "nothing was written" }));
  const where = marked ? `parts at token ${parts + 1}` : ids.length ? "the same throughout" : "";
  return el("section", { "aria-label": `Answer of ${name}` },
    el("h4", {}, el("span", { text: name }), el("small", { text: place === 0 ? `${ids.length} tokens` : where })), text);
}

function commonLength(one, other) {
  let length = 0;
  while (length < one.length && length < other.length && one[length] === other[length]) length += 1;
  return length;
}
