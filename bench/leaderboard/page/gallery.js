"use strict";
// The same requests across methods, failures first; what papers say; the page as a whole.
const STEP = 12;

// Whether a picture is as it should be: "gone", "broken" (gone, and far from every class) or "left" with the erased concept, "kept" or
// "lost" without.
function verdict(item, target) {
  if (item.style_pred === null) return "unjudged";
  const own = target.split("+").map((name) => name.split(":")).filter(([kind, name]) => item[kind] === name);
  if (own.length) return own.some(([kind, name]) => item[`${kind}_pred`] === name) ? "left" : item.far ? "broken" : "gone";
  const right = (!item.style || item.style_pred === item.style) && item.object_pred === item.object;
  return right ? "kept" : "lost";
}

const WORDS = { gone: "gone", broken: "gone, broken", left: "still there", kept: "kept", lost: "lost", unjudged: "not judged", same: "unedited" };

function gallery() {
  if (!data.gallery.items.length) return;
  const { items, images, links } = data.gallery;
  const methods = unique(items.map((item) => item.method)), targets = unique(items.map((item) => item.target)).filter(Boolean);
  const place = el("div"), concepts = unique(items.flatMap((item) => [item.style, item.object])).filter(Boolean).sort();
  const figure = (item, target) => {
    const base = item.method === data.none, word = base ? "same" : verdict(item, target);
    const seen = `${item.style_pred ?? "?"} · ${item.object_pred ?? "?"}`;
    const alt = `${item.method}, ${target} erased, asked for ${item.object}${item.style ? ` in style ${item.style}` : ""}: judged ${seen}, ${WORDS[word]}`;
    const image = el("img", { src: `data:image/webp;base64,${images[item.image]}`, alt, loading: "lazy", decoding: "async" });
    return el("figure", { class: base ? "plain" : ["left", "lost"].includes(word) ? "bad" : word === "broken" ? "broken" : "good" },
      links[item.image] ? el("a", { href: links[item.image] }, image) : image, el("figcaption", {}, base ? seen : `${WORDS[word]}: ${seen}`));
  };
  const beside = (name) => name !== bare(name) && methods.includes(bare(name));
  let count = STEP;
  const draw = () => {
    const own = items.filter((item) => item.target === target.value), rows = new Map();
    for (const item of own) {
      const key = `${item.style}\n${item.object}\n${item.seed}`;
      rows.set(key, { ...(rows.get(key) ?? {}), [item.method]: item });
    }
    const base = new Map(items.filter((item) => item.target === "").map((item) => [`${item.style}\n${item.object}\n${item.seed}`, item]));
    const chosen = [...rows].map(([key, row]) => {
      const words = Object.values(row).filter((item) => shownRows.value === "all" || !beside(item.method)).map((item) => verdict(item, target.value));
      return { key, row, words, bad: words.filter((word) => word === "left" || word === "lost").length };
    }).filter(({ key, words }) => (concept.value === "all" || key.split("\n").includes(concept.value))
      && (wanted.value === "all" || words.includes(wanted.value))).sort((a, b) => b.bad - a.bad || (a.key < b.key ? -1 : 1));
    const columns = methods.filter((name) => name !== data.none && own.some((item) => item.method === name)
      && (shownRows.value === "all" || !beside(name)));
    const line = ({ key, row }) => {
      const [style, object, seed] = key.split("\n"), none = base.get(key);
      return el("tr", {}, el("th", { scope: "row" }, style || "no style", el("br"), object, el("br"), `seed ${seed}`),
        el("td", {}, none ? figure({ ...none, method: data.none }, target.value) : "–"),
        columns.map((name) => el("td", {}, row[name] ? figure(row[name], target.value) : "–")));
    };
    place.replaceChildren(el("p", { class: "note", "aria-live": "polite" }, `${chosen.length} requests, the ${Math.min(count, chosen.length)} with most failures shown.`),
      el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "gallery" },
        el("thead", {}, el("tr", {}, ["asked for", data.none, ...columns].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, chosen.slice(0, count).map(line)))),
      chosen.length > count ? el("button", { type: "button", class: "more", onclick: () => { count += STEP; draw(); } }, "Show more") : "");
  };
  const again = () => { count = STEP; draw(); };
  const target = picker("Erased", targets, again), concept = picker("Asked for", ["all", ...concepts], again);
  const wanted = picker("Verdict", [["all", "all"], ["left", "still there"], ["gone", "gone"], ["broken", "gone, broken"], ["lost", "lost"], ["kept", "kept"]], again);
  const shownRows = picker("Rows", [["tuned", "without untuned beside tuned"], ["all", "all"]], again);
  const bar = [target, concept, wanted, ...(methods.some(beside) ? [shownRows] : [])].map((one) => one.node);
  section("gallery", "Pictures", data.gallery.note, el("div", { class: "bar" }, bar), place);
  draw();
}

function published() {
  if (!data.published.length) return;
  const columns = [["ua", "UA"], ["ira", "IRA"], ["cra", "CRA"], ["ar", "AR"], ["ga", "GA"], ["fid", "FID"], ["attacked", "UA under attack"]];
  section("published", "Published", "What papers say of the same protocol, in %. Nothing here was measured by this project; it is neither averaged nor ranked with what was.",
    el("div", { class: "scroll", tabindex: "0" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { class: "method" }, "Method"), el("th", {}, "concepts"), columns.map(([, name]) => el("th", {}, name)),
        el("th", { style: "text-align:left" }, "source and doubts"))),
      el("tbody", {}, data.published.map((row) => el("tr", {}, el("td", { class: "method" }, row.method), el("td", {}, row.concepts),
        columns.map(([key]) => el("td", {}, row[key] === undefined || row[key] === null || row[key] === "" ? "–" : String(row[key]))),
        el("td", { style: "text-align:left" }, row.source, row.doubt ? el("em", {}, ` Doubt: ${row.doubt}`) : null)))))));
}

function page() {
  theme();
  document.getElementById("about").textContent = `Protocol ${data.protocol} · provenance ${data.provenance}`;
  if (data.invalid) {
    const place = document.getElementById("invalid");
    place.hidden = false;
    place.textContent = `INVALID: ${data.invalid}. No number here may be used.`;
  }
  leaderboard();
  tradeoffs();
  concepts();
  became();
  attacks();
  gallery();
  inside();
  published();
  cards();
  document.getElementById("foot").textContent = `One file, nothing is loaded from anywhere.${
    (data.invalid ?? "").startsWith("unfinished") ? "" : " The numbers are those of leaderboard.csv beside it, and are made of records alone."}${
    data.gallery.items.length ? "" : " Pictures are in the page of the run itself; what was published of it has none."}`;
}

page();
