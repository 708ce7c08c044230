/* The list of conversations on the page. The last part of one script, after library_store.js, which stores them.
   Titles and texts become text nodes, never markup: a visitor or a model wrote them. */

/* What is shown ------------------------------------------------------------------------------------------------------ */

function h(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !name.includes("-")) made[name] = value;
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search conversations", oninput: () => render() });
const list = h("div", { className: "list" });
const message = h("p", { className: "message", role: "status" });
const chooser = h("input", {
  type: "file", multiple: true, hidden: true, accept: ".json,.md,.markdown", "aria-label": "Files to import",
  onchange: async () => { await importFiles([...chooser.files]); chooser.value = ""; },
});
const CLOSED = Object.freeze({ id: null, mode: "" });
let menu = CLOSED;  // which buttons are shown, and for which conversation; `draft`: the name typed so far

function say(text, kind = "note") {
  message.textContent = text;
  message.classList.toggle("error", kind === "error");
}

async function refresh() {
  try {
    records = (await inStore("readonly", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
  } catch {
    blocked = true;
    say(NO_STORAGE, "error");
  }
  render();
}

/* Shows changes: records by their ids, null for deleted ones. */
function patch(changes) {
  const added = [...changes.values()].filter(Boolean);
  records = [...records.filter(({ id }) => !changes.has(id)), ...added].sort((a, b) => b.updated - a.updated);
  render();
}

/* Shows the conversations `ids` again after a change in another tab. */
async function reread(ids) {
  const changes = new Map();
  for (const id of ids) changes.set(id, await recordOf(id));
  patch(changes);
  const other = changes.get(current)?.conversation;
  // The open conversation follows the other tab, but not under an answer or an edit of this one.
  if (!other || answers[current] || document.querySelector("#chatbot textarea")) return;
  if (outline(other) !== outline(held ?? {})) await open(current);
}

/* What the page shows of a conversation. */
function outline({ head, turns, system, documents, tools, overflow, controls }) {
  const shown = Object.values(turns ?? {}).map(({ id, vote, content }) => [id, vote, content]);
  return JSON.stringify([head, shown, system, documents?.length, tools, overflow, controls]);
}

function matches(item, wanted) {
  item.text ??= [item.title, ...Object.values(item.conversation.turns ?? {}).map((turn) => turn.content ?? "")]
    .join("\n").toLocaleLowerCase();
  return item.text.includes(wanted);
}

function ageOf({ updated }) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(updated * 1000).setHours(0, 0, 0, 0)) / 864e5);
  return days < 1 ? "Today" : days < 2 ? "Yesterday" : days < 8 ? "Last 7 days" : days < 31 ? "Last 30 days" : "Older";
}

/* Shows the list again. The focus stays on its control, or goes to `focus`. */
function render(focus = list.contains(document.activeElement) ? document.activeElement.dataset.key : null) {
  const wanted = search.value.trim().toLocaleLowerCase();
  const shown = wanted ? records.filter((item) => matches(item, wanted)) : records;
  const groups = new Map();
  for (const item of shown) groups.set(ageOf(item), [...(groups.get(ageOf(item)) ?? []), item]);
  const made = h("div", { className: "list" }, ...[...groups].flatMap(([age, items]) => [h("h2", {}, age), h("ul", {}, ...items.map(row))]));
  if (!shown.length) {
    made.append(h("p", { className: "none" }, wanted ? "No conversation matches." : blocked ? "" : "Conversations are kept here, in this browser only."));
  }
  // Without a change the list stays: an answer is stored every two seconds, and a click must find its button.
  if (!made.isEqualNode(list)) list.replaceChildren(...made.childNodes);
  if (focus) list.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
}

