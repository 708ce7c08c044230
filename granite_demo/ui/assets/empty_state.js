/* Fills in the examples of the empty chat. Runs once, in the gr.HTML that shows them. */
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button.example");
  if (!button || button.getAttribute("aria-disabled") === "true") return;
  const one = (selector) => document.querySelector(selector);
  const given = button.dataset;

  const there = async (selector) => {
    for (let tries = 0; tries < 60; tries += 1) {
      const found = one(selector);
      if (found?.getClientRects().length || found?.matches("#tools *, input[type=file]")) return found;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return null;
  };
  const fill = async (selector, text) => {
    const field = await there(selector);
    if (!field) return;
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new Event("blur"));
    return field;
  };
  const tab = async (name) => (await there(`[role=tab][data-tab-id="${name}"]`))?.click();

  if (given.tools) await fill("#tool-definitions textarea", given.tools);
  if (given.document) window.graniteComposer?.attach([new File([given.document], given.name, { type: "text/plain" })]);
  if (given.message) (await fill("#message textarea", given.message))?.focus();
  if (given.compare) {
    window.graniteFrame.showPanel("compare");
    (await fill("#compare-question textarea", given.compare))?.focus();
  }
  if (given.prompt) {
    await tab("completion");
    await tab("write");
    await fill("#prompt textarea", given.prompt);
    if (!one("#constraint-kind")?.getClientRects().length) one("#constraint button.label-wrap")?.click();
    (await there("#constraint-kind input[value=json_schema]"))?.click();
    await fill("#constraint-schema textarea", given.schema);
    one("#prompt textarea")?.focus();
  }
  if ("fill" in given) {
    await tab("completion");
    await tab("fill");
    (await there("#prefix textarea"))?.focus();
  }
});
