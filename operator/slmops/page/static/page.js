// SPDX-License-Identifier: Apache-2.0
// Fetches what is looked at, draws it, and does so again whenever the operator says that it has changed.

import { drawDetail, drawMissing, view } from "./detail.js";
import { morphChildren } from "./dom.js";
import { drawOverview, filter } from "./overview.js";
import { leave, plotKey, pointAt, shareOf, step } from "./plot.js";

const main = document.getElementById("view");
const live = document.getElementById("live");
const banner = document.getElementById("banner");
const RETRY_MS = 3000;
const PATIENCE_MS = 30000;
let shown = null; // what the drawing was made of: {route, document}
let busy = false;
let again = false;
let retry = 0;

function route() {
  const match = /^#\/([^/]+)\/([^/]+)$/.exec(window.location.hash);
  return match ? { namespace: match[1], name: match[2] } : null;
}

function same(one, other) {
  return one === other || (one && other && one.namespace === other.namespace && one.name === other.name);
}

function draw() {
  const { route: where, document: body } = shown;
  const parts = !where ? drawOverview(body) : body ? drawDetail(body) : drawMissing(`${where.namespace}/${where.name}`);
  morphChildren(main, parts.filter(Boolean));
  document.title = where ? `${where.name} · SLMOps fleet` : "SLMOps fleet";
  const said = !body || body.leads ? "" : "This operator waits for the Lease: another one acts, and nodes may be unknown here.";
  if (banner.textContent !== said) banner.textContent = said;
  banner.hidden = !said;
}

function tell(state, text) {
  live.dataset.state = state;
  if (live.textContent !== text) live.textContent = text;
}

async function load(where) {
  const path = where ? `api/deployments/${encodeURIComponent(where.namespace)}/${encodeURIComponent(where.name)}` : "api/fleet";
  const answer = await fetch(path, { credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (where && answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  clearTimeout(retry);
  try {
    do {
      again = false;
      const where = route();
      const body = await load(where);
      if (!same(where, route())) {
        again = true;
        continue;
      }
      shown = { route: where, document: body };
      draw();
    } while (again);
  } catch {
    tell("lost", "no answer, trying again");
    retry = setTimeout(refresh, RETRY_MS);
  } finally {
    busy = false;
  }
}

function listen() {
  const stream = new EventSource("api/events");
  stream.addEventListener("open", () => tell("live", "live"));
  stream.addEventListener("change", (event) => {
    tell("live", "live");
    const where = route();
    const { deployments } = JSON.parse(event.data);
    if (!where || deployments === null || deployments.includes(`${where.namespace}/${where.name}`)) refresh();
  });
  stream.addEventListener("error", () => {
    tell("lost", "connection lost, trying again");
    // A browser gives up by itself when the answer was no stream: too many pages are open, say.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  });
}

function plotOf(element) {
  const drawing = element.closest && element.closest("[data-plot]");
  const body = shown && shown.route && shown.document;
  if (!drawing || !body) return [null, null];
  return [drawing, body.plots.find((plot) => plotKey(plot) === drawing.dataset.plot)];
}

main.addEventListener("pointermove", (event) => {
  const [drawing, plot] = plotOf(event.target);
  if (!plot) return;
  const box = drawing.getBoundingClientRect();
  pointAt(plot, shareOf((event.clientX - box.left) / box.width));
  draw();
});

main.addEventListener("pointerout", (event) => {
  const [drawing, plot] = plotOf(event.target);
  if (!plot || drawing.contains(event.relatedTarget)) return;
  leave(plot);
  draw();
});

main.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const [, plot] = plotOf(event.target);
  const site = event.target.closest && event.target.closest("[data-site]");
  if (plot && by && event.key !== "ArrowUp" && event.key !== "ArrowDown") {
    step(plot, by);
  } else if (plot && event.key === "Escape") {
    leave(plot);
  } else if (site && by) {
    const all = [...site.parentElement.children];
    const next = all[all.indexOf(site) + by];
    if (next) {
      for (const entry of all) entry.tabIndex = entry === next ? 0 : -1;
      next.focus();
    }
    event.preventDefault();
    return;
  } else {
    return;
  }
  event.preventDefault();
  draw();
});

main.addEventListener("click", (event) => {
  const site = event.target.closest("[data-site]");
  if (!site) return;
  view.site = view.site === site.dataset.site ? null : site.dataset.site;
  draw();
});

main.addEventListener("input", (event) => {
  if (event.target.id !== "filter") return;
  filter.text = event.target.value;
  draw();
});

// The hash says which deployment is looked at, so this link must not change it.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

window.addEventListener("hashchange", () => {
  view.site = null;
  main.replaceChildren();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  refresh();
});

refresh();
listen();
