// Both KL divergences of one token at any weight, from what a trace keeps of A, A' and A'' on a grid of weights.
//
// With h(a) = A(a) - a A'(0), the part of A that the divergences need:
//     KL(P~||P) = a h'(a) - h(a)      KL(P||P~) = m h(a)      m = sum(P), h(0) = log m, h'(0) = 0
// so that both tables, f and g at the weights a of the grid, give h = g / m and h' = (f + h) / a, and h'' = A'' is kept.
// Between two weights h is the quintic through these three at both ends.

/** h of one direction of one token, as a quintic between each two weights of the grid. */
export class Axis {
  /** h, slope, bend: h, h', h'' at each weight of the grid, which ascends from 0; mass: sum(P). */
  constructor(grid, h, slope, bend, mass) {
    this.grid = grid;
    this.mass = mass;
    this.start = h[0];
    this.coefficients = new Float64Array(6 * Math.max(0, grid.length - 1));
    for (let i = 0; i + 1 < grid.length; i++) this.fit(i, h, slope, bend);
    this.h = this.slope = 0;
  }

  /**
   * From the tables of a trace, nats.
   * @param {number[]} grid
   * @param {Float32Array} forward  KL(P~||P) at each weight
   * @param {Float32Array} reverse  KL(P||P~)
   * @param {Float32Array|null} variance  A''; null: estimated from h and h'
   */
  static ofTables(grid, forward, reverse, variance) {
    const mass = Math.exp(-forward[0]);
    const h = Float64Array.from(reverse, (g) => g / mass);
    h[0] = -forward[0];
    const slope = Float64Array.from(grid, (a, i) => (i === 0 ? 0 : (forward[i] + h[i]) / a));
    return new Axis(grid, h, slope, variance ?? bends(grid, h, slope), mass);
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

  /** [h, h', h''] at a weight of the grid. */
  atNode(i) {
    const cell = Math.min(i, this.grid.length - 2);
    const width = this.grid[cell + 1] - this.grid[cell];
    const c = this.coefficients.subarray(6 * cell, 6 * cell + 6);
    if (cell === i) return [c[0], c[1] / width, (2 * c[2]) / width ** 2];
    return [c[0] + c[1] + c[2] + c[3] + c[4] + c[5], (c[1] + 2 * c[2] + 3 * c[3] + 4 * c[4] + 5 * c[5]) / width,
      (2 * c[2] + 6 * c[3] + 12 * c[4] + 20 * c[5]) / width ** 2];
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
  /** @param {ArrayLike<number>} logprobs  (M,) @param {ArrayLike<number>[]} deltas  E of (M,) */
  constructor(logprobs, deltas) {
    this.logprobs = logprobs;
    this.deltas = deltas;
    this.scores = new Float64Array(logprobs.length);
    this.means = new Float64Array(deltas.length);
    this.total = 0;
    this.moveTo(deltas.map(() => 0));
    this.start = this.total;
    this.startMeans = Float64Array.from(this.means);
  }

  /** Sets total = A and means = E_P~[d] at weights (E,). */
  moveTo(weights) {
    const { logprobs, deltas, means, scores } = this;
    scores.set(logprobs);
    let greatest = -Infinity;
    for (let e = 0; e < deltas.length; e++) {
      const [weight, delta] = [weights[e], deltas[e]];
      if (weight !== 0) for (let j = 0; j < scores.length; j++) scores[j] += weight * delta[j];
    }
    for (let j = 0; j < scores.length; j++) if (scores[j] > greatest) greatest = scores[j];
    let sum = 0;
    for (let j = 0; j < scores.length; j++) sum += scores[j] = Math.exp(scores[j] - greatest);
    for (let e = 0; e < deltas.length; e++) {
      const delta = deltas[e];
      let mean = 0;
      for (let j = 0; j < scores.length; j++) mean += scores[j] * delta[j];
      means[e] = mean / sum;
    }
    this.sum = sum;
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

  /** What the whole vocabulary has beyond these tokens along one expert's axis. */
  missing(axis, expert) {
    const { grid } = axis;
    const [h, slope, bend] = [new Float64Array(grid.length), new Float64Array(grid.length), new Float64Array(grid.length)];
    const delta = this.deltas[expert];
    grid.forEach((weight, i) => {
      this.moveTo(this.deltas.map((_, e) => (e === expert ? weight : 0)));
      const mean = this.means[expert];
      let second = 0;
      for (let j = 0; j < delta.length; j++) second += this.scores[j] * (delta[j] - mean) ** 2;
      const [wholeH, wholeSlope, wholeBend] = axis.atNode(i);
      h[i] = wholeH - axis.start - (this.total - this.start - weight * this.startMeans[expert]);
      slope[i] = wholeSlope - (mean - this.startMeans[expert]);
      bend[i] = wholeBend - second / this.sum;
    });
    return new Axis(grid, h, slope, bend, axis.mass);
  }
}
