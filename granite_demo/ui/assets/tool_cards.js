// The cards of calls that wait: their arguments as a form made from the tool's JSON schema, Run, Reject and the result.
// A part of the script of chat.js, whose `trigger` and `server` it uses. All texts become text nodes, never markup.
const drafts = new Map(); // by turn and place: a card that is drawn again keeps what was typed
const REJECTED = "The user rejected this call; it was not run.";

function node(tag, values = {}, ...parts) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...parts);
  return made;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function schemaOf(name, tools) {
  const all = parsed(tools || "[]") ?? [];
  const found = [all].flat().map((tool) => tool?.function ?? tool).find((tool) => tool?.name === name);
  return found?.parameters ?? {};
}

/* One argument: its control, and `read`, which throws for what is not JSON. Undefined: the argument is left out. */
function control(schema, value, required) {
  const type = [schema.type].flat().find((one) => one !== "null") ?? typeof value;
  if (Array.isArray(schema.enum)) {
    const choices = schema.enum.map((one) => JSON.stringify(one));
    const now = value === undefined ? "" : JSON.stringify(value);
    if (!choices.includes(now)) choices.unshift(now);
    const list = node("select", {}, ...choices.map((one) => new Option(one && String(JSON.parse(one)), one, one === now, one === now)));
    return [list, () => (list.value ? JSON.parse(list.value) : undefined)];
  }
  if (type === "boolean" && typeof (value ?? false) === "boolean") {
    const box = node("input", { type: "checkbox", checked: value ?? false });
    box.setAttribute("role", "switch");
    return [box, () => (box.checked || required || value !== undefined ? box.checked : undefined)];
  }
  if ((type === "number" || type === "integer") && typeof (value ?? 0) === "number") {
    const box = node("input", { type: "number", step: type === "integer" ? 1 : "any", value: value ?? "" });
    return [box, () => (box.value === "" ? undefined : Number(box.value))];
  }
  if (type === "string" && typeof (value ?? "") === "string") {
    const long = (value ?? "").length > 60 || (value ?? "").includes("\n");
    const box = node(long ? "textarea" : "input", { value: value ?? "" });
    return [box, () => (box.value || required || value !== undefined ? box.value : undefined)];
  }
  const box = node("textarea", { className: "json", spellcheck: false, value: value === undefined ? "" : JSON.stringify(value, null, 1) });
  return [box, () => (box.value.trim() ? JSON.parse(box.value) : undefined)];
}

/* The form of one call: `read` gives the arguments as JSON text. */
function argumentForm(call, schema, kept) {
  const form = node("div", { className: "arguments" });
  const raw = node("textarea", { className: "json", spellcheck: false, ariaLabel: "Arguments as JSON" });
  let read = () => raw.value;
  const showRaw = (text) => {
    raw.value = text;
    raw.rows = Math.min(text.split("\n").length, 12);
    form.replaceChildren(raw);
    read = () => raw.value;
  };
  const showFields = (text) => {
    const values = parsed(text);
    if (values === null || typeof values !== "object" || Array.isArray(values)) return showRaw(text);
    const names = [...new Set([...Object.keys(schema.properties ?? {}), ...Object.keys(values)])];
    const fields = names.map((name) => {
      const part = schema.properties?.[name] ?? {};
      const [field, value] = control(part, values[name], schema.required?.includes(name));
      const label = node("label", { title: typeof part.description === "string" ? part.description : "" }, node("span", {}, name), field);
      return { name, value, label };
    });
    form.replaceChildren(...fields.map(({ label }) => label));
    const now = () => JSON.stringify(Object.fromEntries(fields.map(({ name, value }) => [name, value()]).filter(([, one]) => one !== undefined)));
    const before = now(); // what nobody changed is sent as the model wrote it
    read = () => (now() === before ? text : now());
  };
  const text = kept ?? call.arguments;
  if (call.error) form.replaceChildren(node("pre", {}, text));
  else showFields(text);
  const toggle = () => {
    if (form.contains(raw)) return showFields(raw.value);
    showRaw(JSON.stringify(JSON.parse(read()), null, 2));
  };
  return { form, toggle, read: () => (call.error ? text : read()) };
}

