/* The storage of conversations, which is this browser's IndexedDB, shared by its tabs, and their files.
   The second part of one script, see conversation_list.py. A gr.HTML supplies `element`, `trigger` and `server`. */

const STORE = "conversations", OPEN = "granite-demo-open";
const MAX_FILE = 20e6;
const TITLE_LENGTH = 60;  // as conversations.TITLE_LENGTH
const NO_STORAGE = "This browser keeps nothing for this page (a private window?). Export what you want to keep.";
const FULL = "The browser's storage is full. Export and delete some conversations.";

/* Storage ------------------------------------------------------------------------------------------------------- */

let opening = null;
function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("granite-demo", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => { opening = null; reject(request.error); };
  });
  return opening;
}

/* One transaction: writes all of `work` or nothing. Resolves with the result of the request that `work` returns. */
async function inStore(mode, work) {
  const transaction = (await database()).transaction(STORE, mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
  const request = work(transaction.objectStore(STORE));
  return done;
}

const channel = new BroadcastChannel("granite-demo");

/* What the browser could not store: it is in `records` alone, until this tab is closed or a later write succeeds. */
const unsaved = new Set();
let blocked = false;

/* `records` as a store, for `work` of `write`: `patch` then makes its changes there. */
const memory = {
  get: (id) => soon(records.find((item) => item.id === id)),
  getAllKeys: () => soon(records.map(({ id }) => id)),
  put() {},
  delete() {},
};

function soon(result) {
  const request = { result: result && structuredClone(result) };
  queueMicrotask(() => request.onsuccess?.({ target: request }));
  return request;
}

function saveUnsaved(store) {
  for (const id of unsaved) {
    const item = records.find((one) => one.id === id);
    if (item) store.put({ id, title: item.title, updated: item.updated, conversation: item.conversation });
    else store.delete(id);
  }
}

/* Changes the store. `work` gets the store, and a map for the records that it puts, with null for deleted ones:
   to read the whole store again, with all documents, would take too long every two seconds. What the browser cannot
   store is in this tab alone, and can be exported. */
async function write(work) {
  let changes = new Map();
  const stored = (also) => inStore("readwrite", (store) => {
    changes = new Map();
    also(store);
    work(store, changes);
  });
  try {
    await stored(saveUnsaved).then(() => unsaved.clear(), (error) => {
      // Deleted conversations make room for the others.
      if (!unsaved.size) throw error;
      return stored(() => {}).then(() => { for (const id of changes.keys()) unsaved.delete(id); });
    });
    if (!unsaved.size && [FULL, NO_STORAGE].includes(message.textContent)) say("");
    blocked = false;
    channel.postMessage([...changes.keys()]);
    persist();
  } catch (error) {
    console.error(error);
    blocked = error?.name !== "QuotaExceededError";
    changes = new Map();
    work(memory, changes);
    await new Promise((resolve) => setTimeout(resolve));
    for (const id of changes.keys()) unsaved.add(id);
    say(blocked ? NO_STORAGE : FULL, "error");
  }
  patch(changes);
}

/* The record of a conversation, as this tab has it. */
async function recordOf(id) {
  const listed = () => records.find((item) => item.id === id) ?? null;
  if (unsaved.has(id)) return listed();
  return inStore("readonly", (store) => store.get(id)).catch(listed);
}

/* Asks the browser once not to delete the conversations when the disk is full. */
let persisted = null;
function persist() {
  persisted ??= navigator.storage?.persist?.().catch(() => false);
}

function put(store, changes, changed) {
  store.put(changed);
  changes.set(changed.id, changed);
}

function titleOf(conversation) {  // as conversations.title_of
  if (conversation.title) return conversation.title;
  const all = conversation.turns ?? {};
  let question = null;  // of the shown branch: its first question
  for (let turn = all[conversation.head]; turn; turn = all[turn.parent]) if (turn.role === "user") question = turn;
  question ??= Object.values(all).find((turn) => turn.role === "user");
  const letters = [...(question?.content ?? "").trim().replace(/\s+/g, " ")];
  if (letters.length > TITLE_LENGTH) letters.splice(TITLE_LENGTH - 1, Infinity, "…");
  return letters.join("") || "Untitled";
}

function record(conversation) {
  return { id: conversation.id, title: titleOf(conversation), updated: conversation.updated ?? 0, conversation };
}

function withTitle(conversation, title) {
  const { title: _, ...rest } = conversation;
  return title ? { ...rest, title } : rest;
}

/* The open conversation ------------------------------------------------------------------------------------------- */

let current = null, held = null, records = [];  // `held`: what the page holds, kept already or not
const deleted = new Set();

function setCurrent(id) {
  current = id;
  showPlace();
  try {
    sessionStorage.setItem(OPEN, id ?? "");  // for this tab, after a reload
    localStorage.setItem(OPEN, id ?? "");  // for the next new tab
  } catch { /* Blocked storage: the list works, but a reload does not open the last conversation. */ }
}

function lastOpen() {
  try {
    return sessionStorage.getItem(OPEN) ?? localStorage.getItem(OPEN);
  } catch {
    return null;
  }
}

/* Keeps what the chat shows now. An empty new conversation is not kept, and a deleted one does not come back. */
async function save(conversation) {
  if (!conversation?.id || deleted.has(conversation.id)) return;
  conversation = JSON.parse(JSON.stringify(conversation));  // Gradio hands out a Proxy, which no database takes
  held = conversation;
  const { version, id, created, updated, title, ...content } = conversation;
  if (!Object.keys(content).length) {
    if (current !== null) forgetOpen();
    return;
  }
  if (current !== id) setCurrent(id);
  await write((store, changes) => {
    store.get(id).onsuccess = (event) => {
      const kept = event.target.result?.conversation;
      // The same conversation in two tabs: neither loses a turn. Names are given in the list, so the kept one holds.
      const turns = together(kept?.turns, withMade(conversation.turns, kept?.turns));
      put(store, changes, record(withTitle({ ...conversation, turns }, kept ? kept.title : title)));
    };
  });
}

/* The chat shows a new conversation, which is empty: none in the list is the open one. */
function forgetOpen() {
  setCurrent(null);
  render();
}

/* Keeps the turns of a patch, such as an answer that is still being written, in the conversation that they belong to. */
async function keep(patch) {
  if (deleted.has(patch.id)) return;
  const { id, head, updated, turns } = JSON.parse(JSON.stringify(patch));
  await write((store, changes) => {
    store.get(id).onsuccess = (event) => {
      const kept = event.target.result?.conversation;
      if (!kept) return;
      put(store, changes, record({ ...kept, head, updated, turns: together(kept.turns, withMade(turns, kept.turns)) }));
    };
  });
}

async function open(id) {
  const found = await recordOf(id);
  if (!found) return;
  setCurrent(id);
  deleted.delete(id);
  menu = CLOSED;
  trigger("select", { conversation: light(found.conversation), answer: answers[id] ?? null });
  render();
}

function begin() {
  setCurrent(null);
  menu = CLOSED;
  trigger("clear", {});
  render();
}

async function rename(id, title) {
  title = title.replace(/\s+/g, " ").trim().slice(0, 200);
  title = title.toWellFormed?.() ?? title;  // requests cannot contain a lone surrogate
  let changed = null;
  await write((store, changes) => {
    store.get(id).onsuccess = (event) => {
      if (!event.target.result) return;
      changed = withTitle(event.target.result.conversation, title);
      put(store, changes, record(changed));
    };
  });
  if (changed && id === current) trigger("edit", { conversation: light(changed) });
}

async function remove(id) {
  if (id === current) deleted.add(id);
  await write((store, changes) => {
    store.delete(id);
    changes.set(id, null);
  });
  if (answers[id]) {
    server.stop_answer(answers[id]).catch(() => null);
    awaitAnswer(id, null);
  }
  if (id === current) begin();
}

/* Files ------------------------------------------------------------------------------------------------------------ */

function download(text, name, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function fileName(title, ending) {
  return `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50) || "conversation"}.${ending}`;
}

function exportJson({ title, conversation }) {
  download(JSON.stringify(conversation, null, 1), fileName(title, "json"), "application/json");
}

function exportAll() {
  if (!records.length) return say("There is nothing to export yet.");
  const all = { format: "granite-demo", conversations: records.map(({ conversation }) => conversation) };
  download(JSON.stringify(all), `granite-demo-${new Date().toISOString().slice(0, 10)}.json`, "application/json");
}

/* One line of JSON for each rated answer. */
function exportRatings() {
  const rated = records.flatMap(({ conversation: { turns = {}, system } }) => Object.values(turns).filter(({ vote }) => vote)
    .map(({ vote, parent, content = "", made }) => ({
      vote, prompt: turns[parent]?.content ?? "", answer: content, model: made?.provenance?.model, system,
    })));
  if (!rated.length) return say("No answer is rated yet.");
  download(rated.map((one) => `${JSON.stringify(one)}\n`).join(""), "granite-demo-ratings.jsonl", "application/jsonl");
}

async function exportMarkdown({ title, conversation }) {
  const made = await ask("to_markdown", conversation);
  if (made.error) return say(made.error, "error");
  download(made.text, fileName(title, "md"), "text/markdown");
}

/* The server checks and converts files, and keeps none. */
function ask(name, data) {
  return server[name](data).then(
    (answer) => answer ?? { error: "The server did not answer." },
    () => ({ error: "The server did not answer. Try again." }),
  );
}

async function importFiles(files) {
  const errors = [], added = [];
  for (const file of files) {
    const read = file.size > MAX_FILE
      ? { error: `The file is larger than ${MAX_FILE / 1e6} MB.` }
      : await ask("read_file", [await file.text(), file.name]);
    const fresh = (read.conversations ?? []).map(record);
    if (read.error) errors.push(`${file.name}: ${read.error}`);
    else {
      await addNew(fresh);
      added.push(...fresh);
    }
  }
  if (added.length === 1) await open(added[0].id);
  const count = `${added.length} conversation${added.length === 1 ? "" : "s"}`;
  if (errors.length) say([...errors, added.length ? `Imported ${count}.` : "Nothing was changed."].join(" "), "error");
  else say(`Imported ${count}.`);
}

/* Adds records. A record with the id of another gets a new id, so that an import overwrites nothing. */
function addNew(fresh) {
  return write((store, changes) => {
    store.getAllKeys().onsuccess = (event) => {
      const taken = new Set(event.target.result);
      for (const item of fresh) {
        if (taken.has(item.id)) {
          item.id = [...crypto.getRandomValues(new Uint8Array(8))].map((n) => n.toString(16).padStart(2, "0")).join("");
          item.conversation = { ...item.conversation, id: item.id };
        }
        taken.add(item.id);
        put(store, changes, item);
      }
    };
  });
}
