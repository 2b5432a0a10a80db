// From the payload of fusionlab/trace_payload.py to typed arrays, and back together where a trace grows.

/** @typedef {{kind: string, shape: number[], values: Float32Array|Float64Array|Int32Array}} Column */

/**
 * A trace with its numbers unpacked: fields of the payload, and `columns` of arrays by their Python names.
 * @param {Object} payload
 */
export function readTrace(payload) {
  if (payload === null || typeof payload !== "object" || !payload.arrays) {
    throw new Error("This is not a trace that this release of the views can read.");
  }
  const columns = {};
  for (const [name, packed] of Object.entries(payload.arrays)) columns[name] = unpackColumn(packed);
  const trace = { ...payload, columns, size: payload.tokens, experts: payload.experts ?? [] };
  delete trace.arrays;
  trace.choice = Array.from(columns.large_choice.values);
  trace.atomRow = new Map(Array.from(columns.atom_rows?.values ?? [], (row, at) => [row, at]));
  trace.tables = Boolean(columns.grid_variance);
  return trace;
}

/** The trace with the tokens of a later payload appended. Both hold the same experts. */
export function growTrace(trace, payload) {
  const more = readTrace(payload);
  if (more.start !== trace.size) throw new Error(`Tokens from ${more.start} on do not follow ${trace.size} tokens.`);
  const places = joinVocabularies(trace.vocabulary, more.vocabulary);
  for (const name of ["large_choice", "top", "candidates"]) {
    const column = more.columns[name];
    if (column) column.values = column.values.map((index) => (index < 0 ? -1 : places[index]));
  }
  if (more.columns.atom_rows) more.columns.atom_rows.values = more.columns.atom_rows.values.map((row) => row + trace.size);
  for (const [name, column] of Object.entries(more.columns)) {
    const held = trace.columns[name];
    trace.columns[name] = held === undefined ? column : joinColumns(held, column);
  }
  trace.pieces = [...trace.pieces, ...more.pieces];
  trace.size += more.tokens;
  trace.tokens = trace.size;
  trace.groups = more.groups;
  trace.choice = Array.from(trace.columns.large_choice.values);
  trace.atomRow = new Map(Array.from(trace.columns.atom_rows?.values ?? [], (row, at) => [row, at]));
  return trace;
}

/** A row of a column, as a view: row(i, j) of shape (N, E, G) has G numbers. */
export function rowOf(column, ...indexes) {
  const { shape, values } = column;
  let size = 1;
  for (let axis = indexes.length; axis < shape.length; axis++) size *= shape[axis];
  let at = 0;
  for (let axis = 0; axis < indexes.length; axis++) at = at * shape[axis] + indexes[axis];
  return values.subarray(at * size, (at + 1) * size);
}

function unpackColumn({ kind, shape, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return { kind, shape, values: READERS[kind](bytes.buffer) };
}

const READERS = {
  f4: (buffer) => new Float32Array(buffer),
  i4: (buffer) => new Int32Array(buffer),
  i1: (buffer) => Int32Array.from(new Int8Array(buffer)),
  u2: (buffer) => Int32Array.from(new Uint16Array(buffer), (index) => (index === 0xffff ? -1 : index)),
  b2: (buffer) => new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer),
  f2: (buffer) => Float32Array.from(new Uint16Array(buffer), fromHalf),
};

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function joinColumns(held, more) {
  const values = new held.values.constructor(held.values.length + more.values.length);
  values.set(held.values);
  values.set(more.values, held.values.length);
  return { ...held, shape: [held.shape[0] + more.shape[0], ...more.shape.slice(1)], values };
}

/** Adds the texts of `more` to `held`; returns where each of them is now. */
function joinVocabularies(held, more) {
  const known = new Map(held.ids.map((id, index) => [id, index]));
  return more.ids.map((id, index) => {
    if (!known.has(id)) {
      known.set(id, held.ids.length);
      held.ids.push(id);
      held.texts.push(more.texts[index]);
    }
    return known.get(id);
  });
}
