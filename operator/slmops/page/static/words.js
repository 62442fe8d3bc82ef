// SPDX-License-Identifier: Apache-2.0
// How numbers, times and states are said.

export const HEALTH = {
  ok: "Healthy",
  rolling: "Rolling out",
  held: "Held",
  offline: "Nodes offline",
  failing: "Failing",
  unknown: "Not seen yet",
};

export const STATES = {
  stable: ["Stable", "serves the stable revision"],
  canary: ["Canary", "serves the revision on trial"],
  moving: ["Moving", "was given a revision and does not serve it yet"],
  waiting: ["Waiting", "has nothing of this deployment yet"],
  deferred: ["Deferred", "was offline when its wave came; follows when it is back"],
  offline: ["Offline", "its kubelet does not report"],
  failing: ["Failing", "cannot fetch or run what it was given"],
  unfit: ["Unfit", "no variant suits it"],
  spare: ["No replica", "could take a replica and has none"],
};

const WHOLE = new Intl.NumberFormat("en");

export function whole(value) {
  return WHOLE.format(value);
}

export function amount(value, unit) {
  if (value === null || value === undefined) return "no data";
  if (unit === "share") return `${trim(value * 100)} %`;
  if (unit === "s") return value < 1 ? `${trim(value * 1000)} ms` : `${trim(value)} s`;
  return unit ? `${trim(value)} ${unit}` : trim(value);
}

function trim(value) {
  const size = Math.abs(value);
  const digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return String(Number(value.toFixed(digits)));
}

export function bytes(value) {
  if (!value) return "";
  const power = Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${trim(value / 2 ** (10 * power))} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

export function clock(seconds, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", options);
}

export function moment(text) {
  if (!text) return "";
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return text;
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? "" : `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} `;
  return day + clock(at.getTime() / 1000);
}

export function plural(count, one, many = `${one}s`) {
  return `${whole(count)} ${count === 1 ? one : many}`;
}
