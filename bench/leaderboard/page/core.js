"use strict";
// Elements, numbers, sections; then the leaderboard. Everything is drawn from the JSON in #data.
const data = JSON.parse(document.getElementById("data").textContent);

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "rect", "text", "title", "polyline"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const shown = (value, column) =>
  value === null ? "–" : (Math.round(value * column.scale * 10 ** column.digits) / 10 ** column.digits + 0).toFixed(column.digits);
const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
const unique = (values) => [...new Set(values)];
const hue = (index) => `hsl(${(index * 137.5 + 210) % 360} 62% 52%)`;

function section(id, title, note, ...content) {
  document.getElementById("sections").append(el("a", { href: `#${id}` }, title));
  const heading = el("h2", { id: `${id}-title` }, title);
  const node = el("section", { id, "aria-labelledby": `${id}-title` }, heading, note ? el("p", { class: "note" }, note) : null, ...content);
  document.getElementById("main").append(node);
  return node;
}

// A choice that redraws a place whenever it changes.
function picker(label, options, change, chosen = options[0]) {
  const names = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  const select = el("select", { onchange: () => change(select.value) }, names.map(([value, text]) => el("option", { value }, text)));
  select.value = Array.isArray(chosen) ? chosen[0] : chosen;
  return { node: el("label", {}, label, select), get value() { return select.value; } };
}

function tabs(names, controls, change) {
  const buttons = names.map(([key, text]) =>
    el("button", { type: "button", role: "tab", "aria-controls": controls, "aria-selected": "false", onclick: () => choose(key) }, text));
  const choose = (key) => {
    names.forEach(([own], place) => {
      buttons[place].setAttribute("aria-selected", String(own === key));
      buttons[place].tabIndex = own === key ? 0 : -1;
    });
    change(key);
  };
  const bar = el("div", { class: "bar tabs", role: "tablist", onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    buttons[place].focus();
    buttons[place].click();
  } }, buttons);
  choose(names[0][0]);
  return bar;
}

