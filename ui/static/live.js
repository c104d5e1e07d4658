// Builds under way: asked once a second, nothing reloads.
import { $, ask, lock, say } from "./frame.js";
import { duration, number } from "./words.js";

const EVERY = 1000;
const cards = new Map();

function card(kind, id) {
  if (!cards.has(kind + id)) {
    const made = $(`#${kind}-card`).content.firstElementChild.cloneNode(true);
    made.dataset.id = id;
    cards.set(kind + id, made);
    $(`#${kind}`).prepend(made);
    lock(made);
    const stop = $("button", made);
    stop?.addEventListener("click", () => ask("POST", `/api/runs/${id}/stop`, {}).catch((error) => say(error.message, true)));
  }
  return cards.get(kind + id);
}

function put(within, selector, text) {
  const place = $(selector, within);
  if (place.textContent !== text) place.textContent = text;
}

function running(each, now) {
  const made = card("running", each.id);
  const silent = now - each.updated;
  put(made, "h2", each.recipe);
  put(made, "header p", each.alive ? "running" : "its process is gone; run the recipe again and it goes on from here");
  $("header p", made).className = each.alive ? "soft" : "no";
  put(made, ".what", each.node ? `${each.node}${each.what ? `: ${each.what}` : ""}` : "starting");
  const bar = $("progress", made);
  if (each.total) bar.value = each.done / each.total;
  else bar.removeAttribute("value");
  put(made, ".done", each.total ? `${each.done} of ${each.total}` : "—");
  put(made, ".rate", each.rate ? (each.rate >= 1 ? `${number(each.rate, 3)} a second` : `${number(60 * each.rate, 3)} a minute`) : "—");
  put(made, ".left", each.alive && each.eta !== null ? duration(Math.max(0, each.eta - silent)) : "—");
  put(made, ".nodes", `${each.nodes_done} of ${each.nodes_total}`);
  put(made, ".for", duration((each.alive ? now : each.updated) - each.started));
  put(made, ".process", `${each.pid} on ${each.host}`);
}

function started(each, now) {
  const made = card("started", each.id);
  const done = { 0: "passed", 1: "finished: a gate failed", 2: "refused", 130: "interrupted" };
  const word = each.code === null ? `running for ${duration(now - each.begun)}` : (done[each.code] ?? `ended with exit code ${each.code}`);
  put(made, "h2", "Started from this page");
  put(made, "header p", word);
  $("header p", made).className = each.code === null ? "soft" : each.code === 0 ? "ok" : "no";
  $("button", made).hidden = each.code !== null;
  const log = $(".log", made);
  if (log.textContent !== each.log) {
    log.textContent = each.log;
    log.scrollTop = log.scrollHeight;
  }
}

async function look() {
  try {
    const state = await ask("GET", "/api/live");
    for (const each of state.running) running(each, state.now);
    for (const each of state.started) started(each, state.now);
    const present = new Set([...state.running.map((e) => "running" + e.id), ...state.started.map((e) => "started" + e.id)]);
    for (const [key, made] of cards)
      if (!present.has(key)) {
        made.remove();
        cards.delete(key);
      }
    const alive = state.running.filter((each) => each.alive).length;
    put(document, "#state", alive ? `${alive} running` : "");
    $("#nothing").hidden = cards.size > 0;
  } catch {
    put(document, "#state", "the page’s server does not answer; trying again");
  }
  setTimeout(look, EVERY);
}
look();
