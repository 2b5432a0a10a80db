// Where views live: a shadow root with the style in it, so that no notebook's style reaches in and none leaks out. It keeps
// to the theme of its surroundings.

import { STYLE } from "./style.js";
import { el } from "./dom.js";

/**
 * A block inside `element` that shows `content`. Inside a root of ours content is placed as it is.
 * onTheme(theme) is called now and whenever the theme changes.
 * @returns {{leave: () => void}}
 */
export function shadowHost(element, content, onTheme = () => {}) {
  const inside = element.getRootNode() instanceof ShadowRoot && element.closest(".fusion");
  const [node, block] = inside ? [inside, content] : makeRoot(content);
  element.append(block);
  const stop = followTheme(node, onTheme);
  return {
    leave() {
      stop();
      block.remove();
    },
  };
}

function makeRoot(content) {
  const block = el("div", { class: "fusion-host", "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": "true" });
  const frame = el("div", { class: "fusion" }, content);
  const root = block.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  root.append(frame);
  return [frame, block];
}

/** Keeps data-theme of a node as the surroundings are: JupyterLab's, VS Code's or Colab's theme, else the system's. */
function followTheme(node, callback) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let last = null;
  const update = () => {
    const theme = surroundingTheme() ?? (system.matches ? "dark" : "light");
    if (theme === last) return;
    last = node.dataset.theme = theme;
    callback(theme);
  };
  const watch = new MutationObserver(update);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class", "data-vscode-theme-kind"] });
  watch.observe(document.documentElement, { attributes: true, attributeFilter: ["theme"] });
  system.addEventListener("change", update);
  update();
  return () => {
    watch.disconnect();
    system.removeEventListener("change", update);
  };
}

function surroundingTheme() {
  const { body, documentElement } = document;
  const jupyter = body.dataset.jpThemeLight;
  if (jupyter !== undefined) return jupyter === "false" ? "dark" : "light";
  const code = body.dataset.vscodeThemeKind;
  if (code !== undefined) return code.includes("dark") || code === "vscode-high-contrast" ? "dark" : "light";
  const colab = documentElement.getAttribute("theme");
  return colab === "dark" || colab === "light" ? colab : null;
}
