"use strict";
// Draws traces from the JSON in #data. Model text is only ever set with textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";

  function el(tag, options = {}, ...children) {
    const node = document.createElement(tag);
    const { text, css, ...attributes } = options;
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(css ?? {})) node.style.setProperty(name, value);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const hue = (expert) => `e${expert % 8}`;
  const number = (x, digits = 2) => (x === null ? "–" : x.toFixed(digits).replace("-", "−"));
  const oneLine = (text) =>
    text.replace(/\n/g, "⏎").replace(/^ +| +$/g, (run) => "␣".repeat(run.length)) || "∅";

  const ends = (trace, id) => trace.endIds.includes(id);
  const END = "■ end";

  // A token's text on one line; the one that ends the answer gets a mark instead.
  const spelt = (trace, id, text) => (ends(trace, id) ? END : oneLine(text));

  function percent(logprob) {
    if (logprob === null) return "0 %";
    const p = 100 * Math.exp(logprob);
    return p >= 0.1 ? `${p.toFixed(1)} %` : "<0.1 %";
  }

  // Spaces at the edges of a piece and line breaks get a faint sign that is not copied with the text.
  function pieceNodes(text) {
    if (text === "") return [el("span", { class: "empty" })];
    const nodes = [];
    for (const part of text.split(/(\n|^ +| +$| {2,})/)) {
      if (part === "") continue;
      if (part === "\n") nodes.push(el("span", { class: "break", text: "\n" }));
      else if (/^ +$/.test(part)) for (const c of part) nodes.push(el("span", { class: "space", text: c }));
      else nodes.push(document.createTextNode(part));
    }
    return nodes;
  }

  const endChip = (text) => el("span", { class: "end", text: "end", title: oneLine(text) });

  const strongest = (trace, i) =>
    trace.alpha[i].reduce((best, a, e) => (a > trace.alpha[i][best] ? e : best), 0);

  const greatest = Math.max(0.05, ...data.traces.flatMap((t) => t.alpha.map((row) => Math.max(0, ...row))));

  function describe(trace, i) {
    const weights = trace.experts.map((x, e) => `${x.name} weight ${number(trace.alpha[i][e])}`).join(", ");
    const text = spelt(trace, trace.ids[i], trace.pieces[i]);
    return `Token ${i + 1} of ${trace.tokens}: ${text}. ${weights}. ${verdict(trace, i)}`;
  }

  function verdict(trace, i) {
    const choice = `“${spelt(trace, trace.vocabularyIds[trace.choice[i]], trace.vocabulary[trace.choice[i]])}”`;
    const by = trace.flippedBy[i];
    const [first] = trace.distributions[0].top[i];
    const sampled = first !== undefined && trace.ids[i] !== trace.vocabularyIds[first]
      ? " The emitted token was sampled; it is not the fused model's first choice." : "";
    if (by < 0) return `Not flipped: the large model's own choice, ${choice}, is also the fused one.${sampled}`;
    return `Flipped by ${trace.experts[by].name}: the large model alone would have chosen ${choice}.${sampled}`;
  }

  function drawArticle(trace, number_) {
    const state = { selected: Math.max(0, trace.flippedBy.findIndex((e) => e >= 0)), hovered: null };
    const groupOf = new Array(trace.tokens);
    trace.groups.forEach(([start, stop], g) => groupOf.fill(g, start, stop));

    const inspector = el("aside", { class: "inspector", "aria-label": "Inspector of one token" });
    const live = el("p", { class: "hidden-text", "aria-live": "polite" });
    const strip = el("div", {
      class: "strip", role: "listbox", "aria-label": "Emitted tokens", dir: "auto", "aria-orientation": "horizontal",
    });
    const spans = trace.groups.map((group) => drawToken(trace, group));
    strip.append(...spans);
    const charts = drawCharts(trace);

    function show() {
      const i = state.hovered ?? state.selected;
      spans.forEach((span, g) => {
        const current = g === groupOf[i];
        span.classList.toggle("current", current);
        span.setAttribute("aria-selected", String(g === groupOf[state.selected]));
        span.tabIndex = g === groupOf[state.selected] ? 0 : -1;
      });
      if (trace.tokens) {
        inspector.replaceChildren(...inspectorNodes(trace, i, trace.groups[groupOf[i]]));
        charts.moveTo(i);
      }
    }
    function select(i) {
      if (!trace.tokens) return;
      state.selected = Math.min(trace.tokens - 1, Math.max(0, i));
      state.hovered = null;
      show();
      spans[groupOf[state.selected]].focus({ preventScroll: false });
      live.textContent = describe(trace, state.selected);
    }
    function nextFlip(step) {
      for (let i = state.selected + step; i >= 0 && i < trace.tokens; i += step) {
        if (trace.flippedBy[i] >= 0) return i;
      }
      return state.selected;
    }

    const indexOf = (event) => spans.indexOf(event.target.closest(".token"));
    strip.addEventListener("mouseover", (event) => {
      const g = indexOf(event);
      if (g < 0) return;
      state.hovered = trace.groups[g][0];
      show();
    });
    strip.addEventListener("mouseleave", () => { state.hovered = null; show(); });
    strip.addEventListener("click", (event) => {
      const g = indexOf(event);
      if (g >= 0) select(trace.groups[g][0]);
    });
    strip.addEventListener("focusin", (event) => {
      const g = indexOf(event);
      if (g >= 0 && g !== groupOf[state.selected]) { state.selected = trace.groups[g][0]; show(); }
    });
    strip.addEventListener("keydown", (event) => {
      const moves = {
        ArrowRight: () => state.selected + 1, ArrowLeft: () => state.selected - 1,
        ArrowDown: () => nextFlip(1), ArrowUp: () => nextFlip(-1),
        Home: () => 0, End: () => trace.tokens - 1,
      };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      select(moves[event.key]());
    });
    charts.onPick(select);

    const heading = data.traces.length > 1 ? `Prompt ${number_ + 1} of ${data.traces.length}` : "Prompt";
    const reading = el("section", {},
      el("h3", { text: "Emitted text" }),
      el("p", { class: "note hint" }, "Point at a token to inspect it, click to keep it. ",
        el("kbd", { text: "←" }), " ", el("kbd", { text: "→" }), " move by token, ",
        el("kbd", { text: "↑" }), " ", el("kbd", { text: "↓" }), " by flipped token."),
      strip, drawLegend(trace), el("h3", { text: "Weight along the text" }), charts.node);
    const article = el("article", { id: `trace-${number_}` },
      el("h2", { text: heading }), el("blockquote", { class: "prompt", dir: "auto", text: trace.prompt }),
      el("dl", { class: "facts" }, ...trace.facts.map(([label, words]) =>
        el("div", {}, el("dt", { text: label }), el("dd", { text: words })))),
      el("div", { class: "columns" }, reading, inspector), live);
    if (!trace.tokens) {
      strip.append(el("span", { class: "note", text: "No token was emitted." }));
      inspector.append(el("p", { class: "note", text: "Nothing to inspect." }));
    }
    show();
    return article;
  }

  function drawToken(trace, [start, stop, text]) {
    let i = start;
    for (let j = start; j < stop; j++) {
      if (Math.max(0, ...trace.alpha[j]) > Math.max(0, ...trace.alpha[i])) i = j;
    }
    const expert = strongest(trace, i);
    const weight = trace.experts.length ? trace.alpha[i][expert] : 0;
    const span = el("span", {
      class: `token ${hue(expert)}`, role: "option", "aria-label": describe(trace, start), "data-token": start,
      css: { "--share": weight < 0.005 ? 0 : 0.12 + (0.88 * weight) / greatest },
    }, ...(ends(trace, trace.ids[start]) ? [endChip(text)] : pieceNodes(text)));
    for (let j = start; j < stop; j++) {
      if (trace.flippedBy[j] >= 0) {
        span.classList.add("flip");
        span.dataset.mark = `▲${trace.experts.length > 1 ? trace.experts[trace.flippedBy[j]].letter : ""}`;
        break;
      }
    }
    return span;
  }

  function chip(trace, expert) {
    return el("span", { class: `swatch ${hue(expert)}`, text: trace.experts[expert].letter });
  }

  function drawLegend(trace) {
    const section = el("section", { class: "legend", "aria-label": "Legend" });
    if (!trace.experts.length) {
      section.append(el("p", { class: "note", text: "No experts: this is the large model alone." }));
      return section;
    }
    const head = el("tr", {}, ...["Expert", `Weight 0 to ${number(greatest)}`, "Mean weight", "Tokens flipped"]
      .map((text) => el("th", { text, scope: "col" })));
    const rows = trace.experts.map((expert, e) => {
      const flips = trace.flippedBy.filter((by) => by === e).length;
      const ramp = el("span", { class: `ramp ${hue(e)}`, "aria-hidden": "true" },
        ...[0, 0.25, 0.5, 0.75, 1].map((share) => el("i", { css: { "--share": share } })));
      return el("tr", {}, el("td", {}, chip(trace, e), " ", el("span", { text: expert.name })), el("td", {}, ramp),
        el("td", { text: number(trace.moved[e].mean_alpha) }),
        el("td", { text: `${flips} of ${trace.tokens} (${(100 * trace.moved[e].flipped).toFixed(1)} %)` }));
    });
    const sample = el("span", {
      class: "flip", text: "flipped", "data-mark": trace.experts.length > 1 ? "▲A" : "▲",
    });
    section.append(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
      el("p", { class: "note" }, "Colour: the expert with the greatest weight at that token; stronger means more weight. ",
        sample, " = the fused model's first choice is not the large model's own; ",
        trace.experts.length > 1 ? "the letter names the expert that pushed most." : "the expert changed it."));
    return section;
  }

  function drawCharts(trace) {
    const n = Math.max(1, trace.tokens);
    const node = el("div", { class: "charts" });
    const cursors = [];
    const plots = [];
    const topKl = Math.max(0.05, ...trace.klForward.map((x) => x ?? 0));
    const rows = trace.experts.map((expert, e) => ({
      label: [chip(trace, e), ` ${expert.name}, 0 to ${number(greatest)}`],
      values: trace.alpha.map((row) => row[e] / greatest), kind: `weight ${hue(e)}`,
      flips: trace.flippedBy.map((by) => by === e),
    }));
    rows.push({ label: [`KL(P̃‖P), 0 to ${number(topKl)} nats`], values: trace.klForward.map((x) => (x ?? 0) / topKl),
      kind: "moved", flips: [] });
    for (const row of rows) {
      const cursor = svg("rect", { class: "cursor", x: 0, y: 0, width: trace.tokens ? 1 : 0, height: 1 });
      const marks = row.flips.flatMap((flip, i) => (flip
        ? [svg("path", { d: `M${i + 0.5} -0.2 L${i + 0.5 - 0.005 * n} -0.04 L${i + 0.5 + 0.005 * n} -0.04 Z`,
          fill: "currentColor" })] : []));
      const plot = svg("svg", { viewBox: `0 0 ${n} 1`, preserveAspectRatio: "none", role: "img",
        "aria-label": `${row.label.map((x) => x.textContent ?? x).join("")}, per token` }, cursor,
        ...row.values.map((v, i) => svg("rect", {
          class: row.kind, x: i + 0.1, width: 0.8, y: 1 - Math.min(1, v), height: Math.min(1, v),
        })), ...marks);
      cursors.push(cursor);
      plots.push(plot);
      node.append(el("span", { class: "label" }, ...row.label), plot);
    }
    node.append(el("span"), el("span", { class: "ends" }, el("span", { text: "token 1" }),
      el("span", { text: trace.experts.length ? "▲ flipped" : "" }), el("span", { text: `${trace.tokens}` })));
    return {
      node,
      moveTo: (i) => cursors.forEach((cursor) => cursor.setAttribute("x", i)),
      onPick: (pick) => plots.forEach((plot) => plot.addEventListener("click", (event) => {
        const box = plot.getBoundingClientRect();
        pick(Math.floor(((event.clientX - box.left) / box.width) * n));
      })),
    };
  }

  function inspectorNodes(trace, i, [start, stop, text]) {
    const part = stop - start > 1 ? `, byte piece ${i - start + 1} of ${stop - start} of “${oneLine(text)}”` : "";
    const tags = ends(trace, trace.ids[i]) ? [`the end of the answer, written as ${oneLine(trace.pieces[i])}`] : [];
    if (trace.drafted[i]) tags.push(trace.accepted[i] ? "drafted and accepted" : "drafted, not accepted");
    if (trace.clamped[i]) tags.push(`${trace.clamped[i]} vocabulary entries clamped at the floor`);
    return [
      el("div", { class: "name" }, el("strong", {
        text: stop - start > 1 ? oneLine(text) : spelt(trace, trace.ids[i], trace.pieces[i]) }),
        el("span", { text: `token ${i + 1} of ${trace.tokens} · id ${trace.ids[i]}` })),
      el("p", { class: "verdict", text: verdict(trace, i) }),
      el("p", { class: "note", text: [part.slice(2), ...tags].filter(Boolean).join("; ") }),
      weightTable(trace, i),
      el("div", { class: "lists" }, ...trace.distributions.map((d) => topList(trace, d, i))),
      el("p", { class: "note", text: "● emitted token   ◇ the large model's own choice   H: entropy in nats" }),
    ];
  }

  function weightTable(trace, i) {
    const scaled = (x) => (x === null ? null : x * trace.scale);
    const head = el("tr", {}, ...["", "weight", "forward", "reverse", "evidence"]
      .map((text) => el("th", { text, scope: "col" })));
    const used = { forward: trace.direction !== "reverse", reverse: trace.direction !== "forward" };
    const rows = trace.experts.map((expert, e) => el("tr", {},
      el("td", {}, chip(trace, e), " ", el("span", { text: expert.name }), el("span", { class: "note", text: " target" })),
      el("td", { text: number(trace.alpha[i][e]) }),
      el("td", { text: number(scaled(trace.targetForward[i][e])) + (used.forward ? "" : " (unused)") }),
      el("td", { text: number(scaled(trace.targetReverse[i][e])) + (used.reverse ? "" : " (unused)") }),
      el("td", { text: number(trace.evidence[i][e]) })));
    rows.push(el("tr", {}, el("td", { text: "fused, reached" }), el("td"), el("td", { text: number(trace.klForward[i]) }),
      el("td", { text: number(trace.klReverse[i]) }), el("td")));
    return el("div", {}, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
      el("p", { class: "note", text: "KL in nats. Targets: κ·KL(R‖Q) forward, κ·KL(Q‖R) reverse; reached: KL(P̃‖P), KL(P‖P̃)." }));
  }

  function topList(trace, distribution, i) {
    const expert = distribution.expert;
    const list = el("ol", { "aria-label": `Most likely tokens under ${distribution.name}` });
    let seen = false;
    const row = (text, title, logprob, emitted, choice, extra = "") => el("li", {
      class: (emitted ? "emitted " : "") + extra, css: { "--p": logprob === null ? 0 : Math.exp(logprob) },
    }, el("span", { text: emitted ? "●" : choice ? "◇" : "" }), el("span", { class: "text", text, title }),
      el("span", { class: "percent", text: percent(logprob) }));
    distribution.top[i].forEach((entry, k) => {
      const id = trace.vocabularyIds[entry];
      const raw = oneLine(trace.vocabulary[entry]);
      const text = spelt(trace, id, raw);
      const emitted = id === trace.ids[i];
      seen ||= emitted;
      list.append(row(text.includes("\ufffd") ? `${text} #${id}` : text, raw, distribution.logprobs[i][k], emitted,
        entry === trace.choice[i]));
    });
    if (!distribution.top[i].length) list.append(el("li", { class: "note" }, el("span"), el("span", { text: "not run" })));
    else if (!seen) {
      const raw = oneLine(trace.pieces[i]);
      list.append(row(spelt(trace, trace.ids[i], raw), raw, distribution.emitted[i], true, false, "outside"));
    }
    const title = el("h4", {}, ...(expert === undefined ? [] : [chip(trace, expert)]),
      el("span", { text: `${distribution.name} ${distribution.symbol}` }),
      el("small", { text: `H ${number(distribution.entropy[i])}` }));
    return el("section", { class: expert === undefined ? "" : hue(expert) }, title, list);
  }

  const page = document.getElementById("page");
  page.append(el("h1", { text: data.title }));
  if (data.traces.length > 1) {
    page.append(el("nav", { "aria-label": "Prompts" }, el("ol", {}, ...data.traces.map((trace, i) => {
      const flips = trace.flippedBy.filter((e) => e >= 0).length;
      const start = oneLine(trace.prompt.length > 90 ? `${[...trace.prompt].slice(0, 90).join("")}…` : trace.prompt);
      return el("li", {}, el("a", { href: `#trace-${i}`, text: start }),
        el("span", { class: "note", text: `  ${flips} of ${trace.tokens} tokens flipped` }));
    }))));
  }
  page.append(...data.traces.map(drawArticle));
})();
