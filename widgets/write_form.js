// What to write on and with whom; Run, Stop and Continue; and how far it has come.

import { el } from "./dom.js";

let writeForms = 0;

/** actions: run(), stop(), goOn(). */
export class WriteForm {
  constructor(actions) {
    const id = (writeForms += 1);
    this.actions = actions;
    this.experts = el("div", { class: "experts", role: "group", "aria-label": "Experts" });
    this.prompt = el("textarea", { id: `prompt-${id}`, rows: 4, spellcheck: false, on: { keydown: (event) => this.pressed(event) } });
    this.tokens = el("input", { type: "number", id: `tokens-${id}`, min: 1, max: 4096, step: 1 });
    this.chat = el("input", { type: "checkbox" });
    this.chatLabel = el("label", { class: "tick", hidden: true }, this.chat, " as a chat message");
    const button = (text, title, click, className = "") => el("button", { type: "button", class: className, text, title, on: { click } });
    this.run = button("Run", "Write an answer (Shift+Enter in the prompt)", () => actions.run(), "primary");
    this.stop = button("Stop", "End at the next token", () => actions.stop());
    this.goOn = button("Continue", "Write on from the last token", () => actions.goOn());
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.words = el("p", { class: "progress-words", role: "status" });
    this.passes = el("p", { class: "note passes-in-all" });
    this.node = el("section", { "aria-label": "Write" },
      el("h3", { text: "Experts" }), this.experts,
      el("label", { class: "heading", for: `prompt-${id}`, text: "Prompt" }), this.prompt,
      el("div", { class: "row inline" }, el("label", { for: `tokens-${id}`, text: "New tokens, at most" }), this.tokens), this.chatLabel,
      el("div", { class: "buttons" }, this.run, this.stop, this.goOn), this.bar, this.words, this.passes);
    this.names = [];
    this.shown = { prompt: "", tokens: "", chat: false, experts: "" }; // what was put into the fields
  }

  pressed(event) {
    if (event.key !== "Enter" || !(event.shiftKey || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would run the cell
    if (!this.run.disabled) this.actions.run();
  }

  settings() {
    return { prompt: this.prompt.value, experts: this.ticked(), max_new_tokens: Number(this.tokens.value), chat: this.chat.checked };
  }

  /** The team's experts, and which of them are ticked. */
  showTeam(team, { experts: ticked = [] }) {
    this.team = team;
    this.names = (team.experts ?? []).map(({ name }) => name);
    this.boxes = new Map(this.names.map((name) => [name, el("input", { type: "checkbox", value: name })]));
    this.experts.replaceChildren(...(team.experts ?? []).map(({ name, id }) => el("label", { class: "tick", title: id },
      this.boxes.get(name), ` ${name}`)));
    if (!this.names.length) this.experts.append(el("span", { class: "note", text: "none loaded" }));
    this.tick(ticked);
    this.chatLabel.hidden = !team.chat;
    this.enable();
  }

  /** What is asked. Fields that were changed since, and are not sent yet, are left alone; all: those too. */
  show(settings, all = false) {
    const { shown } = this;
    const focused = this.node.getRootNode().activeElement;
    const isFree = (node, value, before) => all || (node !== focused && value === before);
    if (isFree(this.prompt, this.prompt.value, shown.prompt)) this.prompt.value = settings.prompt ?? "";
    if (isFree(this.tokens, this.tokens.value, shown.tokens)) this.tokens.value = settings.max_new_tokens ?? 64;
    if (isFree(null, this.chat.checked, shown.chat)) this.chat.checked = Boolean(settings.chat);
    const free = isFree(null, this.ticked().join("\n"), shown.experts);
    this.shown = { ...shown, prompt: settings.prompt ?? "", tokens: String(settings.max_new_tokens ?? 64), chat: Boolean(settings.chat) };
    if (free) this.tick(settings.experts ?? []);
  }

  tick(experts) {
    for (const [name, box] of this.boxes ?? []) box.checked = experts.includes(name);
    this.shown.experts = this.ticked().join("\n");
  }

  ticked() {
    return this.names.filter((name) => this.boxes.get(name).checked);
  }

  showProgress(progress) {
    this.progress = progress;
    const { stage, words, done, total, busy } = progress;
    this.node.dataset.stage = stage;
    this.words.textContent = words;
    this.bar.hidden = !busy;
    if (total && stage !== "prompt") {
      this.bar.max = total;
      this.bar.value = done;
    } else this.bar.removeAttribute("value");
    this.enable();
  }

  showPasses(count) {
    this.passes.textContent = `${count.toLocaleString("en")} forward ${count === 1 ? "pass" : "passes"} of all models so far`;
    this.passes.hidden = !count;
  }

  enable() {
    const { busy = false, stage = "idle" } = this.progress ?? {};
    this.run.disabled = stage === "loading";
    this.stop.disabled = !busy || stage === "loading";
    this.goOn.disabled = busy;
    this.goOn.hidden = stage !== "stopped";
  }
}