function row(item) {
  const expanded = menu.id === item.id;
  const [field, ending] = expanded && menu.mode === "rename" ? renameField(item) : [];
  const title = field ?? h("button", {
    className: "title", title: item.title, "data-key": `open-${item.id}`, onclick: () => { open(item.id); narrowClose(); },
    "aria-current": item.id === current ? "true" : null,
  }, item.title);
  if (answers[item.id]) title.prepend(h("span", { className: "writing", title: "An answer is being written", role: "img", "aria-label": "An answer is being written" }));
  const more = h("button", {
    className: "more", "aria-label": `More for ${item.title}`, "aria-expanded": String(expanded), "data-key": `more-${item.id}`,
    onclick: () => show(expanded ? null : item.id, "menu", `more-${item.id}`),
  }, "⋯");
  const made = h("li", { onkeydown: (event) => expanded && event.key === "Escape" && show(null, "", `more-${item.id}`) },
    h("div", { className: "row" }, title, more));
  if (ending) made.append(ending);
  if (expanded && menu.mode === "menu") made.append(choices(item));
  if (expanded && menu.mode === "delete") made.append(question(item));
  return made;
}

function show(id, mode, focus) {
  menu = { id, mode };
  render(focus);
}

function button(text, key, onclick, className = "") {
  return h("button", { className, "data-key": key, onclick }, text);
}

function choices(item) {
  const kept = () => records.find(({ id }) => id === item.id) ?? item;  // it may be longer by now
  const after = (work) => () => { show(null, "", `more-${item.id}`); work(kept()); };
  return h("div", { className: "choices", role: "group", "aria-label": `Actions for ${item.title}` },
    button("Rename", "rename", () => show(item.id, "rename", "name")),
    button("Export JSON", "json", after(exportJson)),
    button("Export Markdown", "markdown", after(exportMarkdown)),
    button("Delete", "delete", () => show(item.id, "delete", "no"), "danger"));
}

function question(item) {
  const yes = async () => { menu = CLOSED; await remove(item.id); beginning.focus(); };
  return h("div", { className: "choices", role: "group", "aria-label": `Delete ${item.title}?` },
    h("span", {}, "Delete for good?"), button("Delete", "yes", yes, "danger"),
    button("Cancel", "no", () => show(null, "", `more-${item.id}`)));
}

function renameField(item) {
  const end = async (title) => {
    menu = CLOSED;
    if (title && title !== item.title) await rename(item.id, title);
    render(`more-${item.id}`);
  };
  const field = h("input", {
    className: "name", value: menu.draft ?? item.title, maxLength: 200, "aria-label": "New name", "data-key": "name",
    onfocus: () => menu.draft ?? field.select(),
    oninput: () => { menu.draft = field.value; },
    onkeydown: (event) => event.key === "Enter" && !event.isComposing && end(field.value.trim()),
  });
  const save = button("Save", "save", () => end(field.value.trim()));
  return [field, h("div", { className: "choices" }, save, button("Cancel", "cancel", () => end("")))];
}

/* The sidebar ------------------------------------------------------------------------------------------------------- */

function narrowClose() {
  if (window.graniteFrame?.narrow()) window.graniteFrame.showSide(false);
}

async function restore() {
  const id = lastOpen();
  await takeParts();
  await refresh();
  // Do not interrupt a visitor who writes at once.
  if (id && !current) await open(id);
}

const beginning = h("button", { className: "new", onclick: () => { begin(); narrowClose(); } },
  h("span", {}, "New chat"), h("kbd", { "aria-hidden": "true" }, "Ctrl ⇧ O"));
const files = h("div", { id: "files-menu", className: "menu", popover: "auto" });
files.append(...[
  ["Import", () => chooser.click()], ["Export all", exportAll], ["Export ratings", exportRatings],
].map(([text, run]) => h("button", { className: "row", onclick: () => { files.hidePopover(); run(); } }, text)));
element.replaceChildren(h("nav", { "aria-label": "Conversations" },
  beginning, search, list, message, chooser,
  h("div", { className: "foot" },
    h("button", { className: "files", popoverTargetElement: files }, "Import, export"),
    h("button", { className: "icon theme", "data-theme": "", title: "Light or dark" })), files));
channel.onmessage = ({ data }) => reread(data);
window.graniteDemo = {
  save, take, grow, open, refresh, download, shownPart, typed, merged, reloadIfLost,
  current: () => held, writing: (id) => Boolean(answers[id]), made: (id) => madeOf.get(id) ?? null,
};
restore();
