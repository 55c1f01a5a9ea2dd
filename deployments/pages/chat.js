// What the chat page does in the browser alone: it keeps conversations, fields and choices there, and lists them.
// page.js has what it shares with the console.
const dray = (() => {
  const CONVERSATION = "dray:conversation:", TITLES = "dray:titles", OPEN = "dray:open", FIELDS = "dray:fields";
  const KEY = "dray:key";
  // The key is for this tab only; it is gone when the tab is closed.
  const KEPT = ["model", "key", "temperature", "top_p", "max_tokens", "seed", "effort", "system"];

  const { text, element, button } = page;

  const stored = (name, otherwise) => {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  };
  function keep(name, value) {
    try { localStorage.setItem(name, value); return true; } catch { say(text.full); return false; }
  }
  let current = "", render = () => {}, show = () => {}, isReady = false;
  const parsed = value => { try { return JSON.parse(value || "{}"); } catch { return {}; } };
  const turns = () => parsed(current).turns || [];
  const shown = turn => (turn.answers || [])[turn.shown || 0];
  const answer = turn => shown(turn)?.progress?.text || "";

  // It stays until the next key or click: the list, where the buttons are, is hidden on a phone.
  const said = Object.assign(document.createElement("div"), { className: "dray-said" });
  said.setAttribute("role", "status");
  function say(message) {
    said.textContent = message;
    document.body.append(said);
  }
  for (const event of ["keydown", "pointerdown"]) document.addEventListener(event, () => { said.textContent = ""; }, true);

  // --- conversations ---
  function conversations() {
    const titles = stored(TITLES, {});
    return Object.keys(localStorage).filter(name => name.startsWith(CONVERSATION)).map(name => {
      const id = name.slice(CONVERSATION.length), entry = stored(name, {});
      return { id, at: entry.at || 0, value: entry.value || "", title: titles[id] || title(entry.value) };
    }).sort((a, b) => b.at - a.at);
  }
  const title = value => (parsed(value).turns?.[0]?.question || "").split("\n")[0].slice(0, 80);

  function save(value) {
    current = value;
    const { id, turns } = parsed(value);
    if (!id || !turns?.length) return;
    sessionStorage.setItem(OPEN, id);
    keep(OPEN, JSON.stringify(id));
    if (stored(CONVERSATION + id, {}).value !== value)
      keep(CONVERSATION + id, JSON.stringify({ at: Date.now(), value }));
  }

  function rename(id, name) {
    keep(TITLES, JSON.stringify({ ...stored(TITLES, {}), [id]: name }));
    render();
  }

  function markdown(value) {
    const lines = [];
    for (const turn of parsed(value).turns || []) {
      lines.push(turn.question.includes("\n") ? turn.question.replace(/^/gm, "> ") : `**${turn.question}**`);
      if (turn.file) lines.push(`*${turn.file.name}*`);
      if (answer(turn)) lines.push(answer(turn), `*${shown(turn).model}*`);
    }
    return lines.join("\n\n") + "\n";
  }

  function download(name, content, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function exported() {
    return JSON.stringify({ dray: 1, conversations: conversations().map(({ id, title, at, value }) =>
      ({ id, title, at, ...parsed(value) })) }, null, 1);
  }

  async function imported(file) {
    const list = parsed(await file.text()).conversations;
    if (!Array.isArray(list)) return say(text.import_failed);
    for (const { id, title, at, turns } of list)
      if (typeof id === "string" && Array.isArray(turns)) {
        keep(CONVERSATION + id, JSON.stringify({ at: at || Date.now(), value: JSON.stringify({ id, turns }) }));
        if (title) rename(id, title);
      }
    render();
  }

  async function copy(value) {
    if (navigator.clipboard) await navigator.clipboard.writeText(value);
    else {
      // Browsers have the clipboard's own functions only on pages with TLS, or of this machine.
      const field = element("textarea", { value, className: "dray-copied" }), before = document.activeElement;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      before?.focus();
    }
    say(text.copied);
  }

  const isWide = () => innerWidth > 1000;
  let toggling = null;
  function toggleList(open) {
    const bar = document.querySelector(".sidebar");
    if (!bar || (toggling ?? bar.classList.contains("open")) === open) return;
    toggling = open;
    bar.querySelector(".toggle-button").click();
    // gradio changes the class a moment later; a second click until then would undo the first.
    setTimeout(() => { toggling = null; });
  }

  // Where the window has no room for both, the list lies over the conversation, and must not hide what has the focus.
  document.addEventListener("focusin", event => {
    const bar = document.querySelector(".sidebar");
    if (bar && !isWide() && !bar.contains(event.target)) toggleList(false);
  });

  // --- what gradio calls ---
  const header = place => page.header(place, [["/status", text.status], ["/docs", text.docs], ["/console", text.console]]);

  function list(place, props, open, watch) {
    const search = element("input", { type: "search", placeholder: text.search, ariaLabel: text.search, oninput: () => render() });
    const entries = element("ul");
    const actions = element("div", { className: "actions" });
    let isRenaming = false, drawn = "";
    const file = element("input", { type: "file", accept: ".json", hidden: true, onchange: () => imported(file.files[0]) });
    show = value => {
      props.value = value;
      save(value);
      open();
      render();
      if (!isWide()) toggleList(false);
    };
    const fresh = () => { show(JSON.stringify({ id: crypto.randomUUID?.() ?? String(Math.random()), turns: [] })); focus(); };
    place.replaceChildren(element("nav", { className: "dray-list", ariaLabel: text.conversations },
      element("h2", { textContent: text.conversations }), button(text.new, fresh), search, entries, actions, file));

    // What has the focus keeps it.
    function redraw(place, ...children) {
      const name = one => `${one.closest("li")?.dataset.id} ${one.textContent}`;
      const focused = place.contains(document.activeElement) ? name(document.activeElement) : "";
      place.replaceChildren(...children);
      [...place.querySelectorAll("button")].find(one => name(one) === focused)?.focus();
    }
    function entry({ id, title }) {
      const isCurrent = id === parsed(current).id;
      const choose = () => { show(stored(CONVERSATION + id, {}).value || ""); focus(); };
      const line = element("li", {}, button(title, choose, { title, ariaCurrent: String(isCurrent) }));
      line.dataset.id = id;
      return line;
    }
    function renaming(id) {
      search.value = "";
      render();
      const line = [...entries.children].find(line => line.dataset.id === id);
      const input = element("input", { value: line.textContent, ariaLabel: text.rename, maxLength: 80 });
      isRenaming = true;
      drawn = "";
      const end = name => { if (isRenaming) { isRenaming = false; name ? rename(id, name) : render(); } };
      input.onkeydown = event => {
        // An input method has these keys for itself while a word is typed.
        if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
        event.stopPropagation();
        event.preventDefault();  // or the same key would press the button that gets the focus
        end(event.key === "Enter" ? input.value.trim() : "");
        actions.querySelector("button").focus();
      };
      input.onblur = () => end(input.value.trim());
      line.replaceChildren(input);
      input.focus();
      input.select();
    }
    function remove(id) {
      if (!confirm(text.delete_question)) return;
      localStorage.removeItem(CONVERSATION + id);
      const { [id]: _, ...titles } = stored(TITLES, {});
      keep(TITLES, JSON.stringify(titles));
      fresh();
    }
    render = () => {
      const wanted = search.value.trim().toLowerCase(), all = conversations(), { id } = parsed(current);
      const found = all.filter(({ title, value }) => !wanted || (title + value).toLowerCase().includes(wanted));
      const about = all.find(entry => entry.id === id);
      // An answer that arrives is saved every second; that changes nothing here, and would end a click on its way.
      const state = JSON.stringify([wanted, id, about?.id, all.length, found.map(({ id, title }) => [id, title])]);
      if (isRenaming || state === drawn) return;
      drawn = state;
      const none = wanted && !found.length ? [element("li", { textContent: text.none_found })] : [];
      redraw(entries, ...found.map(entry), ...none);
      redraw(actions, ...(about ? [
        button(text.rename, () => renaming(id)), button(text.copy, () => copy(markdown(current))),
        button(text.markdown, () => download(`${about.title.slice(0, 40) || "dray"}.md`, markdown(current), "text/markdown")),
        button(text.delete, () => remove(id)),
      ] : []), ...(all.length ? [button(text.export, () => download("dray-conversations.json", exported(), "application/json"))] : []),
      button(text.import_, () => file.click()));
    };
    watch("value", () => { save(props.value); render(); });
    render();
  }

  // The values with which the page starts: the conversation, and then the fields.
  function restored() {
    const fields = stored(FIELDS, {}), id = sessionStorage.getItem(OPEN) || stored(OPEN, "");
    current = stored(CONVERSATION + id, {}).value || "";
    // What was still arriving when the page was left arrives no more.
    const { turns } = parsed(current), last = turns?.length ? shown(turns.at(-1)) : null;
    if (last && !last.progress?.finish && !last.error) {
      const value = parsed(current), left = shown(value.turns.at(-1));
      left.stopped = true;
      current = JSON.stringify(value);
    }
    return [current, ...KEPT.map(name => (name === "key" ? sessionStorage.getItem(KEY) : fields[name]) ?? null)];
  }
  function ready() {
    isReady = true;
    render();
    toggleList(isWide());
    document.querySelector(".sidebar .toggle-button").ariaLabel = text.toggle;
    // A phone would bring up its keyboard.
    if (matchMedia("(hover: hover)").matches) focus();
  }
  function remember(values) {
    if (!isReady) return;
    const fields = Object.fromEntries(KEPT.map((name, index) => [name, values[index]]));
    if ((fields.key || "") !== (sessionStorage.getItem(KEY) || "")) {
      sessionStorage.setItem(KEY, fields.key || "");
      page.linkStatus();
    }
    delete fields.key;
    keep(FIELDS, JSON.stringify(fields));
  }

  // --- keyboard, focus and copying ---
  const field = () => document.querySelector("#question textarea");
  const focus = () => field()?.focus();

  const names = Object.entries(text.gradio);
  function correct() {
    // gradio calls the examples a list, but they are buttons, which no list may have.
    document.querySelector("#chat .examples[role=list]")?.removeAttribute("role");
    if (!names.length) return;
    for (const one of document.querySelectorAll("#chat [aria-label]"))
      for (const attribute of ["aria-label", "title"]) {
        const [english, name] = names.find(([english]) => one.getAttribute(attribute)?.startsWith(english)) || [];
        if (english) one.setAttribute(attribute, name + one.getAttribute(attribute).slice(english.length));
      }
  }
  new MutationObserver(correct).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["aria-label"] });

  // Of a question that is being edited: Enter starts a new line there.
  const SUBMIT = 0, CANCEL = 1;
  document.addEventListener("keydown", event => {
    if (event.isComposing) return;
    const isSubmit = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!isSubmit && event.key !== "Escape") return;
    const edited = event.target.closest?.("#chat .edit-textarea");
    const buttons = edited?.closest(".message-row").nextElementSibling.querySelectorAll("button");
    if (buttons) buttons[isSubmit ? SUBMIT : CANCEL].click();
    else if (!isSubmit) document.querySelector("#question .stop-button")?.click();
  });

  document.addEventListener("click", event => {
    const pressed = event.target.closest?.("button");
    if (!pressed) return;
    if (pressed.matches("#question button, #chat .option, #chat .example")) return void requestAnimationFrame(focus);
    const panel = pressed.closest("#chat .message-buttons");
    if (!panel) return;
    const row = panel.previousElementSibling, isUser = row.classList.contains("user-row");
    const rows = [...document.querySelectorAll(`#chat .message-row.${isUser ? "user" : "bot"}-row`)];
    const turn = turns().filter(turn => isUser || turn.answers?.length)[rows.indexOf(row)];
    const isEdited = row.querySelector(".edit-textarea"), index = [...panel.querySelectorAll("button")].indexOf(pressed);
    if (isEdited) return void setTimeout(() => (index === SUBMIT ? focus() : panel.querySelectorAll("button")[1]?.focus()));
    if (index === 0) {
      // gradio would copy the thinking and the statistics too.
      event.stopImmediatePropagation();
      copy(isUser ? turn.question : answer(turn));
    } else if (isUser) setTimeout(() => {
      const edited = row.querySelector(".edit-textarea");
      if (!edited) return;
      edited.value = turn.question;
      edited.dispatchEvent(new Event("input", { bubbles: true }));
      edited.focus();
    });
    else if (index === 1 && panel.matches(":last-of-type, :has(~ .options)")) requestAnimationFrame(focus);
  }, true);

  // What a file is read for: the model and the key.
  const chosen = () => ({ model: stored(FIELDS, {}).model || "", key: sessionStorage.getItem(KEY) || "" });

  return { header, list, restored, ready, remember, focus, chosen };
})();
