// Solves a trace again under another constraint: fusionlab/solvers.py from tables instead of distributions. No DOM.
//
// Symbols as there: f_t, g_t targets, a_t weights, kappa = scale. `exact`, `grid`, `static`, `average` and `evidence` agree
// with Python to 1e-3 in the weight. Several weights at once (`evidence` in doubt) have no table of their own: their
// divergences are the sums of the single ones, and what the experts do to each other is estimated from a sample of the
// vocabulary; such tokens are counted as `estimated` where the budget cuts them.

import { FLOOR_MARGIN, listedCandidates, storedCandidates } from "./candidates.js";
import { Atoms, Axis } from "./divergence.js";
import { rowOf } from "./payload.js";
import { searchWeight } from "./weight_search.js";

const IMPROBABLE = 1e-6; // as in solvers.py
const NEGLIGIBLE = 1e-4; // weights below this share of the greatest change no figure that is shown
const TIE = [1e-6, 1e-9]; // as in solvers.py: ends that differ by less, as a share of J and of f^2 + g^2, are equally low

export const DEFAULTS = { scale: 1, direction: "both", alpha_max: 2, budget: null, force: null };

/** A constraint with every field, of `changes` over those of `base`. */
export function completeConstraint(base, changes = {}) {
  return { ...DEFAULTS, ...base, ...changes };
}

/**
 * Solves traces again; keeps what does not depend on the constraint.
 */
export class Resolver {
  constructor(trace) {
    this.trace = trace;
    this.tokens = [];
  }

  /**
   * Weights and consequences under a constraint (complete, with `method`).
   * @returns {{alpha: Float32Array, forward: Float64Array, reverse: Float64Array, choice: Int32Array,
   *   flippedBy: Int32Array, changed: number[], uncertain: number[], estimated: number[]}}
   *   alpha (N, E); choice: index into the vocabulary of the likeliest token; changed: where that is another one than the
   *   trace's; uncertain: where it cannot be told; estimated: where a budget cut experts that mix.
   */
  solve(constraint) {
    const { trace } = this;
    const [n, e] = [trace.size, trace.experts.length];
    const solved = {
      alpha: new Float32Array(n * e), forward: new Float64Array(n), reverse: new Float64Array(n),
      choice: new Int32Array(n), flippedBy: new Int32Array(n).fill(-1), changed: [], uncertain: [], estimated: [],
    };
    for (let i = 0; i < n; i++) {
      const token = this.token(i);
      const { alpha, estimated } = token.solve(constraint);
      solved.alpha.set(alpha, i * e);
      [solved.forward[i], solved.reverse[i]] = token.divergences(alpha);
      const { choice, certain } = token.likeliest(alpha);
      solved.choice[i] = choice;
      if (choice !== trace.choice[i]) solved.flippedBy[i] = token.mover(alpha, choice);
      if (estimated) solved.estimated.push(i);
      if (!certain) solved.uncertain.push(i);
      else if (choice !== token.written) solved.changed.push(i);
    }
    return solved;
  }

  token(i) {
    this.tokens[i] ??= new Token(this.trace, i);
    return this.tokens[i];
  }
}

/** One token of a trace: its axes, candidates and targets. */
class Token {
  constructor(trace, i) {
    const { columns } = trace;
    this.trace = trace;
    this.index = i;
    const experts = trace.experts.length;
    this.axes = trace.experts.map((_, e) => Axis.ofTables(
      trace.grid, rowOf(columns.grid_kl_forward, i, e), rowOf(columns.grid_kl_reverse, i, e),
      trace.tables ? rowOf(columns.grid_variance, i, e) : null,
    ));
    const hasEven = trace.tables && experts > 1;
    this.even = hasEven
      ? Axis.ofTables(trace.evenGrid, rowOf(columns.even_kl_forward, i), rowOf(columns.even_kl_reverse, i),
        rowOf(columns.even_variance, i))
      : experts === 1 ? this.axes[0] : null;
    this.targetForward = rowOf(columns.target_forward, i);
    this.targetReverse = rowOf(columns.target_reverse, i);
    this.posterior = posterior(rowOf(columns.evidence, i));
    this.candidates = trace.tables ? storedCandidates(trace, i) : listedCandidates(trace, i);
    this.written = rowOf(columns.top, i, 0)[0];
  }

