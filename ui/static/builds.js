// The table of builds: filter, sort, pick two.
import { $, $$, ask, say } from "./frame.js";

const table = $("#builds");
if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({
    row,
    text: row.dataset.text,
    is: row.dataset.is.split(" "),
    values: [...row.cells].map((cell) => cell.dataset.v ?? ""),
    box: $("input", row),
  }));
  let only = "all";

  function filter() {
    const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const each of rows) {
      const fits = (only === "all" || each.is.includes(only)) && words.every((word) => each.text.includes(word));
      if (each.row.hidden === fits) each.row.hidden = !fits;
      shown += fits;
    }
    $("#shown").textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
    $("#none").hidden = shown > 0;
    const query = new URLSearchParams();
    if (words.length) query.set("q", $("#filter").value);
    if (only !== "all") query.set("only", only);
    history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  }

  function sort(header, column, kind) {
    const falling = header.getAttribute("aria-sort") !== "descending";
    for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const sign = falling ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [a.values[column], b.values[column]];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (kind === "number" ? x - y : x.localeCompare(y));
    });
    body.append(...rows.map((each) => each.row));
  }

  function pick() {
    const picked = rows.filter((each) => each.box.checked);
    for (const each of rows) each.box.disabled = picked.length >= 2 && !each.box.checked;
    $("#pickbar").hidden = !picked.length;
    $("#picked").textContent = picked.length === 1 ? "Pick a second build to compare with." : "Two builds picked.";
    $("#compare").hidden = picked.length !== 2;
    if (picked.length === 2) $("#compare").href = `/diff?a=${picked[1].box.value}&b=${picked[0].box.value}`;
  }

  $("#filter").addEventListener("input", filter);
  for (const chip of $$("[data-only]"))
    chip.addEventListener("click", () => {
      only = chip.dataset.only;
      for (const other of $$("[data-only]")) other.setAttribute("aria-pressed", other === chip);
      filter();
    });
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = $("button", header);
    button?.addEventListener("click", () => sort(header, column, button.dataset.sort));
  });
  for (const each of rows) each.box.addEventListener("change", pick);
  $("#unpick").addEventListener("click", () => {
    for (const each of rows) each.box.checked = false;
    pick();
  });
  const asked = new URLSearchParams(location.search);
  if (asked.size) {
    $("#filter").value = asked.get("q") ?? "";
    const chip = $$("[data-only]").find((each) => each.dataset.only === asked.get("only"));
    chip ? chip.click() : filter();
  }
  pick();
}

for (const button of $$("[data-unpin]"))
  button.addEventListener("click", async () => {
    try {
      await ask("DELETE", `/api/pins/${encodeURIComponent(button.dataset.unpin)}`);
      button.closest("tr").remove();
    } catch (error) {
      say(error.message, true);
    }
  });
