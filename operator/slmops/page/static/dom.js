// SPDX-License-Identifier: Apache-2.0
// Makes elements and brings a live tree in line with a new one. Texts are always text nodes: what comes
// from the fleet is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Children are paired by `data-key` where they have one and by position otherwise, so focus, scrolling
// and what is typed into a field stay.
export function morph(live, wanted) {
  if (live.nodeType !== wanted.nodeType || live.nodeName !== wanted.nodeName) {
    live.replaceWith(wanted);
    return;
  }
  if (live.nodeType === Node.TEXT_NODE) {
    if (live.data !== wanted.data) live.data = wanted.data;
    return;
  }
  for (const { name } of [...live.attributes]) {
    if (!wanted.hasAttribute(name)) live.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (live.getAttribute(name) !== value) live.setAttribute(name, value);
  }
  morphChildren(live, [...wanted.childNodes]);
}

export function morphChildren(live, wanted) {
  const keyed = new Map();
  for (const child of live.children) {
    if (child.dataset && child.dataset.key) keyed.set(child.dataset.key, child);
  }
  let here = live.firstChild;
  for (const child of wanted) {
    const key = child.dataset && child.dataset.key;
    const known = key ? keyed.get(key) : undefined;
    if (known) {
      keyed.delete(key);
      if (known !== here) live.insertBefore(known, here);
      else here = here.nextSibling;
      morph(known, child);
    } else if (key || !here || (here.dataset && here.dataset.key)) {
      live.insertBefore(child, here);
    } else {
      const next = here.nextSibling;
      morph(here, child);
      here = next;
    }
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}
