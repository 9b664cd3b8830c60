// The map: tiles and points on a canvas, moved by pointer, wheel, touch and keys; what is under the pointer; the lasso.
// Asks this server alone, /v1/maps and cutouts. The page's address always says what is shown.
"use strict";
(() => {
  const home = document.getElementById("map");
  if (!home) return;
  const data = JSON.parse(home.dataset.map);
  const TILE = 256, FEW = 20000, LISTED = 240, PICTURES = 60, MAX_CORNERS = 400, REACH_PX = 12, MARK = "#ffd166";
  const base = `/v1/maps/${encodeURIComponent(data.encoder)}`;
  const legends = Object.fromEntries(data.legends.map((one) => [one.name, one]));
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const make = (tag, fields = {}, ...inside) => {
    const one = Object.assign(document.createElement(tag), fields);
    one.append(...inside);
    return one;
  };
  const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const fixed = (v, digits) => (v === null ? "–" : v.toFixed(digits));
  const page = (id) => `/source/${encodeURIComponent(id)}`;
  const cutout = (id) => `/v1/sources/${encodeURIComponent(id)}/cutout`;
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

  // the board: canvas, tools, and a line that says what is in view
  const icon = (path) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${path}"/></svg>`;
  const tool = (name, words, path, act) => {
    const button = make("button", { type: "button", title: words, onclick: act });
    button.dataset.tool = name;
    button.setAttribute("aria-label", words);
    button.innerHTML = icon(path);
    return button;
  };
  const canvas = make("canvas", { tabIndex: 0 }), hud = make("p", { className: "hud" });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `Map of ${data.encoder}: ${count(data.sources)} sources. Arrow keys move, plus and minus zoom, Enter opens the source in the middle, s lists what is in view, 0 shows all.`);
  canvas.setAttribute("aria-describedby", "inview");
  hud.id = "inview";
  hud.setAttribute("role", "status");
  const lassoButton = tool("lasso", "Draw a lasso (l, or drag with Shift)", "M7 17.5C4.5 16.5 3 14.4 3 12c0-4 4-7 9-7s9 3 9 7-4 7-9 7c-1 0-2-.1-3-.4M9 16.5a2 2 0 1 1-4 0 2 2 0 0 1 4 0M6 18.5c0 1.5-.5 2.5-1.5 3", () => setLasso(!drawing));
  lassoButton.setAttribute("aria-pressed", "false");
  const tools = make("div", { className: "tools" },
    tool("in", "Zoom in (+)", "M12 5v14M5 12h14", () => zoomBy(1)),
    tool("out", "Zoom out (−)", "M5 12h14", () => zoomBy(-1)),
    tool("all", "Whole map (0)", "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5", () => go(whole())),
    lassoButton,
    tool("view", "List what is in view (s)", "M4 6h2M10 6h10M4 12h2M10 12h10M4 18h2M10 18h10", () => selectView()));
  const sheet = make("div", { className: "sheet" }, canvas, tools, hud);
  home.querySelector(".board").replaceChildren(sheet);
  const pen = canvas.getContext("2d"), under = document.getElementById("under"), selection = document.getElementById("selection");

  const view = { ...data.view };
  let colour = data.colour, always = data.points, width = 0, height = 0, dots = null, hovered = null, drawing = false;
  let path = null, outline = null, marked = data.mark, wanted = 0, moving = null, keyed = false;
  const scale = () => TILE * 2 ** view.zoom;
  const whole = () => {
    const [x0, y0, x1, y1] = data.home, side = Math.max(x1 - x0, y1 - y0);
    const zoom = Math.floor(Math.log2(Math.min(width, height) / (TILE * side)) + 1e-9);
    return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom: clamp(zoom, 0, data.maxZoom) };
  };
  const toScreen = (x, y) => [(x - view.x) * scale() + width / 2, (y - view.y) * scale() + height / 2];
  const toMap = (px, py) => [(px - width / 2) / scale() + view.x, (py - height / 2) / scale() + view.y];

  // tiles
  const tiles = new Map();
  const tile = (z, x, y) => {
    const key = `${z}/${x}/${y}`;
    let found = tiles.get(key);
    if (found) { tiles.delete(key); tiles.set(key, found); return found; } // the last used are kept
    found = new Image();
    found.onload = draw;
    found.onerror = () => tiles.delete(key); // asked for again when it is next in view
    found.src = `${base}/${key}.png?colour=${colour}&map=${data.map}`;
    tiles.set(key, found);
    if (tiles.size > 240) tiles.delete(tiles.keys().next().value);
    return found;
  };
  const drawTiles = (z, ask) => {
    const size = TILE * 2 ** (view.zoom - z), n = 2 ** z;
    const [left, top] = toMap(0, 0), [right, bottom] = toMap(width, height);
    for (let j = Math.max(0, Math.floor(top * n)); j <= Math.min(n - 1, Math.floor(bottom * n)); j++) {
      for (let i = Math.max(0, Math.floor(left * n)); i <= Math.min(n - 1, Math.floor(right * n)); i++) {
        const picture = ask ? tile(z, i, j) : tiles.get(`${z}/${i}/${j}`);
        if (!picture || !picture.complete || !picture.naturalWidth) continue;
        const [x, y] = toScreen(i / n, j / n);
        pen.drawImage(picture, Math.round(x), Math.round(y), Math.ceil(size), Math.ceil(size));
      }
    }
  };

  const draw = () => { if (!draw.asked) draw.asked = requestAnimationFrame(paint); };
  const paint = () => {
    draw.asked = 0;
    const ratio = window.devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = "#0e0f14";
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingEnabled = false;
    const [x0, y0] = toScreen(0, 0), side = scale();
    pen.strokeStyle = "#2a2c36";
    pen.strokeRect(Math.round(x0) - 0.5, Math.round(y0) - 0.5, side + 1, side + 1);
    const z = clamp(Math.round(view.zoom), 0, data.maxZoom);
    const few = dots && dots.whole && dots.colour === colour;
    if (!few) {
      if (z > 0 && pending(z)) drawTiles(z - 1, false); // what there is, until the finer ones have come
      drawTiles(z, !moving);
    }
    if (dots && dots.colour === colour) drawDots();
    if (marked) ring(marked.x, marked.y, 11, MARK);
    if (hovered) ring(hovered.x, hovered.y, 8, "#ffffff");
    if (keyed) cross();
    if (outline) lasso(outline, true);
    if (path) lasso(path, false);
  };
  const pending = (z) => {
    const n = 2 ** z, [left, top] = toMap(0, 0), [right, bottom] = toMap(width, height);
    for (let j = Math.max(0, Math.floor(top * n)); j <= Math.min(n - 1, Math.floor(bottom * n)); j++)
      for (let i = Math.max(0, Math.floor(left * n)); i <= Math.min(n - 1, Math.floor(right * n)); i++) {
        const picture = tiles.get(`${z}/${i}/${j}`);
        if (!picture || !picture.complete) return true;
      }
    return false;
  };
  const drawDots = () => {
    const palette = legends[colour].palette, s = scale();
    const heaped = colour === "density"; // points that lie over one another grow brighter
    const radius = clamp((heaped ? 0.22 : 0.28) * Math.sqrt((width * height) / Math.max(1, dots.n)), 0.8, 4.5);
    const dx = width / 2 - view.x * s, dy = height / 2 - view.y * s;
    pen.globalAlpha = heaped ? 0.55 : 0.9;
    pen.globalCompositeOperation = heaped ? "lighter" : "source-over";
    for (const [value, places] of dots.of) {
      pen.fillStyle = value < palette.length ? palette[value] : heaped ? "#d9743a" : "#6e6e76";
      pen.beginPath();
      for (const i of places) {
        const x = dots.x[i] * s + dx, y = dots.y[i] * s + dy;
        if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
        if (radius < 1.6) pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
        else { pen.moveTo(x + radius, y); pen.arc(x, y, radius, 0, 6.2832); }
        if (heaped) { pen.fill(); pen.beginPath(); }
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.globalCompositeOperation = "source-over";
  };
  const ring = (x, y, radius, stroke) => {
    const [px, py] = toScreen(x, y);
    for (const [line, ink] of [[4.5, "#0e0f14"], [2.2, stroke]]) {
      pen.lineWidth = line;
      pen.strokeStyle = ink;
      pen.beginPath();
      pen.arc(px, py, radius, 0, 6.2832);
      pen.stroke();
    }
    pen.lineWidth = 1;
  };
  const cross = () => {
    pen.strokeStyle = "#f1eee9";
    pen.beginPath();
    for (const [a, b] of [[-14, -5], [5, 14]]) {
      pen.moveTo(width / 2 + a, height / 2); pen.lineTo(width / 2 + b, height / 2);
      pen.moveTo(width / 2, height / 2 + a); pen.lineTo(width / 2, height / 2 + b);
    }
    pen.stroke();
  };
  const lasso = (corners, closed) => {
    pen.beginPath();
    corners.forEach(([x, y], i) => { const at = toScreen(x, y); i ? pen.lineTo(...at) : pen.moveTo(...at); });
    if (closed) pen.closePath();
    pen.fillStyle = "rgb(255 209 102 / .13)";
    if (closed) pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = MARK;
    pen.stroke();
    pen.lineWidth = 1;
  };

  // where the view is, in the address and in words
  const query = () => {
    const told = new URLSearchParams(), round = (v) => String(Number(v.toFixed(7)));
    told.set("x", round(view.x));
    told.set("y", round(view.y));
    told.set("zoom", Math.round(view.zoom));
    if (colour !== "density") told.set("colour", colour);
    if (always) told.set("points", "true");
    if (marked) told.set("mark", marked.id);
    if (outline) told.set("polygon", outline.map((one) => one.map((v) => String(Number(v.toFixed(5)))).join(",")).join(";"));
    return told;
  };
  const settle = (moved = true) => {
    const told = query();
    if (moved) history.replaceState(null, "", `${location.pathname}?${told}`);
    told.set("generation", data.generation);
    document.getElementById("permalink").href = `${location.pathname}?${told}`;
    for (const link of document.querySelectorAll("[data-map-link]")) {
      const kept = new URLSearchParams();
      if (colour !== "density") kept.set("colour", colour);
      if (always) kept.set("points", "true");
      if (marked) kept.set("mark", marked.id);
      link.search = kept.toString();
    }
    legend();
    askDots();
  };
  const ONE = [125, 68, 36], MANY = [255, 244, 184]; // of points that lie over one another
  const mixed = (part) => `rgb(${ONE.map((low, i) => Math.round(low + part * (MANY[i] - low))).join(" ")})`;
  const legend = () => {
    const told = legends[colour], ticks = document.getElementById("ticks");
    const heaped = colour === "density" && dots && dots.colour === colour; // points are drawn, and not what a pixel holds
    const chosen = heaped ? [[0, "one"], [1, "many"]] : told.ticks[Math.min(Math.round(view.zoom), told.ticks.length - 1)];
    document.querySelectorAll("#ramp stop").forEach((stop, i) => stop.setAttribute("stop-color", heaped ? mixed(i / 15) : told.stops[i]));
    ticks.replaceChildren(...chosen.map(([at, words]) => {
      const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
      text.setAttribute("x", 320 * at);
      text.setAttribute("y", 27);
      text.setAttribute("text-anchor", at < 0.04 ? "start" : at > 0.96 ? "end" : "middle");
      text.textContent = words;
      return text;
    }));
    ticks.closest("svg").setAttribute("aria-label", `Scale: ${chosen.map((one) => one[1]).join(", ")}`);
    document.getElementById("says").textContent = told.known < data.sources ? `${told.says}; ${count(told.known)} sources have one` : told.says;
  };

  // points: all of a view where they are few, or a sample
  const unpack = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const askDots = async () => {
    const turn = ++wanted, [left, top] = toMap(0, 0), [right, bottom] = toMap(width, height), shade = colour;
    const box = [clamp(left, 0, 1), clamp(top, 0, 1), clamp(right, 0, 1), clamp(bottom, 0, 1)];
    if (!(box[0] < box[2] && box[1] < box[3])) { dots = null; hud.textContent = "No source in view"; draw(); return; }
    const n = always ? data.maxPoints : FEW;
    const told = new URLSearchParams({ x_min: box[0], y_min: box[1], x_max: box[2], y_max: box[3], n, colour: shade, map: data.map });
    const found = await get(`${base}/points?${told}`);
    if (turn !== wanted || !found) return;
    const all = found.n === found.n_within;
    hud.textContent = `${count(found.n_within)} source${found.n_within === 1 ? "" : "s"} in view` + (all || !always ? "" : `, ${count(found.n)} drawn`);
    if (!all && !always) { dots = null; legend(); draw(); return; }
    const [x0, y0, x1, y1] = found.box, xs = new Uint16Array(unpack(found.x).buffer), ys = new Uint16Array(unpack(found.y).buffer);
    const x = Float64Array.from(xs, (v) => x0 + ((v + 0.5) / 65536) * (x1 - x0)), y = Float64Array.from(ys, (v) => y0 + ((v + 0.5) / 65536) * (y1 - y0));
    // one colour at a time is quick, and would put one over all others: so in turns, but labels, which are to be on top
    const turns = shade === "labelled" ? 1 : 12, of = new Map();
    unpack(found.value).forEach((v, i) => {
      const key = v + 256 * (i % turns);
      if (!of.has(key)) of.set(key, []);
      of.get(key).push(i);
    });
    const rank = (key) => { const v = key % 256, t = key >> 8; return 512 * t + (v === 255 ? 0 : t % 2 ? 256 - v : 1 + v); };
    const ordered = [...of].sort((a, b) => rank(a[0]) - rank(b[0])).map(([key, places]) => [key % 256, places]);
    const before = dots;
    dots = { x, y, of: ordered, n: found.n, whole: all, colour: shade };
    if (!before) legend();
    draw();
  };
  const get = async (address, options) => {
    try {
      const answer = await fetch(address, options);
      if (answer.status === 410 || answer.status === 409) { hud.textContent = "This map was made anew: load the page again"; return null; }
      const told = await answer.json();
      if (!answer.ok) { hud.textContent = told.detail || "The server did not answer"; return null; }
      return told;
    } catch (error) {
      if (error.name !== "AbortError") hud.textContent = "The server cannot be reached";
      return null;
    }
  };

  // moving
  const go = (to) => {
    cancelAnimationFrame(moving);
    moving = null;
    const from = { ...view }, end = { x: clamp(to.x, 0, 1), y: clamp(to.y, 0, 1), zoom: clamp(Math.round(to.zoom), 0, data.maxZoom) };
    const arrive = () => { Object.assign(view, end); moving = null; draw(); settle(); look(); };
    if (calm || from.zoom === end.zoom) { arrive(); return; }
    const began = performance.now();
    const anchor = to.anchor;
    const step = (now) => {
      const part = Math.min(1, (now - began) / 160), eased = part * (2 - part);
      if (part >= 1) { arrive(); return; }
      view.zoom = from.zoom + (end.zoom - from.zoom) * eased;
      if (anchor) {
        view.x = anchor.x - (anchor.px - width / 2) / scale();
        view.y = anchor.y - (anchor.py - height / 2) / scale();
      } else {
        view.x = from.x + (end.x - from.x) * eased;
        view.y = from.y + (end.y - from.y) * eased;
      }
      paint();
      moving = requestAnimationFrame(step);
    };
    moving = requestAnimationFrame(step);
  };
  const zoomBy = (steps, px = width / 2, py = height / 2) => {
    const zoom = clamp(Math.round(view.zoom) + steps, 0, data.maxZoom), [x, y] = toMap(px, py), s = TILE * 2 ** zoom;
    go({ x: x - (px - width / 2) / s, y: y - (py - height / 2) / s, zoom, anchor: { x, y, px, py } });
  };
  let rolled = 0, rolledAt = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const now = performance.now();
    if (now - rolledAt > 300) rolled = 0;
    rolledAt = now;
    rolled += -event.deltaY * (event.deltaMode ? 30 : 1);
    if (moving || Math.abs(rolled) < 40) return;
    const box = canvas.getBoundingClientRect();
    zoomBy(Math.sign(rolled), event.clientX - box.left, event.clientY - box.top);
    rolled = 0;
  }, { passive: false });

  const pointers = new Map();
  let dragged = 0, pinch = null;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const spread = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  const middle = () => { const [a, b] = [...pointers.values()]; return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]; };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    keyed = false;
    pointers.set(event.pointerId, at(event));
    dragged = 0;
    if (pointers.size === 2) { path = null; pinch = { spread: spread(), zoom: view.zoom, at: toMap(...middle()) }; return; }
    if (drawing || event.shiftKey) { path = [inside(at(event))]; outline = null; }
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = pointers.get(event.pointerId);
    if (!before) { if (event.pointerType === "mouse") look(now); return; }
    pointers.set(event.pointerId, now);
    dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pinch && pointers.size === 2) {
      view.zoom = clamp(pinch.zoom + Math.log2(spread() / pinch.spread), 0, data.maxZoom);
      const [px, py] = middle();
      view.x = pinch.at[0] - (px - width / 2) / scale();
      view.y = pinch.at[1] - (py - height / 2) / scale();
      draw();
    } else if (path) {
      if (extend(inside(now))) finish();
      draw();
    } else if (pointers.size === 1 && dragged > 3) {
      sheet.classList.add("dragging");
      view.x = clamp(view.x - (now[0] - before[0]) / scale(), 0, 1);
      view.y = clamp(view.y - (now[1] - before[1]) / scale(), 0, 1);
      draw();
    }
  });
  const lift = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    sheet.classList.remove("dragging");
    if (pinch) { if (!pointers.size) { pinch = null; go({ ...view }); } return; }
    if (path) { if (event.type === "pointerup") finish(); else { path = null; draw(); } return; }
    if (dragged > 3) { settle(); return; }
    if (event.type !== "pointerup" || drawing) return;
    if (event.pointerType === "mouse" && hovered) location.href = page(hovered.source_id);
    else look(at(event));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { if (!pointers.size) { hovered = null; canvas.style.cursor = ""; draw(); } });

  // what is under the pointer, or under the cross in the middle
  let asking = null, lookTimer = 0;
  const look = (where) => {
    if (!where && !keyed) return;
    clearTimeout(lookTimer);
    lookTimer = setTimeout(() => ask(where || [width / 2, height / 2]), 30);
  };
  const ask = async ([px, py]) => {
    const [x, y] = toMap(px, py);
    if (!(x >= 0 && x <= 1 && y >= 0 && y <= 1)) { hovered = null; draw(); return; }
    if (asking) asking.abort();
    asking = new AbortController();
    const told = new URLSearchParams({ x, y, radius: Math.min(1, REACH_PX / scale()), map: data.map });
    const found = await get(`${base}/nearest?${told}`, { signal: asking.signal });
    if (!found) return;
    hovered = found.source;
    canvas.style.cursor = hovered && !drawing ? "pointer" : "";
    if (hovered) card(hovered, found.mag_band);
    draw();
  };
  const words = (one, band) => [
    one.z_spec === null ? "" : `measured z = ${fixed(one.z_spec, 3)}`,
    one.z_phot === null ? "" : `estimated z = ${fixed(one.z_phot, 3)}`,
    one.magnitude === null ? "" : `${band} = ${fixed(one.magnitude, 1)} mag`].filter(Boolean);
  const card = (one, band) => {
    const link = make("a", { className: "id", href: page(one.source_id), textContent: one.source_id });
    const facts = make("div", { className: "facts" }, link, ...words(one, band).map((text) => make("span", { textContent: text })),
      make("span", { className: "faint", textContent: `${one.object_class} · ${one.ra_deg.toFixed(4)}° ${one.dec_deg < 0 ? "−" : "+"}${Math.abs(one.dec_deg).toFixed(4)}°` }));
    const shown = data.images ? [make("img", { src: cutout(one.source_id), width: 96, height: 96, alt: [one.source_id, ...words(one, band)].join(", ") })] : [];
    under.classList.toggle("words", !data.images);
    under.replaceChildren(...shown, facts);
  };
  const hint = () => {
    under.classList.add("words");
    const touched = window.matchMedia("(pointer: coarse)").matches;
    const text = touched ? "Touch the map to see the galaxy there. One finger moves, two zoom; the lasso lists what you draw a line around."
      : "Point at the map to see the galaxy there; a click opens it. Drag to move, wheel or + and − to zoom, Shift and drag to draw a lasso.";
    under.replaceChildren(make("p", { className: "faint", textContent: text }));
  };

  // the lasso: a line that crosses itself is closed where it does
  const inside = ([px, py]) => toMap(px, py).map((v) => clamp(v, 0, 1));
  const turn = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
  const meet = (a, b, c, d) => {
    const [p, q, r, s] = [turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)];
    if (p * q >= 0 || r * s >= 0) return null;
    const part = r / (r - s);
    return [a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])];
  };
  const extend = (next) => {
    const last = path[path.length - 1];
    if (Math.hypot(next[0] - last[0], next[1] - last[1]) * scale() < 4) return false;
    for (let i = 0; i < path.length - 2; i++) {
      const where = meet(path[i], path[i + 1], last, next);
      if (where) { path = [where, ...path.slice(i + 1)]; return true; }
    }
    path.push(next);
    return path.length >= MAX_CORNERS;
  };
  const finish = () => {
    let corners = path;
    path = null;
    pointers.clear();
    setLasso(false);
    // the line from the end to the beginning may cross the rest: what is beyond the last crossing is cut off
    while (corners.length > 3) {
      const a = corners[corners.length - 1], b = corners[0];
      let cut = -1;
      for (let i = 1; i < corners.length - 2; i++) if (meet(corners[i], corners[i + 1], a, b)) cut = i;
      if (cut < 0) break;
      corners = corners.slice(0, cut + 1);
    }
    if (corners.length < 3) { draw(); return; }
    outline = corners;
    select();
  };
  const setLasso = (on) => {
    drawing = on;
    lassoButton.setAttribute("aria-pressed", on);
    if (on) canvas.focus({ preventScroll: true });
  };
  const selectView = () => {
    const [left, top] = toMap(4, 4), [right, bottom] = toMap(width - 4, height - 4);
    const box = [clamp(left, 0, 1), clamp(top, 0, 1), clamp(right, 0, 1), clamp(bottom, 0, 1)];
    if (!(box[0] < box[2] && box[1] < box[3])) return;
    outline = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]];
    select(true);
  };
  const clear = () => { outline = path = null; setLasso(false); selection.hidden = true; selection.replaceChildren(); draw(); settle(); };
  const asked = (n) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ polygon: outline, n }) });
  const select = async (scroll = true) => {
    draw();
    const told = await get(`${base}/select?generation=${data.generation}`, asked(LISTED));
    if (!told) { if (hud.textContent.includes("polygon")) outline = null; draw(); return; }
    list(told);
    settle();
    if (scroll) selection.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  };
  const save = async (format, ending) => {
    const answer = await fetch(`${base}/select?format=${format}&generation=${data.generation}`, asked(1000)).catch(() => null);
    if (!answer || !answer.ok) { hud.textContent = "The list could not be fetched"; return; }
    const address = URL.createObjectURL(await answer.blob());
    make("a", { href: address, download: `redshelf-map-${data.encoder}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  const list = (told) => {
    const n = told.n_within, band = told.mag_band;
    const title = make("h2", { textContent: `${count(n)} source${n === 1 ? "" : "s"} inside the lasso`, tabIndex: -1 });
    const button = (text, act) => make("button", { type: "button", className: "copy", textContent: text, onclick: act });
    const actions = make("div", { className: "actions" },
      ...(n ? ["Save as", button("CSV", () => save("csv", "csv")), button("VOTable", () => save("votable", "vot")), button("Parquet", () => save("parquet", "parquet"))] : []), button("Clear", clear));
    const parts = [told.n_labelled === null ? "" : `${count(told.n_labelled)} with a measured redshift`,
      told.left_out ? `${count(told.sources.length)} are listed, spread evenly over all; ${count(told.left_out)} ${told.left_out === 1 ? "is" : "are"} left out` : "",
      data.images && told.sources.length > PICTURES ? `the first ${PICTURES} are shown as pictures` : ""].filter(Boolean);
    const said = make("p", { className: "fine", textContent: parts.length ? `${parts.join("; ")}.` : "" });
    const cards = told.sources.slice(0, data.images ? PICTURES : 0).map((one) => {
      const picture = make("a", { className: "picture", href: page(one.source_id) });
      picture.append(make("img", { src: cutout(one.source_id), width: 128, height: 128, loading: "lazy", alt: [one.source_id, ...words(one, band)].join(", ") }));
      const facts = make("span", { className: "facts" });
      if (one.z_phot !== null) facts.append(make("span", {}, make("i", { textContent: "z" }), ` ${fixed(one.z_phot, 3)}`));
      if (one.z_spec !== null) facts.append(make("span", { className: "spec" }, make("i", { textContent: "z" }), make("sub", { textContent: "spec" }), ` ${fixed(one.z_spec, 3)}`));
      if (one.magnitude !== null) facts.append(make("span", { className: "faint", textContent: `${band} ${fixed(one.magnitude, 1)}` }));
      return make("li", { className: "card" }, picture, make("span", { className: "line" }, make("a", { className: "id", href: page(one.source_id), textContent: one.source_id })), facts);
    });
    const head = make("tr", {}, ...["source", "z", "z measured", `${band} mag`, "class", "RA [°]", "Dec [°]"].map((text) => make("th", { scope: "col", textContent: text })));
    const rows = told.sources.map((one) => make("tr", {}, make("th", { scope: "row" }, make("a", { href: page(one.source_id), textContent: one.source_id })),
      ...[fixed(one.z_phot, 3), fixed(one.z_spec, 4), fixed(one.magnitude, 2), one.object_class, one.ra_deg.toFixed(5), one.dec_deg.toFixed(5)].map((text) => make("td", { textContent: text }))));
    const table = make("table", { className: "bands" }, make("thead", {}, head), make("tbody", {}, ...rows));
    const details = make("details", { open: true }, make("summary", { textContent: "As a table" }), make("div", { className: "wide" }, table));
    const grid = cards.length ? [make("ul", { className: "grid small" }, ...cards)] : [];
    const body = n ? [...grid, details] : [make("p", { className: "empty", textContent: "No source lies inside it." })];
    selection.replaceChildren(make("div", { className: "heading" }, title, actions), said, ...body);
    selection.hidden = false;
  };

  // keys, while the canvas has them
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (dx, dy) => () => go({ x: view.x + (dx * width) / 6 / scale(), y: view.y + (dy * height) / 6 / scale(), zoom: view.zoom });
    const doings = {
      ArrowLeft: step(-1, 0), ArrowRight: step(1, 0), ArrowUp: step(0, -1), ArrowDown: step(0, 1),
      "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1), 0: () => go(whole()), Home: () => go(whole()),
      l: () => setLasso(!drawing), s: selectView, Escape: clear,
      Enter: () => { if (hovered) location.href = page(hovered.source_id); },
    };
    const doing = Object.hasOwn(doings, event.key) && doings[event.key];
    if (!doing) return;
    event.preventDefault();
    event.stopPropagation();
    keyed = true;
    doing();
  });
  canvas.addEventListener("focus", () => { keyed = canvas.matches(":focus-visible"); look(); draw(); });
  canvas.addEventListener("blur", () => { keyed = false; draw(); });

  // the form: at once, and points at every zoom
  const form = document.querySelector(".colouring"), chooser = document.getElementById("colour");
  form.querySelector("button").hidden = true;
  const tick = make("input", { type: "checkbox", id: "points", checked: always });
  form.append(make("label", { className: "box" }, tick, `points at every zoom, at most ${count(data.maxPoints)}`));
  chooser.addEventListener("change", () => { colour = chooser.value; tiles.clear(); dots = null; draw(); settle(); });
  tick.addEventListener("change", () => { always = tick.checked; settle(); });
  form.addEventListener("submit", (event) => event.preventDefault());

  const resize = () => {
    const ratio = window.devicePixelRatio || 1;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    draw();
  };
  resize();
  const named = new URLSearchParams(location.search);
  if (!named.has("zoom") && !data.mark) Object.assign(view, whole());
  hint();
  settle(false);
  if (marked) {
    const there = new URLSearchParams({ x: marked.x, y: marked.y, radius: 1e-6, map: data.map });
    get(`${base}/nearest?${there}`).then((found) => { if (found && found.source && !hovered) card(found.source, found.mag_band); });
  }
  let sized = 0;
  new ResizeObserver(() => { resize(); clearTimeout(sized); sized = setTimeout(askDots, 200); }).observe(sheet);
  if (data.polygon) {
    outline = data.polygon.split(";").map((one) => one.split(",").map(Number));
    select(false);
  }
})();
