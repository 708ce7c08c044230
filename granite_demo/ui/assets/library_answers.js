/* Answers that are being written, of the open conversation and of others. A part of one script, see conversation_list.py.
   An answer goes on while the visitor looks at another conversation. Its key is in this browser only. */

const ANSWERS = "granite-demo-answers", PARTS = "granite-demo-parts";
const KEEP_EVERY = 2000, READ_EVERY = 2500;  // milliseconds

function storedMap(key, value) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(key)) ?? {};
    if (Object.keys(value).length) localStorage.setItem(key, JSON.stringify(value));
    else localStorage.removeItem(key);
  } catch { /* Blocked or full storage: this tab alone has it. */ }
  return {};
}

let answers = storedMap(ANSWERS);  // from the id of a conversation to the key of its answer
const news = new Map();  // when this tab last had a part of an answer, by its key
let part = null, partKept = 0;  // what the page shows of a growing answer

function awaitAnswer(id, key) {
  answers = { ...storedMap(ANSWERS), ...answers };
  if (key) answers[id] = key;
  else delete answers[id];
  storedMap(ANSWERS, answers);
  if (!key && part?.id === id) part = null;
  showPlace();
  render();
}

/* The head of the page has the place in line of the answer that is shown. */
function showPlace() {
  const ahead = part?.id === current ? part.ahead ?? null : null;
  document.dispatchEvent(new CustomEvent("place", { detail: ahead === null ? null : ahead + 1 }));
}

/* The page shows a part of an answer: kept at once when the page may end, else every two seconds. */
function grow(growing) {
  if (!growing?.answer || answers[growing.id] !== growing.answer) return;
  part = growing;
  news.set(growing.answer, Date.now());
  showPlace();
  if (Date.now() - partKept > KEEP_EVERY) keepPart();
}

function keepPart() {
  partKept = Date.now();
  if (part) keep(part);
}

/* A database can be closed with the page, before it has written. This storage writes at once. */
function keepPartAtOnce() {
  if (part) storedMap(PARTS, { ...storedMap(PARTS), [part.id]: part });
}

/* What an ended page has left. */
async function takeParts() {
  for (const left of Object.values(storedMap(PARTS))) await keep(left);
  storedMap(PARTS, {});
}

window.addEventListener("pagehide", keepPartAtOnce);
document.addEventListener("visibilitychange", () => document.hidden && keepPart());
window.addEventListener("offline", keepPart);
document.addEventListener("servergone", keepPart);

/* Answers that this page does not show, or whose connection is dead. */
async function readAnswers() {
  const late = Object.entries(answers).filter(([, key]) => Date.now() - (news.get(key) ?? 0) > READ_EVERY);
  if (!late.length) return;
  const patches = await server.read_answers(late.map(([, key]) => key)).catch(() => null);
  if (!patches) return;  // the server may come back
  for (const [at, [id, key]] of late.entries()) {
    const patch = patches[at];
    if (answers[id] !== key) continue;
    news.set(key, Date.now());
    if (patch) await keep(patch);
    if (!patch || patch.state === "") awaitAnswer(id, null);
    // The open conversation waits for it: another tab asked, or the connection broke.
    if (id === current && !(patch?.state === "growing" && part?.answer === key)) await open(id);
  }
}
setInterval(readAnswers, READ_EVERY);
window.addEventListener("storage", ({ key }) => {
  if (key !== ANSWERS) return;
  answers = storedMap(ANSWERS);
  render();
});
