// What the gradio pages of Dray share in the browser: the language, the theme, and the header.
// `words` are the page's texts, by language; see head.py, which puts them and this into the page before gradio starts.
const page = (() => {
  const LANGUAGE = "dray:language", THEME = "dray:theme";
  const language = (localStorage.getItem(LANGUAGE) || navigator.language).startsWith("zh") ? "zh" : "en";
  const text = words[language];
  document.documentElement.lang = language;
  document.cookie = `dray-language=${language}; path=/; max-age=31536000; samesite=strict`;
  // gradio knows the browser's language only, and takes the theme from the address.
  const locale = language === "zh" ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", { get: () => locale });
  Object.defineProperty(navigator, "languages", { get: () => [locale] });
  const theme = localStorage.getItem(THEME);
  const address = new URL(location);
  if (theme && address.searchParams.get("__theme") !== theme) {
    address.searchParams.set("__theme", theme);
    history.replaceState(null, "", address);
  }

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const button = (name, onclick, properties = {}) => element("button", { type: "button", textContent: name, onclick, ...properties });
  const link = (href, name) => element("a", { href, textContent: name });

  // Shows the link to the status page to those who may see it: by a key of this tab, or signed on to the console.
  const STATUS_KEYS = ["dray:status-key", "dray:admin-key", "dray:key"];
  let status = null;
  async function linkStatus() {
    if (!status || words.status_page === "everyone") return;
    status.hidden = true;
    const key = STATUS_KEYS.map(name => sessionStorage.getItem(name)).find(Boolean);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch("/status/machine", { method: "HEAD", headers }).catch(() => null);
    status.hidden = !answer?.ok;
  }

  // links: addresses and names.
  function header(place, links, ...more) {
    const other = language === "zh" ? "en" : "zh";
    const isDark = () => document.body.classList.contains("dark");
    const name = () => (isDark() ? text.light : text.dark);
    const toggle = button(name(), () => {
      document.body.classList.toggle("dark");
      localStorage.setItem(THEME, isDark() ? "dark" : "light");
      toggle.textContent = name();
    });
    new MutationObserver(() => { toggle.textContent = name(); }).observe(document.body, { attributeFilter: ["class"] });
    place.replaceChildren(element("div", { className: "dray-header" }, element("h1", { textContent: "Dray" }),
      ...links.map(entry => link(...entry)), toggle,
      button(text.language, () => { localStorage.setItem(LANGUAGE, other); location.reload(); }, { lang: other }), ...more));
    status = place.querySelector("a[href='/status']");
    linkStatus();
  }

  // Each key opens gradio's lists of choices, a moment later: when Tab had left one, it stayed open over the page. And Enter,
  // which chooses, left the focus nowhere (gradio 6.31).
  const UNHEARD = ["Tab", "Shift", "Control", "Alt", "Meta"];
  function keepFocus(field) {
    const unheard = event => event.stopPropagation();  // or gradio would open the list again
    if (document.activeElement !== document.body) return;
    document.addEventListener("focus", unheard, true);
    field.focus();
    document.removeEventListener("focus", unheard, true);
  }
  document.addEventListener("keydown", event => {
    if (!event.target.matches?.("[role=combobox]")) return;
    if (UNHEARD.includes(event.key)) event.stopPropagation();
    if (event.key === "Enter") setTimeout(() => keepFocus(event.target));
  }, true);

  return { language, locale, text, element, button, header, linkStatus };
})();
