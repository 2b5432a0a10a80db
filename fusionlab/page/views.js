// The linked views on one trace: token strip, weight heatmap, KL curves, inspector, comparison of texts.
//
// One selection (an index of a token) links all of them, and one constraint: a preview is solved again in the browser,
// from the tables of the trace, by resolve.js. Model text is only ever set with textContent. No dependency, no request.

/**
 * What `fusionlab.trace_payload.trace_payload(trace)` gives; see its docstring. Never written by hand.
 * @typedef {Object} Payload
 *
 * A constraint in the form of `KLConstraint.to_dict()`, and the method. Fields that are left out keep their value.
 * @typedef {Object} Constraint
 * @property {number} [scale]
 * @property {"both"|"forward"|"reverse"} [direction]
 * @property {number} [alpha_max]
 * @property {number|null} [budget]   nats
 * @property {{experts: Object<string, number>, tokens: Object<string, number|Object<string, number>>}|null} [force]
 * @property {string} [method]
 *
 * @typedef {Object} Options
 * @property {boolean} [live]   a kernel can go on from here: candidates and weights become what-ifs (default false)
 *
 * A change of the user's, made in the inspector. `alpha` maps the names of experts to weights.
 * @typedef {{index: number, token_id: number}|{index: number, alpha: Object<string, number>}} WhatIf
 *
 * What a constraint would do to the trace as it stands.
 * @typedef {Object} Preview
 * @property {Constraint} constraint  complete, with `method`
 * @property {number[]} changed       tokens whose most likely token would be another one, ascending; -1 never occurs
 * @property {number[]} uncertain     tokens of which this cannot be told from the trace
 * @property {string|null} note       in words, where the method could not be solved again as it is
 *
 * @typedef {Object} Handle
 * @property {(payload: Payload) => void} setPayload      another trace; the selection is kept where it still exists
 * @property {(payload: Payload) => void} appendToken     more tokens of the same trace: `trace_payload(trace, start=n)`
 * @property {(constraint: Constraint, how?: {preview?: boolean}) => Preview} setConstraint
 *     preview (default true): solve again and mark what would change; false: the trace is now one of this constraint
 * @property {(index: number) => void} select             counted from 0; clipped to the trace
 * @property {(callback: (index: number) => void) => void} onSelect
 * @property {(callback: (whatIf: WhatIf) => void) => void} onWhatIf    only called with options.live
 * @property {(alternatives: {name: string, token_ids: number[], pieces: string[]}[]) => void} setAlternatives
 * @property {() => string} exportSVG                     the heatmap as a self-contained SVG document
 * @property {() => Promise<Blob>} exportPNG              the same as a PNG, at twice the size
 * @property {() => void} destroy                         listeners and nodes are gone afterwards
 */

/**
 * Show a trace in an element, in a shadow root of its own.
 * @param {HTMLElement} element
 * @param {Payload} payload
 * @param {Options} [options]
 * @returns {Handle}
 */
export function mountViews(element, payload, options = {}) {
  throw new Error("not written yet");
}
