// The trace view as an anywidget: the same views as everywhere, with the selection and the constraint shared with Python.

import { mountMessage, mountTrace } from "./controls.js";

function render({ model, el: element }) {
  let handle = null;
  element.classList.add("fusionlab-live-trace"); // the saved view beside it is hidden by this

  function mount() {
    handle?.destroy();
    handle = null;
    const problem = model.get("problem");
    if (problem) {
      handle = mountMessage(element, problem);
      return;
    }
    const payload = model.get("payload");
    if (!payload?.arrays) {
      handle = mountMessage(element, "No trace is loaded.", "wait");
      return;
    }
    try {
      handle = mountTrace(element, payload);
    } catch (error) {
      handle = mountMessage(element, `This trace cannot be shown: ${error.message}`);
      return;
    }
    share(handle);
  }

  function share(views) {
    let silent = true; // what comes from Python is not sent back
    if (Object.keys(model.get("constraint")).length) views.setConstraint(model.get("constraint"));
    if (model.get("selection") >= 0) views.select(model.get("selection"));
    silent = false;
    views.onSelect((index) => tell("selection", index));
    views.onConstraint((preview, released) => {
      if (released) tell("constraint", preview.constraint);
    });
    const tell = (name, value) => {
      if (silent) return;
      silent = true;
      model.set(name, value);
      model.save_changes();
      silent = false;
    };
    views.hear = (name) => {
      if (silent) return;
      silent = true;
      if (name === "selection") views.select(model.get("selection"));
      else views.setConstraint(model.get("constraint"));
      silent = false;
    };
  }

  const heard = ["selection", "constraint"].map((name) => [`change:${name}`, () => handle?.hear?.(name)]);
  const changes = [...heard, ["change:payload", mount], ["change:problem", mount]];
  for (const [event, act] of changes) model.on(event, act);
  mount();
  return () => {
    for (const [event, act] of changes) model.off(event, act);
    handle?.destroy();
  };
}

export default { render };
