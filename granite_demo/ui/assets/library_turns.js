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

/* The open conversation with a patch of the server, see conversation.patch in Python; the same object if the patch is of
   another conversation. A patch has only turns, so it undoes no change that the visitor made in the meantime. */
function merged(held, patch) {
  const { from, state: _, answer: __, ...changed } = patch;
  if (from && from === held?.id) return light(changed);  // a branch takes the place of the conversation it comes from
  if (held?.id && held.id !== patch.id) return held;
  return { ...held, ...changed, turns: { ...held?.turns, ...eachTurn(changed.turns, lightTurn) } };
}

/* The turns of two copies of a conversation. The end of an answer holds over a part of it. */
function together(kept, turns) {
  const whole = Object.entries(turns ?? {}).filter(([id, turn]) => turn.made || !kept?.[id]?.made);
  return { ...kept, ...Object.fromEntries(whole) };
}

/* The open conversation after a patch. The store alone gets the end of an answer of another conversation. */
let awaited = false;  // an answer has not ended here
let measured = false;  // the context meter is right for an empty message box, or will be when the answer ends
function take(held, patch) {
  if (!patch?.id) return held;
  awaited = patch.state !== "";
  measured = true;
  awaitAnswer(patch.id, patch.answer ?? null);
  const whole = merged(held, patch);
  if (whole === held) keep(patch);
  return whole;
}

/* For Stop. If the server writes no answer, it resets the message box. If the answer has not ended here all the same, its
   connection is dead, for example after a change of networks. Gradio would wait for it and send nothing else. */
function reloadIfLost() {
  const busy = () => document.querySelector("#message .stop-button");
  setTimeout(() => awaited && !busy() && window.location.reload(), LOST_AFTER);
}

/* The conversation for the context meter after a change of the message box; null if the meter is right. */
function typed(held, text) {
  measured &&= !text;
  return measured ? null : shownPart(held);
}
