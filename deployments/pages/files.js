// A file beside the question: chosen with a button or dropped on the page, read by the server, kept in this tab until the
// question is asked. Afterwards it is part of the conversation.
const drayFile = (() => {
  const PENDING = "dray:file";
  const { element, button, text } = page, words = text.file;
  const worded = (sentence, name) => sentence.replaceAll("{name}", () => name);
  let props = { value: "" }, place = null, running = null, isReady = false;

  const kept = () => { try { return JSON.parse(props.value || "null"); } catch { return null; } };

  function attachment(parent, component, watch) {
    props = component;
    place = element("div", { className: "dray-attachment" });
    parent.replaceChildren(place);
    // Emptied by the server when the question is asked; before the page is ready, gradio sets it to nothing by itself.
    watch("value", () => { if (isReady) keep(props.value); });
  }

  function ready() {
    isReady = true;
    if (sessionStorage.getItem(PENDING)) set(sessionStorage.getItem(PENDING));
  }

  function set(value) {
    props.value = value;
    keep(value);
  }

  function keep(value) {
    try {
      if (value) sessionStorage.setItem(PENDING, value); else sessionStorage.removeItem(PENDING);
    } catch { /* It is attached all the same; only a reload loses it. */ }
    show();
  }

  function show(message) {
    const file = kept();
    const shown = message ? [message] : [];
    if (file) {
      shown.push(element("span", { textContent: worded(words.attached, file.name), role: "status" }));
      shown.push(button("×", () => { set(""); dray.focus(); }, { ariaLabel: worded(words.detach, file.name) }));
    }
    place?.replaceChildren(...shown);
  }

  // Why a file was refused is shown until the next question, or another conversation.
  const forget = event => { if (event.target.closest?.("#question, .dray-list") && place?.querySelector(".dray-error")) show(); };
  document.addEventListener("keydown", event => { if (event.key === "Enter") forget(event); }, true);
  document.addEventListener("click", event => { if (event.target.closest?.("button")) forget(event); }, true);

  const refuse = message => show(element("div", { className: "dray-error", role: "alert", textContent: message }));

  async function read(file) {
    running?.abort();
    if (file.size > words.max_bytes) return refuse(worded(words.large, file.name));
    const own = running = new AbortController();
    show(element("span", { textContent: worded(words.reading, file.name), role: "status" }));
    try {
      const { model, key } = dray.chosen();
      const answer = await fetch(`${location.pathname.replace(/\/$/, "")}/file`, {
        method: "POST",
        headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
        body: JSON.stringify({ name: file.name, model, data: await base64(file) }),
        signal: own.signal,
      });
      const body = await answer.json();
      if (own !== running) return;
      if (!answer.ok) return refuse(body.error.message);
      set(JSON.stringify(body));
      dray.focus();
    } catch {
      if (own === running) refuse(worded(words.unanswered, file.name));
    }
  }

  function base64(file) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
  }

  function choose() {
    const input = element("input", { type: "file", accept: ".txt,.md,.pdf,.docx" });
    input.onchange = () => input.files[0] && read(input.files[0]);
    input.click();
  }

  function attachButton(parent) {
    const made = button("", choose, { className: "dray-attach", ariaLabel: words.attach, title: words.attach });
    made.innerHTML = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M12.5 7.5 8 12a3 3 0 0 1-4.2-4.2l5-5a2 2 0 0 1 2.9 2.8l-5 5a1 1 0 0 1-1.4-1.4L9.5 5"/></svg>';
    parent.replaceChildren(made);
  }

  const hasFile = event => event.dataTransfer?.types.includes("Files");
  const mark = isOver => document.body.classList.toggle("dray-dropping", isOver);
  document.addEventListener("dragover", event => {
    if (!hasFile(event)) return;
    event.preventDefault();
    document.body.dataset.drop = words.drop;
    mark(true);
  }, true);
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) mark(false); }, true);
  document.addEventListener("drop", event => {
    mark(false);
    if (!hasFile(event)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
  }, true);

  return { attachment, ready, button: attachButton };
})();
