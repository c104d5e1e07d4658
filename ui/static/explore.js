// The budget explorer: a slider, a plan, a front. The allocator answers from the server, one question at a time.
import { $, $$, ask, copy, element, say } from "./frame.js";
import { bitsClass, label, number, percent, place, size } from "./words.js";

const root = $("#explorer");
const build = root.dataset.build;
const STEPS = 1000;
const LABELLED = 40;

let costs; // what the server says of the build: units, formats, scores, sizes, the range
let unit = "linears";
let pins = {};
let built = []; // the plan of the build itself
let plan = [];
let chart;
let busy = false;
let waiting = false;

const range = () => (unit === "bytes" ? costs.achievable.bytes : costs.achievable[unit]);
const show = (value) => (unit === "bytes" ? size(value) : `${value.toFixed(3)} bpw`);

// What is asked for. The slider is even in the logarithm: halving the size is as far at either end.
let asked;

function slid() {
  const [low, high] = range();
  const value = low * (high / low) ** (+$("#budget").value / STEPS);
  return unit === "bytes" ? Math.ceil(value) : Math.ceil(value * 1e3) / 1e3;
}

function ask_for(value) {
  asked = value;
  $("#exact").value = value;
  $("#budget").setAttribute("aria-valuetext", show(value));
}

function budget() {
  if (unit === "bytes") return { bytes: asked };
  return unit === "file" ? { bits_per_weight: asked, over: "file" } : { bits_per_weight: asked };
}

function slideTo(value) {
  const [low, high] = range();
  $("#budget").value = Math.max(0, Math.min(STEPS, Math.round((STEPS * Math.log(value / low)) / Math.log(high / low))));
  ask_for(value);
}

async function solve() {
  if (busy) {
    waiting = true;
    return;
  }
  busy = true;
  $("#answer").classList.add("stale");
  try {
    const sent = performance.now();
    const question = { budget: budget(), pins };
    const answer = await ask("POST", `/api/explore/${build}/solve`, question);
    $("#took").textContent = `solved in ${Math.round(answer.milliseconds)} ms, shown in ${Math.round(performance.now() - sent)} ms`;
    $("#fault").hidden = true;
    draw(answer);
    if (!waiting) $("#recipe").textContent = await ask("POST", `/api/explore/${build}/recipe`, question);
  } catch (error) {
    $("#fault").hidden = false;
    $("#fault").textContent = error.message;
  }
  $("#answer").classList.remove("stale");
  busy = false;
  if (waiting) {
    waiting = false;
    solve();
  }
}

function draw(answer) {
  plan = answer.plan;
  $("#bytes").textContent = size(answer.bytes);
  $("#bytes-note").textContent = `${answer.bytes.toLocaleString("en")} bytes, exact`;
  $("#bpw").textContent = answer.linear_bpw.toFixed(3);
  $("#bpw-note").textContent = `linears; ${answer.file_bpw.toFixed(3)} whole file`;
  $("#kl").textContent = number(answer.kl);
  $("#kl-note").textContent = answer.gap > 0 ? `gap ${number(answer.gap, 2)}` : "proven: no plan is below";
  baseline("uniform", answer.uniform, answer);
  baseline("greedy", answer.greedy, answer);
  const [near, far] = answer.next;
  $("#next-name").textContent = `${size(near.bytes)} more would buy`;
  $("#next").textContent = `${number(near.kl, 3)}`;
  const saying = (next) => (next.everything ? `${size(next.bytes)} more: everything at its largest, ${number(next.kl, 3)}` : `${size(next.bytes)} more: ${number(next.kl, 3)}`);
  $("#next-note").textContent = far ? saying(far) : "nats per token";
  cells();
  mark(answer);
}

function baseline(id, point, answer) {
  $(`#${id}`).textContent = point ? number(point.kl) : "—";
  const gain = point && point.kl > 0 ? percent(answer.kl / point.kl) : "0 %";
  $(`#${id}-note`).textContent = point ? `${point.format ? `${point.format}; ` : ""}this plan ${gain === "0 %" ? "is no better" : gain}` : "none fits";
}

// The plan: a row per module, a column per block. One cell is in the tab order, arrow keys move within.
function grid() {
  const places = costs.units.map((each) => place(each.name));
  const blocks = [...new Set(places.map((each) => each.block))].sort((a, b) => a - b);
  const modules = [...new Set(places.map((each) => each.module))];
  const table = element("table", { class: blocks.length > LABELLED ? "plan many" : blocks.length > 14 ? "plan" : "plan few" });
  const at = new Map(places.map((each, i) => [`${each.module} ${each.block}`, i]));
  for (const module of modules) {
    const row = table.insertRow();
    row.append(element("th", { scope: "row" }, module));
    for (const block of blocks) {
      const index = at.get(`${module} ${block}`);
      const cell = row.insertCell();
      if (index !== undefined) cell.append(element("button", { type: "button", "data-unit": index, tabindex: index ? -1 : 0, onclick: () => choose(index) }));
    }
  }
  const head = element("tr", {}, element("th", {}, "block"));
  const each = blocks.length > LABELLED ? 10 : 1;
  for (const [i, block] of blocks.entries()) head.append(element("th", { scope: "col" }, i % each ? "" : `${block ?? "·"}`));
  table.createTHead().append(head);
  table.addEventListener("keydown", move);
  $("#plan").replaceChildren(table);
}

