// The explorer's page: panel on the left, the views of one answer on the right, and the kernel behind them.
//
// Everything that can be seen without a kernel is done by the views. What needs one is asked for with a number, and the
// state that outlives a reload is in the model's traits. Model text is only ever set with textContent.

import { mountTrace } from "./controls.js";
import { download, el } from "./dom.js";
import { Connection } from "./connection.js";
import { HistoryList } from "./history_list.js";
import { TeamForm } from "./team_form.js";
import { WriteForm } from "./write_form.js";

const MOST_UPLOAD_BYTES = 8_000_000; // as in requests.py

class ExplorerPage {
  constructor(model, place) {
    this.model = model;
    this.run = null; // number of the run that is shown; null while one is being written, and before the first
    this.handle = null;
    this.passesBefore = 0; // forward passes when the last generation ended
    this.banner = el("p", { class: "banner", role: "status", hidden: true });
    this.kernel = new Connection(model, (words) => this.warn(words));
    this.alarm = el("div", { class: "alarm", role: "alert", hidden: true });
    this.write = new WriteForm({
      run: () => this.ask("run", { settings: this.settings() }),
      stop: () => this.kernel.ask("stop"),
      goOn: () => this.ask("continue", { run: this.run, settings: { max_new_tokens: this.write.settings().max_new_tokens } }),
    });
    this.team = new TeamForm({ load: (team) => this.ask("load", team) });
    this.history = new HistoryList({
      select: (run) => this.ask("select", { run }),
      compare: (runs) => this.ask("compare", { runs }),
      export: (kind) => this.ask("export", { kind, run: this.run }),
      open: (file) => this.open(file),
    });
    this.controls = el("div", { class: "constraint" });
    this.views = el("div", { class: "views-of-answer" });
    this.waiting = el("p", { class: "waiting", text: "Load a team, or open a recorded trace." });
    const panel = el("div", { class: "panel" }, this.team.node, this.write.node, this.controls, this.history.node);
    const answer = el("div", { class: "answer-side" }, this.banner, this.alarm, this.waiting, this.history.comparison, this.views);
    this.columns = el("div", { class: "columns" }, panel, answer);
    this.node = el("div", { class: "fusionlab-explorer", "data-lm-suppress-shortcuts": "true" }, this.columns);
    place.append(this.node);
    this.follow();
  }

  /** Show every trait now and whenever it changes, and read the kernel's messages. */
  follow() {
    const shows = {
      team_info: () => this.showTeam(), settings: () => this.write.show(this.model.get("settings")), answer: () => this.showAnswer(),
      others: () => this.showOthers(), runs: () => this.history.showRuns(this.model.get("runs"), this.run),
      progress: () => this.showProgress(), error: () => this.showError(), forward_passes: () => this.showPasses(),
    };
    for (const [name, show] of Object.entries(shows)) {
      const guarded = () => this.guard(show);
      guarded();
      this.kernel.on(`change:${name}`, guarded);
    }
    const messages = {
      started: ({ payload }) => this.start(payload), more: ({ payload }) => this.grow(payload),
    };
    const replies = { // to the view that asked alone; an explorer may have several
      received: ({ serial }) => this.kernel.heard(serial), comparison: (message) => this.compare(message),
      code: ({ text }) => this.history.showCode(text),
      file: ({ name, media }, [data]) => download(new Blob([data], { type: media }), name),
    };
    this.kernel.on("msg:custom", (message, buffers) => {
      const answer = messages[message.type] ?? (this.kernel.isMine(message.serial) ? replies[message.type] : null);
      this.guard(() => answer?.(message, buffers));
    });
    this.kernel.ask("come", { view: this.kernel.view }, undefined, ""); // the cells below may still be running
  }

  /** Whatever fails in the page is said in the page. */
  guard(work) {
    try {
      work();
    } catch (error) {
      console.error(error);
      this.showError({ message: `The page cannot show this: ${error.message}`, remedy: "Reload the page; the kernel's state is kept." });
    }
  }

  settings() {
    const asked = this.model.get("settings");
    const { method, ...constraint } = this.handle?.views.constraint ?? { ...asked.constraint, method: asked.method };
    return { ...this.write.settings(), method, constraint };
  }

