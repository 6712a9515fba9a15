"use strict";
// Everything is readable without this script: it sorts tables, chooses what a matrix shows, and
// shows the images of a cell. Texts are put into the page by textContent alone.
document.documentElement.classList.add("scripted");

function makeButton(text, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => act(button));
  return button;
}

// Tables: table.sortable; a cell's data-value counts, or else its text. What is empty comes last.
function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return cell.classList.contains("number") ? (text === "" ? null : Number(text)) : text;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function sortBy(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => compare(a, b, sign));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  let button = head.querySelector("button");
  if (!button) {
    button = makeButton(head.textContent, () => {});
    head.replaceChildren(button);
  }
  button.addEventListener("click", () => sortBy(head));
}

// The confusion matrix: counts or shares, and the images of one cell at a time.
const matrix = document.querySelector(".matrix");
if (matrix) {
  const choice = document.createElement("div");
  choice.className = "choice";
  const choose = (show) => {
    matrix.dataset.show = show;
    for (const button of choice.children) {
      button.setAttribute("aria-pressed", String(button.dataset.show === show));
    }
  };
  for (const [show, text] of [["count", "Number of images"], ["share", "Share of the row"]]) {
    const button = makeButton(text, () => choose(show));
    button.dataset.show = show;
    choice.append(button);
  }
  choose("count");
  matrix.closest(".wide").before(choice);
}

const cells = [...document.querySelectorAll(".cell")];
const links = [...document.querySelectorAll('a[href^="#cell-"]')];

function showCell(id) {
  for (const cell of cells) {
    cell.hidden = cell.id !== id;
    cell.open = cell.id === id;
  }
  for (const link of links) {
    if (link.hash === "#" + id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const summary = document.getElementById(id).querySelector("summary");
  summary.focus({ preventScroll: true });
  summary.scrollIntoView({ block: "nearest" });
}

const asked = location.hash.slice(1);
for (const cell of cells) cell.hidden = true;
for (const link of links) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    showCell(link.hash.slice(1));
  });
}
if (cells.some((cell) => cell.id === asked)) showCell(asked);

// Commands are copied by a button.
function copy(button) {
  const code = button.parentElement.querySelector("code");
  const done = () => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  const mark = () => getSelection().selectAllChildren(code); // copied by hand
  if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, mark);
  else mark();
}
for (const box of document.querySelectorAll(".code")) box.append(makeButton("Copy", copy));

// On paper everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
