// Keys, names for screen readers, scrolling and drafts. Runs once, even if it is loaded again.
(() => {
  "use strict";
  if (window.graniteComfort) return;
  window.graniteComfort = true;

  const LONGEST_PROMPT = 2000;
  const AT_BOTTOM = 150; // pixels; the end moves while the reader scrolls to it

  const one = (selector) => document.querySelector(selector);
  const visible = (element) => Boolean(element && element.getClientRects().length);
  const box = () => one("#message textarea");
  const log = () => one('#chatbot [role="log"]');
  const stopButton = () => one("#message .stop-button");
  const editor = () => [...document.querySelectorAll("#chatbot :is(.editor textarea, .edit-textarea)")].find(visible);

  // Keys: Escape stops the answer, ArrowUp in the empty box edits the last question.

  function isEditing() {
    const dialogs = [...document.querySelectorAll('dialog[open], [role="dialog"], [role="listbox"]')];
    return dialogs.some(visible) || Boolean(editor());
  }

  function editLast() {
    const buttons = '.act.edit, button[aria-label="Edit"]';
    const own = [...document.querySelectorAll("#chatbot .user-row")].flatMap((row) => [...row.querySelectorAll(buttons)]);
    // Gradio's own button is beside the row, and only questions have it.
    const button = own.at(-1) ?? [...document.querySelectorAll('#chatbot button[aria-label="Edit"]')].at(-1);
    if (!visible(button)) return false;
    button.click();
    whenThere(editor, (field) => {
      field.focus();
      field.setSelectionRange(field.value.length, field.value.length);
    });
    return true;
  }

  function whenThere(find, use, patience = 60) {
    const found = find();
    if (found) use(found);
    else if (patience) setTimeout(() => whenThere(find, use, patience - 1), 50);
  }

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape" && visible(stopButton()) && !isEditing()) {
      stopButton().click();
    } else if (event.key === "ArrowUp" && !event.shiftKey && event.target === box() && !box().value) {
      if (editLast()) event.preventDefault();
    }
  });

  // Scrolling. If the end is in view, Gradio scrolls to it 0.3 s later, even if the reader scrolls up in that time: in
  // a fast stream nobody can scroll up. So its scrollTo does nothing after the reader has scrolled up.

  let held = false;
  let lastTop = 0;

  function release() {
    const element = log();
    if (element && element.scrollHeight > element.clientHeight) held = true;
  }

  function follow() {
    held = false;
    const element = log();
    if (element) Element.prototype.scrollTo.call(element, 0, element.scrollHeight);
  }

  function watchScrolling(element) {
    element.scrollTo = function (...where) {
      if (!held) Element.prototype.scrollTo.apply(this, where);
    };
    element.addEventListener("wheel", (event) => event.deltaY < 0 && release(), { passive: true });
    element.addEventListener("touchmove", release, { passive: true });
    element.addEventListener("keydown", (event) => {
      if (["PageUp", "ArrowUp", "Home"].includes(event.key)) release();
    });
    element.addEventListener("scroll", () => {
      const top = element.scrollTop;
      const end = element.scrollHeight - element.clientHeight - top < AT_BOTTOM;
      // At the end, the page follows the answer again. A scroll bar dragged up stops that.
      if (held && end && top > lastTop) follow();
      else if (!end && top < lastTop - 1) held = true;
      lastTop = element.scrollTop;
    });
  }

  // Go to the end for a new question, and for a click on the button that scrolls down.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target === box() && box().value.trim()) follow();
  });
  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    if (target?.closest("#message .submit-button")) follow();
    if (target?.closest('#chatbot button[aria-label="Scroll down"], #chatbot .scroll-down-button-container')) follow();
  }, true);

  // A link to a footnote opens the footnote and scrolls to it.

  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest('#chatbot a[href*="#note-"]') : null;
    if (!link) return;
    const name = decodeURIComponent(link.getAttribute("href").split("#")[1]);
    const note = [...document.querySelectorAll("#chatbot details")].find(
      (details) => details.id === name || details.classList.contains(name),
    );
    if (!note) return;
    event.preventDefault();
    release();
    note.open = true;
    const summary = note.querySelector("summary") ?? note;
    summary.focus({ preventScroll: true });
    note.scrollIntoView({ block: "nearest" });
  });

  // For screen readers: names that Gradio does not give, and one message at the end of an answer, not one for each word.

  const NAMES = {
    "#message textarea": "Message",
    "#chatbot .edit-textarea": "Edit the message",
    "#chatbot .copy_code_button": "Copy code",
    ".scroll-down-button-container button": "Scroll down",
  };
  let answering = false;
  let said = null;

  function say(text) {
    if (!said?.isConnected) {
      said = document.createElement("div");
      said.id = "said";
      said.setAttribute("role", "status");
      document.body.append(said);
    }
    said.textContent = text;
  }

  function nameControls() {
    for (const [selector, name] of Object.entries(NAMES)) {
      for (const element of document.querySelectorAll(selector)) {
        if (!element.hasAttribute("aria-label")) element.setAttribute("aria-label", name);
      }
    }
    // The arrow of a thought is inside a title that is itself a button.
    for (const arrow of document.querySelectorAll("#chatbot .thought-group .title button")) {
      arrow.setAttribute("aria-hidden", "true");
      arrow.disabled = true;
    }
    // Gradio uses the markup of a message's buttons and notes as its name.
    for (const part of document.querySelectorAll('#chatbot [aria-label*="message: <div"]')) part.removeAttribute("aria-label");
    for (const side of ["A", "B"]) {
      const column = one(`#compare-${side.toLowerCase()}`);
      column?.setAttribute("role", "group");
      column?.setAttribute("aria-label", side);
    }
    // Gradio says that all of a message goes from left to right: lists and tables go as their first words.
    const parts = "#chatbot .message-content :is(ul, ol, table, blockquote):not([dir])";
    for (const part of document.querySelectorAll(parts)) part.dir = "auto";
    // The head of a block of code shows its language; long lines scroll with the keyboard, too.
    for (const block of document.querySelectorAll("#chatbot .code_wrap:not([data-language])")) {
      const found = block.querySelector("code")?.className.match(/language-([\w+#-]+)/);
      block.dataset.language = found?.[1] ?? "text";
      block.querySelector("pre")?.setAttribute("tabindex", "0");
    }
  }

  function tellProgress() {
    const now = visible(stopButton());
    if (now === answering) return;
    answering = now;
    log()?.setAttribute("aria-busy", String(now));
    const answer = [...document.querySelectorAll("#chatbot .bot-row")].at(-1);
    const failed = answer?.querySelector(".error");
    say(now ? "The model answers." : failed ? `The answer ended: ${failed.textContent}` : "Answer finished.");
  }

  // A link with a question: ?q=PROMPT fills the box and does not send.

  let asked = null;

  function takeQuestion() {
    const address = new URL(window.location.href);
    asked = (address.searchParams.get("q") ?? address.searchParams.get("prompt"))?.slice(0, LONGEST_PROMPT) ?? null;
    if (!address.searchParams.has("q") && !address.searchParams.has("prompt")) return;
    address.searchParams.delete("q");
    address.searchParams.delete("prompt");
    window.history.replaceState(window.history.state, "", address);
  }

  function fillQuestion(field) {
    if (!asked || field.value) return;
    field.value = asked;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  }

  // A draft survives a reload, for example after a restart of the server. Only this tab keeps it.

  const DRAFT = "granite-demo-draft";

  function draft(text) {
    try {
      if (text === undefined) return sessionStorage.getItem(DRAFT);
      sessionStorage.setItem(DRAFT, text);
    } catch {
      // Blocked storage: no draft.
    }
    return null;
  }

  document.addEventListener("input", (event) => {
    if (event.target === box()) draft(box().value);
  });

  // After each change that Gradio makes, check the page again, at most once in 50 ms.

  const watched = new WeakSet();
  let planned = false;

  function look() {
    planned = false;
    nameControls();
    tellProgress();
    if (answering) draft(box()?.value ?? ""); // it was sent
    const element = log();
    if (element && !watched.has(element)) {
      watched.add(element);
      watchScrolling(element);
    }
  }

  function plan() {
    if (planned) return;
    planned = true;
    setTimeout(look, 50); // not requestAnimationFrame: a hidden tab has no frames
  }

  takeQuestion();
  asked = asked || draft();
  look();
  new MutationObserver(plan).observe(document.body, { childList: true, subtree: true });
  if (asked) whenThere(box, (field) => setTimeout(() => fillQuestion(field), 200));
})();
