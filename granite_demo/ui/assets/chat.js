// The chat's own buttons in the messages. Runs once, in a gr.HTML: `trigger` calls its listeners in Python.
// The classes of a button name its action and its turn: "act retry t-ID".
const EVENTS = { edit: "edit", bundle: "download", ground: "expand" };

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("#chatbot .acts button.act");
  if (!button) return;
  const [, action] = button.classList;
  const id = [...button.classList].find((name) => name.startsWith("t-"))?.slice(2);
  if (action !== "clip") {
    const made = ["bundle", "go"].includes(action) ? window.graniteDemo?.made(id) : null;
    trigger(EVENTS[action] ?? "select", { action, id, made });
    return;
  }
  try {
    await navigator.clipboard.writeText(window.graniteDemo?.current()?.turns?.[id]?.content ?? "");
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser refuses";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
