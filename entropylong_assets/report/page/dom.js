"use strict";
// Elements, numbers and words. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, v] of Object.entries(value)) node.style.setProperty(property, v);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const drawing = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const whole = (n) => (n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en"));
const number = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits));
const share = (x) => (x === null || x === undefined ? "–" : (100 * x).toFixed(2) + "%");
const barWidth = (part, of) => `calc(var(--bar) * ${of ? (part / of).toFixed(4) : 0})`;
// An id of hexadecimal digits, short enough to read; the whole one is in the tables.
const shortId = (id) => id.replace(/[0-9a-f]{32,}/g, (digits) => `${digits.slice(0, 8)}…`);
const words = (name) => name.replaceAll("_", " ");

// Marks a text. A line break, which would be invisible, is shown as a sign.
const marked = (text) => element("mark", {}, /\S/.test(text) ? text : text.replaceAll("\n", "↵\n"));
// A name that may be broken after its dots and underscores.
const breakable = (name) => name.split(/(?<=[._])/).flatMap((part) => [part, element("wbr")]);

function table(head, rows, attributes = {}) {
  const cell = (tag, value, extra) => element(tag, extra, value);
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      attributes,
      element("thead", {}, element("tr", {}, head.map((h) => cell("th", h, { scope: "col" })))),
      element("tbody", {}, rows),
    ),
  );
}

// Left and right move among `nodes`; one of them is in the tab order.
function roving(nodes, event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const at = nodes.indexOf(document.activeElement);
  let to = null;
  if (step && at >= 0) to = at + step;
  if (event.key === "Home") to = 0;
  if (event.key === "End") to = nodes.length - 1;
  if (to === null || to < 0 || to >= nodes.length) return;
  event.preventDefault();
  for (const node of nodes) node.setAttribute("tabindex", "-1");
  nodes[to].setAttribute("tabindex", "0");
  nodes[to].focus();
}