  // -- weights ----------------------------------------------------------------------------------

  solve(constraint) {
    const experts = this.axes.length;
    let alpha = new Float64Array(experts);
    if (constraint.scale !== 0 && experts) alpha = this.solver(constraint.method)(this, constraint);
    alpha = Float64Array.from(alpha, Math.fround);
    let estimated = false;
    if (constraint.budget !== null) {
      const cut = this.cutToBudget(alpha, constraint.budget);
      estimated = cut < 1 && this.isMixed(alpha);
      if (cut < 1) alpha = alpha.map((weight) => Math.fround(weight * cut));
    }
    if (constraint.force) alpha = forceWeights(this.trace, this.index, alpha, constraint.force);
    return { alpha, estimated };
  }

  /** The method, or `exact` where this trace has not what it reads. */
  solver(method) {
    const { method: own, resolve } = this.trace;
    return method === own || resolve.methods.includes(method) ? METHODS[method] ?? METHODS.exact : METHODS.exact;
  }

  // -- divergences ------------------------------------------------------------------------------

  /** Whether several weights count and differ, so that no table holds their divergences. */
  isMixed(alpha) {
    const greatest = Math.max(...alpha);
    const counting = alpha.filter((weight) => weight > NEGLIGIBLE * greatest);
    if (counting.length < 2) return false;
    return !(this.even && counting.length === alpha.length && counting.every((weight) => weight === greatest));
  }

  /** [KL(P~||P), KL(P||P~)] of weights (E,), nats; zero where all weights are. */
  divergences(alpha) {
    if (!alpha.some((weight) => weight !== 0)) return [0, 0];
    const [forward, h] = this.alongRay(alpha, 1);
    const { mass } = this.axes[0];
    return [Math.max(0, forward), Math.max(0, mass * h)];
  }

  /** [KL(P~||P), h] of scale * alpha. */
  alongRay(alpha, scale) {
    const greatest = Math.max(...alpha);
    if (!this.isMixed(alpha)) {
      const first = alpha.indexOf(greatest);
      const alone = alpha.every((weight, e) => e === first || weight <= NEGLIGIBLE * greatest);
      const axis = alone ? this.axes[first] : this.even;
      const weight = scale * greatest;
      axis.moveTo(weight);
      return [weight * axis.slope - axis.h, axis.h];
    }
    const sample = this.sampleOfVocabulary();
    const weights = Array.from(alpha, (weight) => scale * weight);
    let [forward, h] = sample.atoms ? sample.atoms.divergences(weights) : [0, 0];
    weights.forEach((weight, e) => {
      if (weight <= NEGLIGIBLE * scale * greatest) return;
      const axis = sample.missing[e].moveTo(weight);
      forward += weight * axis.slope - axis.h + axis.start;
      h += axis.h - axis.start;
    });
    const { start } = this.axes[0];
    return [forward - start, h + start];
  }

  /** Atoms, and what the vocabulary has beyond them along each axis; without atoms all of it. */
  sampleOfVocabulary() {
    if (this.sample === undefined) {
      const { columns, atomRow, experts, tables } = this.trace;
      const row = atomRow.get(this.index);
      const atoms = !tables ? null : row === undefined ? new Atoms(this.candidates.logprobs, this.candidates.deltas)
        : new Atoms(rowOf(columns.atom_logprobs, row), experts.map((_, e) => rowOf(columns.atom_deltas, row, e)));
      this.sample = { atoms, missing: atoms ? this.axes.map((axis, e) => atoms.missing(axis, e)) : this.axes };
    }
    return this.sample;
  }

