/* The composer: chips of what is attached, and files that are chosen, dropped or pasted. Runs once, in the gr.HTML of the
   chips. Titles become text nodes, never markup. */
(() => {
  "use strict";
  if (window.graniteComposer) return;
  const one = (selector) => document.querySelector(selector);
  let shown = {};

  function set(selector, value) {
    const field = one(selector);
    if (!field) return;
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new Event("blur"));
  }

  function chip(kind, label, detail, remove) {
    const made = document.createElement("span");
    made.className = `chip ${kind}`;
    const name = document.createElement("span");
    name.textContent = label;
    name.title = label;
    const cross = document.createElement("button");
    cross.type = "button";
    cross.className = "icon close";
    cross.title = "Remove";
    cross.setAttribute("aria-label", `Remove ${label}`);
    cross.addEventListener("click", () => {
      remove();
      one("#message textarea")?.focus();
    });
    made.append(name);
    if (detail) {
      const small = document.createElement("small");
      small.textContent = detail;
      made.append(small);
    }
    made.append(cross);
    return made;
  }

  function toolsOf(text) {
    try {
      const list = JSON.parse(text);
      return Array.isArray(list) ? list : [];
    } catch {
      return [];
    }
  }

  function draw() {
    const { documents = [], tools = "", system = "", controls = {} } = shown;
    const list = toolsOf(tools);
    const name = (tool) => tool?.function?.name ?? tool?.name ?? "?";
    const chips = [
      ...documents.map(({ title, text }, at) => chip("text", title, `${text.length.toLocaleString("en")} characters`, () => {
        window.graniteDemo.removed = at;
        trigger("delete", {});
      })),
      ...list.map((tool, at) => chip("tool", name(tool), "", () => {
        const rest = list.filter((_, other) => other !== at);
        set("#tool-definitions textarea", rest.length ? JSON.stringify(rest, null, 2) : "");
      })),
    ];
    if (tools.trim() && !list.length) chips.push(chip("tool", "Tools", "", () => set("#tool-definitions textarea", "")));
    if (system.trim()) chips.push(chip("person", "System prompt", "", () => set("#system-prompt textarea", "")));
    const made = document.createElement("div");
    made.className = "chips";
    made.append(...chips);
    if (!element.firstElementChild?.isEqualNode(made)) element.replaceChildren(made);
    const level = one("#composer-menu [data-level]");
    const words = { off: "Off", low: "Low", full: "Full" }[controls.thinking] ?? "";
    if (level && level.textContent !== words) level.textContent = words;
  }

  document.addEventListener("conversation", ({ detail }) => {
    shown = detail ?? {};
    draw();
  });
  new MutationObserver(draw).observe(element.closest("#box"), { childList: true, subtree: true }); // the menu comes later
  draw();

  /* Files */

  const upload = () => one("#documents-upload")?.parentElement.querySelector("input[type=file]");
  const uploadRow = () => one("#composer-menu [data-upload]");

  function tell(text) {
    const note = document.createElement("div");
    note.className = "error";
    note.setAttribute("role", "status");
    note.textContent = text;
    one("#documents-message .html-container, #documents-message")?.replaceChildren(note);
  }

  function attach(files) {
    const row = uploadRow();
    if (row?.getAttribute("aria-disabled") === "true") return tell(row.querySelector("small").textContent);
    const pictures = files.filter(({ type }) => type.startsWith("image/"));
    const rest = files.filter((file) => !pictures.includes(file));
    if (pictures.length) tell(`${pictures[0].name || "This picture"} was not added: the model reads text only.`);
    const field = upload();
    if (!rest.length || !field) return;
    const box = new DataTransfer();
    rest.forEach((file) => box.items.add(file));
    field.files = box.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  }

  window.graniteComposer = { attach, chip };

  document.addEventListener("click", (event) => {
    const row = event.target.closest?.("[data-upload]");
    if (!row || row.getAttribute("aria-disabled") === "true") return;
    row.closest("[popover]").hidePopover();
    const field = upload();
    if (field) field.accept = row.dataset.upload;
    field?.click();
  });

  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const inChat = () => Boolean(one("#composer")?.getClientRects().length);

  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault(); // or the browser opens the file
      document.documentElement.dataset.drop = inChat() ? "over" : "";
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.documentElement.dataset.drop = "";
  });
  document.addEventListener("drop", (event) => {
    document.documentElement.dataset.drop = "";
    if (!holdsFiles(event)) return;
    event.preventDefault();
    if (inChat()) attach([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || !inChat() || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    attach(files);
  });

  /* A pasted text that was added closes its sheet. */
  document.addEventListener("conversation", () => {
    const sheet = one("#documents:popover-open");
    if (sheet && !one("#documents-text textarea")?.value) sheet.hidePopover();
  });
})();
