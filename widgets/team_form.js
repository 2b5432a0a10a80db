// Which models are loaded, and a form to load others.

import { el } from "./dom.js";

let forms = 0; // labels name their fields by ids, and a page may hold several explorers

/** actions: load(team), with the fields of requests.py's team_options. */
export class TeamForm {
  constructor(actions) {
    const id = (forms += 1);
    this.words = el("dl", { class: "team" });
    this.large = el("input", { type: "text", id: `large-${id}`, placeholder: "meta-llama/Llama-2-13b-hf", spellcheck: false });
    this.small = el("input", { type: "text", id: `small-${id}`, placeholder: "TinyLlama/TinyLlama_v1.1", spellcheck: false });
    this.experts = el("textarea", { id: `experts-${id}`, rows: 2, placeholder: "math = id or folder", spellcheck: false });
    this.inFour = el("input", { type: "checkbox", id: `four-${id}` });
    const field = (label, input) => el("div", { class: "row" }, el("label", { for: input.id, text: label }), input);
    this.buttons = [
      el("button", { type: "button", text: "Load these models", on: { click: () => actions.load(this.read()) } }),
      el("button", { type: "button", text: "Load the embedded team", on: { click: () => actions.load({ name: "embedded" }) } }),
    ];
    this.summary = el("summary");
    this.details = el("details", {}, this.summary,
      el("p", { class: "note", text: "Hub ids or folders. All models share one vocabulary; experts are fine-tuned small models, or adapters on the small one." }),
      field("Large model", this.large), field("Small model", this.small), field("Experts, one a line", this.experts),
      el("label", { class: "tick" }, this.inFour, " in 4 bits (NF4)"), el("div", { class: "buttons" }, ...this.buttons));
    this.node = el("section", { "aria-label": "Team" }, el("h3", { text: "Team" }), this.words, this.details);
  }

  show(team) {
    const rows = team.loaded ? [["large", team.large], ["small", team.small]] : [];
    this.words.replaceChildren(...rows.map(([label, words]) => el("div", {}, el("dt", { text: label }), el("dd", { text: words }))));
    this.summary.textContent = team.loaded ? "Load another team" : "No team is loaded. Load one:";
    this.details.open = !team.loaded;
  }

  read() {
    const lines = this.experts.value.split("\n").filter((line) => line.trim());
    const experts = Object.fromEntries(lines.map((line) => {
      const at = line.indexOf("=");
      return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }));
    return { large: this.large.value, small: this.small.value, experts, quantization: this.inFour.checked ? "nf4" : null };
  }
}
