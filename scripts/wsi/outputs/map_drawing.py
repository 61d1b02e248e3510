# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The first half of the script of map.html, in JavaScript: what is told of a slide, and how it is drawn."""

MAP_DRAWING = r"""
"use strict";  // told of the slide in map_page.py
const byId = name => document.getElementById(name);
const told = JSON.parse(byId("told").textContent);
const KINDS = {f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array};
const SHADES = 256, SHARP = 48;  // pixels of a patch on the screen from which on its own picture is shown

function array({kind, data}) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new KINDS[kind](bytes.buffer);
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const short = (value, digits = 4) =>
  value && Math.abs(value) < 1e-3 ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
const exact = value => String(Number(value.toFixed(2)));
const between = (low, value, high) => Math.min(Math.max(value, low), high);
const howMany = (sorted, passes) => {  // of sorted values pass, which are the first ones
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (passes(sorted[middle])) low = middle + 1; else high = middle;
  }
  return low;
};

/* ---- the patches; a cell of the raster that is drawn belongs to the one whose centre is nearest */
const [xs, ys] = told.coords.map(axis => {
  const values = array(axis.values);
  return Float64Array.from(array(axis.of), number => values[number]);
});
const {tile, cell} = told, count = xs.length, span = tile / cell;
const numbers = told.numbers.map(each => ({name: each.name, values: array(each.values)}));
const marks = array(told.marks), FLAGGED = 1, ANNOTATED = 2;
const [startX, startY] = [xs, ys].map(places => places.reduce((least, place) => Math.min(least, place), Infinity));

function cells(place, start) {  // first, behind the last, and where the centre lies
  const exact = (place - start) / cell, first = Math.round(exact);
  return [first, Math.max(Math.round(exact + span), first + 1), exact + span / 2 - 0.5];
}

const [columns, rows] = [[xs, startX], [ys, startY]].map(
  ([places, start]) => places.reduce((most, place) => Math.max(most, cells(place, start)[1]), 1)
);
const owner = new Int32Array(columns * rows).fill(-1);
{
  const nearest = new Float32Array(columns * rows).fill(Infinity);
  for (let patch = 0; patch < count; patch++) {
    const [left, right, x] = cells(xs[patch], startX), [top, bottom, y] = cells(ys[patch], startY);
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const place = row * columns + column, distance = (column - x) ** 2 + (row - y) ** 2;
        if (distance < nearest[place]) {
          nearest[place] = distance;
          owner[place] = patch;
        }
      }
    }
  }
}

function patchAt([x, y]) {
  const column = Math.floor((x - startX) / cell), row = Math.floor((y - startY) / cell);
  return column >= 0 && row >= 0 && column < columns && row < rows ? owner[row * columns + column] : -1;
}

function painted(colourOf) {  // a picture of the raster, of a 32-bit colour for each patch
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const colours = Uint32Array.from(xs, (_, patch) => colourOf(patch));
  for (let place = 0; place < pixels.length; place++) {
    if (owner[place] >= 0) pixels[place] = colours[owner[place]];
  }
  const picture = make("canvas", {width: columns, height: rows});
  picture.getContext("2d").putImageData(image, 0, 0);
  return picture;
}

function borderOf(mark) {  // around the cells of the patches that have a mark, in cells
  const path = new Path2D();
  const has = (column, row) => column >= 0 && row >= 0 && column < columns && row < rows &&
    owner[row * columns + column] >= 0 && (marks[owner[row * columns + column]] & mark) > 0;
  const walk = (lines, length, differs, trace) => {
    for (let line = 0; line <= lines; line++) {
      for (let start = 0; start < length; start++) {
        let end = start;
        while (end < length && differs(line, end)) end++;
        if (end > start) trace(line, start, end);
        start = end;
      }
    }
  };
  walk(rows, columns, (row, column) => has(column, row - 1) !== has(column, row), (row, start, end) => {
    path.moveTo(start, row);
    path.lineTo(end, row);
  });
  walk(columns, rows, (column, row) => has(column - 1, row) !== has(column, row), (column, start, end) => {
    path.moveTo(column, start);
    path.lineTo(column, end);
  });
  return path;
}

function outlinesGiven() {  // in the unit of the coordinates
  const path = new Path2D();
  for (const points of told.outlines.map(array)) {
    for (let i = 0; i < points.length; i += 2) path[i ? "lineTo" : "moveTo"](points[i], points[i + 1]);
    path.closePath();
  }
  return path;
}

/* ---- the view */
const canvas = byId("map").querySelector("canvas"), pen = canvas.getContext("2d", {alpha: false});
const [windowLeft, windowTop, windowRight, windowBottom] = told.window;
const width = windowRight - windowLeft, height = windowBottom - windowTop;
const view = {x: windowLeft + width / 2, y: windowTop + height / 2, zoom: 1};
const fitting = () => 0.97 * Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
const scale = () => fitting() * view.zoom;
const zoomWithPatchOf = pixels => pixels / (fitting() * tile);
let queued = false, ranked = false, bare = false, hovered = -1, chosen = -1, density = 1;

function redraw() {
  if (!queued) requestAnimationFrame(draw);
  queued = true;
}

const onCanvas = (x, y) => [  // whole pixels, so that pictures side by side have no seam
  Math.round((x - view.x) * density + canvas.width / 2), Math.round((y - view.y) * density + canvas.height / 2)
];

function put(image, x0, y0, x1, y1) {
  const [left, top] = onCanvas(x0, y0), [right, bottom] = onCanvas(x1, y1);
  if (right > 0 && bottom > 0 && left < canvas.width && top < canvas.height) {
    pen.drawImage(image, left, top, right - left, bottom - top);
  }
}

function stroke(path, unit, x, y, lines, dash = []) {  // in units from x, y on; lines: [colour, pixels of the screen]
  pen.save();
  pen.translate(...onCanvas(x, y));
  pen.scale(unit * density, unit * density);
  pen.setLineDash(dash.map(pixels => pixels * devicePixelRatio / (unit * density)));
  for (const [colour, pixels] of lines) {
    pen.strokeStyle = colour;
    pen.lineWidth = pixels * devicePixelRatio / (unit * density);
    pen.lineJoin = "round";
    pen.lineCap = dash.length ? "butt" : "round";
    pen.stroke(path);
  }
  pen.restore();
}

function frame(patch, colour) {
  const square = new Path2D();
  square.rect(0, 0, 1, 1);
  stroke(square, tile, xs[patch], ys[patch], [["#fff", 5], [colour, 2.5]]);
}

/* ---- the layers, the lowest first */
const loaded = new Map();  // base64 → picture

function picture(data) {
  if (!loaded.has(data)) loaded.set(data, make("img", {onload: redraw, src: "data:image/jpeg;base64," + data}));
  const image = loaded.get(data);
  return image.complete && image.naturalWidth ? image : null;
}

function drawSlide() {  // false while pictures are still to come
  const {levels, side, downsample, corner} = told.picture;
  const fine = levels.filter(level => density * downsample * level.step <= 1.2).pop() ?? levels[0];
  let whole = true;
  for (const level of new Set([levels[levels.length - 1], fine])) {
    const [step, one] = [side * downsample * level.step, downsample * level.step];
    level.tiles.forEach((row, j) => row.forEach((data, i) => {
      const [x, y] = [corner[0] + i * step, corner[1] + j * step];
      const [l, t] = onCanvas(x, y), [r, b] = onCanvas(x + step, y + step);
      if (r < 0 || b < 0 || l > canvas.width || t > canvas.height) return;
      const image = picture(data);
      if (image) put(image, x, y, x + image.naturalWidth * one, y + image.naturalHeight * one);
      else whole = false;
    }));
  }
  return whole;
}

function drawSharp() {  // the best patches have pictures of their own
  if (tile * density / devicePixelRatio < SHARP) return;
  for (const image of document.querySelectorAll("[data-patch] img")) {
    const patch = image.parentElement.dataset.patch;
    put(image, xs[patch], ys[patch], xs[patch] + tile, ys[patch] + tile);
  }
}

const raster = image => {
  pen.imageSmoothingEnabled = false;
  put(image, startX, startY, startX + columns * cell, startY + rows * cell);
  pen.imageSmoothingEnabled = true;
};
const colourTable = given => {
  const bytes = array(given);
  return Uint32Array.from({length: SHADES}, (_, i) =>
    (0xff000000 | bytes[3 * i + 2] << 16 | bytes[3 * i + 1] << 8 | bytes[3 * i]) >>> 0);
};

function shadesOf(layer) {  // patch → number of its colour
  const {values} = numbers[layer.number];
  if (!ranked) return patch => howMany(layer.edges, edge => edge <= values[patch]);
  layer.sorted ??= values.slice().sort();
  return patch => {  // in the middle of those that are alike
    const below = howMany(layer.sorted, value => value < values[patch]);
    const upTo = howMany(layer.sorted, value => value <= values[patch]);
    return Math.min(SHADES - 1, Math.floor(SHADES * (below + upTo) / 2 / count));
  };
}

function valueLayer(layer) {
  const pictures = new Map();  // by whether it is of ranks
  layer.draw = () => {
    if (!pictures.has(ranked)) {
      const shade = shadesOf(layer), table = colourTable(ranked ? told.ranks : layer.colours);
      pictures.set(ranked, painted(patch => table[shade(patch)]));
    }
    raster(pictures.get(ranked));
  };
  layer.legend = () => legend(layer);
  return layer;
}

function lineLayer(key, name, colour, path, unit, x, y, dash) {
  let traced;
  const draw = () => stroke(traced ??= path(), unit, x, y, [["#ffffffc0", 4], [colour, 1.8]], dash);
  return {key, name, colour, draw, on: true, opacity: 1};
}

const layers = [], DASH = [9, 7];  // of annotations: what is flagged just there is seen too
if (told.picture) {
  layers.push({key: "slide", name: "slide", on: true, opacity: 1, draw: drawSlide, under: true});
} else {
  const places = painted(() => 0xffd8d8d8);
  const name = "where the slide has patches";
  layers.push({key: "slide", name, on: true, opacity: 1, draw: () => raster(places), under: true});
}
layers.push(...told.layers.map(valueLayer));
if (marks.some(mark => mark & FLAGGED)) {
  const name = "flagged patches";
  layers.push(lineLayer("flagged", name, told.colours.flagged, () => borderOf(FLAGGED), cell, startX, startY));
}
if (told.outlines.length) {
  layers.push(lineLayer("annotation", "annotation", told.colours.annotation, outlinesGiven, 1, 0, 0, DASH));
} else if (marks.some(mark => mark & ANNOTATED)) {
  const [name, path] = ["annotated patches", () => borderOf(ANNOTATED)];
  layers.push(lineLayer("annotation", name, told.colours.annotation, path, cell, startX, startY, DASH));
}

function draw() {
  queued = false;
  const [across, down] = [canvas.clientWidth, canvas.clientHeight].map(side => Math.round(side * devicePixelRatio));
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, {width: across, height: down});
  density = scale() * devicePixelRatio;
  pen.globalAlpha = 1;
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  let whole = true;
  for (const layer of layers) {
    if (!layer.on || (bare && !layer.under)) continue;
    pen.globalAlpha = layer.opacity;
    whole = layer.draw() !== false && whole;
    if (layer.under) drawSharp();
  }
  pen.globalAlpha = 1;
  if (hovered >= 0) frame(hovered, "#555");
  if (chosen >= 0) frame(chosen, told.colours.chosen);
  drawScale();
  if (whole) document.documentElement.dataset.opened ??= Math.round(performance.now());  // milliseconds
}
"""
