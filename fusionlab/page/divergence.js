// Both KL divergences of one token at any weight, from what a trace keeps of A, A' and A'' on a grid of weights.
//
// With h(a) = A(a) - a A'(0), the part of A that the divergences need:
//     KL(P~||P) = a h'(a) - h(a)      KL(P||P~) = m h(a)      m = sum(P), h(0) = log m, h'(0) = 0
// so that both tables, f and g at the weights a of the grid, give h = g / m and h' = (f + h) / a, and h'' = A'' is kept.
// Between two weights h is the quintic through these three at both ends.

/** h of one direction of one token, as a quintic between each two weights of the grid. */
export class Axis {
  /**
   * @param {number[]} grid  ascending, from 0
   * @param {Float32Array} forward  KL(P~||P) at each weight, nats
   * @param {Float32Array} reverse  KL(P||P~)
   * @param {Float32Array|null} variance  A''; null: estimated from h and h'
   */
  constructor(grid, forward, reverse, variance) {
    this.grid = grid;
    this.start = -forward[0];
    this.mass = Math.exp(this.start);
    const count = grid.length;
    const h = Float64Array.from(reverse, (g) => g / this.mass);
    const slope = Float64Array.from(grid, (a, i) => (i === 0 ? 0 : (forward[i] + h[i]) / a));
    const bend = variance ?? bends(grid, h, slope);
    this.coefficients = new Float64Array(6 * Math.max(0, count - 1));
    for (let i = 0; i + 1 < count; i++) this.fit(i, h, slope, bend);
    this.h = this.slope = this.bend = 0;
  }

  /** Coefficients in t = (a - left) / width of the cell between two weights. */
  fit(cell, h, slope, bend) {
    const width = this.grid[cell + 1] - this.grid[cell];
    const [y0, s0, b0] = [h[cell], slope[cell] * width, bend[cell] * width * width];
    const [y1, s1, b1] = [h[cell + 1], slope[cell + 1] * width, bend[cell + 1] * width * width];
    const rise = y1 - y0 - s0 - b0 / 2;
    const turn = s1 - s0 - b0;
    const twist = b1 - b0;
    this.coefficients.set(
      [y0, s0, b0 / 2, 10 * rise - 4 * turn + twist / 2, -15 * rise + 7 * turn - twist, 6 * rise - 3 * turn + twist / 2],
      6 * cell,
    );
  }

  cellOf(weight) {
    let low = 0;
    let high = this.grid.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.grid[middle] <= weight) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Sets h and h' at a weight; beyond the grid the last quintic goes on. */
  moveTo(weight) {
    const cell = this.cellOf(weight);
    const width = this.grid[cell + 1] - this.grid[cell];
    const t = (weight - this.grid[cell]) / width;
    const c = this.coefficients;
    const at = 6 * cell;
    this.h = c[at] + t * (c[at + 1] + t * (c[at + 2] + t * (c[at + 3] + t * (c[at + 4] + t * c[at + 5]))));
    this.slope = (c[at + 1] + t * (2 * c[at + 2] + t * (3 * c[at + 3] + t * (4 * c[at + 4] + t * 5 * c[at + 5])))) / width;
    return this;
  }

  /** KL(P~||P), nats. */
  forward(weight) {
    this.moveTo(weight);
    return weight * this.slope - this.h;
  }

  /** KL(P||P~), nats. */
  reverse(weight) {
    return this.mass * this.moveTo(weight).h;
  }
}

/** h'' at the weights of the grid from h and h' there, to the fourth order of the step inside an even grid. */
function bends(grid, h, slope) {
  const last = grid.length - 1;
  return Float64Array.from(grid, (_, i) => {
    if (last === 0) return 0;
    if (i === 0 || i === last) {
      const j = i === 0 ? 1 : last - 1;
      const step = grid[j] - grid[i];
      return (6 * (h[j] - h[i])) / step ** 2 - (4 * slope[i] + 2 * slope[j]) / step;
    }
    const [left, right] = [grid[i] - grid[i - 1], grid[i + 1] - grid[i]];
    if (Math.abs(left - right) > 1e-4 * right) return (slope[i + 1] - slope[i - 1]) / (left + right);
    return (2 * (h[i + 1] - 2 * h[i] + h[i - 1])) / right ** 2 - (slope[i + 1] - slope[i - 1]) / (2 * right);
  });
}

/** Sums over tokens that stand for the vocabulary: A and the means of all d_t under the fused distribution. */
export class Atoms {
  /** @param {Float32Array} logprobs  (M,) @param {Float32Array[]} deltas  E of (M,) */
  constructor(logprobs, deltas) {
    this.logprobs = logprobs;
    this.deltas = deltas;
    this.means = new Float64Array(deltas.length);
    this.total = 0;
    this.moveTo(deltas.map(() => 0));
    this.start = this.total;
    this.startMeans = Float64Array.from(this.means);
  }

  /** Sets total = A and means = E_P~[d] at weights (E,). */
  moveTo(weights) {
    const { logprobs, deltas, means } = this;
    const scores = new Float64Array(logprobs.length);
    let greatest = -Infinity;
    for (let j = 0; j < scores.length; j++) {
      let score = logprobs[j];
      for (let e = 0; e < deltas.length; e++) if (weights[e] !== 0) score += weights[e] * deltas[e][j];
      scores[j] = score;
      if (score > greatest) greatest = score;
    }
    let sum = 0;
    means.fill(0);
    for (let j = 0; j < scores.length; j++) {
      const share = Math.exp(scores[j] - greatest);
      sum += share;
      for (let e = 0; e < deltas.length; e++) means[e] += share * deltas[e][j];
    }
    for (let e = 0; e < deltas.length; e++) means[e] /= sum;
    this.total = greatest + Math.log(sum);
    return this;
  }

  /** KL(P~||P) and h of these tokens, less their values at weight 0. */
  divergences(weights) {
    this.moveTo(weights);
    let along = 0;
    let atStart = 0;
    for (let e = 0; e < weights.length; e++) {
      along += weights[e] * this.means[e];
      atStart += weights[e] * this.startMeans[e];
    }
    return [along - this.total + this.start, this.total - this.start - atStart];
  }
}
