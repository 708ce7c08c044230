/* The frame of the page: theme, conversation list, panels and sheets. In the head of the document, before Gradio's own
   script, so that the first paint has its colours and its columns. */
(() => {
  "use strict";
  const root = document.documentElement;
  const NARROW = matchMedia("(max-width: 820px)");
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const SIDE = "granite-demo-sidebar", THEME = "granite-demo-theme";

  function kept(key, value) {
    try {
      if (value === undefined) return localStorage.getItem(key);
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, value);
    } catch { /* Blocked storage: the defaults hold. */ }
    return null;
  }

  /* Light and dark. Gradio sets the class "dark" on the body when it starts and when the system's choice changes. */

  function theme() {
    return new URLSearchParams(location.search).get("__theme") ?? kept(THEME) ?? "system";
  }

  function paint() {
    const dark = theme() === "dark" || (theme() === "system" && DARK.matches);
    root.classList.toggle("dark", dark);
    document.body?.classList.toggle("dark", dark);
    root.style.colorScheme = dark ? "dark" : "light";
  }

  function switchTheme() {
    const wanted = root.classList.contains("dark") ? "light" : "dark";
    kept(THEME, (wanted === "dark") === DARK.matches ? null : wanted);
    paint();
  }

  paint();
  DARK.addEventListener("change", () => setTimeout(paint));

  /* Gradio 6.31 removes its first "Loading…" from the page, but not the timer, which then runs at each frame without
     end. Here that timer runs four times a second. */

  const frame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (callback) => {
    const text = String(callback);
    const isClock = text.length < 120 && text.includes("performance.now()");
    return isClock ? setTimeout(() => frame(callback), 250) : frame(callback);
  };

  /* The list of conversations: a column, or a drawer on narrow screens. */

  const sideOpen = () => (NARROW.matches ? root.dataset.sidebar === "open" : root.dataset.side !== "closed");

  function showSide(open) {
    if (NARROW.matches) root.dataset.sidebar = open ? "open" : "";
    else {
      root.dataset.side = open ? "open" : "closed";
      kept(SIDE, open ? "open" : "closed");
    }
    document.querySelector("#head [data-side]")?.setAttribute("aria-expanded", String(open));
    if (open && NARROW.matches) document.querySelector("#library .new")?.focus();
  }

  if (kept(SIDE) === "closed") root.dataset.side = "closed";

  /* One panel at a time beside the conversation: sampling, xray, sources or compare. */

  let opener = null;

  function showPanel(name) {
    const before = root.dataset.panel ?? "";
    const next = name === before ? "" : name;
    root.dataset.panel = next;
    for (const button of document.querySelectorAll("#head [data-panel]")) {
      button.setAttribute("aria-pressed", String(button.dataset.panel === next));
    }
    if (next) document.querySelector(`#${next} .close`)?.focus({ preventScroll: true });
    else opener?.focus?.();
  }

  /* Sheets and menus: popovers above the button that opens them. */

  function place(popover, button) {
    const at = (button ?? document.activeElement).getBoundingClientRect();
    const size = popover.getBoundingClientRect();
    const box = button?.closest("#composer")?.querySelector("#box")?.getBoundingClientRect();
    const left = NARROW.matches ? 8 : Math.min(popover.classList.contains("sheet") && box ? box.left : at.left, innerWidth - size.width - 8);
    popover.style.left = `${Math.max(left, 8)}px`;
    if (at.top > innerHeight / 2) {
      popover.style.top = "auto";
      popover.style.bottom = `${innerHeight - (box && popover.classList.contains("sheet") ? box.top : at.top) + 8}px`;
    } else {
      popover.style.top = `${at.bottom + 8}px`;
      popover.style.bottom = "auto";
    }
  }

  document.addEventListener("toggle", (event) => {
    const popover = event.target;
    if (event.newState !== "open" || !popover.matches?.("[popover]")) return;
    place(popover, popover.opener ?? document.querySelector(`[popovertarget="${popover.id}"]`));
  }, true);

  function showSheet(name, button) {
    const sheet = document.getElementById(name);
    if (!sheet) return;
    sheet.popover = "auto";
    sheet.opener = button;
    if (sheet.matches(":popover-open")) return sheet.hidePopover();
    sheet.showPopover();
    sheet.querySelector("textarea, input:not([disabled]), button")?.focus();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button) {
      if (NARROW.matches && root.dataset.sidebar === "open" && !event.target.closest?.("#side, .tab-wrapper")) showSide(false);
      return;
    }
    if (button.hasAttribute("data-side")) showSide(!sideOpen());
    else if (button.hasAttribute("data-theme")) switchTheme();
    else if (button.hasAttribute("data-panel")) {
      if (button.dataset.panel) opener = button;
      showPanel(button.dataset.panel || root.dataset.panel);
    } else if (button.hasAttribute("data-sheet") && button.getAttribute("aria-disabled") !== "true") {
      const menu = button.closest("[popover]");
      const from = menu ? document.querySelector(`[popovertarget="${menu.id}"]`) : button;
      menu?.hidePopover();
      showSheet(button.dataset.sheet, from);
    } else if (button.matches("#chatbot .act.ground") && root.dataset.panel !== "sources") {
      opener = button;
      showPanel("sources");
    } else if (NARROW.matches && button.matches("[role=tab]")) showSide(false);
  });

  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.code === "KeyO") {
      event.preventDefault();
      document.querySelector("#library .new")?.click();
      return;
    }
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (event.target.closest?.("#app > #side") && NARROW.matches) showSide(false);
    else if (root.dataset.panel && event.target.closest?.(".drawer")) {
      event.preventDefault();
      showPanel(root.dataset.panel);
    }
  });

  window.graniteFrame = { showPanel, showSheet, showSide, narrow: () => NARROW.matches };
})();
