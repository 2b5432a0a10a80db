// The runs so far: show one again, compare two, take one away as a file or as code.

import { download, el } from "./dom.js";

/** actions: select(run), compare([run, run]), export(kind), open(file). */
export class HistoryList {
  constructor(actions) {
    this.actions = actions;
    this.ticked = [];
    this.list = el("ol", { class: "runs" });
    this.compareButton = el("button", { type: "button", text: "Compare two", title: "Tick two runs first", on: { click: () => actions.compare(this.ticked) } });
    this.file = el("input", { type: "file", accept: ".parquet", hidden: true, "aria-label": "Trace file", on: { change: () => this.opened() } });
    const exports = [["parquet", "Trace"], ["html", "Page"], ["python", "Python call"]].map(([kind, text]) =>
      el("button", { type: "button", text, title: EXPORTS[kind], on: { click: () => actions.export(kind) } }));
    this.exports = exports;
    this.code = el("div", { class: "code", hidden: true });
    this.comparison = el("section", { class: "runs-compared", "aria-label": "Comparison of two runs", hidden: true });
    this.node = el("section", { "aria-label": "Runs" }, el("h3", { text: "Runs" }), this.list,
      el("div", { class: "buttons" }, this.compareButton),
      el("h3", { text: "Take away" }),
      el("div", { class: "buttons" }, ...exports, el("button", { type: "button", text: "Open a trace…", on: { click: () => this.file.click() } })),
      this.file, this.code);
  }

  opened() {
    const [file] = this.file.files;
    this.file.value = "";
    if (file) this.actions.open(file);
  }

  /** shown: number of the run on the right, or null. */
  showRuns(runs, shown) {
    this.ticked = this.ticked.filter((number) => runs.some((run) => run.number === number));
    const entries = [...runs].reverse().map((run) => this.entry(run, run.number === shown));
    this.list.replaceChildren(...entries);
    if (!entries.length) this.list.append(el("li", { class: "note", text: "none yet" }));
    for (const button of this.exports) button.disabled = shown === null;
    this.compareButton.hidden = runs.length < 2;
    this.compareButton.disabled = this.ticked.length !== 2;
  }

  entry(run, isShown) {
    const tick = el("input", {
      type: "checkbox", "aria-label": `compare run ${run.number}`, on: { change: () => this.tick(run.number, tick.checked) },
    });
    tick.checked = this.ticked.includes(run.number);
    const facts = [run.method, run.constraint, `${run.tokens} tokens`, `${run.flipped} moved`, run.stopped ? "stopped" : null, run.origin];
    const button = el("button", { type: "button", class: "run", "aria-current": isShown, on: { click: () => this.actions.select(run.number) } },
      el("span", { class: "number", text: String(run.number) }), el("span", { class: "text", text: run.text }),
      el("span", { class: "note", text: facts.filter(Boolean).join(" · ") }));
    return el("li", {}, tick, button);
  }

  tick(number, isTicked) {
    this.ticked = [...this.ticked.filter((other) => other !== number), ...(isTicked ? [number] : [])].slice(-2);
    for (const box of this.list.querySelectorAll("input")) {
      box.checked = this.ticked.some((ticked) => box.getAttribute("aria-label") === `compare run ${ticked}`);
    }
    this.compareButton.disabled = this.ticked.length !== 2;
  }

  showCode(text) {
    const note = el("span", { class: "note", role: "status" });
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(text);
        note.textContent = " copied";
      } catch {
        note.textContent = " select the text and copy it"; // no clipboard without https
      }
    };
    const close = () => { this.code.hidden = true; };
    this.code.replaceChildren(el("pre", { tabindex: 0, text }), el("div", { class: "buttons" },
      el("button", { type: "button", text: "Copy", on: { click: copy } }),
      el("button", { type: "button", text: "Save", on: { click: () => download(text, "fusion_run.py", "text/x-python") } }),
      el("button", { type: "button", text: "Close", on: { click: close } }), note));
    this.code.hidden = false;
  }

  showComparison({ runs: [first, second], settings, divergence, figures }) {
    const rows = [
      ...settings.map(({ name, values }) => [name, ...values]),
      ["tokens", ...figures.map(({ tokens }) => tokens)],
      ["moved by an expert", ...figures.map(({ flipped }) => flipped)],
      ["KL(P̃‖P), nats a token", ...figures.map(({ kl_forward: nats }) => nats)],
      ["mean weights", ...figures.map(({ weights }) => Object.entries(weights).map(([name, weight]) => `${name} ${weight}`).join(", "))],
    ];
    const where = divergence === null ? "Both wrote the same tokens." : `The texts part at token ${divergence + 1}; it is marked below.`;
    this.comparison.replaceChildren(
      el("h3", { text: `Run ${first} against run ${second}` }), el("p", { text: where }),
      el("table", {}, el("thead", {}, el("tr", {}, ...["", `run ${first}`, `run ${second}`].map((text) => el("th", { scope: "col", text })))),
        el("tbody", {}, ...rows.map(([name, ...values]) => el("tr", {}, el("th", { scope: "row", text: name }),
          ...values.map((value) => el("td", { text: String(value) })))))),
      el("div", { class: "buttons" }, el("button", { type: "button", text: "Close", on: { click: () => this.hideComparison() } })));
    this.comparison.hidden = false;
    this.comparison.scrollIntoView({ block: "nearest" });
  }

  hideComparison() {
    this.comparison.hidden = true;
  }
}

const EXPORTS = {
  parquet: "The trace as a Parquet file: Trace.load reads it, and so does DuckDB",
  html: "The views as one page that needs nothing else",
  python: "The call that writes this text again",
};
