// The constraint's controls, and the views with them.

/**
 * @typedef {import("./views.js").Payload} Payload
 * @typedef {import("./views.js").Handle} Handle
 * @typedef {import("./views.js").Preview} Preview
 *
 * @typedef {Object} TraceOptions
 * @property {boolean} [live]             as in mountViews; also: releasing a control asks for a new generation
 * @property {number} [forwardPasses]     forward passes since the last generation (default 0)
 * @property {boolean} [controls]         show the controls of the constraint (default true)
 *
 * @typedef {Handle & {
 *   onConstraint: (callback: (preview: Preview, released: boolean) => void) => void,
 *   setForwardPasses: (count: number) => void,
 *   views: Handle,
 * }} TraceHandle
 *     onConstraint: on every frame of a drag that shows something new (released = false), and once with true when the
 *     control is let go. `preview.changed[0]` is the first token to write again.
 */

/**
 * Controls and views of one trace, linked. This is what pages, saved notebooks and widgets show.
 * @param {HTMLElement} element
 * @param {Payload} payload
 * @param {TraceOptions} [options]
 * @returns {TraceHandle}
 */
export function mountTrace(element, payload, options = {}) {
  throw new Error("not written yet");
}
