/* Conversations as the page holds and sends them: only what an event needs.
   The first part of one script, see conversation_list.py. */

/* The data that reproduces an answer, such as its token ids, is most of a conversation, and no question needs it. This
   map and the database have it. The page has a short form of it, which `withMade` replaces with the whole. */
const madeOf = new Map();
const LOST_AFTER = 3000;  // milliseconds

function lightTurn(turn) {
  if (!turn.made || turn.made.kept) return turn;
  madeOf.set(turn.id, JSON.parse(JSON.stringify(turn.made)));  // a copy: no database accepts a Proxy of Gradio
  return { ...turn, made: { kept: true, finish_reason: turn.made.finish_reason, tokens: turn.made.token_ids?.length } };
}

function eachTurn(turns, change) {
  return Object.fromEntries(Object.entries(turns ?? {}).map(([id, turn]) => [id, change(turn)]));
}

function light(conversation) {
  return { ...conversation, turns: eachTurn(conversation.turns, lightTurn) };
}

function withMade(turns, kept) {
  return eachTurn(turns, (turn) => {
    if (!turn.made?.kept) return turn;
    const { made: _, ...rest } = turn;
    const made = madeOf.get(turn.id) ?? kept?.[turn.id]?.made;
    return made ? { ...rest, made } : rest;
  });
}

/* The branch that is shown; of the turns beside it only that they are there. */
function shownPart(conversation) {
  const all = conversation?.turns;
  if (!all) return conversation;
  const path = new Set();
  for (let turn = all[conversation.head]; turn; turn = all[turn.parent]) path.add(turn.id);
  const near = Object.values(all).filter(({ id, parent }) => path.has(id) || !parent || path.has(parent));
  const place = ({ id, parent, role }) => ({ id, parent, role });
  return { ...conversation, turns: Object.fromEntries(near.map((turn) => [turn.id, path.has(turn.id) ? turn : place(turn)])) };
}

/* The open conversation with a patch of the server in it, see conversation.patch in Python; the same object where the
   patch belongs to another conversation. Only turns come from the server: nothing is undone that changed meanwhile. */
function merged(held, patch) {
  const { from, state: _, ...news } = patch;
  if (from && from === held?.id) return light(news);  // a branch takes the place of the conversation it was made from
  if (held?.id && held.id !== patch.id) return held;
  return { ...held, ...news, turns: { ...held?.turns, ...eachTurn(news.turns, lightTurn) } };
}

/* Takes in a patch: what it makes of the open conversation. A part of an answer is only kept, and so is the end of an
   answer that belongs to another conversation. */
let awaited = false;  // the answer has not ended here
let measured = false;  // the server has measured the conversation with nothing typed, or will when the answer ends
function take(held, patch) {
  if (!patch?.id) return held;
  awaited = patch.state !== "";
  measured = true;
  const whole = patch.state === "growing" ? held : merged(held, patch);
  if (whole === held) keep(patch);
  return whole;
}

/* Stop was pressed, and the server, which answers nothing, has set the page free; and yet the answer has not ended here:
   its connection is dead, as after a change of networks. Gradio would wait for it, and ask nothing else, for good. */
function reloadIfLost() {
  const busy = () => document.querySelector("#message .stop-button");
  setTimeout(() => awaited && !busy() && window.location.reload(), LOST_AFTER);
}

/* What the context meter needs after a change of the message box; null where it is up to date. */
function typed(held, text) {
  measured &&= !text;
  return measured ? null : shownPart(held);
}
