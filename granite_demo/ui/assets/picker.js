/* The list of models under the model's name: search, choice, and a question before a download. Runs once, in its gr.HTML. */
const box = () => document.querySelector("#model-choice textarea, #model-choice input");

function filter() {
  const wanted = (box()?.value ?? "").trim().toLowerCase();
  let any = false;
  for (const group of element.querySelectorAll(".models > section")) {
    let some = false;
    for (const row of group.querySelectorAll(".model")) {
      row.hidden = Boolean(wanted) && !row.dataset.text.includes(wanted) && row.dataset.model !== box().value;
      some ||= !row.hidden;
    }
    group.hidden = !some;
    any ||= some;
  }
  const none = element.querySelector(".none");
  if (none) none.hidden = any || !wanted;
}

function load(name) {
  const field = box();
  field.value = name;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  setTimeout(() => document.querySelector("#load")?.click(), 200); // Gradio takes a typed text a moment later
}

element.addEventListener("click", (event) => {
  const row = event.target.closest(".model");
  if (!row || row.getAttribute("aria-disabled") === "true") return;
  const question = row.nextElementSibling?.matches(".ask") ? row.nextElementSibling : null;
  for (const other of element.querySelectorAll(".ask")) other.hidden = other !== question || !other.hidden;
  if (question) question.querySelector("button")?.focus();
  else load(row.dataset.model);
});
element.addEventListener("click", (event) => {
  const answer = event.target.closest(".ask button");
  if (!answer) return;
  const row = answer.closest(".ask").previousElementSibling;
  answer.closest(".ask").hidden = true;
  if (answer.hasAttribute("data-yes")) load(row.dataset.model);
  else row.focus();
});
document.addEventListener("input", (event) => event.target === box() && filter());
document.addEventListener("keydown", (event) => {
  if (event.target !== box() || event.key !== "Enter" || !box().value.trim()) return;
  event.preventDefault();
  load(box().value.trim());
});
document.addEventListener("click", (event) => {
  const name = event.target.closest?.("[data-offer]")?.dataset.offer;
  const row = name && element.querySelector(`[data-model="${CSS.escape(name)}"]`);
  if (row) setTimeout(() => row.click()); // the sheet opens first
});
new MutationObserver(filter).observe(element, { childList: true, subtree: true });
