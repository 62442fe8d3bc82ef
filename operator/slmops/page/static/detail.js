// SPDX-License-Identifier: Apache-2.0
// One deployment: waves, nodes by site, plots, conditions and events.

import { h, s } from "./dom.js";
import { bar, pill } from "./overview.js";
import { drawPlot } from "./plot.js";
import { STATES, moment, plural, whole } from "./words.js";

export const view = { site: null };

function wave(card, position) {
  const done = Math.max(1, card.nodes);
  const width = (count) => Math.min(100, (count / done) * 100);
  // Who is in a wave is counted when it begins.
  const says = !card.nodes ? [] : [`${whole(card.ready)} of ${plural(card.nodes, "node")} ready`];
  if (card.deferred) says.push(`${whole(card.deferred)} deferred`);
  if (card.failed) says.push(`${whole(card.failed)} failed`);
  const states = { done: "done", current: card.awaits ? "awaits approval" : "under way", next: "to come", failed: "failed", skipped: "skipped", unreached: "not reached" };
  return h(
    "li",
    { class: `step ${card.state}`, "data-key": card.name, "aria-current": card.state === "current" ? "step" : null },
    h("span", { class: "step-head" }, h("b", null, `${position + 1}. ${card.name}`), h("span", { class: "step-state" }, states[card.state] || card.state)),
    s(
      "svg",
      { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "part rest", x: 0, y: 0, width: 100, height: 6 }),
      s("rect", { class: "part given", x: 0, y: 0, width: width(card.updated), height: 6 }),
      s("rect", { class: "part ready", x: 0, y: 0, width: width(card.ready), height: 6 }),
      card.failed > 0 && s("rect", { class: "part failed", x: 100 - width(card.failed), y: 0, width: width(card.failed), height: 6 }),
    ),
    h("span", { class: "quiet" }, says.join(", ")),
    h("span", { class: "quiet" }, card.finishedAt ? `judged ${moment(card.finishedAt)}` : card.startedAt ? `since ${moment(card.startedAt)}` : ""),
  );
}

function rollout(detail) {
  const card = detail.rollout;
  if (!card) return null;
  return h(
    "section",
    { class: "card", "data-key": "rollout", "aria-label": "Rollout" },
    h(
      "div",
      { class: "card-head" },
      h("h2", null, card.active ? "Rollout" : "Last rollout"),
      h("span", { class: "tag" }, card.revision),
      h("span", { class: `step-name ${card.step}` }, card.step),
      h("p", { class: "quiet" }, card.active ? `since ${moment(card.startedAt)}` : `ended ${moment(card.finishedAt)}`),
    ),
    card.message && h("p", { class: "note" }, card.reason && h("code", null, card.reason), card.message),
    h("ol", { class: "strip" }, card.waves.map(wave)),
  );
}

function legend(grid) {
  const counts = grid.states.map(() => 0);
  for (const site of grid.sites) for (const cell of site.cells) counts[cell[1]] += 1;
  return h(
    "ul",
    { class: "legend" },
    grid.states.map((state, index) => {
      const [name, meaning] = STATES[state] || [state, ""];
      return counts[index] > 0 && h("li", { title: meaning, "data-key": state }, h("i", { class: `cell ${state}` }), name, " ", h("b", null, whole(counts[index])));
    }),
  );
}

function summary(grid, site) {
  const counts = new Map();
  for (const cell of site.cells) counts.set(cell[1], (counts.get(cell[1]) || 0) + 1);
  const parts = [...counts].map(([state, count]) => `${count} ${(STATES[grid.states[state]] || [""])[0].toLowerCase()}`);
  return `${site.name || "no site"}: ${parts.join(", ")}`;
}

// A site is one button; the nodes in it are drawn, and listed once it is chosen.
function siteBlock(grid, site, first) {
  const chosen = view.site === site.name;
  const said = summary(grid, site);
  return h(
    "button",
    {
      type: "button", class: "site", "data-site": site.name, "data-key": `site ${site.name}`, "aria-label": said, title: said,
      "aria-pressed": String(chosen), tabindex: chosen || (view.site === null && first) ? 0 : -1,
    },
    h("span", { class: "site-name" }, site.name || "no site"),
    h("span", { class: "cells" }, site.cells.map((cell) => h("i", { class: `cell ${grid.states[cell[1]]}` }))),
  );
}

function nodes(grid, waves) {
  const site = grid.sites.find((entry) => entry.name === view.site);
  if (!site) return null;
  return h(
    "div",
    { class: "scroll site-nodes", id: "site-nodes", "data-key": "site-nodes" },
    h(
      "table",
      null,
      h("caption", null, site.name || "no site"),
      h("thead", null, h("tr", null, ["Node", "State", "Revision", "Wave", "What is wrong"].map((head) => h("th", { scope: "col" }, head)))),
      h(
        "tbody",
        null,
        site.cells.slice(0, 200).map(([name, state, revision, number, problem]) => {
          const [reason, message] = problem >= 0 ? grid.problems[problem] : ["", ""];
          return h(
            "tr",
            { "data-key": name },
            h("th", { scope: "row" }, name),
            h("td", null, h("i", { class: `cell ${grid.states[state]}` }), " ", (STATES[grid.states[state]] || [""])[0]),
            h("td", null, revision >= 0 ? h("span", { class: "tag" }, grid.revisions[revision]) : ""),
            h("td", null, number >= 0 && waves[number] ? waves[number].name : ""),
            h("td", { class: "says" }, reason && h("code", null, reason), h("span", { class: "message", title: message }, message)),
          );
        }),
      ),
    ),
    site.cells.length > 200 && h("p", { class: "quiet" }, `${whole(site.cells.length - 200)} more`),
  );
}

