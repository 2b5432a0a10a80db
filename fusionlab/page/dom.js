// Nodes and words: small makers that set text as text, never as markup.

const SVG_SPACE = "http://www.w3.org/2000/svg";

/** An element. options: `text`, `css` (properties set one by one), `on` (listeners); all else are attributes. */
export function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  const { text, css, on, ...attributes } = options;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(css ?? {})) node.style.setProperty(name, value);
  for (const [name, listener] of Object.entries(on ?? {})) node.addEventListener(name, listener);
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** An SVG element; the same options. */
export function svg(tag, options = {}, ...children) {
  const node = document.createElementNS(SVG_SPACE, tag);
  const { text, on, ...attributes } = options;
  if (text !== undefined) node.textContent = text;
  for (const [name, listener] of Object.entries(on ?? {})) node.addEventListener(name, listener);
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** true: an attribute without value; false, null: none. */
export function setAttribute(node, name, value) {
  if (value === false || value === null || value === undefined) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}

/** A number with a real minus sign; – for what is not there. */
export function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
}

/** A KL or a target: as many digits as tell it from 0. */
export function nats(value) {
  if (Math.abs(value) >= 0.01 || value === 0 || !Number.isFinite(value)) return number(value, Math.abs(value) >= 10 ? 1 : 2);
  return value < 1e-4 ? "<0.0001" : number(value, 4);
}

/** A log-probability as per cent. */
export function percent(logprob) {
  if (logprob === null || Number.isNaN(logprob)) return "–";
  const share = 100 * Math.exp(logprob);
  return share >= 0.1 ? `${share.toFixed(1)} %` : share > 0 ? "<0.1 %" : "0 %";
}

/** Text on one line, with signs for what would not be seen at its ends. */
export function oneLine(text) {
  return text.replace(/\n/g, "⏎").replace(/^ +| +$/g, (run) => "␣".repeat(run.length)) || "∅";
}

export function shortened(text, length) {
  const characters = [...text];
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}

/** The class that carries an expert's hue. */
export function hueOf(expert) {
  return `e${expert % 8}`;
}

/** The letter of an expert on its hue. */
export function chipOf(trace, expert) {
  return el("span", { class: `chip ${hueOf(expert)}`, text: trace.experts[expert].letter, "aria-hidden": "true" });
}

/** Spaces at the edges of a piece and line breaks get a faint sign that is not copied with the text. */
export function pieceNodes(text) {
  if (text === "") return [el("span", { class: "empty" })];
  const nodes = [];
  for (const part of text.split(/(\n|^ +| +$| {2,})/)) {
    if (part === "") continue;
    if (part === "\n") nodes.push(el("span", { class: "break", text: "\n" }));
    else if (/^ +$/.test(part)) for (const space of part) nodes.push(el("span", { class: "space", text: space }));
    else nodes.push(document.createTextNode(part));
  }
  return nodes;
}

/** The mark of a token that ends the answer; what the model wrote is its title. */
export function endChip(text) {
  return el("span", { class: "end", text: "end", title: oneLine(text) });
}

/** Offers text or a Blob as a download. */
export function download(content, name, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
