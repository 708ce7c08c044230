// The chat's own buttons in the messages. Runs once, in a gr.HTML: `trigger` calls its listeners in Python.
// The classes of a button name its action and its turn: "act retry t-ID".
const EVENTS = { bundle: "download", ground: "expand" };


// A diagram that cannot be drawn: its source, in place of a picture that says only "Syntax error".
const sources = new WeakMap();

function keepSource(node) {
  for (const one of node.matches(".mermaid") ? [node] : node.querySelectorAll(".mermaid")) {
    if (!one.querySelector("svg") && one.textContent.trim()) sources.set(one, one.textContent.replaceAll("\u2060", ""));
  }
  const diagram = node.parentElement?.closest(".mermaid");
  if (sources.has(diagram)) setTimeout(showSource, 100, diagram); // mermaid names the picture at its end
}

function showSource(diagram) {
  if (!diagram.querySelector('svg[aria-roledescription="error"]')) return;
  const pre = document.createElement("pre");
  pre.textContent = sources.get(diagram);
  const note = document.createElement("div");
  note.className = "error";
  note.textContent = "This diagram has a syntax error.";
  diagram.replaceChildren(pre, note);
}

// An invisible character keeps text from becoming markup; see ui/markdown.py. It is not part of the text.
const strip = (root) => {
  if (root.nodeType === Node.TEXT_NODE) {
    const place = root.data.includes("\u2060") && root.parentElement;
    // A diagram is drawn from its text later, with markup in it.
    if (place && place.closest(".prose, .md") && !place.closest(".mermaid, svg")) {
      root.data = root.data.replaceAll("\u2060", "");
    }
    return;
  }
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) strip(texts.currentNode);
};
new MutationObserver((changes) => {
  for (const { type, target, addedNodes } of changes) {
    if (type === "characterData") strip(target);
    else addedNodes.forEach((node) => {
      strip(node);
      if (node.nodeType === Node.ELEMENT_NODE) keepSource(node);
    });
  }
}).observe(document.body, { childList: true, characterData: true, subtree: true });

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("#chatbot .acts button.act");
  if (!button) return;
  const [, action] = button.classList;
  const id = [...button.classList].find((name) => name.startsWith("t-"))?.slice(2);
  if (action === "edit") return openEditor(id, button);
  if (action !== "clip") {
    const made = ["bundle", "go"].includes(action) ? window.graniteDemo?.made(id) : null;
    trigger(EVENTS[action] ?? "select", { action, id, made });
    return;
  }
  try {
    await navigator.clipboard.writeText(window.graniteDemo?.current()?.turns?.[id]?.content ?? "");
    button.textContent = "Copied";
    button.classList.add("done");
  } catch {
    button.textContent = "The browser refuses";
  }
  setTimeout(() => {
    button.textContent = "Copy";
    button.classList.remove("done");
  }, 1500);
});
