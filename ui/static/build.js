// One build: what takes longer than a page may, and its buttons.
import { $, $$, ask, say } from "./frame.js";

const build = $("[data-build]").dataset.build;

async function figure() {
  const drawn = await ask("GET", `/api/builds/${build}/sensitivity`);
  if (drawn) $("#sensitivity-figure").innerHTML = drawn; // made by our server, escaped there
}

async function reasons() {
  const why = await ask("GET", `/api/builds/${build}/reasons`);
  for (const cell of $$("[data-node]")) cell.textContent = (why[cell.dataset.node] ?? []).join("; ");
}

async function act(method, address, body, then) {
  try {
    const { said } = await ask(method, address, body);
    say(said);
    then?.();
  } catch (error) {
    say(error.message, true);
  }
}

$("#promote").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  const promoted = button.dataset.promoted !== "yes";
  await act("POST", `/api/builds/${build}/promote`, { promoted }, () => setTimeout(() => location.reload(), 900));
  button.disabled = false;
});
const dialog = $("#pin-dialog");
$("#pin").addEventListener("click", () => dialog.showModal());
$("#pin-cancel").addEventListener("click", () => dialog.close());
$("#pin-save").addEventListener("click", async () => {
  if (!$("#pin-name").value || !$("#pin-name").checkValidity()) return say("A name is letters, digits and _ . @ + -", true);
  await act("POST", "/api/pins", { name: $("#pin-name").value, digest: build }, () => dialog.close());
});

// One after the other: each may read thousands of small files.
figure()
  .then(reasons)
  .catch((error) => {
    for (const cell of $$("[data-node]")) cell.textContent = "";
    say(error.message, true);
  });
