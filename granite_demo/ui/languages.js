/* Translates the page's texts into the reader's language, from words/LANGUAGE.json. Gradio's I18n translates the texts
   that components are built with. This script translates later texts, and languages that Gradio does not have.
   Runs once, in a gr.HTML. It replaces only whole texts of the page, and nothing that visitors and models write. */

const RIGHT_TO_LEFT = ["ar"];
const language = navigator.language.split("-")[0].toLowerCase();
/* Elements with texts of visitors and models, and elements inside them with texts of the page. */
const THEIRS = `script, style, textarea, code, pre, svg, mark, .tokens, .choice, .worst td, .branches, .grounding .answer,
  .source, .footnotes, #library .title, #library .name, #answer-a, #answer-b, .said, #chatbot .message-content, [role=listbox]`;
const OURS = "#chatbot :is(.acts, .note, .error, .fault, .card-head, .card .ours, .appendix > summary)";
const ATTRIBUTES = ["placeholder", "aria-label", "title"];

let words = {}, patterns = [];
const shown = new WeakMap();  // the text of a node after its translation

function translated(text) {
  const around = text.match(/^(\s*)([^]*?)(\s*)$/);
  const parts = around[2].split(" · ").map(part);
  return around[1] + parts.join(" · ") + around[3];
}

function part(text) {
  if (!text) return text;
  if (Object.hasOwn(words, text)) return words[text];
  const numbers = [];
  const key = text.replace(/\d[\d,.]*\d|\d/g, (number) => (numbers.push(number), "#"));
  if (numbers.length && Object.hasOwn(words, key)) return words[key].replaceAll("#", () => numbers.shift());
  for (const [pattern, words] of patterns) {
    const found = text.match(pattern);
    if (found) {
      const names = found.slice(1);
      return words.replaceAll("{}", () => part(names.shift()));
    }
  }
  return text;
}

function ours(element) {
  const theirs = element?.closest(THEIRS);
  return !theirs || theirs.contains(element.closest(OURS));
}

function translateText(node) {
  if (shown.get(node) === node.data || !/\p{L}/u.test(node.data) || !ours(node.parentElement)) return;
  const text = translated(node.data);
  shown.set(node, text);
  if (text !== node.data) node.data = text;
}

function translateAttributes(element) {
  if (element.matches("#library .title")) return;  // a conversation's name
  for (const name of ATTRIBUTES) {
    const text = element.getAttribute(name);
    if (!text) continue;
    const now = translated(text);
    if (now !== text) element.setAttribute(name, now);
  }
}

function translate(node) {
  if (node.nodeType === Node.TEXT_NODE) return translateText(node);
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  translateAttributes(node);
  for (const element of node.querySelectorAll(ATTRIBUTES.map((name) => `[${name}]`).join())) translateAttributes(element);
  const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) translateText(texts.currentNode);
}

function watch(changes) {
  for (const { type, target, addedNodes } of changes) {
    if (type === "childList") addedNodes.forEach(translate);
    else if (type === "attributes") translateAttributes(target);
    else translateText(target);
  }
}

async function begin() {
  const answer = await fetch(`words/${language}.json`);
  if (!answer.ok) return;
  words = await answer.json();
  const quoted = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  patterns = Object.entries(words).filter(([key]) => key.includes("{}"))
    .map(([key, text]) => [new RegExp(`^${key.split("{}").map(quoted).join("(.+?)")}$`), text]);
  document.documentElement.lang = language;
  if (RIGHT_TO_LEFT.includes(language)) document.documentElement.dir = "rtl";
  translate(document.body);
  new MutationObserver(watch).observe(document.body, {
    childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES,
  });
}

if (element.querySelector("[data-languages]").dataset.languages.split(" ").includes(language)) begin();