  ask(type, content, buffers) {
    this.kernel.ask(type, content, buffers);
  }

  async open(file) {
    if (file.size > MOST_UPLOAD_BYTES) {
      this.showError({ message: `${file.name} has ${file.size.toLocaleString("en")} bytes, too many to send to the kernel`,
        remedy: "Open it in Python: Explorer(trace=path)." });
      return;
    }
    this.ask("open", { name: file.name }, [await file.arrayBuffer()]);
  }

  // -- what is shown ------------------------------------------------------------------------------

  showTeam() {
    const team = this.model.get("team_info");
    this.team.show(team);
    this.write.showTeam(team, this.model.get("settings"));
    this.showWaiting();
  }

  showAnswer() {
    const { run = null, payload, settings, looked_at: isLookedAt = false } = this.model.get("answer");
    this.run = run;
    this.isStreaming = false;
    if (!payload) this.unmount();
    else this.mount(payload);
    if (run !== null) this.write.show(settings, isLookedAt);
    this.history.showRuns(this.model.get("runs"), run);
    this.showOthers();
    this.showWaiting();
  }

  mount(payload) {
    if (this.handle) {
      this.handle.setPayload(payload);
      return;
    }
    this.handle = mountTrace(this.views, payload, {
      live: true, prompt: false, controlsPlace: this.controls, methods: this.model.get("methods"),
    });
    this.handle.onConstraint((preview, released) => {
      if (released && !isSame(preview.constraint, this.handle.views.base)) this.release(preview.constraint);
    });
    this.handle.onWhatIf((whatIf) => this.ask("what_if", { run: this.run, what_if: whatIf }));
    this.showPasses();
  }

  unmount() {
    this.handle?.destroy();
    this.handle = null;
  }

  /** A control was let go: what it changes is written anew, where there is something to write on and with. */
  release({ method, ...constraint }) {
    const isWritten = this.isStreaming || this.run !== null;
    const isOpened = this.run !== null && !this.model.get("runs").find(({ number }) => number === this.run)?.live;
    if (isWritten && !isOpened && this.model.get("team_info").loaded) this.ask("resolve", { run: this.run, constraint, method });
  }

  start(payload) {
    this.isStreaming = true;
    this.run = null;
    this.history.hideComparison();
    this.mount(payload);
    this.history.showRuns(this.model.get("runs"), null);
  }

  grow(payload) {
    if (this.isStreaming) this.handle?.appendToken(payload);
  }

  showOthers() {
    const { run, texts = [] } = this.model.get("others");
    if (this.run !== null && run === this.run) this.handle?.setAlternatives(texts);
  }

  compare({ comparison, text }) {
    this.handle?.setAlternatives([text, ...(this.model.get("others").texts ?? [])]);
    this.history.showComparison(comparison);
  }

  showProgress() {
    const progress = this.model.get("progress");
    if (!progress.busy) this.passesBefore = this.model.get("forward_passes");
    this.write.showProgress(progress);
    this.showPasses();
    this.showWaiting();
  }

  showPasses() {
    const count = this.model.get("forward_passes");
    this.handle?.setForwardPasses(count - this.passesBefore);
    this.write.showPasses(count);
  }

  showError(error = this.model.get("error")) {
    const words = error ? [el("strong", { text: error.message }), error.remedy ? el("span", { text: error.remedy }) : null] : [];
    this.alarm.replaceChildren(...words.filter(Boolean));
    this.alarm.hidden = !error;
    if (error) this.alarm.scrollIntoView({ block: "nearest" });
  }

  showWaiting() {
    this.waiting.hidden = Boolean(this.handle);
  }

  warn(words) {
    this.banner.textContent = words;
    this.banner.hidden = !words;
  }

  leave() {
    this.kernel.leave();
    this.unmount();
    this.node.remove();
  }
}

function isSame(one, other) {
  const plain = ({ force, ...fields }) => JSON.stringify([Object.entries(fields).sort(), force ?? null]);
  return plain(one) === plain(other);
}

function render({ model, el: place }) {
  const page = new ExplorerPage(model, place);
  return () => page.leave();
}

export default { render };
