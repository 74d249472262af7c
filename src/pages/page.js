"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const quiet = { responsive: true, showTips: false, displaylogo: false, modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d"] };

for (const place of document.querySelectorAll(".figure")) {
  const figure = data.figures[place.dataset.figure];
  Plotly.newPlot(place, figure.data, figure.layout, quiet);
}

for (const scroll of document.querySelectorAll(".scroll")) {
  const wide = scroll.scrollWidth > scroll.clientWidth + 1 || scroll.scrollHeight > scroll.clientHeight + 1;
  if (wide) scroll.classList.add("more");
}

// Tables: by number where both cells are one, nan last; else by text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const first = table.tBodies[0].rows[0]?.cells[column].classList.contains("number") ? -1 : 1;
    const way = head.ariaSort ? (head.ariaSort === "descending" ? 1 : -1) : first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = way > 0 ? "ascending" : "descending";
    const text = (row) => row.cells[column].textContent;
    const isNumber = (row) => row.cells[column].classList.contains("number");
    const compare = (a, b) => {
      if (!isNumber(a) || !isNumber(b)) return way * text(a).localeCompare(text(b), "en", { numeric: true });
      const [x, y] = [Number(text(a)), Number(text(b))];
      return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : way * (x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}

// 3D: millimetres of the image camera (x right, y down, z away); drawn with x right, z into the screen, y up.
const bones = Array.from({ length: 20 }, (_, k) => [k % 4 ? k : 0, k + 1]);
const viewer = document.getElementById("viewer");
const space = document.getElementById("space");

function traces(hand, origin, first) {
  const shift = (p) => [p[0] - origin[0], p[2] - origin[2], origin[1] - p[1]];
  const joints = hand.joints_mm.map(shift);
  const line = [[], [], []];
  for (const [a, b] of bones) {
    for (const axis of [0, 1, 2]) line[axis].push(joints[a][axis], joints[b][axis], null);
  }
  const common = { name: hand.name, legendgroup: hand.name, hoverinfo: "name", visible: first ? true : "legendonly" };
  const made = [{ ...common, type: "scatter3d", mode: "lines+markers", x: line[0], y: line[1], z: line[2],
    line: { color: hand.colour, width: 6 }, marker: { color: hand.colour, size: 3 }, showlegend: !hand.mesh }];
  if (hand.mesh) {
    const bytes = Uint8Array.from(atob(hand.mesh), (c) => c.charCodeAt(0));
    const steps = new Int16Array(bytes.buffer);
    const points = [[], [], []];
    for (let k = 0; k < steps.length; k += 3) {
      const own = [0, 1, 2].map((axis) => hand.joints_mm[0][axis] + steps[k + axis] / hand.steps_per_mm);
      shift(own).forEach((value, axis) => points[axis].push(value));
    }
    const corner = (k) => data.faces.filter((_, place) => place % 3 === k);
    made.push({ ...common, type: "mesh3d", x: points[0], y: points[1], z: points[2],
      i: corner(0), j: corner(1), k: corner(2), color: hand.colour, opacity: 0.4, showlegend: true,
      flatshading: false, lighting: { ambient: 0.55, diffuse: 0.7, specular: 0.1 } });
  }
  return made;
}

function show(place) {
  const sample = data.samples[place];
  viewer.querySelector("h3").textContent = sample.name;
  viewer.querySelector("p").textContent = sample.text + (sample.hands.length > 1
    ? " All wrists are at one point. " : " ") + "Drag to turn, scroll to zoom. Click a name to show or hide a hand.";
  viewer.showModal();
  const narrow = Math.sqrt(Math.max(1, space.clientHeight / space.clientWidth));
  const axis = (text) => ({ title: { text }, nticks: 5, tickfont: { size: 10 } });
  const layout = { margin: { l: 0, r: 0, t: 0, b: 0 }, legend: { orientation: "h", y: 1 }, uirevision: place,
    scene: { aspectmode: "data", xaxis: axis("right, mm"), yaxis: axis("away, mm"), zaxis: axis("up, mm"), dragmode: "orbit",
      camera: { eye: { x: 0, y: -1.9 * narrow, z: 0.25 * narrow }, up: { x: 0, y: 0, z: 1 } } } };
  const all = sample.hands.flatMap((hand, k) => traces(hand, hand.joints_mm[0], hand.name !== "RGB-only"));
  Plotly.react(space, all, layout, { ...quiet, displayModeBar: false });
}

for (const button of document.querySelectorAll(".turn")) {
  button.addEventListener("click", () => show(Number(button.dataset.sample)));
}
viewer.addEventListener("close", () => Plotly.purge(space));