// What is wrong, with a few of the nodes; that nodes are offline is told by the cells.
function problems(grid) {
  const found = new Map();
  for (const site of grid.sites) {
    for (const [name, state, , , problem] of site.cells) {
      if (problem < 0 || !["failing", "unfit"].includes(grid.states[state])) continue;
      const entry = found.get(problem) || { count: 0, names: [] };
      entry.count += 1;
      if (entry.names.length < 3) entry.names.push(name);
      found.set(problem, entry);
    }
  }
  if (!found.size) return null;
  const order = [...found].sort((one, other) => other[1].count - one[1].count).slice(0, 10);
  return h(
    "ul",
    { class: "log problems", "data-key": "problems" },
    order.map(([problem, { count, names }]) => {
      const [reason, message] = grid.problems[problem];
      return h("li", { "data-key": `${reason} ${message}` },
        h("b", { class: "count" }, whole(count)),
        h("span", { class: "log-body" },
          h("span", null, h("code", null, reason), h("span", { class: "quiet" }, ` ${names.join(", ")}${count > names.length ? " and others" : ""}`)),
          h("span", { class: "message", title: message }, message)));
    }),
  );
}

function fleetGrid(detail) {
  const grid = detail.grid;
  const total = grid.sites.reduce((sum, site) => sum + site.cells.length, 0);
  const dense = total > 600 ? "dense" : "";
  return h(
    "section",
    { class: "card", "data-key": "grid", "aria-label": "Nodes by site" },
    h(
      "div",
      { class: "card-head" },
      h("h2", null, "Nodes"),
      h("p", { class: "quiet" }, `${plural(total, "node")} at ${plural(grid.sites.length, "site")}`),
    ),
    legend(grid),
    problems(grid),
    total
      ? h("div", { class: `sites ${dense}`, role: "group", "aria-label": "Sites; arrow keys move, Enter lists the nodes" },
          grid.sites.map((site, index) => siteBlock(grid, site, index === 0)))
      : h("p", { class: "empty" }, detail.nodesKnown ? "No node matches the placement." : "This operator does not know the nodes yet."),
    nodes(grid, detail.rollout ? detail.rollout.waves : []),
  );
}

function plots(detail) {
  return h(
    "section",
    { class: "card", "data-key": "plots", "aria-label": "Canary against stable" },
    h(
      "div",
      { class: "card-head" },
      h("h2", null, "Canary against stable"),
      h("p", { class: "quiet" }, "dashed: bounds; crosses: failed measurements"),
    ),
    detail.plots.length
      ? h("div", { class: "plots" }, detail.plots.map((plot) => drawPlot(plot, detail.rollout ? detail.rollout.waves : [])))
      : h("p", { class: "empty" }, "Nothing was measured yet."),
  );
}

function conditions(detail) {
  return h(
    "section",
    { class: "card", "data-key": "conditions", "aria-label": "Conditions" },
    h("div", { class: "card-head" }, h("h2", null, "Conditions")),
    h(
      "ul",
      { class: "log" },
      detail.conditions.map((entry) =>
        h("li", { "data-key": entry.type },
          h("span", { class: `mark ${entry.status}` }, entry.status === "True" ? "✓" : entry.status === "False" ? "✗" : "?"),
          h("span", { class: "log-body" },
            h("span", null, h("b", null, entry.type), " ", h("code", null, entry.reason), h("span", { class: "quiet" }, ` ${moment(entry.since)}`)),
            h("span", { class: "message", title: entry.message }, entry.message))),
      ),
    ),
  );
}

function events(detail) {
  return h(
    "section",
    { class: "card", "data-key": "events", "aria-label": "Decisions" },
    h("div", { class: "card-head" }, h("h2", null, "Decisions"), h("p", { class: "quiet" }, "since the operator started")),
    detail.events.length
      ? h("ol", { class: "log" },
          detail.events.map((entry) =>
            h("li", { class: entry.warning ? "warning" : null },
              h("time", { datetime: entry.at }, moment(entry.at)),
              h("span", { class: "log-body" }, h("code", null, entry.reason), h("span", { class: "message", title: entry.message }, entry.message)))))
      : h("p", { class: "empty" }, "None yet."),
  );
}

export function drawDetail(detail) {
  const row = detail.row;
  return [
    h(
      "div",
      { class: "title", "data-key": "title" },
      h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Fleet"), h("span", { "aria-hidden": "true" }, " / "), row.namespace),
      h("div", { class: "title-line" }, h("h1", null, row.name), pill(row.health), row.reason && h("code", null, row.reason)),
      row.message && h("p", { class: "lead" }, row.message),
      h(
        "dl",
        { class: "facts" },
        h("div", null, h("dt", null, "ready"), h("dd", null, `${whole(row.ready)} / ${whole(row.total)}`), bar(row)),
        h("div", null, h("dt", null, "version"), h("dd", null, row.version || "none")),
        h("div", null, h("dt", null, "stable revision"), h("dd", null, detail.stable || "none")),
        detail.update !== detail.stable && h("div", null, h("dt", null, "wanted revision"), h("dd", null, detail.update || "none")),
        row.offline > 0 && h("div", null, h("dt", null, "offline"), h("dd", null, whole(row.offline))),
        row.failed > 0 && h("div", null, h("dt", null, "failed"), h("dd", null, whole(row.failed))),
      ),
    ),
    rollout(detail),
    plots(detail),
    fleetGrid(detail),
    h("div", { class: "columns", "data-key": "columns" }, events(detail), conditions(detail)),
  ];
}

export function drawMissing(name) {
  return [
    h("p", { class: "crumbs", "data-key": "title" }, h("a", { href: "#/" }, "Fleet")),
    h("p", { class: "empty", "data-key": "missing" }, `There is no SLMDeployment ${name}.`),
  ];
}