function complain(text) {
  const note = node("div", { className: "error" }, text);
  note.setAttribute("role", "status");
  document.querySelector("#chat-message .prose, #chat-message .html-container, #chat-message")?.replaceChildren(note);
}

function buildCard(card, id, place, call, schema, single) {
  const key = `${id} ${place}`;
  const draft = drafts.get(key) ?? {};
  const { form, toggle, read } = argumentForm(call, schema, draft.arguments);
  const result = node("textarea", { rows: 1, value: draft.result ?? "", ariaLabel: `Result ${place + 1}`, placeholder: "Result of the call" });
  const button = (text, run, className = "") => {
    const made = node("button", { type: "button", className: `ours ${className}` }, text);
    made.addEventListener("click", run);
    return made;
  };
  const keep = () => {
    try {
      drafts.set(key, { arguments: read(), result: result.value });
    } catch { /* JSON that is not complete. */ }
  };
  const put = (text) => {
    result.value = text;
    result.rows = Math.min(text.split("\n").length, 6);
    keep();
  };
  const safely = (work) => async () => {
    try {
      await work();
    } catch {
      complain("The arguments are not JSON. Correct them first.");
    }
  };
  const run = safely(async () => {
    const given = await server.run_call([call.name, read()]).catch(() => null);
    if (typeof given?.result === "string") put(given.result);
    else complain(given?.error ?? "The server did not answer. Try again.");
  });
  const buttons = [button("Reject", () => put(REJECTED))];
  if (card.classList.contains("runs")) buttons.unshift(button("Run", run, "primary"));
  if (single) buttons.push(button("Send results", sendResults));
  if (!call.error) buttons.push(button("JSON", safely(toggle), "quiet"));
  card.querySelector("pre").replaceWith(form, node("div", { className: "buttons" }, ...buttons), result);
  card.addEventListener("input", keep);
  card.classList.add("ready");
  card.call = { read, result, run };
}

const waiting = () => [...document.querySelectorAll("#chatbot .card.pending.ready")];

function sendResults() {
  try {
    const results = waiting().map(({ call }) => ({ arguments: call.read(), result: call.result.value }));
    trigger("submit", { results });
  } catch {
    complain("The arguments are not JSON. Correct them first.");
  }
}

async function runAll() {
  for (const { call } of waiting()) if (!call.result.value.trim()) await call.run();
  if (waiting().every(({ call }) => call.result.value.trim())) sendResults();
}

function buildCards() {
  const cards = [...document.querySelectorAll("#chatbot .card.pending")];
  const bar = document.querySelector("#calls-bar");
  const runs = cards.every((card) => card.classList.contains("runs"));
  if (cards.length < 2) bar?.remove();
  else if (!bar) {
    const all = node("button", { type: "button", className: "primary", id: "run-all", onclick: runAll }, "Run all and send");
    const send = node("button", { type: "button", id: "send-results", onclick: sendResults }, "Send results");
    document.querySelector("#box")?.before(node("div", { id: "calls-bar" }, ...(runs ? [all] : []), send));
  }
  const { turns = {}, tools } = window.graniteDemo?.current() ?? {};
  let last = null;
  for (const card of cards.filter((one) => !one.classList.contains("ready"))) {
    const of = (letter) => [...card.classList].find((name) => name.startsWith(`${letter}-`))?.slice(2);
    const call = turns[of("t")]?.calls?.[Number(of("n"))];
    if (!call) continue; // the conversation comes a moment after its messages
    buildCard(card, of("t"), Number(of("n")), { arguments: "", name: "", ...call }, schemaOf(call.name, tools), cards.length === 1);
    last = card;
  }
  last?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("conversation", () => setTimeout(buildCards));
new MutationObserver(buildCards).observe(document.querySelector("#conversation") ?? document.body, { childList: true, subtree: true });