  /** The largest factor in [0, 1] on the weights that keeps KL(P~||P) within the budget. */
  cutToBudget(alpha, budget) {
    if (!alpha.some((weight) => weight !== 0) || this.alongRay(alpha, 1)[0] <= budget) return 1;
    const aim = budget - Math.min(1e-5, 1e-3 * budget) / 2; // where solvers.py aims within its slack
    // KL grows like the square of the factor where it is small, so its root is nearly straight: regula falsi (Illinois).
    const excess = (factor) => Math.sqrt(Math.max(0, this.alongRay(alpha, factor)[0])) - Math.sqrt(aim);
    let [low, high] = [0, 1];
    let [atLow, atHigh] = [-Math.sqrt(aim), excess(1)];
    for (let round = 0; round < 60 && high - low > 1e-8; round++) {
      const straight = low - (atLow * (high - low)) / (atHigh - atLow);
      const middle = round % 8 === 7 ? (low + high) / 2 : straight;
      const found = excess(middle);
      if (found <= 0) {
        if (found > -1e-10) return middle;
        [low, atLow] = [middle, found];
        if (round % 8 !== 7) atHigh /= 2;
      } else {
        [high, atHigh] = [middle, found];
        if (round % 8 !== 7) atLow /= 2;
      }
    }
    return low;
  }

  // -- tokens -----------------------------------------------------------------------------------

  /** Scores log P + sum_t a_t d_t of the candidates; the distribution lacks only the constant A. */
  scores(alpha) {
    const { logprobs, deltas } = this.candidates;
    const scores = Float64Array.from(logprobs);
    for (let e = 0; e < alpha.length; e++) {
      if (alpha[e] === 0) continue;
      for (let j = 0; j < scores.length; j++) scores[j] += alpha[e] * deltas[e][j];
    }
    return scores;
  }

  /** The likeliest token under weights, and whether no other one can be likelier. */
  likeliest(alpha) {
    const { entries, floored } = this.candidates;
    const scores = this.scores(alpha);
    let best = 0;
    for (let j = 1; j < scores.length; j++) if (scores[j] > scores[best]) best = j;
    const choice = entries[best] ?? -1;
    if (floored) {
      const moved = alpha.some((weight) => weight !== 0);
      const close = scores.some((score, j) => j !== best && floored[j] && score > scores[best] - FLOOR_MARGIN);
      return { choice, certain: !moved || !(floored[best] || close) };
    }
    return { choice, certain: scores[best] >= this.restPeak(alpha) };
  }

  /** No token that is not a candidate has a greater score: fusionlab/tables.py has the reason. */
  restPeak(alpha) {
    const { columns, restWeights } = this.trace;
    const total = alpha.reduce((sum, weight) => sum + weight, 0);
    if (!alpha.length) return -Infinity;
    if (total === 0) return rowOf(columns.rest_peaks, this.index, 0)[0];
    if (total > restWeights[restWeights.length - 1]) return Infinity;
    let place = 0;
    while (restWeights[place + 1] < total) place++;
    const share = (total - restWeights[place]) / (restWeights[place + 1] - restWeights[place]);
    return alpha.reduce((sum, weight, e) => {
      if (weight === 0) return sum;
      const peaks = rowOf(columns.rest_peaks, this.index, e);
      if (peaks[place] === -Infinity) return -Infinity;
      return sum + (weight / total) * ((1 - share) * peaks[place] + share * peaks[place + 1]);
    }, 0);
  }

  /** The k likeliest tokens under weights: [{entry, logprob}], log P~ in nats, null where it cannot be told. */
  top(alpha, count) {
    const scores = this.scores(alpha);
    const { columns, tables } = this.trace;
    let constant = null;
    if (tables && alpha.length) {
      const [, h] = alpha.some((weight) => weight !== 0) ? this.alongRay(alpha, 1) : [0, this.axes[0].start];
      const means = rowOf(columns.mean_deltas, this.index);
      constant = alpha.reduce((sum, weight, e) => sum + weight * means[e], h); // A
    } else if (!alpha.some((weight) => weight !== 0)) constant = 0;
    return Array.from(scores, (score, j) => ({
      entry: this.candidates.entries[j], logprob: constant === null ? null : score - constant, score,
    })).filter(({ entry }) => entry >= 0).sort((a, b) => b.score - a.score).slice(0, count);
  }

