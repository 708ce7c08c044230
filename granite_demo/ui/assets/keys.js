/* Keys of the whole page. In the head of the document: it sees each key before Gradio does. */
(() => {
  "use strict";
  const TOUCH = matchMedia("(pointer: coarse)");
  const one = (selector) => document.querySelector(selector);
  const isBox = (target) => Boolean(target.matches?.("#message textarea"));

  /* Enter sends. On a touch keyboard, which has no Shift-Enter, it makes a new line. Ctrl or Cmd with Enter sends everywhere. */

  function enter(event) {
    if (event.key !== "Enter" || event.isComposing || !isBox(event.target)) return;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      event.stopImmediatePropagation();
      const button = one("#message .submit-button");
      if (event.type === "keydown") button ? button.click() : window.graniteQueue?.add();
    } else if (TOUCH.matches && !event.shiftKey) event.stopImmediatePropagation();
  }

  for (const name of ["keydown", "keypress"]) window.addEventListener(name, enter, true);
  document.addEventListener("focusin", ({ target }) => {
    if (isBox(target)) target.enterKeyHint = TOUCH.matches ? "enter" : "send";
  });
})();
