"use strict";
// What the scripts of all pages share.
const data = /*DATA*/null;
const MISSING = "\u2013";
// Symbols of plotly, in the order of the colors, and how a legend draws them around the origin.
const SYMBOLS = {
  "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z", "square": "M-4 -4h8v8h-8z", "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
  "triangle-up": "M0 -5L5 4h-10z", "triangle-down": "M0 5L5 -4h-10z", "cross": "M-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
  "star": "M0 -6L1.5 -2H5.7L2.3 .7L3.5 4.9L0 2.4L-3.5 4.9L-2.3 .7L-5.7 -2H-1.5z",
  "x": "M-4.6 -2.3L-2.3 -4.6L0 -2.3L2.3 -4.6L4.6 -2.3L2.3 0L4.6 2.3L2.3 4.6L0 2.3L-2.3 4.6L-4.6 2.3L-2.3 0z",
};
const element = id => document.getElementById(id);

// Returns the color and the symbol of a line. Lines with the same color have different symbols.
function lineStyle(index) {
  const count = data.colors.length, names = Object.keys(SYMBOLS);
  return {color: data.colors[index % count], symbol: names[(index + Math.floor(index / count)) % names.length]};
}

// Plotly takes some markup in texts: <b>, <a href>, <br>, and characters such as &lt;. This shows a text as it is.
const literal = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// Returns a number with at most four digits, and any other value as it is.
function formatNumber(value) {
  if (typeof value !== "number") return value ?? MISSING;
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

function fill(select, options, onChange) {
  for (const [value, text] of options) select.add(new Option(text, value));
  select.addEventListener("change", onChange);
}

function addPoints(list, texts) {
  for (const text of texts) list.appendChild(document.createElement("li")).textContent = text;
  list.hidden = !texts.length;
}

function link(text, target) {
  const a = document.createElement("a");
  a.append(...breakable(text));
  a.href = target.split("/").filter(Boolean).map(encodeURIComponent).join("/");  // never another host
  return a;
}

// Returns the parts of a text between which a line may break: after slashes, underscores, and dots that are no point of a number.
const breakable = node => typeof node === "string"
  ? node.split(/(?<=[_/]|\.(?!\d))/).flatMap(part => [part, document.createElement("wbr")]).slice(0, -1) : [node];

function small(text) {
  const part = document.createElement("small");
  part.textContent = text;
  return part;
}

// ------------------------------------------------------------------------------------------------------------- plots

const themeColor = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Adds a button for each entry {key, text, color, symbol, dash, width, open} that hides and shows what has its key.
function drawLegend(container, entries, hidden, onChange) {
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  for (const {key, text, color = "currentColor", symbol, dash = "", width = 2, open = false} of entries) {
    const button = document.createElement("button"), icon = svg("svg", {width: 26, height: 14, viewBox: "-13 -7 26 14"});
    icon.append(svg("path", {d: "M-13 0H13", stroke: color, "stroke-width": width, "stroke-dasharray": dash}));
    const inside = open ? "var(--background)" : color;
    if (symbol) icon.append(svg("path", {d: SYMBOLS[symbol], fill: inside, stroke: color, "stroke-width": open ? 1.5 : 0}));
    button.append(icon, text);
    button.ariaPressed = "true";
    button.addEventListener("click", () => {
      if (!hidden.delete(key)) hidden.add(key);
      button.ariaPressed = String(!hidden.has(key));
      onChange();
    });
    container.append(button);
  }
}

// Draws traces into an element, in the colors of the page. The axes are settings of plotly.
function plot(id, traces, xaxis, yaxis, more = {}) {
  const axis = {gridcolor: themeColor("--line"), zeroline: false, linecolor: themeColor("--line"), automargin: true};
  Plotly.react(id, traces, {
    margin: {l: 60, r: 15, t: 30, b: 50}, paper_bgcolor: themeColor("--background"), plot_bgcolor: themeColor("--background"),
    font: {family: "system-ui, sans-serif", size: 13, color: themeColor("--text")}, hovermode: "closest", showlegend: false,
    hoverlabel: {align: "left", bgcolor: themeColor("--raised"), bordercolor: themeColor("--line"),
      font: {size: 12, color: themeColor("--text")}},
    xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...more,
  }, {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
}

// On a logarithmic axis, plotly labels the ticks between powers of ten with single digits. These are full numbers.
function logTicks(values) {
  const positive = values.filter(value => value > 0), low = Math.min(...positive) / 2, high = Math.max(...positive) * 2;
  const digits = high < 20 * low ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8] : high < 2e4 * low ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); positive.length && power <= Math.log10(high); power++)
    for (const digit of digits) ticks.push(Number((digit * 10 ** power).toPrecision(2)));
  return {type: "log", tickvals: ticks, ticktext: ticks.map(String)};
}

// ------------------------------------------------------------------------------------------------------------ tables

// Compares numbers by value and text naturally (b2 before b10). Missing values come last in both directions.
function compare(a, b, sign) {
  if (a == null || b == null) return (a == null) - (b == null);
  return sign * (typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", {numeric: true}));
}

// Fills a table with a row for each item and a column for each key. A click on the head of a column sorts by it.
function tabulate(table, items, keys, title, cell) {
  const head = table.createTHead().insertRow(), body = table.createTBody();
  const isText = key => items.some(item => typeof item[key] === "string");
  const trs = items.map(item => {
    const tr = body.insertRow();
    for (const key of keys) {
      const td = tr.insertCell();
      td.append(...cell(item, key).flatMap(part => key === keys[0] ? breakable(part) : [part]));
      td.classList.toggle("text", isText(key));
      td.classList.toggle("long", td.textContent.length > 40);
    }
    return {item, tr};
  });
  for (const key of keys) {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col";
    th.dataset.key = key;
    th.classList.toggle("text", isText(key));
    button.textContent = title(key);
    button.style.minWidth = `calc(${Math.min(button.textContent.length, 11)}ch + 1.4rem)`;
    th.append(button);
    head.append(th);
    th.addEventListener("click", () => {
      const isAscending = th.ariaSort !== "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      th.ariaSort = isAscending ? "ascending" : "descending";
      trs.sort((a, b) => compare(a.item[key], b.item[key], isAscending ? 1 : -1));
      body.append(...trs.map(({tr}) => tr));
    });
  }
}