  /** The expert that pushed most towards `choice` from the large model's own, as record.find_movers has it. */
  mover(alpha, choice) {
    const { entries, deltas } = this.candidates;
    const [to, from] = [entries.indexOf(choice), entries.indexOf(this.trace.choice[this.index])];
    let [best, greatest] = [-1, -Infinity];
    for (let e = 0; e < alpha.length; e++) {
      const push = alpha[e] * ((deltas[e][to] ?? 0) - (deltas[e][from] ?? 0));
      if (push > greatest) [best, greatest] = [e, push];
    }
    return best;
  }
}

// -- methods, as SOLVERS in fusionlab/solvers.py ---------------------------------------------------

const METHODS = {
  static: (token, { scale, alpha_max: top }) => token.axes.map(() => Math.min(scale, top)),
  average: (token, { scale, alpha_max: top }) => token.axes.map(() => Math.min(scale / token.axes.length, top)),
  grid: solveGrid,
  exact: solveExact,
  evidence: solveEvidence,
  joint: solveExact, // not solvable from tables; the payload's note says so
  predicted: (token, constraint) => (token.axes.length > 1 ? solveEvidence : solveExact)(token, constraint),
};

function solveExact(token, constraint) {
  const [forward, reverse] = meanTargets(token, constraint);
  const ends = token.axes.map((_, e) => searchWeight(token.axes[e], forward, reverse, constraint));
  const size = (constraint.direction === "reverse" ? 0 : forward ** 2) + (constraint.direction === "forward" ? 0 : reverse ** 2);
  const limit = Math.min(...ends.map(([value]) => value)) * (1 + TIE[0]) + TIE[1] * size;
  let [winner, weight] = [0, Infinity];
  ends.forEach(([value, at], e) => {
    if (value <= limit && at < weight) [winner, weight] = [e, at];
  });
  return token.axes.map((_, e) => (e === winner ? weight : 0));
}

function solveGrid(token, constraint) {
  const [forward, reverse] = meanTargets(token, constraint);
  const steps = Math.floor(constraint.alpha_max * 10 + 1e-9);
  let [winner, weight, least] = [0, 0, Infinity];
  for (let step = 0; step <= steps; step++) {
    token.axes.forEach((axis, e) => {
      const at = step / 10;
      const f = constraint.direction === "reverse" ? 0 : axis.forward(at) - forward;
      const g = constraint.direction === "forward" ? 0 : axis.reverse(at) - reverse;
      if (f * f + g * g < least) [winner, weight, least] = [e, at, f * f + g * g];
    });
  }
  return token.axes.map((_, e) => (e === winner ? weight : 0));
}

function solveEvidence(token, constraint) {
  return token.axes.map((_, e) => {
    const share = token.posterior[e];
    if (share < IMPROBABLE) return 0;
    const [forward, reverse] = [token.targetForward[e], token.targetReverse[e]];
    return share * Math.fround(searchWeight(token.axes[e], constraint.scale * forward, constraint.scale * reverse, constraint)[1]);
  });
}

function meanTargets(token, { scale }) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return [scale * mean(token.targetForward), scale * mean(token.targetReverse)];
}

/** Probability of each expert's task against "no expert", of log-evidence 0. */
export function posterior(evidence) {
  const greatest = Math.max(0, ...evidence);
  const shares = Array.from(evidence, (ratio) => Math.exp(ratio - greatest));
  const total = shares.reduce((sum, share) => sum + share, Math.exp(-greatest));
  return shares.map((share) => Math.fround(share / total));
}

function forceWeights(trace, index, alpha, { experts = {}, tokens = {} }) {
  const forced = Float64Array.from(alpha);
  const here = tokens[index] ?? {};
  trace.expertKeys.forEach((name, e) => {
    const value = typeof here === "number" ? here : here[name] ?? experts[name];
    if (value !== undefined) forced[e] = Math.fround(value);
  });
  return forced;
}
