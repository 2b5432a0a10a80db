// Boots the exported page and the output of a notebook: mounts every trace of the JSON beside it.

import { mountMessage, mountTrace } from "./controls.js";
import { el } from "./dom.js";

// An output may be copied to a second place in one document, so each place is taken once.
for (const place of document.querySelectorAll("[data-fusion]:not([data-mounted])")) {
  place.dataset.mounted = "yes";
  const source = document.querySelector(`script[data-fusion-payload="${place.dataset.fusion}"]`);
  const { payloads } = JSON.parse(source.textContent);
  place.replaceChildren();
  payloads.forEach((payload, at) => {
    const article = el("article", { id: `trace-${at}` });
    if (payloads.length > 1) article.append(el("h2", { text: `Prompt ${at + 1} of ${payloads.length}` }));
    place.append(article);
    try {
      mountTrace(article, payload);
    } catch (error) {
      mountMessage(article, `This trace cannot be shown: ${error.message}`);
    }
  });
}