function move(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest("td");
  if (!step || !cell) return;
  const row = cell.closest("table").rows[cell.parentElement.rowIndex + step[0]];
  const next = row?.cells[cell.cellIndex + step[1]]?.querySelector("button");
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

const bits = (name) => costs.formats.find((each) => each.name === name)?.bits ?? null;

function cells() {
  const many = $("#plan .many");
  for (const button of $$("#plan button")) {
    const index = +button.dataset.unit;
    const name = costs.units[index].name;
    const format = plan[index];
    button.className = bitsClass(bits(format)) + (format !== built[index] ? " moved" : "") + (pins[name] ? " pinned" : "");
    if (!many) button.textContent = label(format);
    button.setAttribute("aria-label", `${name}: ${format}${pins[name] ? ", pinned" : ""}${format !== built[index] ? `, built as ${built[index]}` : ""}`);
    button.title = button.getAttribute("aria-label");
  }
  const used = [...new Set(plan)].sort((a, b) => bits(a) - bits(b) || a.localeCompare(b));
  $("#legend").replaceChildren(
    ...used.map((name) => element("li", {}, element("span", { class: `swatch ${bitsClass(bits(name))}` }), name, element("span", { class: "soft" }, ` ${plan.filter((each) => each === name).length}`))),
  );
  $("#pins").replaceChildren(...Object.entries(pins).map(([name, format]) => element("button", { type: "button", onclick: () => pin(name, null), "aria-label": `Unpin ${name}` }, `${name} = ${format} ✕`)));
}

function choose(index) {
  const name = costs.units[index].name;
  $("#cell-name").textContent = name;
  const rows = costs.formats.flatMap((format, j) => {
    if (costs.sizes[index][j] === null) return [];
    const here = pins[name] === format.name;
    const button = element("button", { type: "button", onclick: () => pin(name, here ? null : format.name) }, here ? "unpin" : "pin");
    return [element("tr", {}, element("td", {}, element("span", { class: `swatch ${bitsClass(format.bits)}` }), format.name, plan[index] === format.name ? " (now)" : ""), element("td", { class: "n" }, costs.sizes[index][j].toLocaleString("en")), element("td", { class: "n" }, number(costs.scores[index][j], 3)), element("td", { class: "n" }, button))];
  });
  const head = element("tr", {}, element("th", {}, "format"), element("th", { class: "n" }, "bytes"), element("th", { class: "n" }, "predicted KL"), element("th", {}, ""));
  $("#cell-formats").replaceChildren(head, ...rows);
  $("#cell").showModal();
}

function pin(name, format) {
  pins = Object.fromEntries(Object.entries({ ...pins, [name]: format }).filter(([, value]) => value));
  $("#cell").close();
  solve();
  front();
}

// The front: sizes on x, logarithm of predicted KL on y.
let points;
async function front() {
  try {
    points = await ask("POST", `/api/explore/${build}/front`, { pins });
    plot();
  } catch (error) {
    say(error.message, true);
  }
}

const colour = (name) => getComputedStyle($(`#swatch-${name}`)).backgroundColor;
const ink = () => getComputedStyle(document.body).color;
const soft = () => getComputedStyle($(".soft")).color;
let now = null;

function plot() {
  const series = { mixed: points.mixed, greedy: points.greedy, uniform: points.uniform };
  const x = [...new Set([...Object.values(series).flat().map((p) => p.bytes), ...(now ? [now.bytes] : [])])].sort((a, b) => a - b);
  const line = (list) => {
    const found = new Map(list.map((p) => [p.bytes, p.kl]));
    return x.map((v) => (found.get(v) > 0 ? found.get(v) : null));
  };
  const data = [x, line(series.mixed), line(series.greedy), line(series.uniform), x.map((v) => (now && v === now.bytes && now.kl > 0 ? now.kl : null))];
  if (chart) chart.destroy();
  const round = (_, splits) => splits.map((v) => (v > 0 && Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9 ? v : null));
  const axis = { stroke: soft(), grid: { stroke: colour("rule"), width: 1 }, ticks: { stroke: colour("rule"), width: 1 }, font: "11px Inter, sans-serif" };
  const width = $("#front").clientWidth;
  chart = new uPlot(
    {
      width,
      height: 330,
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map(size), space: 70 },
        { ...axis, filter: round, grid: { ...axis.grid, filter: round }, ticks: { ...axis.ticks, filter: round }, values: (_, ticks) => ticks.map((v) => (v === null ? "" : number(v, 1))), size: 62 },
      ],
      series: [
        { label: "size", value: (_, v) => (v === null ? "" : size(v)) },
        { label: "mixed", stroke: colour("mixed"), width: 2, spanGaps: true, points: { show: false }, value: (_, v) => number(v) },
        { label: "greedy", stroke: colour("greedy"), width: 1, dash: [5, 4], spanGaps: true, points: { show: false }, value: (_, v) => number(v) },
        { label: "uniform", stroke: colour("uniform"), paths: () => null, points: { show: true, size: 7, fill: colour("uniform") }, value: (_, v) => number(v) },
        { label: "this plan", stroke: ink(), paths: () => null, points: { show: true, size: 11, width: 3, fill: colour("card"), stroke: ink() }, value: (_, v) => number(v) },
      ],
    },
    data,
    $("#front"),
  );
  const head = element("tr", {}, ...["plan", "bytes", "bpw of linears", "predicted KL"].map((name) => element("th", {}, name)));
  const rows = Object.entries(series).flatMap(([name, list]) => list.map((p) => element("tr", {}, element("td", {}, p.format ? `${name} ${p.format}` : name), element("td", { class: "n" }, p.bytes.toLocaleString("en")), element("td", { class: "n" }, p.linear_bpw.toFixed(3)), element("td", { class: "n" }, number(p.kl)))));
  $("#front-table").replaceChildren(head, ...rows);
}

