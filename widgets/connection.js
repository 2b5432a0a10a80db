// The way to the kernel: numbered requests, whether they arrive, and words for when they do not.

const PATIENCE_MS = 4000;
const GONE = "The kernel is gone or was restarted. Everything you see still works, sliders included; to write again, run the cell again.";
const QUIET = "The kernel has not answered for 4 seconds: it is busy with a cell, and then this request is next in line; or it is gone, and then run the cell again.";

/** One view's end of the line. warn(words) is called with what to say; "" takes it back. */
export class Connection {
  constructor(model, warn) {
    this.model = model;
    this.warn = warn;
    this.view = crypto.randomUUID?.() ?? String(Math.random());
    this.asked = 0;
    this.listening = [];
    this.on("comm_live_update", () => this.askWhetherAlive()); // the line was cut, or is there again
  }

  on(name, callback) {
    this.model.on(name, callback);
    this.listening.push([name, callback]);
  }

  askWhetherAlive() {
    this.warn(GONE); // until it answers
    this.ask("come", { view: this.view }, undefined, GONE);
  }

  /** Ask for something of requests.py. words: what to say when no answer comes; "" when nobody waits for one. */
  ask(type, content = {}, buffers = undefined, words = QUIET) {
    this.asked += 1;
    clearTimeout(this.timer);
    if (words) this.timer = setTimeout(() => this.warn(words), PATIENCE_MS);
    try {
      this.model.send({ ...content, type, serial: this.serial() }, undefined, buffers);
    } catch {
      clearTimeout(this.timer);
      this.warn(GONE); // JupyterLab refuses to send to a kernel that was shut down
    }
  }

  /** Of the latest request. */
  serial() {
    return `${this.view}:${this.asked}`;
  }

  /** Whether a reply is to this view. */
  isMine(serial) {
    return String(serial).startsWith(`${this.view}:`);
  }

  /** The kernel has read a request. */
  heard(serial) {
    if (serial !== this.serial()) return;
    clearTimeout(this.timer);
    this.warn("");
  }

  leave() {
    this.ask("leave", { view: this.view }, undefined, "");
    clearTimeout(this.timer);
    for (const [name, callback] of this.listening) this.model.off(name, callback);
  }
}
