// The weight that minimises J along one axis: fusionlab/search.py on quintics, where an evaluation costs nothing. No DOM.

const SCAN = 12; // points looked at between two weights of the grid
const GOLDEN = (Math.sqrt(5) - 1) / 2;

/** [J, weight]: the minimiser of J on one axis for targets F and G, up to `alpha_max`; equal J: the smallest weight. */
export function searchWeight(axis, forward, reverse, constraint) {
  const byForward = constraint.direction !== "reverse";
  const byReverse = constraint.direction !== "forward";
  const objective = (weight) => {
    axis.moveTo(weight);
    const f = byForward ? weight * axis.slope - axis.h - forward : 0;
    const g = byReverse ? axis.mass * axis.h - reverse : 0;
    return f * f + g * g;
  };
  const top = constraint.alpha_max;
  const nodes = axis.grid.filter((weight) => weight < top);
  nodes.push(top);
  const f = nodes.map((weight) => (byForward ? axis.forward(weight) : 0));
  const g = nodes.map((weight) => (byReverse ? axis.reverse(weight) : 0));
  const aim = [byForward ? forward : 0, byReverse ? reverse : 0];
  // KL(P~||P) grows with the weight, also where single precision no longer tells: out of reach means as far as allowed.
  if (!byReverse && Math.max(...f) < forward) return [(f[f.length - 1] - forward) ** 2, top];
  let best = [Infinity, 0];
  nodes.forEach((weight, i) => {
    const value = (f[i] - aim[0]) ** 2 + (g[i] - aim[1]) ** 2;
    if (value < best[0]) best = [value, weight];
  });
  // Both divergences grow, so between two weights J is no less than the distance of the targets to a box.
  let reach = 0;
  const nodeBest = best[0];
  for (let i = 0; i + 1 < nodes.length; i++) {
    const bound = gap(aim[0], f[i], f[i + 1]) ** 2 + gap(aim[1], g[i], g[i + 1]) ** 2;
    if (bound > nodeBest) continue;
    const step = (nodes[i + 1] - nodes[i]) / SCAN;
    if (best[1] === nodes[i] || best[1] === nodes[i + 1]) reach = Math.max(reach, step);
    for (let k = 1; k < SCAN; k++) {
      const weight = nodes[i] + k * step;
      const value = objective(weight);
      if (value < best[0]) {
        best = [value, weight];
        reach = step;
      }
    }
  }
  if (best[0] === 0 || reach === 0) return best;
  return narrow(objective, best, Math.max(0, best[1] - reach), Math.min(top, best[1] + reach));
}

/** Distance of a target to the interval of two values. */
function gap(target, low, high) {
  return target < low ? low - target : target > high ? target - high : 0;
}

/** The least of a function near its best known point: golden section between low and high. */
function narrow(objective, [value, weight], low, high) {
  let best = [value, weight];
  let [left, right] = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)];
  let [atLeft, atRight] = [objective(left), objective(right)];
  while (high - low > 1e-7) {
    if (atLeft <= atRight) {
      [high, right, atRight] = [right, left, atLeft];
      left = high - GOLDEN * (high - low);
      atLeft = objective(left);
      if (atLeft < best[0]) best = [atLeft, left];
    } else {
      [low, left, atLeft] = [left, right, atRight];
      right = low + GOLDEN * (high - low);
      atRight = objective(right);
      if (atRight < best[0]) best = [atRight, right];
    }
  }
  return best;
}
