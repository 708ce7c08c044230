// Keys of the Completion tab: Ctrl or Cmd with Enter continues the text, Escape stops. Runs once, in a gr.HTML.
const shown = (selector) => {
  const button = document.querySelector(selector);
  return button?.getClientRects().length ? button : null;
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.defaultPrevented) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest?.("#write")) {
    event.preventDefault();
    shown("#run")?.click();
  } else if (event.key === "Escape" && !event.target.closest?.(".token-popup")) {
    shown("#stop")?.click();
  }
});
