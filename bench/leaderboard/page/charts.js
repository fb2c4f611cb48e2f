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
  const [width, height] = [540, 380];
  const least = Math.min(...points.map((point) => point.low), 0.9);
  const from = Math.max(0, least < 0.5 ? Math.floor(least * 5) / 5 : Math.floor(least * 10) / 10);
  const { at, nodes } = frame(46, 14, width - 70, height - 62, from);
  for (let v = from; v <= 1.0001; v += from < 0.5 ? 0.2 : from < 0.8 ? 0.1 : 0.05) {
    nodes.push(el("text", { x: at.x(v), y: height - 30, "text-anchor": "middle" }, (100 * v).toFixed(0)));
  }
  nodes.push(el("text", { x: 46 + (width - 70) / 2, y: height - 8, "text-anchor": "middle" }, "retained: mean of IRA and CRA (%) →"));
  nodes.push(el("text", { x: 12, y: height / 2, transform: `rotate(-90 12 ${height / 2})`, "text-anchor": "middle" }, "erased: UA (%) →"));
  const ranked = points.filter((point) => point.row.rank);
  const front = ranked.filter((a) => !ranked.some((b) => b !== a && b.kept >= a.kept && b.ua.value >= a.ua.value
    && (b.kept > a.kept || b.ua.value > a.ua.value))).sort((a, b) => a.kept - b.kept);
  nodes.push(el("polyline", { class: "front", points: front.map((point) => `${at.x(point.kept)},${at.y(point.ua.value)}`).join(" ") }));
  // Labels are put where no other stands yet.
  const taken = [];
  points.forEach((point, place) => {
    const [x, y] = [at.x(point.kept), at.y(point.ua.value)], label = point.row.label;
    const colour = point.row.rank ? hue(place) : "var(--soft)";
    const text = `${label}: UA ${percent(point.ua.value)}, retained ${percent(point.kept)}`;
    const left = x > width - 40 - 6 * label.length;
    let dy = 4;
    while (taken.some(([ox, oy]) => Math.abs(oy - (y + dy)) < 12 && Math.abs(ox - x) < 130) && dy < 150) dy += 12;
    taken.push([x, y + dy]);
    nodes.push(el("g", { tabindex: "0", role: "img", "aria-label": text }, el("title", {}, text),
      point.ua.low !== undefined && point.ua.low !== null
        ? el("path", { stroke: colour, "stroke-opacity": .5, fill: "none",
          d: `M${x} ${at.y(point.ua.low)}V${at.y(point.ua.high)}M${at.x(point.low)} ${y}H${at.x(point.high)}` }) : null,
      el("circle", { cx: x, cy: y, r: 5, fill: colour }),
      el("text", { class: "name", x: left ? x - 9 : x + 9, y: y + dy, "text-anchor": left ? "end" : "start" }, label)));
  });
  const title = KINDS.find(([own]) => own === kind)[1];
  return el("figure", { style: "margin:0" }, el("h3", {}, title),
    el("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `UA against what is retained, ${title}` }, nodes));
}

function tradeoffs() {
  if (!KINDS.length) return;
  section("tradeoff", "Trade-off", "Up and to the right is better. Whiskers are 95 % intervals for other noise; the dashed line joins the rows that no other beats in both.",
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
        : `background:rgb(var(--shade) / ${(0.75 * share).toFixed(3)})` }, share === null || share === undefined ? "–" : (100 * share).toFixed(0));
    };
    place.replaceChildren(el("table", { class: "heat" },
      el("thead", {}, el("tr", {}, el("th", { class: "method" }, "Method"),
        names.map((name) => el("th", { scope: "col" }, el("span", { class: "turn", style: "writing-mode:vertical-rl" }, name.split(":").slice(1).join(":")))))),
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
  const place = el("div", { class: "columns" });
  const one = (method, rows) => {
    const most = Math.max(1, ...rows.map((row) => row.judged)), [width, height] = [360, 220];
    const { at, nodes } = frame(38, 12, width - 52, height - 48, 0);
    const x = (judged) => at.x(judged / most);
    for (let k = 0; k <= most; k += Math.max(1, Math.ceil(most / 5))) {
      nodes.push(el("text", { x: x(k), y: height - 20, "text-anchor": "middle" }, String(k)));
    }
    nodes.push(el("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, "pictures judged for a goal"));
    for (const name of unique(rows.map((row) => row.attack))) {
      const own = rows.filter((row) => row.attack === name), last = own[own.length - 1];
      const points = own.map((row) => `${x(row.judged)},${at.y(row.success)}`);
      if (last.judged < most) points.push(`${x(most)},${at.y(last.success)}`);
      nodes.push(el("polyline", { points: points.join(" "), fill: "none", stroke: hue(names.indexOf(name)), "stroke-width": 2 },
        el("title", {}, `${name}: ${percent(last.success)} % in the end`)));
    }
    const ends = unique(rows.map((row) => row.attack)).map((name) => `${name} ${percent(rows.filter((row) => row.attack === name).at(-1).success)} %`);
    return el("figure", { style: "margin:0" }, el("h3", {}, method),
      el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Success of attacks on ${method}: ${ends.join(", ")}` }, nodes));
  };
  const draw = () => {
    const rows = data.attack_curves.filter((row) => row.kind === kind.value);
    place.replaceChildren(...unique(rows.map((row) => row.method)).map((method) => one(method, rows.filter((row) => row.method === method))));
  };
  const kind = picker("Targets", kinds, draw);
  section("attacks", "Attacks", "Share of goals (%) in which the erased concept is back after so many judged pictures; what is there without any attack stands at 0.",
    el("div", { class: "bar" }, kind.node),
    el("div", { class: "legend" }, names.map((name, place) => el("span", {}, el("i", { style: `background:${hue(place)}` }), name))), place);
  draw();
}
