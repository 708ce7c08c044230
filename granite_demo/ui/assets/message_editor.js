// Edits a message where it stands: a text box in the place of its text, with Save and Cancel. A part of the script
// of chat.js, whose `trigger` it uses.
const editors = new Map(); // by turn

function closeEditor(id) {
  const form = editors.get(id);
  editors.delete(id);
  form?.parentElement?.classList.remove("editing");
  form?.remove();
}

function openEditor(id, button) {
  const turn = window.graniteDemo?.current()?.turns?.[id];
  const message = button.closest(".message.user, .message.bot");
  if (!turn || !message) return;
  if (editors.get(id)?.isConnected) return editors.get(id).elements.text.focus();
  const opener = document.activeElement;
  const form = document.createElement("form");
  form.className = "editor";
  const text = Object.assign(document.createElement("textarea"), { name: "text", value: turn.content, dir: "auto" });
  text.setAttribute("aria-label", "Edit the message");
  const cancel = Object.assign(document.createElement("button"), { type: "button", textContent: "Cancel" });
  const asks = turn.role !== "assistant";
  const save = Object.assign(document.createElement("button"), { className: "primary", textContent: asks ? "Save and ask" : "Save" });
  form.append(text, cancel, save);
  const leave = () => {
    closeEditor(id);
    const from = opener?.isConnected && opener !== document.body ? opener : message.querySelector(".act.edit");
    from?.focus({ preventScroll: true });
  };
  const grow = () => {
    text.style.height = "0";
    text.style.height = `${text.scrollHeight + 2}px`;
  };
  cancel.addEventListener("click", leave);
  text.addEventListener("input", grow);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.preventDefault(); // it does not stop an answer, too
      leave();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!asks && text.value === turn.content) return leave();
    trigger("edit", { id, text: text.value });
  });
  editors.set(id, form);
  message.classList.add("editing");
  message.prepend(form);
  grow();
  text.focus({ preventScroll: true });
  text.setSelectionRange(text.value.length, text.value.length);
  form.scrollIntoView({ block: "nearest" });
}

/* The focus is where the answer comes, so that the keyboard and a screen reader go on from there. */
function focusAnswer() {
  const answer = [...document.querySelectorAll("#chatbot .bot-row .message.bot")].at(-1);
  if (!answer) return;
  answer.tabIndex = -1;
  answer.focus({ preventScroll: true });
}

/* A refused text stays in its editor. A saved one is a new version of the turn, so the old turn is no longer shown. */
document.addEventListener("conversation", ({ detail }) => {
  if (!editors.size) return;
  const { turns = {}, head } = detail ?? {};
  const path = new Set();
  for (let turn = turns[head]; turn; turn = turns[turn.parent]) path.add(turn.id);
  for (const [id, form] of editors) {
    if (path.has(id) && form.isConnected) continue;
    const focused = form.contains(document.activeElement) || document.activeElement === document.body;
    closeEditor(id);
    if (focused) setTimeout(focusAnswer, 50);
  }
});
