"use strict";
// A look inside SAE methods: which latents are chosen at each step, which patches they change, and which pictures fire them most.

function inside() {
  if (!data.looks.length) return;
  const place = el("div"), picture = (code, alt, size = 128) =>
    el("img", { src: `data:image/webp;base64,${code}`, alt, width: size, height: size, style: "border-radius:6px;display:block;object-fit:cover" });
  const short = (name) => name.replace("_blocks", "").replace("_block", "").replace("attentions", "attn");
  let step = null;

  const chart = (look) => {
    const steps = look.latents[0].strengths.length;
    const head = el("tr", {}, el("th", { class: "method" }, "latent"), Array.from({ length: steps }, (_, k) => el("th", {}, String(k + 1))),
      el("th", { style: "text-align:left" }, "un-edited pictures that fire it most"));
    const rows = look.latents.map((one) => el("tr", {}, el("td", { class: "method" }, `${one.latent} at ${short(one.hookpoint)}`),
      one.strengths.map((v) => el("td", { style: v ? `background:rgb(var(--shade) / ${0.15 + 0.85 * v})` : null,
        title: v ? `step strength ${v}` : "not chosen at this step" })),
      el("td", {}, el("div", { style: "display:flex;gap:3px" }, one.top.map((k) =>
        picture(look.tops[k], `fires latent ${one.latent}`, 40))))));
    return el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "heat" }, el("thead", {}, head), el("tbody", {}, rows)));
  };

  const patches = (one, name, grid) => {
    const [none, own] = [one.masks[name][2 * step], one.masks[name][2 * step + 1]];
    const cells = [...own].flatMap((bit, k) => {
      const kind = (bit === "1" ? 1 : 0) + (none[k] === "1" ? 2 : 0);
      return kind ? [el("rect", { x: k % grid, y: Math.floor(k / grid), width: 1, height: 1, "fill-opacity": .55,
        fill: ["", "#d62728", "#1f5fd0", "#8e44ad"][kind] })] : [];
    });
    const changed = [...own].filter((bit) => bit === "1").length;
    return el("figure", { style: "margin:0" }, el("div", { style: "position:relative;width:128px;height:128px" },
      picture(one.base, `un-edited ${one.object} in style ${one.style}`),
      el("svg", { viewBox: `0 0 ${grid} ${grid}`, width: 128, height: 128, style: "position:absolute;inset:0", role: "img",
        "aria-label": `${changed} of ${own.length} patches changed at step ${step + 1} at ${name}` }, cells)),
      el("figcaption", {}, short(name)));
  };

  // The step at which most patches are changed, over all pictures and hook points.
  const busiest = (look, steps) => {
    const changed = Array.from({ length: steps }, (_, k) => look.pictures.flatMap((one) => Object.values(one.masks))
      .reduce((sum, masks) => sum + masks[2 * k + 1].split("1").length, 0));
    return changed.indexOf(Math.max(...changed));
  };

  const draw = () => {
    const look = data.looks.find((one) => one.method === method.value && one.target === target.value);
    if (!look) return place.replaceChildren(el("p", { class: "note" }, "There is no look at this pair."));
    const steps = look.latents[0].strengths.length;
    const strip = el("div");
    const fill = () => strip.replaceChildren(...look.pictures.map((one) => el("div", { class: "bar", style: "align-items:start" },
      el("figure", { style: "margin:0" }, picture(one.base, "un-edited"), el("figcaption", {}, "un-edited")),
      Object.entries(look.grid).map(([name, grid]) => patches(one, name, grid)),
      el("figure", { style: "margin:0" }, picture(one.edited, `with ${look.method}`), el("figcaption", {}, "edited")),
      el("div", { class: "note" }, one.object, el("br"), one.style || "no style"))));
    step = step === null ? busiest(look, steps) : Math.min(step, steps - 1);
    const told = el("output", {}, `step ${step + 1} of ${steps}`);
    const slider = el("input", { type: "range", min: 1, max: steps, value: step + 1, "aria-label": "sampling step", oninput: (event) => {
      step = Number(event.target.value) - 1;
      told.textContent = `step ${step + 1} of ${steps}`;
      fill();
    } });
    fill();
    place.replaceChildren(chart(look), el("div", { class: "bar" }, el("label", {}, "Sampling step", slider), told,
      el("span", { class: "legend" }, [["#d62728", "with the prompt"], ["#1f5fd0", "without"], ["#8e44ad", "both"]].map(([colour, text]) =>
        el("span", {}, el("i", { style: `background:${colour}` }), text)))), strip);
  };
  const methods = unique(data.looks.map((one) => one.method)), targets = unique(data.looks.map((one) => one.target));
  const method = picker("Method", methods, draw), target = picker("Erased", targets, draw);
  section("inside", "A look inside", "The latents that stand for the concept at each sampling step (darker: stronger), and the patches of the hook points' maps that the edit changes. Where nothing is coloured, the picture passes as it is.",
    el("div", { class: "bar" }, method.node, target.node), place);
  draw();
}
