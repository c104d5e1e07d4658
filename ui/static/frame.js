// What every page has: the theme, the token, messages, and whether a build runs.
export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// The token comes once, in the fragment of the address that `bitsmith up` prints, and stays in this origin.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  localStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname + location.search);
}
const token = localStorage.getItem("token");

export function say(text, bad = false) {
  $(".toast")?.remove();
  const toast = document.createElement("div");
  toast.className = bad ? "toast bad" : "toast";
  toast.setAttribute("role", bad ? "alert" : "status");
  toast.textContent = text;
  document.body.append(toast);
  setTimeout(() => toast.remove(), bad ? 12000 : 5000);
}

async function fault(response) {
  const text = await response.text();
  try {
    const { what, where, got, wanted, fix } = JSON.parse(text);
    const rest = { where, got, wanted, "to do": fix };
    return [what, ...Object.entries(rest).filter(([, v]) => v).map(([k, v]) => `${k}: ${v}`)].join("\n");
  } catch {
    return text.trim();
  }
}

export async function ask(method, address, body) {
  const headers = { "content-type": "application/json" };
  if (token) headers["x-bitsmith-token"] = token;
  const response = await fetch(address, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (!response.ok) throw new Error(await fault(response));
  return response.headers.get("content-type")?.startsWith("application/json") ? response.json() : response.text();
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  dispatchEvent(new Event("theme"));
});

export function lock(within = document) {
  if (token) return;
  for (const button of $$("[data-needs-token]", within)) {
    button.disabled = true;
    button.title = "Open the address that bitsmith ui or bitsmith up printed: it carries the token for this";
  }
}
lock();
if (!token && $("[data-needs-token]")) {
  $("#lock").hidden = false;
  $("#lock").textContent = "read only";
  $("#lock").title = "Open the address that bitsmith ui or bitsmith up printed to change something";
}

for (const button of $$("[data-copy]"))
  button.addEventListener("click", async () => {
    await copy(button.dataset.copy);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });

async function watch() {
  try {
    const { running } = await ask("GET", "/api/live");
    const count = running.filter((each) => each.alive).length;
    $("#live-count").hidden = !count;
    $("#live-count").textContent = count;
    $("#live-count").title = `${count} running`;
  } catch {
    // the server ends; the page stays readable
  }
  setTimeout(watch, document.hidden ? 30000 : 5000);
}
if (location.pathname !== "/live") watch();
