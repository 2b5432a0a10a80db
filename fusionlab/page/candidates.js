// Tokens of one step that may be the likeliest at some weights, with log P and every d_t of each. No DOM.

import { rowOf } from "./payload.js";

export const FLOOR_MARGIN = 2; // nats within which a candidate that rests on a floor may be the likelier one

/** The candidates of the tables, and the emitted token if it is none of them. */
export function storedCandidates(trace, i) {
  const { columns, vocabulary, experts } = trace;
  const entries = Array.from(rowOf(columns.candidates, i));
  const logprobs = Array.from(rowOf(columns.candidate_logprobs, i));
  const deltas = experts.map((_, e) => Array.from(rowOf(columns.candidate_deltas, i, e)));
  const emitted = vocabulary.ids.indexOf(columns.token_ids.values[i]);
  const [, large, small, ...own] = rowOf(columns.logprob, i);
  if (emitted >= 0 && !entries.includes(emitted) && Number.isFinite(small) && own.every(Number.isFinite)) {
    entries.push(emitted);
    logprobs.push(large);
    own.forEach((value, e) => deltas[e].push(value - small));
  }
  return { entries, logprobs, deltas, floored: null };
}

/**
 * Candidates of a trace of version 1: all tokens of its top-k lists. What a list lacks is taken at its least probability,
 * which a missing token cannot exceed; `floored` tells which rest on that.
 */
export function listedCandidates(trace, i) {
  const { columns, experts } = trace;
  const lists = Array.from({ length: 3 + experts.length }, (_, d) => {
    const known = new Map();
    let least = Infinity;
    rowOf(columns.top, i, d).forEach((entry, k) => {
      if (entry < 0) return;
      const value = rowOf(columns.top_logprobs, i, d)[k];
      known.set(entry, value);
      least = Math.min(least, value);
    });
    return { known, least };
  });
  const entries = [...new Set(lists.flatMap(({ known }) => [...known.keys()]))];
  const value = (d, entry) => lists[d].known.get(entry) ?? lists[d].least;
  const logprobs = entries.map((entry) => value(1, entry));
  const deltas = experts.map((_, e) => entries.map((entry) => value(3 + e, entry) - value(2, entry)));
  const floored = entries.map((entry) => lists.slice(1).some(({ known }) => !known.has(entry)));
  return { entries, logprobs, deltas, floored };
}
