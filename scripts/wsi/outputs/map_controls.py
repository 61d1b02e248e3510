# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The style of map.html, and the second half of its script: legends, controls, and moving about."""

MAP_STYLE = """
:root { color-scheme: light } * { box-sizing: border-box }
body { font: 14px/1.4 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; color: #1a1a1a; background: #f4f4f4;
  margin: 0; height: 100vh; display: flex; flex-direction: column }
header { padding: .5rem .9rem; background: #fff; border-bottom: 1px solid #ccc }
h1 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere } header p { margin: 0; color: #555; font-size: .85rem }
h2 { font-size: .85rem; font-weight: normal; margin: 0 0 .3rem; color: #555 }
main { flex: 1; min-height: 0; display: flex } #map { position: relative; flex: 1; min-width: 0; min-height: 12rem }
#map > canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: grab;
  background: #fff } #map > canvas:active { cursor: grabbing } :focus-visible { outline: 2px solid #0047ab }
aside { width: 18rem; overflow-y: auto; padding: .2rem .9rem; background: #fff; border-left: 1px solid #ccc }
#layers section, fieldset { border: 0; border-top: 1px solid #ddd; margin: 0; padding: .5rem 0 }
#layers fieldset { border: 0 } #layers label { display: flex; gap: .45rem; align-items: baseline }
#layers input { flex: none } #layers input[type=range] { width: 100%; margin: .1rem 0 0 }
legend { padding: 0; color: #555 } .off input[type=range], .off .legend { display: none }
.swatch { width: 1.3rem; height: 0; border-top: 3px solid; align-self: center; margin-left: auto }
.legend canvas { display: block; width: 100%; height: 12px; margin-top: .2rem; border: 1px solid #888 }
.ticks { position: relative; height: 1.4rem; font-size: .75rem } .ranks .ticks { height: 2.4rem }
.ticks span { position: absolute; transform: translateX(-50%); white-space: pre; text-align: center; line-height: 1.25 }
.ticks span::before { content: ""; display: block; height: 4px; width: 1px; margin: auto; background: #555 }
.ticks .low { transform: none; text-align: left } .ticks .low::before { margin: 0 }
.ticks .high { transform: translateX(-100%); text-align: right } .ticks .high::before { margin: 0 0 0 auto }
.says { color: #555; font-size: .78rem; white-space: pre-line }
.over { position: absolute; background: #fffffff0; border: 1px solid #bbb; border-radius: 4px; padding: .3rem .6rem }
#scale { left: .8rem; bottom: .8rem; font-size: .85rem; pointer-events: none }
#scale i { display: block; height: 5px; background: #000 }
#under { right: .8rem; bottom: .8rem; font-variant-numeric: tabular-nums; pointer-events: none; font-size: .85rem }
#under:empty { display: none } #under td { padding: 0 } #under td + td { padding-left: .9rem; text-align: right }
#zoom { left: .8rem; top: .8rem; display: flex; flex-direction: column; gap: .3rem; padding: .3rem }
button { cursor: pointer; font: inherit } #zoom button { font-size: 1.1rem; width: 2rem; height: 2rem; padding: 0 }
#best { background: #fff; border-top: 1px solid #ccc; padding: .4rem .9rem .5rem }
#best div { display: flex; gap: .5rem; overflow-x: auto; padding: 2px }
#best button { border: 2px solid #bbb; border-radius: 3px; background: #fff; padding: 3px; text-align: left;
  font-size: .75rem; white-space: pre-line; flex: none; min-width: 6.4rem }
#best img { display: block; width: 5.8rem; height: 5.8rem } #best .flagged { border-color: #d62728 }
#best button[aria-pressed=true] { background: #ffe9a8 }
@media (max-width: 46rem) { main { flex-direction: column } aside { width: auto; max-height: 38vh; border: 0 } }
"""

