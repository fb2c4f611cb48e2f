"use strict";
// Trade-off, concepts, what erased concepts became, attacks. Numbers are shares in [0, 1].
const KINDS = [["style", "styles"], ["object", "objects"], ["mixed", "styles and objects"]].filter(([kind]) =>
  data.tables.some((table) => table.key === kind));

function frame(x, y, width, height, from) {
  const at = { x: (v) => x + width * (v - from) / (1 - from), y: (v) => y + height * (1 - v) };
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const nodes = ticks.flatMap((v) => [
    el("line", { class: "axis", x1: x, x2: x + width, y1: at.y(v), y2: at.y(v) }),
    el("text", { x: x - 6, y: at.y(v) + 4, "text-anchor": "end" }, String(100 * v))]);
  return { at, nodes };
}

function tradeoff(kind) {
  const table = data.tables.find((one) => one.key === kind);
  const points = table.rows.map((row) => {
    const part = (key) => (row.cells[key] ? row.cells[key] : { value: null });
    const kept = [part("ira"), part("cra")].filter((cell) => cell.value !== null);
    if (part("ua").value === null || !kept.length) return null;
    const mean = (end) => kept.reduce((sum, cell) => sum + (cell[end] ?? cell.value), 0) / kept.length;
    return { row, ua: part("ua"), kept: mean("value"), low: mean("low"), high: mean("high") };
  }).filter(Boolean);
  const [width, height] = innerWidth < 640 ? [340, 330] : [540, 380]; // at a phone's width letters keep their size
  const least = Math.min(...points.map((point) => point.low), 0.9);
  const from = Math.max(0, least < 0.5 ? Math.floor(least * 5) / 5 : Math.floor(least * 10) / 10);
  const { at, nodes } = frame(46, 30, width - 70, height - 78, from);
  for (let v = from; v <= 1.0001; v += from < 0.5 ? 0.2 : from < 0.8 ? 0.1 : 0.05) {
    nodes.push(el("text", { x: at.x(v), y: height - 30, "text-anchor": "middle" }, (100 * v).toFixed(0)));
  }
  nodes.push(el("text", { x: 46 + (width - 70) / 2, y: height - 8, "text-anchor": "middle" }, "retained: mean of IRA and CRA (%) →"));
  nodes.push(el("text", { x: 12, y: height / 2, transform: `rotate(-90 12 ${height / 2})`, "text-anchor": "middle" }, "erased: UA (%) →"));
  const ranked = points.filter((point) => point.row.rank);
  const front = ranked.filter((a) => !ranked.some((b) => b !== a && b.kept >= a.kept && b.ua.value >= a.ua.value
    && (b.kept > a.kept || b.ua.value > a.ua.value))).sort((a, b) => a.kept - b.kept);
  // From the left edge to the bottom, so that one row that beats all others has a front too.
  const corners = front.flatMap((point, k) => [[k ? front[k - 1].kept : from, point.ua.value], [point.kept, point.ua.value]]);
  if (front.length) corners.push([front[front.length - 1].kept, 0]);
  nodes.push(el("polyline", { class: "front", points: corners.map(([kept, ua]) => `${at.x(kept)},${at.y(ua)}`).join(" ") }));
  const tags = tagged(points);
  // What is on top of others is the tuned row.
  [...points].sort((a, b) => tags.get(b).second - tags.get(a).second).forEach((point) => {
    const [x, y] = [at.x(point.kept), at.y(point.ua.value)], colour = tags.get(point).colour;
    const text = `${point.row.label}: UA ${percent(point.ua.value)}, retained ${percent(point.kept)}`;
    nodes.push(el("g", { tabindex: "0", role: "img", "aria-label": text }, el("title", {}, text),
      point.ua.low !== undefined && point.ua.low !== null
        ? el("path", { stroke: colour, "stroke-opacity": .5, fill: "none",
          d: `M${x} ${at.y(point.ua.low)}V${at.y(point.ua.high)}M${at.x(point.low)} ${y}H${at.x(point.high)}` }) : null,
      el("circle", { cx: x, cy: y, r: 5, fill: tags.get(point).second ? "var(--card)" : colour, stroke: colour, "stroke-width": 2 })));
  });
  nodes.push(...names(points, at, tags, width));
  const title = KINDS.find(([own]) => own === kind)[1];
  return el("figure", { style: "margin:0" }, el("h3", {}, title),
    el("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `UA against what is retained, ${title}` }, nodes),
    points.length > NAMED ? legend(points, tags) : null);
}

const bare = (label) => label.replace(/ \(untuned\)$/, "");
const METHODS = unique(data.tables.flatMap((table) => table.rows.map((row) => bare(row.label))));

// Up to so many rows are named in the chart; more are numbered, with their names below.
const NAMED = 8;

// By point: colour and name or number; an untuned row beside its tuned one is a ring with the same number and "u".
function tagged(points) {
  const found = new Map();
  for (const point of points) {
    const place = METHODS.indexOf(bare(point.row.label)), label = point.row.label;
    const second = label !== bare(label) && points.some((other) => other.row.label === bare(label));
    const tag = points.length <= NAMED ? label : `${place + 1}${second ? "u" : ""}`;
    found.set(point, { tag, second, colour: point.row.rank ? hue(place) : "var(--soft)" });
  }
  return found;
}

// Points at one place share a label; it is put beside, above or below them, where least stands yet.
function names(points, at, tags, width) {
  const groups = [];
  for (const point of points) {
    const [x, y] = [at.x(point.kept), at.y(point.ua.value)];
    const near = groups.find((group) => Math.abs(group.x - x) < 8 && Math.abs(group.y - y) < 8);
    if (near) near.tags.push(tags.get(point).tag);
    else groups.push({ x, y, tags: [tags.get(point).tag] });
  }
  const taken = points.map((point) => box(at.x(point.kept) - 5, at.y(point.ua.value) - 5, 10, 10));
  return groups.map(({ x, y, tags: own }) => {
    const text = own.filter((tag) => !tag.endsWith("u") || !own.includes(tag.slice(0, -1))).join(", "), wide = 7 * text.length;
    const places = [0, -13, 13, -26, 26, -39, 39].flatMap((dy) => (Math.abs(dy) === 13 ? [-wide / 2] : []).concat([9, -9 - wide])
      .map((dx) => box(x + dx, y + dy - 6, wide, 12))).filter((one) => one.left >= 0 && one.right <= width && one.top >= 0);
    const crowd = (one) => taken.filter((other) => overlap(one, other)).length;
    const best = places.reduce((a, b) => (crowd(b) < crowd(a) ? b : a));
    taken.push(best);
    return el("text", { class: "name", x: best.left, y: best.top + 10 }, text);
  });
}

const box = (left, top, width, height) => ({ left, top, right: left + width, bottom: top + height });
const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

function legend(points, tags) {
  return el("ul", { class: "names" }, points.map((point) => {
    const { tag, colour, second } = tags.get(point);
    const dot = el("i", { style: `border-color:${colour};background:${second ? "transparent" : colour}` });
    return el("li", {}, dot, el("b", {}, tag), ` ${point.row.label}`, el("small", {}, ` ${percent(point.ua.value)} · ${percent(point.kept)}`));
  }));
}

function tradeoffs() {
  if (!KINDS.length) return;
  section("tradeoff", "Trade-off", "Up and to the right is better. Whiskers are 95 % intervals for other noise (sideways the mean of those of IRA and CRA); the dashed line bounds what ranked rows reach, those on it beaten by none in both; rings are untuned rows beside tuned ones.",
    el("div", { class: "columns" }, KINDS.map(([kind]) => tradeoff(kind))));
}

function concepts() {
  if (!data.targets.length) return;
  const metrics = [["ua", "UA (of the concept itself)"], ["ira", "IRA (others of its kind)"], ["cra", "CRA (the other kind)"],
    ["ar_target", "AR of its pictures"]].filter(([key]) => data.targets.some((row) => row[key] !== null && row[key] !== undefined));
  const place = el("div", { class: "scroll", tabindex: "0" });
  const kinds = KINDS.filter(([kind]) => data.targets.some((row) => row.kind === kind));
  const draw = () => {
    const rows = data.targets.filter((row) => row.kind === kind.value);
    const names = unique(rows.map((row) => row.target)), methods = unique(rows.map((row) => row.method));
    const found = new Map(rows.map((row) => [`${row.method}\n${row.target}`, row]));
    const cell = (method, target) => {
      const row = found.get(`${method}\n${target}`), share = row ? row[metric.value] : null;
      const n = row && metric.value !== "ar_target" ? ` (n = ${row[`${metric.value}_n`]})` : "";
      return el("td", { title: `${method}, ${target}: ${percent(share)}${n}`, style: share === null || share === undefined ? null
        : `background:rgb(var(--heat) / ${(0.75 * share).toFixed(3)})` }, share === null || share === undefined ? "–" : (100 * share).toFixed(0));
    };
    place.replaceChildren(el("table", { class: "heat" },
      el("thead", {}, el("tr", {}, el("th", { class: "method" }, "Method"),
        names.map((name) => el("th", { scope: "col" }, el("span", { class: "turn" }, name.split(":").slice(1).join(":")))))),
      el("tbody", {}, methods.map((method) => el("tr", {}, el("td", { class: "method" }, method), names.map((name) => cell(method, name)))))));
  };
  const kind = picker("Concepts", kinds, draw), metric = picker("Figure, in %", metrics, draw);
  section("concepts", "Concept by concept", null, el("div", { class: "bar" }, kind.node, metric.node), place);
  draw();
}

function became() {
  if (!data.became.length) return;
  const place = el("div", { class: "became" });
  const methods = unique(data.became.map((row) => row.method)), targets = unique(data.became.map((row) => row.target));
  const draw = () => {
    const rows = data.became.filter((row) => row.method === method.value && row.target === target.value);
    place.replaceChildren(...(rows.length ? rows.flatMap((row) => [el("div", {}, row.became),
      el("span", { class: row.concept.endsWith(`:${row.became}`) ? "self" : null, style: `width:${100 * row.share}%` }),
      el("div", {}, `${percent(row.share)} % (${row.n})`)]) : [el("p", {}, "No picture was judged.")]));
  };
  const first = methods.find((name) => name !== data.none) ?? methods[0];
  const method = picker("Method", methods, draw, first), target = picker("Erased", targets, draw);
  section("became", "What became of it", "What the judge sees in pictures that were prompted with the erased concept. Red: the concept itself, which is still there.",
    el("div", { class: "bar" }, method.node, target.node), place);
  draw();
}

function attacks() {
  if (!data.attack_curves.length) return;
  const names = unique(data.attack_curves.map((row) => row.attack)), kinds = unique(data.attack_curves.map((row) => row.kind));
  const budgets = { "pictures judged": "judged", "gradient steps": "gradient_steps" };
  const thickness = (name) => 1.5 + 6 * (1 - (names.indexOf(name) + 1) / names.length); // of equal curves the later is seen inside the earlier
  const place = el("div", { class: "columns" });
  const one = (method, rows) => {
    const most = Math.max(1, ...rows.map((row) => row.spent)), [width, height] = [360, 220];
    const { at, nodes } = frame(38, 12, width - 52, height - 48, 0);
    const x = (spent) => at.x(spent / most);
    for (let k = 0; k <= most; k += Math.max(1, Math.ceil(most / 5))) {
      nodes.push(el("text", { x: x(k), y: height - 20, "text-anchor": "middle" }, String(k)));
    }
    nodes.push(el("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, `${budget.value} of a goal`));
    const ends = [];
    for (const name of names.filter((name) => rows.some((row) => row.attack === name))) {
      const own = rows.filter((row) => row.attack === name), last = own[own.length - 1];
      ends.push(`${name} ${percent(last.success)} %`);
      const points = own.map((row) => `${x(row.spent)},${at.y(row.success)}`);
      if (last.spent < most) points.push(`${x(most)},${at.y(last.success)}`);
      nodes.push(el("polyline", { points: points.join(" "), fill: "none", stroke: hue(names.indexOf(name)), "stroke-width": thickness(name) },
        el("title", {}, `${name}: ${percent(last.success)} % in the end`)));
    }
    return el("figure", { style: "margin:0" }, el("h3", {}, method),
      el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Success of attacks on ${method}: ${ends.join(", ")}` }, nodes),
      el("figcaption", {}, `In the end: ${ends.join(", ")}.`));
  };
  const draw = () => {
    const rows = data.attack_curves.filter((row) => row.kind === kind.value && budgets[budget.value] === row.budget);
    place.replaceChildren(...unique(rows.map((row) => row.method)).map((method) => one(method, rows.filter((row) => row.method === method))));
  };
  const kind = picker("Targets", kinds, draw), budget = picker("By", Object.keys(budgets), draw);
  section("attacks", "Attacks", "Share of goals (%) in which the erased concept is back after so much was spent on each; what is there without any attack stands at 0.",
    el("div", { class: "bar" }, kind.node, budget.node),
    el("div", { class: "legend" }, names.map((name, place) => el("span", {}, el("i", { style: `background:${hue(place)}` }), name))), place);
  draw();
}