function mark(answer) {
  const up = (value) => Math.ceil(value * 1e4) / 1e4;
  now = { bytes: answer.bytes, kl: answer.kl, linears: up(answer.linear_bpw), file: up(answer.file_bpw) };
  if (points) plot();
}

function setUnit(name, value) {
  unit = name;
  for (const button of $$("[data-unit][aria-pressed]")) button.setAttribute("aria-pressed", button.dataset.unit === name);
  $("#budget-name").textContent = { linears: "bits per weight of the linears", file: "bits per weight of the whole file", bytes: "size of the whole file" }[name];
  [$("#least").textContent, $("#most").textContent] = range().map(show);
  $("#exact").step = unit === "bytes" ? 1 : 0.001;
  $("#exact-unit").textContent = unit === "bytes" ? "bytes" : "bpw";
  slideTo(value);
}

async function open() {
  for (const name of ["mixed", "greedy", "uniform"]) $("#legend").after(element("span", { id: `swatch-${name}`, class: `swatch ${name}`, hidden: true }));
  $("#legend").after(element("span", { id: "swatch-rule", class: "probe rule", hidden: true }), element("span", { id: "swatch-card", class: "probe card", hidden: true }));
  costs = await ask("GET", `/api/explore/${build}`);
  const first = await ask("POST", `/api/explore/${build}/solve`, {});
  built = first.plan;
  grid();
  const wanted = costs.asked;
  if (wanted.bytes) setUnit("bytes", wanted.bytes);
  else if (wanted.over === "file") setUnit("file", wanted.bits_per_weight);
  else setUnit("linears", wanted.bits_per_weight ?? first.linear_bpw);
  $("#budget").disabled = $("#exact").disabled = false;
  draw(first);
  $("#took").textContent = `solved in ${Math.round(first.milliseconds)} ms`;
  $("#recipe").textContent = await ask("POST", `/api/explore/${build}/recipe`, {});
  await front();
  root.dataset.ready = "yes";
}

$("#budget").addEventListener("input", () => {
  ask_for(slid());
  solve();
});
$("#exact").addEventListener("change", () => {
  if (!(+$("#exact").value > 0)) return;
  slideTo(+$("#exact").value);
  solve();
});
for (const button of $$("[data-unit][aria-pressed]"))
  button.addEventListener("click", () => {
    setUnit(button.dataset.unit, now[button.dataset.unit]);
    solve();
  });
$("#cell-close").addEventListener("click", () => $("#cell").close());
$("#copy-recipe").addEventListener("click", async () => {
  await copy($("#recipe").textContent);
  $("#copied").textContent = "copied";
});
$("#save-recipe").addEventListener("click", () => {
  const link = element("a", { href: URL.createObjectURL(new Blob([$("#recipe").textContent], { type: "application/yaml" })), download: `${root.dataset.recipe}.yaml` });
  link.click();
  URL.revokeObjectURL(link.href);
});
$("#run-recipe").addEventListener("click", async () => {
  try {
    await ask("POST", "/api/runs", { recipe: $("#recipe").textContent });
    location.href = "/live";
  } catch (error) {
    say(error.message, true);
  }
});
addEventListener("theme", () => points && plot());
addEventListener("resize", () => points && chart.setSize({ width: $("#front").clientWidth, height: 330 }));
open().catch((error) => {
  root.classList.add("lost");
  $("#fault").hidden = false;
  $("#fault").textContent = error.message;
});
