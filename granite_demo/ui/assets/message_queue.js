/* Messages that are written while an answer runs: chips above the message box, sent one by one when the answer ends.
   Runs once, in the gr.HTML of the chips. Only this tab has them. After a stopped or failed answer, they go back to the box. */
(() => {
  "use strict";
  if (window.graniteQueue) return;
  const QUEUE = "granite-demo-queue", PAUSE = 250, PATIENCE = 5000;  // milliseconds
  const one = (selector) => document.querySelector(selector);
  const box = () => one("#message textarea");
  const busy = () => Boolean(one("#message .stop-button")?.getClientRects().length);
  const row = document.createElement("div");
  row.id = "queued";
  row.className = "chips";
  let queue = {}, sending = null, timer = 0;
  try { queue = JSON.parse(sessionStorage.getItem(QUEUE)) ?? {}; } catch { /* Blocked storage. */ }

  const open = () => window.graniteDemo?.current() ?? null;
  const waiting = () => queue[open()?.id] ?? [];

  function change(id, texts) {
    if (texts.length) queue[id] = texts;
    else delete queue[id];
    try { sessionStorage.setItem(QUEUE, JSON.stringify(queue)); } catch { /* Blocked or full storage. */ }
    draw();
  }

  function write(text) {
    box().value = text;
    box().dispatchEvent(new Event("input", { bubbles: true }));
  }

  function draw() {
    const id = open()?.id, texts = waiting();
    row.replaceChildren(...texts.map((text, at) => window.graniteComposer.chip("text", text, at ? "" : "Sent when the answer ends", () => {
      change(id, waiting().filter((_, other) => other !== at));
      if (!box().value) write(text);
    })));
    row.hidden = !texts.length;
    if (!row.isConnected) one("#box")?.before(row);
    if (texts.length && !timer) timer = setInterval(drain, PAUSE);
    else if (!texts.length) timer = clearInterval(timer) ?? 0;
  }

  function drain() {
    const held = open(), texts = waiting();
    if (!held || !texts.length || busy() || window.graniteDemo.writing(held.id)) return;
    if (sending && sending.head === held.head && Date.now() - sending.time < PATIENCE) return;
    const last = held.turns?.[held.head];
    const whole = last?.role === "assistant" && last.kind !== "error" && last.made && last.made.finish_reason !== "stopped";
    if (whole && !last.calls?.length && sending?.head !== held.head) {
      sending = { head: held.head, time: Date.now() };
      trigger("submit", { text: texts[0] });
    } else if (!box().value) {
      change(held.id, []);
      write(texts.join("\n\n"));
    }
  }

  /* The server has the first one: it is the last question of the conversation. */
  document.addEventListener("conversation", ({ detail: held }) => {
    const texts = queue[held?.id] ?? [];
    if (sending && held?.head !== sending.head && held?.turns?.[held.head]?.content === texts[0]) {
      sending = null;
      change(held.id, texts.slice(1));
    }
    setTimeout(draw);  // the list has it then
  });

  document.addEventListener("keydown", (event) => {
    const field = box();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target !== field || !field.value.trim()) return;
    if (!busy() || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    add();
  }, true);

  function add() {
    const text = box().value;
    if (!text.trim() || !busy()) return;
    write("");
    change(open()?.id, [...waiting(), text]);
  }

  window.graniteQueue = { add };
  draw();
})();
