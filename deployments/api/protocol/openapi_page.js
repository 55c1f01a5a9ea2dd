"use strict";
// The forms of GET /docs. Requests go to this page's own server; nothing is kept.
const MAX_SHOWN = 200000;
const base = new URL(".", location.href);

for (const form of document.querySelectorAll("form")) form.addEventListener("submit", send);
for (const button of document.querySelectorAll(".copy")) {
  const command = button.previousElementSibling;
  command.textContent = command.textContent.replace("http://127.0.0.1:8000/", base.href);
  button.addEventListener("click", () => copy(button, command));
}
const open = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.setAttribute("open", "");
addEventListener("hashchange", open);
open();

async function copy(button, command) {
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch { // the clipboard is closed to pages without TLS: select the command instead
    getSelection().selectAllChildren(command);
  }
}

async function send(event) {
  event.preventDefault();
  const form = event.target, status = form.querySelector("[role=status]"), shown = form.querySelector(".answer");
  form.aborter?.abort();
  const aborter = form.aborter = new AbortController();
  let path = form.dataset.path.slice(1);
  const query = new URLSearchParams();
  for (const field of form.querySelectorAll("input")) {
    if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(field.value));
    else if (field.value) query.set(field.name, field.value);
  }
  const headers = {}, key = document.getElementById("key").value.trim(), body = form.querySelector("textarea")?.value;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  status.textContent = "Waiting for the answer";
  shown.hidden = false;
  shown.textContent = "";
  const began = performance.now();
  try {
    const url = new URL(path + (query.size ? `?${query}` : ""), base);
    const response = await fetch(url, { method: form.dataset.method.toUpperCase(), headers, body, signal: aborter.signal });
    const text = await read(response, shown);
    status.textContent = `${response.status} ${response.statusText}, ${((performance.now() - began) / 1000).toFixed(2)} s`;
    if (response.headers.get("content-type")?.includes("json")) shown.textContent = indented(text);
  } catch (error) {
    if (!aborter.signal.aborted) status.textContent = `No answer: ${error.message}`;
  }
}

// Shows the body as it comes, up to a bound.
async function read(response, shown) {
  const decoder = new TextDecoder(), reader = response.body.getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text;
    text += decoder.decode(value, { stream: true });
    shown.textContent = text.slice(0, MAX_SHOWN);
    if (text.length > MAX_SHOWN) {
      await reader.cancel();
      return text.slice(0, MAX_SHOWN);
    }
  }
}

function indented(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}
