// The way to the kernel: numbered requests, whether they arrive, and words for when they do not.

const PATIENCE_MS = 4000;
const GONE = "The kernel is gone or was restarted. Everything you see still works, sliders included; to write again, run the cell again.";
const QUIET = "The kernel has not answered for 4 seconds: it is busy with another cell, or gone. Your request waits in its line.";

/** One view's end of the line. warn(words) is called with what to say; "" takes it back. */
export class Connection {
  constructor(model, place, warn) {
    this.model = model;
    this.warn = warn;
    this.view = crypto.randomUUID?.() ?? String(Math.random());
    this.serial = 0;
    this.listening = [];
    this.on("comm_live_update", () => setTimeout(() => {
      this.isGone = Boolean(place.closest(".jupyter-widgets-disconnected"));
      warn(this.isGone ? GONE : "");
    }));
  }

  on(name, callback) {
    this.model.on(name, callback);
    this.listening.push([name, callback]);
  }

  /** Ask for something of requests.py. */
  ask(type, content = {}, buffers = undefined) {
    this.serial += 1;
    if (this.isGone) {
      this.warn(GONE);
      return;
    }
    clearTimeout(this.timer);
    if (type !== "leave") this.timer = setTimeout(() => this.warn(QUIET), PATIENCE_MS);
    this.model.send({ ...content, type, serial: this.serial }, undefined, buffers);
  }

  /** The kernel has read a request. */
  heard(serial) {
    if (serial !== this.serial) return;
    clearTimeout(this.timer);
    this.warn("");
  }

  leave() {
    if (!this.isGone) this.ask("leave", { view: this.view });
    clearTimeout(this.timer);
    for (const [name, callback] of this.listening) this.model.off(name, callback);
  }
}
