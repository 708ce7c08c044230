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

/* The open conversation with an answer in it, as far as that has come; the same object where it is in it already. In
   the browser alone: nothing is undone that changed while the answer was written. */
function settled(held, pending) {
  const turn = pending?.turn, before = held?.turns?.[turn?.id], parent = turn?.parent ?? null;
  if (!turn || pending.conversation !== held?.id || (parent && !held.turns?.[parent])) return held;
  if (before && (before.made || !turn.made)) return held;
  const head = (held.head ?? null) === parent ? turn.id : held.head;
  return { ...held, head, turns: { ...held.turns, [turn.id]: { ...before, ...lightTurn(turn) } }, updated: Date.now() / 1000 };
}

/* What an answer needs, and what there is of it when it ends or is stopped: [the branch, whether it has grown]. */
let answering = 0;
function begun(held) {
  answering += 1;
  return shownPart(held);
}

function ended(held, pending) {
  const whole = settled(held, pending ?? growing);
  return [shownPart(whole), whole !== held];
}

function arrived(held, pending) {
  answering -= 1;
  return ended(held, pending);
}

/* The server answers no more, and yet the answer has not ended here: its connection is dead, as after a change of
   networks. Gradio would wait for it, and ask nothing else, for good. */
function reloadIfLost() {
  setTimeout(() => answering > 0 && window.location.reload(), LOST_AFTER);
}
