// What the console does in the browser: it keeps the key for its tab, shows one section at a time, and draws what the
// server sends as JSON (tables.py). Every value becomes text, so none can become a part of the page.
const console_page = (() => {
  const { text, locale, element, button } = page;
  const KEY = "dray:admin-key";
  // Functions that open sections, by name.
  const openers = {};
  let names = [], isIn = false, last = "";

  // --- signing in ---
  const kept = () => [sessionStorage.getItem(KEY) || ""];
  function signing(place, props, watch) {
    watch("value", () => {
      if (!props.value) return;
      isIn = props.value === "in";
      document.body.classList.toggle("signed-in", isIn);
      document.body.classList.add("ready");
      if (isIn) {
        sessionStorage.setItem(KEY, field().value.trim());
        show();
      } else {
        sessionStorage.removeItem(KEY);
        field()?.focus();
      }
      page.linkStatus();
    });
  }
  const field = () => document.querySelector("#admin-key input");
  async function signOut() {
    sessionStorage.removeItem(KEY);
    // Ends the session of single sign-on, if there is one. It answers with a redirect, which is not followed.
    if (document.querySelector("#sign-on")) await fetch("/console/logout", { method: "POST", redirect: "manual" }).catch(() => {});
    location.reload();
  }

  // --- sections ---
  const current = () => (names.includes(location.hash.slice(1)) ? location.hash.slice(1) : names[0]);
  function show() {
    if (!isIn) return;
    const name = current();
    for (const section of document.querySelectorAll(".section")) section.classList.toggle("shown", section.id === `section-${name}`);
    for (const entry of document.querySelectorAll(".console-nav a"))
      entry.hash === `#${name}` ? entry.setAttribute("aria-current", "page") : entry.removeAttribute("aria-current");
    document.title = `${text[name]} · Dray`;
    openers[name]?.();
  }
  addEventListener("hashchange", show);

  function header(place, sections) {
    names = sections;
    const bar = element("div"), nav = element("nav", { className: "console-nav", ariaLabel: text.sections });
    page.header(bar, [["/chat", text.chat], ["/status", text.status], ["/docs", text.docs]],
      button(text.sign_out, signOut, { className: "sign-out" }));
    nav.append(...names.map(name => element("a", { href: `#${name}`, textContent: text[name] })),
      button(text.refresh, show, { className: "refresh" }));
    place.replaceChildren(bar, nav);
    for (const part of document.querySelectorAll(".gradio-container, .section, .section > *")) grown.observe(part);
  }

  // --- what the server sends ---
  const time = seconds => new Date(1000 * seconds).toLocaleString(locale, { dateStyle: "short", timeStyle: "medium" });
  const LONG = 120;

  function content(cell) {
    if (cell.time != null) return element("time", { textContent: time(cell.time), dateTime: new Date(1000 * cell.time).toISOString() });
    if (cell.number != null) return document.createTextNode(cell.number.toLocaleString(locale, { minimumFractionDigits: cell.digits || 0, maximumFractionDigits: cell.digits || 2 }));
    if (cell.share != null) {
      const bar = element("span", { className: "share" }), name = `${Math.round(100 * cell.share)} %`;
      bar.style.setProperty("--share", `${Math.min(100, 100 * cell.share)}%`);
      bar.append(element("span", { textContent: name }));
      return bar;
    }
    const value = cell.text || "";
    if (value.length <= LONG) return document.createTextNode(value);
    return element("details", {}, element("summary", { textContent: `${value.slice(0, LONG)}…`, title: text.show_all }),
      element("p", { textContent: value }));
  }

  const styled = (made, cell) => {
    if (cell.tone) made.classList.add(cell.tone);
    if (cell.number != null) made.classList.add("number");
    if (cell.id) made.classList.add("id");
    if (/^[\w.-]{1,24}$/.test(cell.text || "")) made.classList.add("name");
    return made;
  };

  function table({ caption, head, rows, empty, more }, act) {
    const title = element("h2", { textContent: caption, tabIndex: -1 });
    const made = element("div", { className: "board-table" }, title);
    if (!rows.length) made.append(element("p", { textContent: empty, className: "empty" }));
    else made.append(scrolling(caption, grid(caption, head, rows, act)));
    if (more) made.append(button(more.label, () => act({ action: more.action, id: "" })));
    return made;
  }

  // A table that is wider than its place: the keyboard can scroll it too.
  function scrolling(name, content) {
    const made = element("div", { className: "scroll" }, content);
    new ResizeObserver(() => {
      const isWider = made.scrollWidth > made.clientWidth + 1;
      isWider ? made.setAttribute("tabindex", "0") : made.removeAttribute("tabindex");
      isWider ? made.setAttribute("role", "region") : made.removeAttribute("role");
      isWider ? made.setAttribute("aria-label", name) : made.removeAttribute("aria-label");
    }).observe(made);
    return made;
  }

  // Roles in words: on a phone the rows are no longer laid out as a table, and browsers then forget that they are one.
  function grid(caption, head, rows, act) {
    const hasActions = rows.some(row => row.actions?.length);
    const numeric = head.map((_, index) => rows.some(row => row.cells[index]?.number != null));
    const heads = head.map((name, index) => element("th", { textContent: name, scope: "col", role: "columnheader", className: numeric[index] ? "number" : "" }));
    if (hasActions) heads.push(element("th", { textContent: text.actions, scope: "col", role: "columnheader", className: "actions" }));
    const lines = rows.map(row => {
      const cells = row.cells.map((cell, index) => {
        const made = styled(element("td", { role: "cell" }, content(cell)), cell);
        made.dataset.name = head[index];
        if (numeric[index]) made.classList.add("number");
        return made;
      });
      if (hasActions) cells.push(element("td", { role: "cell", className: "actions" }, ...(row.actions || []).map(action => actionButton(row, action, act))));
      return element("tr", { role: "row" }, ...cells);
    });
    return element("table", { role: "table", ariaLabel: caption }, element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)),
      element("tbody", { role: "rowgroup" }, ...lines));
  }

  function actionButton(row, { action, label, confirm: question }, act) {
    const made = button(label, () => { if (!question || confirm(question)) act({ action, id: row.id || "" }); }, { ariaLabel: `${label}: ${row.name || row.id}` });
    made.dataset.action = `${action} ${row.id}`;
    return made;
  }

  function figures(list) {
    return element("dl", { className: "figures" }, ...list.map(({ name, value }) =>
      styled(element("div", {}, element("dt", { textContent: name }), element("dd", {}, content(value))), value)));
  }

  function legend(entries) {
    return element("ul", { className: "legend" }, ...entries.map(({ name, colour }) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colour;
      return element("li", {}, swatch, name);
    }));
  }

  function notice({ text: sentence, tone, code }) {
    const made = element("div", { className: `notice ${tone ?? "warn"}` }, element("p", { textContent: sentence }));
    if ((tone ?? "warn") === "bad") made.setAttribute("role", "alert");
    if (code) made.append(element("code", { textContent: code }));
    return made;
  }

  // A new key, which is shown this once.
  function secret(place, props, watch) {
    const close = () => {
      props.value = "";
      place.replaceChildren();
      place.closest(".section").querySelectorAll("h2")[1]?.focus();
    };
    watch("value", () => {
      if (!props.value) return;
      const field = element("input", { readOnly: true, value: props.value, ariaLabel: text.new_key });
      const copied = element("span", { role: "status" });
      const copy = button(text.copy, async () => {
        field.select();
        // Browsers have a clipboard for pages that came by HTTPS or from this machine.
        if (navigator.clipboard) await navigator.clipboard.writeText(field.value);
        else document.execCommand("copy");
        copied.textContent = text.copied;
      });
      place.replaceChildren(element("div", { className: "board secret" }, element("p", { textContent: text.new_key }), field,
        element("div", {}, copy, button(text.done, close), copied)));
      field.focus();
      field.select();
    });
  }

  // What an action did, or why it could not. Good news goes by itself.
  const SHOWN_MS = 6000;
  function message(place, props, watch) {
    let timer;
    const close = () => place.replaceChildren();
    watch("value", () => {
      clearTimeout(timer);
      if (!props.value) return close();
      const said = JSON.parse(props.value), isGood = said.tone === "good";
      place.replaceChildren(element("div", { className: `console-message ${said.tone}`, role: isGood ? "status" : "alert" },
        element("p", { textContent: said.text }), button("×", close, { ariaLabel: text.close })));
      if (isGood) timer = setTimeout(close, SHOWN_MS);
    });
    addEventListener("keydown", event => { if (event.key === "Escape") close(); });
  }

  function board(place, props, trigger, watch, section = "") {
    const act = data => { last = data.action; trigger("click", data); };
    if (section) openers[section] = () => act({ action: "open", id: "" });
    const draw = () => {
      const focused = place.contains(document.activeElement) ? document.activeElement.dataset.action ?? "" : null;
      const { notices = [], figures: list = [], legend: colours = [], tables = [] } = props.value ? JSON.parse(props.value) : {};
      place.replaceChildren(element("div", { className: "board" }, ...notices.map(notice), ...(list.length ? [figures(list)] : []),
        ...(colours.length ? [legend(colours)] : []),
        ...tables.map(one => table(one, act))));
      if (focused === null) return;
      // Whoever uses a keyboard goes on where they were; if that is gone, at the top of the table.
      const again = [...place.querySelectorAll("[data-action]")].find(one => one.dataset.action === focused);
      (again || place.querySelector("h2"))?.focus();
    };
    watch("value", draw);
    draw();
  }

  // After an action that fills a form: on to this field of it, as soon as gradio has drawn it.
  function followed(id) {
    if (!["edit", "correct"].includes(last)) return;
    const start = () => {
      const field = document.querySelector(`#${id} :is(input, textarea)`);
      field?.focus();
      return document.activeElement === field;
    };
    if (start()) return;
    const drawn = new MutationObserver(() => { if (start()) drawn.disconnect(); });
    drawn.observe(document.body, { childList: true, subtree: true, attributes: true });
    setTimeout(() => drawn.disconnect(), 3000);
  }

  // After an action that closes a form: to its heading, as soon as what had the focus is gone.
  function closed(id) {
    const heading = document.querySelector(`#${id} .label-wrap`), end = Date.now() + 3000;
    const look = () => {
      const { activeElement: focused } = document;
      if (focused === document.body || !focused.checkVisibility()) heading?.focus();
      else if (Date.now() < end) requestAnimationFrame(look);
    };
    look();
  }

  // What arrives above the focus must not push it out of sight: a browser keeps the place only of a page that has been scrolled.
  let inView = false;
  function look() {
    const { top, bottom } = document.activeElement.getBoundingClientRect();
    inView = document.activeElement !== document.body && bottom > 0 && top < innerHeight;
  }
  addEventListener("focusin", () => requestAnimationFrame(look));
  addEventListener("scroll", look, { passive: true });
  const grown = new ResizeObserver(() => {
    if (inView) document.activeElement.scrollIntoView({ block: "nearest" });
    look();
  });

  // What replicas do changes all the time.
  setInterval(() => { if (isIn && !document.hidden && current() === "models") openers.models?.(); }, 5000);

  return { kept, signing, header, board, secret, message, followed, closed };
})();