function theme() {
  const root = document.documentElement, button = document.getElementById("theme");
  const set = (name) => {
    root.dataset.theme = name;
    button.textContent = name === "dark" ? "☀ light" : "☾ dark";
  };
  set(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  button.addEventListener("click", () => set(root.dataset.theme === "dark" ? "light" : "dark"));
}

// The leaderboard

function value(cell, column) {
  const mark = cell.place ? { class: cell.place === 1 ? "best" : "second" } : {};
  const parts = [el("span", mark, shown(cell.value, column))];
  if (cell.unsure) parts.push(el("sup", { title: "may be as good as the best of its column" }, "†"));
  if (cell.low !== null && cell.low !== undefined) {
    const low = shown(cell.low, column), high = shown(cell.high, column), place = (x) => `${Math.max(0, Math.min(100, 100 * x))}%`;
    const width = `${Math.max(0, 100 * (Math.min(1, cell.high) - Math.max(0, cell.low)))}%`;
    const whisker = column.unit === "share"
      ? el("span", { class: "whisker", role: "img", "aria-label": `95 % interval ${low} to ${high}` },
        el("i", { style: `left:${place(cell.low)};width:${width}` }), el("b", { style: `left:${place(cell.value)}` }))
      : el("small", {}, `[${low}, ${high}]`);
    whisker.title = `95 % interval [${low}, ${high}], n = ${cell.n}`;
    parts.push(whisker, column.unit === "share" ? el("small", { class: "numbers" }, `[${low}, ${high}]`) : null);
  }
  if (cell.seed_sd !== null && cell.seed_sd !== undefined) {
    parts.push(el("small", { title: "standard deviation over seeds" }, `± ${shown(cell.seed_sd, column)}`));
  }
  return parts.filter(Boolean);
}

function leaderboard() {
  const place = el("div", { id: "table", role: "tabpanel" });
  const draw = (key) => {
    const table = data.tables.find((one) => one.key === key);
    let order = { column: null, down: true };
    const body = el("tbody");
    const heads = [];
    const sorted = () => {
      if (order.column === null) return table.rows;
      const of = (row) => (order.column === "method" ? row.label : order.column === "rank" ? (row.rank ? row.rank[0] : null)
        : row.cells[order.column].value);
      return [...table.rows].sort((a, b) => {
        const [x, y] = [of(a), of(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (x < y ? -1 : x > y ? 1 : 0) * (order.down ? -1 : 1);
      });
    };
    const fill = () => {
      let group = null;
      body.replaceChildren(...sorted().map((row) => {
        const first = order.column === null && group !== null && group !== row.group;
        group = row.group;
        const rank = row.rank ? (row.rank[1] === row.rank[2] ? row.rank[0] : `${row.rank[0]} [${row.rank[1]}–${row.rank[2]}]`) : "";
        return el("tr", { class: first ? "group" : null },
          table.ranked ? el("td", { class: "rank" }, String(rank)) : null,
          el("td", { class: "method" }, el("a", { href: `#card-${row.slug}` }, row.label), row.role ? ` (${row.role})` : "",
            row.unreliable ? el("sup", { title: "unreliable: see its notes" }, "‡") : null,
            row.notes.length ? el("sup", {}, ` ${row.notes.join(",")}`) : null),
          table.columns.map((column) => el("td", {}, value(row.cells[column.key], column))));
      }));
    };
    const head = (key, text, better, hint) => {
      const cell = el("th", { scope: "col", class: key === "method" ? "method" : null, title: hint }, el("button", { type: "button", onclick: () => {
        order = order.column === key ? { column: key, down: !order.down } : { column: key, down: better !== "lower" };
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
        fill();
      } }, text));
      heads.push(cell);
      return cell;
    };
    const top = el("tr", {}, table.ranked ? head("rank", "Rank", "lower") : null, head("method", "Method", "lower"),
      table.columns.map((column) => head(column.key, column.title, column.direction,
        { higher: "higher is better", lower: "lower is better", none: "not ranked" }[column.direction])));
    fill();
    place.replaceChildren(el("div", { class: "scroll", tabindex: "0" },
      el("table", {}, el("thead", {}, top), body)), el("details", {}, el("summary", {}, "How to read this table"),
      el("p", { class: "note" }, table.caption)));
  };
  const bar = tabs(data.tables.map((table) => [table.key, table.title]), place.id, draw);
  const numbers = el("button", { type: "button", "aria-pressed": "false", onclick: () =>
    numbers.setAttribute("aria-pressed", String(place.classList.toggle("with-numbers"))) }, "Intervals in numbers");
  section("leaderboard", "Leaderboard", null, bar, el("div", { class: "bar" }, numbers), place,
    data.footnotes.length ? el("ol", { class: "notes" }, data.footnotes.map((text) => el("li", {}, text))) : null,
    data.remarks.map((text) => el("p", { class: "note" }, text)));
}

function cards() {
  const one = (card) => {
    const facts = [["Paper", card.link ? el("a", { href: card.link }, card.paper) : card.paper || "–"], ["Takes", card.supports.join(", ")],
      ["Version", card.version], ["Parameters", el("code", {}, card.config || "none")], ["Tuning", card.tuning],
      ...card.missing.map(([why, targets]) => ["Missing", `${targets}: ${why}`])];
    return el("details", { id: `card-${card.slug}` }, el("summary", {}, card.label, card.title !== card.label ? ` – ${card.title}` : ""),
      el("dl", {}, facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
      card.bibtex ? el("pre", {}, card.bibtex) : null);
  };
  section("methods", "Methods", "What each row is, with the parameters that it ran with and the entry to cite.", data.cards.map(one));
  const open = () => {
    const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card instanceof HTMLDetailsElement) card.open = true;
  };
  addEventListener("hashchange", open);
  open();
}
