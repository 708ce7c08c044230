/* Whether the server is there, and the place in its line, in the head of the page. After frame.js, before Gradio's script:
   each request of the page shows whether the server answers, so an idle page sends no other one. */
(() => {
  "use strict";
  const root = document.documentElement, PROBE_EVERY = 2000;  // milliseconds
  const plain = window.fetch.bind(window);
  const isOurs = (asked) => new URL(asked?.url ?? asked, location.href).origin === location.origin;
  const away = (status) => status === 502 || status === 504;  // a proxy without its server
  let gone = false, probing = 0, place = null;

  function draw() {
    root.dataset.server = gone ? "gone" : "";
    const shown = gone || place !== null;
    let state = document.querySelector("#server-state");
    if (!shown && !state) return;
    if (!state) {
      state = document.createElement("div");
      state.id = "server-state";
      state.setAttribute("role", "status");
      document.querySelector("#model-status")?.after(state);
    }
    state.hidden = !shown;
    const words = document.createElement("span");
    words.textContent = gone ? "The server does not answer." : `Busy: you have place ${place} in line.`;
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = "Try again";
    again.addEventListener("click", probe);
    if (shown) state.replaceChildren(words, ...(gone ? [again] : []));
  }

  function setGone(now) {
    if (gone === now) return;
    gone = now;
    draw();
    document.dispatchEvent(new Event(now ? "servergone" : "serverback"));
  }

  async function probe() {
    clearTimeout(probing);
    const answered = await plain("health", { cache: "no-store" }).then(({ status }) => !away(status), () => false);
    setGone(!answered);
    probing = answered ? 0 : setTimeout(probe, PROBE_EVERY);
  }

  window.fetch = async (...given) => {
    try {
      const response = await plain(...given);
      if (isOurs(given[0]) && away(response.status) && !probing) probe();
      return response;
    } catch (error) {
      if (error.name !== "AbortError" && isOurs(given[0]) && !probing) probe();
      throw error;
    }
  };
  window.addEventListener("offline", probe);
  window.addEventListener("online", probe);
  document.addEventListener("place", ({ detail }) => {
    if (place === detail) return;
    place = detail;
    draw();
  });
})();
