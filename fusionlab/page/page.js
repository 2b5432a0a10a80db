// Boots the exported page and the output of a notebook: mounts every trace of the JSON beside it.

import { mountMessage, mountTrace } from "./controls.js";
import { el } from "./dom.js";

/** Call `act` once the element is rendered: what is folded away or hidden is not made until someone looks. */
function whenRendered(element, act) {
  if (element.getClientRects().length) {
    act();
    return;
  }
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    act();
  });
  watch.observe(element);
}

function mountPayloads(place, payloads) {
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

// An output may be copied to a second place in one document, so each place is taken once.
for (const place of document.querySelectorAll("[data-fusion]:not([data-mounted])")) {
  place.dataset.mounted = "yes";
  const source = document.querySelector(`script[data-fusion-payload="${place.dataset.fusion}"]`);
  whenRendered(place, () => mountPayloads(place, JSON.parse(source.textContent).payloads));
}
