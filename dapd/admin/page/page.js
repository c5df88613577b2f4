// Refreshes the page without a flash, but not while text is selected, such as a command to copy.
"use strict";

const EVERY_MS = 10000;
const lost = document.getElementById("lost");
let timer;

async function refresh() {
  clearTimeout(timer);
  if (!document.hidden && getSelection().isCollapsed) {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", redirect: "error" });
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = fresh.title;
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
      lost.hidden = true;
    } catch (error) {
      lost.textContent = `The daemon doesn't answer (${error.message}). This page is as of the time below.`;
      lost.hidden = false;
    }
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY_MS);
}

timer = setTimeout(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
