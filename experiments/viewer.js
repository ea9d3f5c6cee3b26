// Of the attention viewer: decodes the maps of one section and draws what the reader points at.
// What it shows is also in the section's data- attributes, for tests and for other scripts.
(() => {
  const section = document.currentScript.closest(".attention-viewer");
  const parts = {};
  for (const node of section.querySelectorAll("[data-part]")) parts[node.dataset.part] = node;
  const examples = JSON.parse(parts.data.textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Of the square root of the weight; blue alone, so that hue carries nothing.
  const RAMPS = {
    light: [[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
    dark: [[18, 22, 29], [24, 58, 98], [33, 105, 170], [98, 170, 232], [224, 241, 255]],
  };
  const NOT_A_NUMBER = 255, TOP = 5, MARGIN = { left: 52, top: 6, right: 10, bottom: 42 };
  const state = { example: 0, layer: 0, head: 0, selected: 0, hovered: null, key: null };
  let example, levels, length, causal, bitmap, tokens, plot;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const style = (name) => getComputedStyle(section).getPropertyValue(name);
  const level = (layer, head, query, key) =>
    levels[((layer * example.heads + head) * length + query) * length + key];
  const weightOf = (value) => (value === NOT_A_NUMBER ? NaN : (value / 254) ** 2);
  const weight = (query, key, layer = state.layer, head = state.head) =>
    weightOf(level(layer, head, query, key));
  const print = (value) => Number.isNaN(value) ? "not a number"
    : value >= 0.01 || value === 0 ? value.toFixed(2)
    : value >= 0.0001 ? value.toFixed(4) : "<0.0001";
  const shown = () => state.hovered ?? state.selected;
  const answerAt = (position) => example.answers.find((answer) => answer.position === position);
  const colour = (value) => {
    if (value === NOT_A_NUMBER) return [136, 136, 136];
    const ramp = RAMPS[dark.matches ? "dark" : "light"];
    const place = (value / 254) * (ramp.length - 1), low = Math.min(Math.floor(place), ramp.length - 2);
    return ramp[low].map((c, i) => Math.round(c + (place - low) * (ramp[low + 1][i] - c)));
  };

  // The source of an answer, and the positions after it that hold it too.
  const span = (answer) => !answer || answer.source < 0 ? null : {
    first: answer.source - answer.width + 1,
    last: answer.source,
    end: Math.max(answer.source, Math.min(answer.source + example.carried, answer.position)),
  };
  const weightOnSource = (answer, layer, head) => {
    const { first, end } = span(answer);
    let sum = 0;
    for (let key = first; key <= end; key++) sum += weight(answer.position, key, layer, head);
    return Math.min(sum, 1); // rounded weights can add up to a little more than 1
  };
  const meanOnSource = (layer, head) => {
    const known = example.answers.filter(span);
    return known.reduce((sum, a) => sum + weightOnSource(a, layer, head), 0) / known.length;
  };

  function choose(index) {
    const before = example;
    example = examples[state.example = index];
    length = example.tokens.length;
    levels = Uint8Array.from(atob(example.levels), (c) => c.charCodeAt(0));
    const cells = length * length;
    causal = levels.every((v, i) => !v || v === NOT_A_NUMBER || i % length <= Math.floor((i % cells) / length));
    const firstAsked = example.answers.find(span) ?? example.answers[0];
    Object.assign(state, { selected: firstAsked?.position ?? length - 1, hovered: null, key: null });
    if (before?.layers !== example.layers || before?.heads !== example.heads) {
      let best = -1;
      Object.assign(state, { layer: 0, head: 0 });
      for (let layer = 0; layer < example.layers; layer++)
        for (let head = 0; head < example.heads; head++)
          if (meanOnSource(layer, head) > best) {
            best = meanOnSource(layer, head);
            Object.assign(state, { layer, head });
          }
      options(parts.layer, Array.from({ length: example.layers }, (_, i) => i + 1));
      options(parts.head, Array.from({ length: example.heads }, (_, i) => i + 1));
    }
    tokens = example.tokens.map((text, position) => {
      const answer = answerAt(position);
      const node = make("span", { class: "token", role: "option", "data-position": position,
        "aria-label": `position ${position}: ${text}${answer ? ", asked" : ""}` }, text);
      if (position % 8 === 0) node.dataset.number = position;
      if (answer) node.dataset.asked = answer.right ? "right" : "wrong";
      return node;
    });
    parts.tokens.replaceChildren(...tokens);
    parts.carried.hidden = !example.carried;
    parts.broken.hidden = !levels.includes(NOT_A_NUMBER);
    thumbnails();
    redraw();
    reveal();
  }

  function options(select, labels) {
    select.replaceChildren(...labels.map((label, value) => make("option", { value }, String(label))));
  }

  function paint(canvas, size, levelOf) {
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d"), image = context.createImageData(size, size);
    for (let i = 0; i < size * size; i++)
      image.data.set([...colour(levelOf(Math.floor(i / size), i % size)), 255], 4 * i);
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function thumbnails() {
    const size = Math.min(length, 56), edge = (i) => Math.floor((i * length) / size);
    parts.heads.replaceChildren();
    for (let layer = 0; layer < example.layers; layer++)
      for (let head = 0; head < example.heads; head++) {
        // The largest of a block: a mean would lose the single bright cells that matter.
        const largest = (row, column) => {
          let value = 0;
          for (let query = edge(row); query < edge(row + 1); query++)
            for (let key = edge(column); key < edge(column + 1); key++)
              value = Math.max(value, level(layer, head, query, key));
          return value;
        };
        const mean = meanOnSource(layer, head), name = `layer ${layer + 1}, head ${head + 1}`;
        const button = make("button", { type: "button", "data-layer": layer, "data-head": head,
          "aria-label": name, title: name + (Number.isNaN(mean) ? "" : `: mean weight on the true source ${print(mean)}`) },
          paint(make("canvas"), size, largest), `${layer + 1}·${head + 1}`);
        if (!Number.isNaN(mean)) button.append(make("b", {}, print(mean)));
        button.onclick = () => { Object.assign(state, { layer, head }); redraw(); };
        parts.heads.append(button);
      }
  }

  function redraw() {
    bitmap = paint(document.createElement("canvas"), length, (query, key) => {
      return level(state.layer, state.head, query, key);
    });
    for (const button of parts.heads.children)
      button.setAttribute("aria-pressed",
        +button.dataset.layer === state.layer && +button.dataset.head === state.head);
    parts.example.value = state.example;
    parts.layer.value = state.layer;
    parts.head.value = state.head;
    show();
  }

  function show() {
    const query = shown(), answer = answerAt(query), source = span(answer);
    const ranked = Array.from({ length }, (_, key) => ({ key, weight: weight(query, key) }))
      .filter((entry) => entry.weight > 0).sort((a, b) => b.weight - a.weight);
    const broken = Array.from({ length }, (_, key) => key).some((key) => Number.isNaN(weight(query, key)));
    const onSource = source && weightOnSource(answer);
    const best = broken ? undefined : ranked[0];
    Object.assign(section.dataset, { example: state.example, layer: state.layer, head: state.head,
      query, selected: state.selected, topKey: best?.key ?? "", topWeight: best?.weight ?? "",
      source: source ? `${source.first}-${source.last}` : "", sourceWeight: source ? onSource : "" });

    tokens.forEach((node, key) => {
      const value = level(state.layer, state.head, query, key), rgb = colour(value);
      const light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
      const unseen = causal && key > query;
      node.style.setProperty("--shade", unseen ? "var(--future)" : `rgb(${rgb})`);
      node.style.setProperty("--on-shade", unseen ? "var(--faint)" : light ? "#14181f" : "#ffffff");
      node.setAttribute("aria-selected", key === query);
      node.tabIndex = key === state.selected ? 0 : -1;
      if (source && key >= source.first && key <= source.end)
        node.dataset.source = key <= source.last ? "true" : "carried";
      else delete node.dataset.source;
    });

    const inSource = (key) => source && key >= source.first && key <= source.end;
    const chip = (key) => make("span", { class: "chip" + (inSource(key) ? (key <= source.last ? " boxed" : " dashed") : "") },
      example.tokens[key]);
    const back = (key) => key === query ? "itself" : key < query ? `${query - key} back` : `${key - query} ahead`;
    parts.headline.replaceChildren(`Position ${query} `, make("span", { class: "chip ringed" }, example.tokens[query]),
      ...(broken ? [" has weights that are not numbers."] : !best ? [" looks at nothing."] :
        [` looks most at position ${best.key} `, chip(best.key), `, ${back(best.key)}`,
          inSource(best.key) ? (best.key <= source.last ? ": its true source." : ": where its source is carried.") : "."]));
    const fact = (name, ...values) => [make("dt", {}, name), make("dd", {}, ...values)];
    const word = (text) => make("span", { class: "chip" }, text);
    parts.facts.replaceChildren(
      ...fact("Answer", ...(answer ? [word(answer.target)] : [make("span", { class: "faint" }, "not asked here")])),
      ...fact("Model says", ...(answer ? [word(answer.predicted), answer.right ? " ✓ right" : " ✗ wrong"] : ["–"])),
      ...fact("True source", source ? `position ${source.last}, ${back(source.last)}` : answer ? "none in the row" : "–"),
      ...fact("Weight on it", source ? make("b", {}, print(onSource)) : "–"));
    parts.top.replaceChildren(...(broken ? [] : ranked.slice(0, TOP)).map((entry) => make("li", { "data-key": entry.key },
      chip(entry.key), make("span", { class: "faint" }, `${entry.key}, ${back(entry.key)}`),
      make("div", { class: "bar" }, make("div", { style: `width:${100 * entry.weight}%` })), print(entry.weight))));
    const others = ranked.slice(TOP);
    const pointed = state.key === null ? "" : `Under the pointer: position ${state.key} ${example.tokens[state.key]}, weight ${print(weight(query, state.key))}. `;
    parts.rest.textContent = pointed + (broken || !others.length ? "" :
      `The other ${others.length}: ${print(others.reduce((sum, entry) => sum + entry.weight, 0))} in all.`);

    const asked = askedPositions(), place = asked.indexOf(query);
    parts.question.textContent = !asked.length ? "nothing asked"
      : `question ${place < 0 ? "–" : place + 1} of ${asked.length}`;
    parts.previous.disabled = parts.next.disabled = asked.length < 1;
    draw();
  }

  const askedPositions = () => example.answers.map((a) => a.position).sort((a, b) => a - b);

  function draw() {
    const canvas = parts.map, ratio = devicePixelRatio || 1;
    const room = Math.max(120, Math.min(parts.figure.clientWidth - MARGIN.left - MARGIN.right, 540));
    const whole = (Math.floor((room * ratio) / length) * length) / ratio;
    const side = whole > 0.85 * room ? whole : room, cell = side / length;
    const width = MARGIN.left + side + MARGIN.right, height = MARGIN.top + side + MARGIN.bottom;
    plot = { left: MARGIN.left, top: MARGIN.top, side, cell };
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.dataset.plot = JSON.stringify(plot);
    canvas.setAttribute("aria-label", `attention map, layer ${state.layer + 1}, head ${state.head + 1}; the row above has the same by keyboard`);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = style("--faint");
    context.textAlign = "center";
    let step = 1;
    while (step * cell < 34) step *= 2;
    for (let i = 0; i < length; i += step) {
      const middle = (i + 0.5) * cell;
      context.fillText(i, plot.left + middle, plot.top + side + 15);
      context.fillRect(plot.left + middle, plot.top + side, 1, 3);
      context.fillRect(plot.left - 4, plot.top + middle, 3, 1);
      context.save();
      context.textAlign = "right";
      context.fillText(i, plot.left - 7, plot.top + middle + 4);
      context.restore();
    }
    context.fillText("key: position looked at", plot.left + side / 2, height - 8);
    context.save();
    context.translate(13, plot.top + side / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("query: position that looks", 0, 0);
    context.restore();

    context.translate(plot.left, plot.top);
    context.imageSmoothingEnabled = side !== whole;
    context.drawImage(bitmap, 0, 0, side, side);
    if (causal) { // the future, which no query sees
      context.fillStyle = style("--future");
      context.beginPath();
      for (let i = 0; i < length; i++) context.rect((i + 1) * cell, i * cell, side - (i + 1) * cell, cell);
      context.fill();
    }
    context.strokeStyle = style("--line");
    context.lineWidth = 1;
    context.strokeRect(-0.5, -0.5, side + 1, side + 1);
    const box = (answer, room, line, alpha) => {
      const { first, last, end } = span(answer), grow = Math.max(0, (room - cell) / 2);
      const top = answer.position * cell - grow, size = cell + 2 * grow, left = first * cell - grow;
      context.strokeStyle = style("--source");
      context.globalAlpha = alpha;
      context.lineWidth = line;
      if (end > last) {
        context.setLineDash([3, 2]);
        context.strokeRect(left, top, (end + 1 - first) * cell + 2 * grow, size);
        context.setLineDash([]);
      }
      context.strokeRect(left, top, (last + 1 - first) * cell + 2 * grow, size);
      context.globalAlpha = 1;
    };
    const query = shown(), answer = answerAt(query);
    for (const other of example.answers) if (span(other) && other !== answer) box(other, 5, 1, 0.7);
    context.strokeStyle = style("--ink");
    context.lineWidth = 1.5;
    const grow = Math.max(0, (5 - cell) / 2) + 1;
    context.strokeRect(-1, query * cell - grow, side + 2, cell + 2 * grow);
    if (span(answer)) box(answer, 10, 2.5, 1);
  }

  // Scrolls the row and never the page: the reader may be looking at the map.
  function reveal() {
    const box = parts.tokens, token = tokens[state.selected];
    const top = token.offsetTop, room = box.clientHeight - token.offsetHeight;
    if (top < box.scrollTop + 20 || top > box.scrollTop + room - 20) box.scrollTop = top - room / 2;
  }
  function select(position, focus) {
    Object.assign(state, { selected: Math.max(0, Math.min(length - 1, position)), hovered: null, key: null });
    show();
    reveal();
    if (focus) tokens[state.selected].focus({ preventScroll: true });
  }
  function hover(position, key = null) {
    if (position === state.hovered && key === state.key) return;
    Object.assign(state, { hovered: position, key });
    show();
  }
  function ask(direction) {
    const asked = askedPositions(), from = state.selected;
    select(direction > 0 ? asked.find((p) => p > from) ?? asked[0]
      : asked.findLast((p) => p < from) ?? asked.at(-1));
  }
  const positionOf = (event) => event.target.closest?.(".token")?.dataset.position;
  const cellOf = (event) => {
    const column = Math.floor((event.offsetX - plot.left) / plot.cell);
    const row = Math.floor((event.offsetY - plot.top) / plot.cell);
    return row >= 0 && row < length && column >= 0 && column < length ? [row, column] : [null, null];
  };
  const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };

  parts.tokens.addEventListener("pointerover", (e) => hover(positionOf(e) ? +positionOf(e) : null));
  parts.tokens.addEventListener("pointerleave", () => hover(null));
  parts.tokens.addEventListener("click", (e) => positionOf(e) && select(+positionOf(e), true));
  parts.tokens.addEventListener("keydown", (e) => {
    if (!(e.key in STEPS) || e.altKey || e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    select(state.selected + STEPS[e.key], true);
  });
  parts.map.addEventListener("pointermove", (e) => hover(...cellOf(e)));
  parts.map.addEventListener("pointerleave", () => hover(null));
  parts.map.addEventListener("click", (e) => cellOf(e)[0] !== null && select(cellOf(e)[0]));
  parts.previous.onclick = () => ask(-1);
  parts.next.onclick = () => ask(1);
  parts.example.onchange = () => choose(+parts.example.value);
  for (const name of ["layer", "head"])
    parts[name].onchange = () => { state[name] = +parts[name].value; redraw(); };

  function theme() {
    const stops = RAMPS[dark.matches ? "dark" : "light"].map((rgb) => `rgb(${rgb})`);
    parts.ramp.style.background = `linear-gradient(to right, ${stops})`;
    if (example) { thumbnails(); redraw(); }
  }
  parts.ticks.append(...[0, 0.01, 0.1, 0.25, 0.5, 1].map((w) =>
    make("span", { style: `left:${100 * Math.sqrt(w)}%` }, String(w).replace(/^0\./, "."))));
  options(parts.example, examples.map((e) => e.label));
  theme();
  choose(0);
  dark.addEventListener("change", theme);
  let drawn = parts.figure.clientWidth;
  new ResizeObserver(() => {
    if (drawn !== parts.figure.clientWidth) { drawn = parts.figure.clientWidth; draw(); }
  }).observe(parts.figure);
  section.dataset.ready = "true";
})();
