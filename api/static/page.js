// Keys, copying, bookmarks, dropping a file, sending a table. Pages work without it; it asks nothing of any server but,
// upon a click alone, of the SAMP hub of this machine.
"use strict";
(() => {
  const all = (what) => [...document.querySelectorAll(what)];

  // a file dropped on the form is sent at once
  for (const form of all("[data-drop]")) {
    const field = form.querySelector("input[type=file]");
    const mark = (on) => (event) => { event.preventDefault(); form.classList.toggle("over", on); };
    form.addEventListener("dragover", mark(true));
    form.addEventListener("dragleave", mark(false));
    form.addEventListener("drop", (event) => {
      mark(false)(event);
      if (!event.dataTransfer.files.length) return;
      field.files = event.dataTransfer.files;
      form.requestSubmit();
    });
  }

  for (const form of all("form")) form.addEventListener("submit", () => form.classList.add("waiting"));
  window.addEventListener("pageshow", () => all("form.waiting").forEach((form) => form.classList.remove("waiting")));

  for (const button of all("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent.trim();
      try { await navigator.clipboard.writeText(text); } catch { return; }
      const words = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = words; }, 1500);
    });
  }

  // bookmarks live in this browser alone
  const KEY = "redshelf-bookmarks";
  const read = () => {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) || "[]");
      return Array.isArray(found) ? found.filter((one) => typeof one === "string").slice(0, 200) : [];
    } catch { return []; }
  };
  const star = document.getElementById("bookmark");
  if (star) {
    const show = () => {
      const kept = read().includes(star.dataset.id);
      star.setAttribute("aria-pressed", kept);
      star.textContent = kept ? "★ Bookmarked" : "☆ Bookmark";
    };
    star.hidden = false;
    star.addEventListener("click", () => {
      const others = read().filter((one) => one !== star.dataset.id);
      const kept = read().includes(star.dataset.id) ? others : [star.dataset.id, ...others];
      try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch { /* a browser that keeps nothing */ }
      show();
    });
    show();
  }
  const shelf = document.getElementById("bookmarks");
  if (shelf && read().length) {
    for (const id of read()) {
      const item = document.createElement("li"), link = document.createElement("a");
      item.className = "card";
      link.className = "id picture words";
      link.href = `/source/${encodeURIComponent(id)}`;
      link.textContent = id;
      item.append(link);
      shelf.querySelector("ul").append(item);
    }
    shelf.hidden = false;
  }

  // a table goes to TOPCAT and the like by their hub, as the Web Profile of SAMP has it; the hub asks its user first
  const HUB = "http://localhost:21012/", ABOUT = { "samp.name": "redshelf", "samp.description.text": "galaxies that look alike, and how far away they are" };
  const escaped = (text) => text.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const written = (value) => typeof value === "string" ? `<value><string>${escaped(value)}</string></value>` : `<value><struct>${
    Object.entries(value).map(([name, inner]) => `<member><name>${escaped(name)}</name>${written(inner)}</member>`).join("")}</struct></value>`;
  const callHub = async (method, params, options) => {
    const body = `<?xml version="1.0"?><methodCall><methodName>samp.webhub.${method}</methodName><params>${
      params.map((one) => `<param>${written(one)}</param>`).join("")}</params></methodCall>`;
    const answer = await fetch(HUB, { method: "POST", headers: { "Content-Type": "text/xml" }, body, credentials: "omit", ...options });
    const told = new DOMParser().parseFromString(await answer.text(), "text/xml"), fault = told.querySelector("fault");
    const member = (name) => [...told.querySelectorAll("member")].find((one) => one.querySelector("name").textContent === name)?.querySelector("value").textContent.trim();
    if (fault) throw new Error(member("faultString") || "it does not say why");
    if (!told.querySelector("methodResponse")) throw new Error("what answers there is no hub");
    return { member, values: [...told.querySelectorAll("array > data > value")].map((one) => one.textContent.trim()) };
  };
  let pass = null;  // what the hub knows this page by, until it is left
  const send = async (address, name, say) => {
    if (!pass) {
      say("If a hub runs here, it asks you now.");
      pass = (await callHub("register", [ABOUT])).member("samp.private-key");
      await callHub("declareMetadata", [pass, ABOUT]);
    }
    const url = new URL(address, location.href).href, params = { url, name, "table-id": url };
    const { values } = await callHub("notifyAll", [pass, { "samp.mtype": "table.load.votable", "samp.params": params }]);
    say(values.length ? `Sent to ${values.length} program${values.length > 1 ? "s" : ""}.` : "No program at the hub takes tables: start TOPCAT.");
  };
  for (const button of all("[data-samp]")) {
    const say = (words) => { button.nextElementSibling.textContent = words; };
    button.hidden = false;
    button.addEventListener("click", async () => {
      button.disabled = true;
      try { await send(button.dataset.samp, button.dataset.name, say); } catch (error) {
        pass = null;
        say(error instanceof TypeError ? "No SAMP hub answers on this machine: start TOPCAT, and click again." : `The hub has refused: ${error.message}`);
      }
      button.disabled = false;
    });
  }
  window.addEventListener("pagehide", () => {
    if (pass) callHub("unregister", [pass], { keepalive: true }).catch(() => {});
    pass = null;
  });

  // keys
  const WORDS = [["/", "search"], ["← ↑ → ↓", "move between pictures"], ["Enter", "more like the one in focus"],
    ["o", "open its page"], ["+  −", "like it, unlike it"], ["r", "a random galaxy"], ["b", "bookmark this source"], ["?", "these keys"]];
  if (document.getElementById("map")) {
    WORDS.push(["on the map: ← ↑ → ↓", "move"], ["+  −  0", "zoom in, out, to the whole map"], ["l  s", "lasso; list what is in view"],
      ["Enter", "open the source in the middle"], ["Escape", "clear the lasso"]);
  }
  const help = () => {
    let box = document.getElementById("keys");
    if (!box) {
      box = document.createElement("dialog");
      box.id = "keys";
      const title = document.createElement("h2"), list = document.createElement("dl"), form = document.createElement("form");
      const close = document.createElement("button");
      title.textContent = "Keys";
      for (const [key, words] of WORDS) {
        const dt = document.createElement("dt"), dd = document.createElement("dd");
        dt.textContent = key;
        dd.textContent = words;
        list.append(dt, dd);
      }
      form.method = "dialog";
      close.textContent = "Close";
      form.append(close);
      box.append(title, list, form);
      document.body.append(box);
    }
    box.open ? box.close() : box.showModal();
  };
  const button = document.getElementById("help");
  if (button) { button.hidden = false; button.addEventListener("click", help); }

  const pictures = () => all(".grid .picture").filter((one) => one.offsetParent !== null);
  const middle = (one) => { const box = one.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; };
  const step = (key) => {
    const shown = pictures(), at = document.activeElement.closest && document.activeElement.closest(".card");
    const now = at && at.querySelector(".picture");
    if (!now) { if (shown.length) shown[0].focus(); return; }
    const [x, y] = middle(now), i = shown.indexOf(now);
    let next = null;
    if (key === "ArrowLeft") next = shown[i - 1];
    else if (key === "ArrowRight") next = shown[i + 1];
    else {
      const down = key === "ArrowDown" ? 1 : -1, rows = shown.filter((one) => down * (middle(one)[1] - y) > 8);
      const far = (one) => Math.abs(middle(one)[1] - y) * 4 + Math.abs(middle(one)[0] - x);
      next = rows.sort((a, b) => far(a) - far(b))[0];
    }
    if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
  };
  const press = (link) => { if (link) link.click(); };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    if (document.querySelector("dialog[open]") && event.key !== "?") return;
    const card = event.target.closest(".card");
    const doings = {
      "/": () => { const box = document.getElementById("q"); box.focus(); box.select(); },
      "?": help,
      r: () => { location.href = "/random"; },
      b: () => press(star),
      o: () => card && press(card.querySelector(".id")),
      "+": () => card && press(card.querySelector('[data-key="+"]')),
      "-": () => card && press(card.querySelector('[data-key="-"]')),
    };
    for (const arrow of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) {
      if (pictures().length && (card || arrow === "ArrowRight")) doings[arrow] = () => step(arrow);
    }
    const doing = Object.hasOwn(doings, event.key) && doings[event.key];
    if (doing) { event.preventDefault(); doing(); }
  });
})();