MAP_CONTROLS = r"""
/* ---- what is told in words: the scale, the patch under the pointer, the colours */
function drawScale() {
  if (told.microns === null) {
    byId("scale").textContent = "no scale bar: micrometres per pixel are not known";
    return;
  }
  const longest = 160 / scale() * told.microns, decade = 10 ** Math.floor(Math.log10(longest));
  const microns = decade * [5, 2, 1].find(step => step * decade <= longest * (1 + 1e-9));
  const bar = make("i", {});
  bar.style.width = microns / told.microns * scale() + "px";
  const text = microns >= 1000 ? `${short(microns / 1000)} mm` : `${short(microns)} µm`;
  byId("scale").replaceChildren(bar, text);
}

function tell(patch) {
  const facts = patch < 0 ? [] : [
    ["x, y", `${exact(xs[patch])}, ${exact(ys[patch])}`],
    ...numbers.map(each => [each.name, short(each.values[patch])]),
    ...(marks[patch] & FLAGGED ? [["flagged", "yes"]] : []),
    ...(marks[patch] & ANNOTATED ? [["annotated", "yes"]] : [])
  ];
  byId("under").replaceChildren(...facts.map(([name, value]) =>
    make("tr", {}, make("td", {textContent: name}), make("td", {textContent: value}))));
}

function legend(layer) {
  const bar = make("canvas", {width: SHADES, height: 1}), image = new ImageData(SHADES, 1);
  new Uint32Array(image.data.buffer).set(colourTable(ranked ? told.ranks : layer.colours));
  bar.getContext("2d").putImageData(image, 0, 0);
  const {values} = numbers[layer.number], sorted = layer.sorted ?? values;
  const ofRank = share => `${100 * share} %\n${short(sorted[Math.round(share * (count - 1))], 3)}`;
  const marked = ranked ? [0, 0.25, 0.5, 0.75, 1].map(share => [share, ofRank(share)]) : layer.ticks;
  const ticks = make("div", {className: "ticks"}, ...marked.map(([place, text]) => {
    const tick = make("span", {textContent: text, className: place < 0.04 ? "low" : place > 0.96 ? "high" : ""});
    tick.style.left = 100 * place + "%";
    return tick;
  }));
  const says = ranked ? "the share of this slide's patches that have less, and the value there" : layer.says;
  return [bar, ticks, make("div", {className: "says", textContent: says})];
}

function control(layer) {
  const box = make("input", {type: "checkbox", checked: layer.on});
  const range = make("input", {type: "range", min: 0, max: 1, step: 0.05, value: layer.opacity});
  range.setAttribute("aria-label", `opacity of ${layer.name}`);
  range.title = "opacity";
  const label = make("label", {}, box, layer.name), explained = make("div", {className: "legend"});
  if (layer.colour) {
    const swatch = make("span", {className: "swatch"});
    swatch.style.borderColor = layer.colour;
    label.append(swatch);
  }
  const section = make("section", {}, label, range, explained);
  layer.show = () => {
    box.checked = layer.on;
    section.classList.toggle("off", !layer.on);
    section.classList.toggle("ranks", ranked);
    if (layer.on && layer.legend && count) explained.replaceChildren(...layer.legend());
  };
  box.onchange = () => { layer.on = box.checked; change(); };
  range.oninput = () => { layer.opacity = Number(range.value); redraw(); };
  return section;
}

function scaleChoice() {
  const choices = [["absolute", "absolute: the same on every slide"], ["percentile", "percentile within this slide"]];
  const lines = choices.map(([key, text]) => {
    const radio = make("input", {type: "radio", name: "colours", value: key});
    radio.onchange = () => { ranked = key === "percentile"; change(); };
    return make("label", {}, radio, text);
  });
  return make("fieldset", {}, make("legend", {textContent: "colours"}), ...lines);
}

function change() {
  for (const layer of layers) {
    if (ranked && layer.legend && layer.on) layer.sorted ??= numbers[layer.number].values.slice().sort();
    layer.show();
  }
  document.querySelector(`[value=${ranked ? "percentile" : "absolute"}]`).checked = true;
  moved();
}

/* ---- where one looks, also told by the address: #x=…&y=…&zoom=…&patch=…&on=slide,score&colours=percentile */
let remembering = 0;

function moved() {
  view.zoom = between(0.5, view.zoom, Math.max(8, zoomWithPatchOf(480)));
  view.x = between(windowLeft, view.x, windowRight);
  view.y = between(windowTop, view.y, windowBottom);
  redraw();
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const facts = {x: Math.round(view.x), y: Math.round(view.y), zoom: short(view.zoom)};
    if (chosen >= 0) facts.patch = chosen;
    facts.on = layers.filter(layer => layer.on).map(layer => layer.key).join(",");
    facts.colours = ranked ? "percentile" : "absolute";
    history.replaceState(null, "", "#" + Object.entries(facts).map(pair => pair.join("=")).join("&"));
  }, 400);
}

function follow() {
  const given = new URLSearchParams(location.hash.slice(1)), number = key => Number(given.get(key) || NaN);
  if (given.has("on")) {
    const keys = given.get("on").split(",");
    for (const layer of layers) layer.on = keys.includes(layer.key);
  }
  ranked = given.get("colours") === "percentile";
  if (xs[number("patch")] !== undefined) choose(number("patch"));
  for (const key of ["x", "y", "zoom"]) if (Number.isFinite(number(key))) view[key] = number(key);
  change();
}

function choose(patch, going = true) {
  chosen = patch;
  for (const button of document.querySelectorAll("[data-patch]")) {
    button.setAttribute("aria-pressed", Number(button.dataset.patch) === patch);
  }
  tell(patch);
  if (going) {
    const pixels = Math.min(canvas.clientWidth, canvas.clientHeight) / 5;
    Object.assign(view, {x: xs[patch] + tile / 2, y: ys[patch] + tile / 2, zoom: zoomWithPatchOf(pixels)});
  }
  moved();
}

const placeAt = event => {
  const box = canvas.getBoundingClientRect();
  return [
    view.x + (event.clientX - box.left - canvas.clientWidth / 2) / scale(),
    view.y + (event.clientY - box.top - canvas.clientHeight / 2) / scale()
  ];
};

function zoomBy(factor, event) {  // the place under the pointer stays there
  const before = event && placeAt(event);
  view.zoom *= factor;
  moved();
  if (event) shift(before, placeAt(event));
}

function shift([x0, y0], [x1, y1]) {
  view.x += x0 - x1;
  view.y += y0 - y1;
  moved();
}

const pointers = new Map();
let travelled = 0;
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  travelled = 0;
});
canvas.addEventListener("pointermove", event => {
  const before = pointers.get(event.pointerId);
  if (!before) {
    const patch = patchAt(placeAt(event));
    if (patch !== hovered) {
      hovered = patch;
      tell(patch >= 0 ? patch : chosen);
      redraw();
    }
    return;
  }
  const [other] = [...pointers.values()].filter(each => each.pointerId !== event.pointerId);
  const apart = one => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
  if (other) zoomBy(apart(event) / Math.max(apart(before), 1), other);
  else shift(placeAt(before), placeAt(event));
  travelled += Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY);
  pointers.set(event.pointerId, event);
});
for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, event => {
    pointers.delete(event.pointerId);
    if (kind === "pointerup" && travelled < 5) choose(patchAt(placeAt(event)), false);
  });
}
canvas.addEventListener("pointerleave", () => {
  hovered = -1;
  tell(chosen);
  redraw();
});
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.04 : 0.0015)), event);
}, {passive: false});
canvas.addEventListener("dblclick", event => zoomBy(event.shiftKey ? 0.5 : 2, event));

const KEYS = {"+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "0": () => whole()};
for (const [key, x, y] of [["Left", -1, 0], ["Right", 1, 0], ["Up", 0, -1], ["Down", 0, 1]]) {
  KEYS["Arrow" + key] = () => shift([0, 0], [-90 * x / scale(), -90 * y / scale()]);
}
const forOthers = event => event.ctrlKey || event.metaKey || event.altKey ||
  event.target.closest(event.key === " " ? "input, button" : "input");
addEventListener("keydown", event => {
  if (forOthers(event)) return;
  if (event.key === " ") bare = true;
  else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
  redraw();
});
addEventListener("keyup", event => {
  if (event.key === " " && bare) {
    bare = false;
    redraw();
  }
});

function whole() {
  Object.assign(view, {x: windowLeft + width / 2, y: windowTop + height / 2, zoom: 1});
  moved();
}

const BUTTONS = [["+", "zoom in", () => zoomBy(1.5)], ["−", "zoom out", () => zoomBy(1 / 1.5)], ["⤢", "all", whole]];
byId("zoom").append(...BUTTONS.map(([textContent, title, onclick]) => make("button", {textContent, title, onclick})));
for (const button of document.querySelectorAll("[data-patch]")) {
  button.onclick = () => choose(Number(button.dataset.patch));
}
byId("layers").append(scaleChoice(), ...layers.map(control).reverse());
new ResizeObserver(redraw).observe(canvas);
addEventListener("hashchange", follow);
follow();
"""
