/* The popups of a token view: the probability of a token, and its alternatives.
   Runs once for each view, in a gr.HTML, which supplies `element` and `trigger`. Texts of tokens become text nodes. */

const GAP = 4, LEAVE_MS = 200;
let popup = null, anchor = null, leaving = 0;

function made(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

function percent(log) {
  if (log === null || log === "cut") return "—";
  const value = 100 * Math.exp(log);
  return value >= 99.995 ? "100 %" : value >= 1 ? `${value.toFixed(1)} %` : value >= 1e-4 ? `${value.toPrecision(2)} %` : `${value.toExponential(1)} %`;
}

function shown(text) {
  return text === "" ? "∅" : text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→");
}

/* [name, value] of each fact, and the alternatives. */
function details(kind, row, text) {
  if (kind === "compare") {
    const [id, divergence, agree, first, second, firstTop, secondTop, names] = row;
    return { id, rows: [], facts: [
      ["KL divergence", `${divergence} nats`], [`Probability in ${names[0]}`, percent(first)],
      [`Probability in ${names[1]}`, percent(second)], [`Likeliest in ${names[0]}`, shown(firstTop)],
      [`Likeliest in ${names[1]}`, agree ? "the same" : shown(secondTop)]] };
  }
  const [id, logprob, sampled, entropy, rows] = row;
  const facts = logprob === null ? [["Probability", "nothing comes before it"]]
    : [["Probability", percent(logprob)], ["Log probability", logprob === "cut" ? "−∞" : logprob.toFixed(3)]];
  if (sampled !== null) facts.push(["After the samplers", sampled === "cut" ? "— (cut)" : percent(sampled)]);
  if (entropy !== null) facts.push(["Entropy", `${entropy} nats`]);
  return { id, facts, rows };
}

function tokenOf(node) {
  const token = node?.closest?.(".tokens > b");
  return token && element.contains(token) ? token : null;
}

function rowOf(token) {
  const frame = token.closest(".token-view");
  // An update may keep the node and change its data.
  if (frame.source !== frame.dataset.rows) {
    frame.source = frame.dataset.rows;
    frame.rows = JSON.parse(frame.source);
  }
  const position = [...token.parentNode.children].indexOf(token);
  return { frame, position, row: frame.rows[position] };
}

function alternatives(rows, id, own, position, picks) {
  const after = rows.some(([, , , sampled]) => sampled !== null);
  const head = made("tr", "", made("th", "", "Could stand here"), made("th", "", after ? "Before" : "Probability"));
  if (after) head.append(made("th", "", "After"));
  head.querySelectorAll("th").forEach((cell) => (cell.scope = "col"));
  const lines = rows.map(([other, text, before, sampled]) => {
    const name = made(picks && other >= 0 && other !== id ? "button" : "span", "choice", shown(text));
    if (name.tagName === "BUTTON") {
      name.type = "button";
      name.onclick = () => { close(); trigger("select", { position, id: other }); };
    }
    // Another server sends texts without ids.
    const taken = id < 0 ? text === own : other === id;
    const line = made("tr", taken ? "taken" : "", made("td", "", name), made("td", "", percent(before)));
    if (after) line.append(made("td", sampled === "cut" ? "cut" : "", percent(sampled)));
    return line;
  });
  return made("table", "", made("thead", "", head), made("tbody", "", ...lines));
}

function open(token) {
  clearTimeout(leaving);
  if (anchor === token) return;
  close();
  const { frame, position, row } = rowOf(token);
  if (!row) return;
  const { id, facts, rows } = details(frame.dataset.kind, row, token.textContent);
  const list = made("dl", "", ...facts.flatMap(([name, value]) => [made("dt", "", name), made("dd", "", value)]));
  popup = made("div", "token-popup", made("p", "", made("code", "", token.textContent.replace(/[\n\t]/g, "").replaceAll(" ", "·")), id < 0 ? "" : ` token ${id}`), list);
  if (rows.length) popup.append(alternatives(rows, id, token.textContent, position, frame.classList.contains("picks")));
  popup.setAttribute("role", "dialog");
  popup.setAttribute("aria-label", "About this token");
  popup.addEventListener("pointerenter", () => clearTimeout(leaving));
  popup.addEventListener("pointerleave", leave);
  popup.addEventListener("keydown", (event) => event.key === "Escape" && back());
  (document.querySelector("#app") ?? document.body).append(popup);
  anchor = token;
  token.classList.add("open");
  place();
}

function place() {
  const { left, top, bottom } = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = popup;
  popup.style.left = `${Math.max(GAP, Math.min(left, document.documentElement.clientWidth - width - GAP))}px`;
  const below = bottom + GAP;
  popup.style.top = `${below + height > innerHeight && top - height - GAP > 0 ? top - height - GAP : below}px`;
}

function close() {
  clearTimeout(leaving);
  popup?.remove();
  anchor?.classList.remove("open");
  popup = anchor = null;
}

function back() {
  const token = anchor;
  close();
  token?.isConnected && token.focus();
  close();
}

function leave() {
  clearTimeout(leaving);
  leaving = setTimeout(close, LEAVE_MS);
}

function goTo(token) {
  token.tabIndex = -1;
  token.setAttribute("role", "button");
  token.setAttribute("aria-haspopup", "dialog");
  token.focus();
  token.scrollIntoView({ block: "nearest" });
}

function keys(event) {
  const tokens = event.target.closest(".tokens");
  if (!tokens) return;
  const token = tokenOf(event.target);
  const next = {
    ArrowRight: token ? token.nextElementSibling : tokens.firstElementChild, ArrowLeft: token?.previousElementSibling,
    Home: tokens.firstElementChild, End: tokens.lastElementChild,
  }[event.key];
  if (next) goTo(next);
  else if (token && (event.key === "Enter" || event.key === " ")) {
    open(token);
    popup?.querySelector("button")?.focus();
  } else if (event.key === "Escape") return close();
  else return;
  event.preventDefault();
}

element.addEventListener("pointerover", (event) => event.pointerType === "mouse" && tokenOf(event.target) && open(tokenOf(event.target)));
element.addEventListener("pointerout", (event) => event.pointerType === "mouse" && leave());
element.addEventListener("click", (event) => tokenOf(event.target) && open(tokenOf(event.target)));
element.addEventListener("focusin", (event) => tokenOf(event.target) && open(tokenOf(event.target)));
element.addEventListener("focusout", (event) => !popup?.contains(event.relatedTarget) && leave());
element.addEventListener("keydown", keys);
document.addEventListener("pointerdown", (event) => popup && !popup.contains(event.target) && tokenOf(event.target) !== anchor && close());
document.addEventListener("scroll", (event) => popup && !popup.contains(event.target) && (anchor.isConnected ? place() : close()), true);
