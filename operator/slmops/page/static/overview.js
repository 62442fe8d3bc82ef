// SPDX-License-Identifier: Apache-2.0
// The whole fleet: counters, deployments, sites, models.

import { h, s } from "./dom.js";
import { HEALTH, bytes, plural, whole } from "./words.js";

export const filter = { text: "" };

export function pill(health) {
  return h("span", { class: `pill ${health}` }, HEALTH[health] || health);
}

// Ready of total as a bar; offline and failed nodes have their own parts.
export function bar(row) {
  const total = Math.max(1, row.total);
  const ready = Math.min(row.ready, total);
  const failed = Math.min(row.failed, total - ready);
  const offline = Math.min(row.offline, total - ready - failed);
  let x = 0;
  const part = (name, count) => {
    const width = (count / total) * 100;
    x += width;
    return count > 0 && s("rect", { class: `part ${name}`, x: x - width, y: 0, width, height: 6 });
  };
  return s(
    "svg",
    { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "part rest", x: 0, y: 0, width: 100, height: 6 }),
    part("ready", ready),
    part("failed", failed),
    part("offline", offline),
  );
}

function counter(key, value, label, tone) {
  return h("div", { class: `counter ${tone || ""}`, "data-key": key }, h("dd", null, value), h("dt", null, label));
}

function progress(row) {
  if (!row.step) return row.version ? h("span", { class: "quiet" }, row.version) : null;
  const wave = row.waves ? `wave ${row.waveNumber} of ${row.waves}` : "";
  return h(
    "span",
    { class: "stack" },
    h("span", null, row.step, row.wave && h("span", { class: "quiet" }, ` ${row.wave}`)),
    h("span", { class: "quiet" }, wave),
  );
}

function deploymentRow(row) {
  return h(
    "tr",
    { "data-key": `${row.namespace}/${row.name}` },
    h(
      "th",
      { scope: "row" },
      h("a", { href: `#/${row.namespace}/${row.name}` }, row.name),
      h("span", { class: "quiet" }, row.namespace),
    ),
    h("td", null, pill(row.health)),
    h(
      "td",
      { class: "ready" },
      h("span", null, `${whole(row.ready)} / ${whole(row.total)}`),
      bar(row),
    ),
    h("td", null, progress(row)),
    h(
      "td",
      { class: "says" },
      row.reason && h("code", null, row.reason),
      h("span", { class: "message", title: row.message }, row.message),
    ),
  );
}

function siteTile(site) {
  const down = site.nodes - site.ready;
  const state = !down ? "up" : site.ready ? "partly" : "down";
  return h(
    "li",
    { class: `tile ${state}`, "data-key": site.name, title: `${site.name}: ${site.ready} of ${plural(site.nodes, "node")} report` },
    h("span", { class: "tile-name" }, site.name),
    h("span", { class: "tile-count" }, down ? `${site.ready}/${site.nodes}` : site.nodes),
  );
}

function modelRow(model) {
  return h(
    "tr",
    { "data-key": `${model.namespace}/${model.name}` },
    h("th", { scope: "row" }, model.name, h("span", { class: "quiet" }, model.namespace)),
    h("td", null, model.accepted || "none"),
    h("td", null, model.latest || "none", h("span", { class: "quiet" }, ` of ${plural(model.versions, "version")}`)),
    h(
      "td",
      null,
      model.variants.map((variant) =>
        h(
          "span",
          { class: `gate ${variant.verdict || "open"}`, title: variant.reason },
          variant.name,
          h("span", { class: "quiet" }, ` ${variant.verdict || variant.step} ${bytes(variant.sizeBytes)}`),
        ),
      ),
    ),
    h("td", { class: "says" }, model.reason && h("code", null, model.reason), h("span", { class: "message" }, model.message)),
  );
}

function table(heads, rows, caption) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      null,
      h("caption", { class: "hidden" }, caption),
      h("thead", null, h("tr", null, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", null, rows),
    ),
  );
}

export function drawOverview(fleet) {
  const counts = fleet.counters;
  const wanted = filter.text.trim().toLowerCase();
  const rows = fleet.deployments.filter((row) =>
    `${row.namespace}/${row.name} ${row.reason} ${row.health}`.toLowerCase().includes(wanted),
  );
  const down = fleet.sites.filter((site) => site.ready < site.nodes).length;
  return [
    h("h1", { class: "hidden", "data-key": "title" }, "Fleet"),
    h(
      "dl",
      { class: "counters", "data-key": "counters" },
      counter("deployments", whole(counts.deployments), "deployments"),
      counter("nodes", fleet.nodesKnown ? [whole(counts.nodesReady), h("small", null, ` / ${whole(counts.nodes)}`)] : "?", "nodes report",
        counts.nodesReady < counts.nodes ? "warn" : ""),
      counter("sites", fleet.nodesKnown ? whole(counts.sites) : "?", "sites"),
      counter("rolling", whole(counts.rolling), "rollouts under way", counts.rolling ? "info" : ""),
      counter("held", whole(counts.held), "held", counts.held ? "warn" : ""),
      counter("failing", whole(counts.failing), "failing", counts.failing ? "bad" : ""),
    ),
    h(
      "section",
      { class: "card", "data-key": "deployments", "aria-label": "Deployments" },
      h(
        "div",
        { class: "card-head" },
        h("h2", null, "Deployments"),
        h("input", {
          type: "search", id: "filter", placeholder: "Filter by name, reason or state", "aria-label": "Filter deployments",
          autocomplete: "off", spellcheck: "false",
        }),
      ),
      rows.length
        ? table(["Name", "State", "Ready nodes", "Rollout", "Why"], rows.map(deploymentRow), "Deployments, those that need attention first")
        : h("p", { class: "empty" }, fleet.deployments.length ? "None matches the filter." : "There is no SLMDeployment yet."),
    ),
    fleet.sites.length > 0 &&
      h(
        "section",
        { class: "card", "data-key": "sites", "aria-label": "Sites" },
        h(
          "div",
          { class: "card-head" },
          h("h2", null, "Sites"),
          h("p", { class: "quiet" }, down ? `${plural(down, "site")} with nodes that do not report` : "all nodes report"),
        ),
        h("ul", { class: `tiles ${fleet.sites.length > 80 ? "dense" : ""}` }, fleet.sites.map(siteTile)),
      ),
    fleet.models.length > 0 &&
      h(
        "section",
        { class: "card", "data-key": "models", "aria-label": "Models" },
        h("div", { class: "card-head" }, h("h2", null, "Models"),
          fleet.modelsLeftOut > 0 && h("p", { class: "quiet" }, `${whole(fleet.modelsLeftOut)} more are not shown`)),
        table(["Name", "Offered", "Newest", "Gates of the newest", "State"], fleet.models.map(modelRow), "SLMModels"),
      ),
  ];
}
