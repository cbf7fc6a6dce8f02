// Draws the run in the element `data`. Text from the run is always set as text, never as HTML.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { run, verdict, faults } = data;
const $ = (id) => document.getElementById(id);
const number = (n) => (Number.isInteger(n) ? n.toLocaleString("en") : n.toLocaleString("en", { maximumFractionDigits: 2 }));
const seconds = (ns) => (ns / 1e9).toFixed(ns < 1e11 ? 1 : 0) + " s";
// Hues are a golden angle apart, so that neighbouring kinds differ for any number of kinds.
const kinds = [...new Set(faults.map((f) => f.kind))];
const hue = (kind) => `hsl(${(kinds.indexOf(kind) * 137.5 + 8) % 360} 62% 55%)`;

function element(name, attributes = {}, text) {
  const svg = ["svg", "g", "rect", "path", "line", "text", "title", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function head() {
  document.title = `${run.scenario}: ${verdict.validity}`;
  $("validity").textContent = verdict.validity;
  $("validity").classList.add(verdict.validity);
  $("scenario").textContent = run.scenario;
  $("title").textContent = data.title;
  $("reason").textContent = verdict.reason || "";
  const operations = data.series.reduce((sum, s) => sum + s.total, 0);
  const facts = {
    seed: run.seed, nodes: run.nodes, duration: seconds(data.ended), operations: number(operations),
    faults: number(faults.filter((f) => f.state === "installed").length),
    started: new Date(run.wall_ms).toISOString().slice(0, 19).replace("T", " ") + " UTC", commit: run.git || "unknown",
  };
  for (const [name, value] of Object.entries(facts)) {
    const pair = element("div");
    pair.append(element("dt", {}, name), element("dd", {}, value));
    $("facts").append(pair);
  }
  $("command").textContent = run.command;
}

function row(table, cells, tone) {
  const line = element("tr", tone ? { class: tone } : {});
  cells.forEach((cell, place) => {
    const td = element("td", place ? { class: "n" } : {});
    cell instanceof Node ? td.append(cell) : (td.textContent = typeof cell === "number" ? number(cell) : cell);
    line.append(td);
  });
  document.querySelector(`#${table} tbody`).append(line);
}

function tables() {
  for (const check of verdict.checks) {
    const name = element("div", {}, check.name);
    if (check.violations.length) {
      const list = element("ul");
      check.violations.forEach((text) => list.append(element("li", {}, text)));
      name.append(list);
    }
    row("checks", [name, check.looked_at, check.violated], check.violated ? "invalid" : check.looked_at ? "" : "skipped");
  }
  for (const c of verdict.coverage) row("coverage", [c.what, c.wanted, c.got], c.got < c.wanted ? "unknown" : "");
  for (const [name, value] of Object.entries(verdict.figures)) row("figures", [name, value]);
}

// The plots share one time axis: LEFT..WIDTH pixels for 0..ended.
const WIDTH = 1120, LEFT = 96, RIGHT = 8;
const x = (ns) => LEFT + ((WIDTH - LEFT - RIGHT) * ns) / Math.max(1, data.ended);
const cursors = [];

function plot(height, draw) {
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${height}` });
  const step = niceStep(data.ended / 1e9 / 10);
  for (let s = 0; s * 1e9 <= data.ended; s += step)
    svg.append(element("line", { class: "grid", x1: x(s * 1e9), x2: x(s * 1e9), y1: 4, y2: height - 16 }));
  draw(svg);
  for (let s = 0; s * 1e9 <= data.ended; s += step)
    svg.append(element("text", { x: x(s * 1e9), y: height - 3, "text-anchor": "middle" }, number(s) + " s"));
  svg.append(element("line", { class: "mend", x1: x(run.healed), x2: x(run.healed), y1: 4, y2: height - 16 }));
  const cursor = element("line", { class: "cursor", y1: 4, y2: height - 16, visibility: "hidden" });
  svg.append(cursor);
  cursors.push(cursor);
  svg.addEventListener("pointermove", (event) => point(svg, event));
  $("plots").append(svg);
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1e-3)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
}

function point(svg, event) {
  const box = svg.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * WIDTH;
  const ns = Math.min(data.ended, Math.max(0, ((at - LEFT) / (WIDTH - LEFT - RIGHT)) * data.ended));
  cursors.forEach((c) => { c.setAttribute("x1", x(ns)); c.setAttribute("x2", x(ns)); c.setAttribute("visibility", "visible"); });
  const place = Math.floor(ns / data.stretch_ns);
  const now = data.series.map((s) => [s.op, s.stretches[place]]).filter(([, s]) => s && s.ok + s.fail + s.info);
  const told = now.map(([op, s]) => `${op}: ${s.ok} ok${s.info ? `, ${s.info} unknown` : ""}${s.fail ? `, ${s.fail} refused` : ""}, p99 ${s.p99.toFixed(1)} ms`);
  const lasting = faults.filter((f) => f.began <= ns && ns <= f.ended).map((f) => `${f.kind} of ${f.nodes.join(", ")}${f.note ? ` (${f.note})` : ""}`);
  $("moment").textContent = `${seconds(ns)}: ` + [...lasting, ...told].join(" · ");
}

// One row per node: the faults that affected it, and when it led.
function timeline() {
  const nodes = Math.max(run.nodes, ...faults.flatMap((f) => f.nodes), 1);
  plot(nodes * 22 + 26, (svg) => {
    for (let node = 1; node <= nodes; node++) {
      const y = (node - 1) * 22 + 8;
      svg.append(element("text", { class: "name", x: 0, y: y + 11 }, `node ${node}`));
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y + 17, y2: y + 17 }));
    }
    for (const period of data.leaders) {
      const line = element("rect", { x: x(period.from), y: (period.node - 1) * 22 + 23, width: Math.max(1, x(period.until) - x(period.from)), height: 3, fill: "var(--lead)" });
      line.append(element("title", {}, `node ${period.node} leads term ${period.term}, seen from ${seconds(period.from)} to ${seconds(period.until)}`));
      svg.append(line);
    }
    for (const fault of faults) for (const node of fault.nodes) {
      const bar = element("rect", {
        x: x(fault.began), y: (node - 1) * 22 + 9, width: Math.max(2, x(fault.ended) - x(fault.began)), height: 12, rx: 2,
        fill: hue(fault.kind), "fill-opacity": fault.state === "installed" ? 0.85 : 0.3,
      });
      bar.append(element("title", {}, `${fault.kind} (${fault.state}) ${seconds(fault.began)} to ${seconds(fault.ended)} ${fault.note || ""}`));
      svg.append(bar);
    }
  });
}

// Operations per second, stacked by outcome.
function throughput(series) {
  const perSecond = 1e9 / data.stretch_ns;
  const top = Math.max(1, ...series.stretches.map((s) => (s.ok + s.info + s.fail) * perSecond));
  plot(92, (svg) => {
    const y = (rate) => 74 - (66 * rate) / top;
    svg.append(element("text", { class: "name", x: 0, y: 18 }, series.op), element("text", { x: 0, y: 33 }, "per second"));
    svg.append(element("text", { x: LEFT - 4, y: 13, "text-anchor": "end" }, number(Math.round(top))));
    let below = series.stretches.map(() => 0);
    for (const how of ["ok", "info", "fail"]) {
      const above = below.map((b, i) => b + series.stretches[i][how] * perSecond);
      if (above.every((a, i) => a === below[i])) continue;
      svg.append(element("path", { d: area(above, below, y), fill: `var(--${how})`, "fill-opacity": 0.8 }));
      below = above;
    }
  });
}

function area(above, below, y) {
  const at = (i) => x(Math.min(data.ended, i * data.stretch_ns)).toFixed(1);
  const forth = above.map((v, i) => `${at(i)},${y(v).toFixed(1)} ${at(i + 1)},${y(v).toFixed(1)}`);
  const back = below.map((v, i) => `${at(i + 1)},${y(v).toFixed(1)} ${at(i)},${y(v).toFixed(1)}`).reverse();
  return `M${forth.join(" L")} L${back.join(" L")}Z`;
}

// Latencies of acknowledged operations on a logarithmic scale.
function latency(series) {
  const shown = series.stretches.map((s, i) => ({ ...s, i })).filter((s) => s.ok);
  if (!shown.length) return;
  const low = Math.floor(Math.log10(Math.max(0.05, Math.min(...shown.map((s) => s.p50)))));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...shown.map((s) => s.max)))));
  plot(104, (svg) => {
    const y = (ms) => 86 - (78 * (Math.log10(Math.max(ms, 10 ** low)) - low)) / (high - low);
    svg.append(element("text", { class: "name", x: 0, y: 18 }, series.op), element("text", { x: 0, y: 33 }, "latency"));
    for (let power = low; power <= high; power++) {
      const label = power >= 3 ? `${10 ** (power - 3)} s` : `${number(10 ** power)} ms`;
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(10 ** power), y2: y(10 ** power) }));
      svg.append(element("text", { x: LEFT - 4, y: y(10 ** power) + 4, "text-anchor": "end" }, label));
    }
    for (const [which, colour, r] of [["max", "var(--info)", 1.3], ["p99", "var(--fail)", 1.5], ["p50", "var(--ok)", 1.7]])
      for (const s of shown) svg.append(element("circle", { cx: x((s.i + 0.5) * data.stretch_ns).toFixed(1), cy: y(s[which]).toFixed(1), r, fill: colour }));
  });
}

function legend() {
  const entries = [
    ...kinds.map((kind) => [hue(kind), kind]), ["var(--lead)", "leader; dashed: healed"], ["var(--ok)", "ok; p50"],
    ["var(--info)", "unknown; max"], ["var(--fail)", "refused; p99"],
  ];
  for (const [colour, text] of entries) {
    const entry = element("span");
    entry.append(element("i", { style: `background:${colour}` }), text);
    $("legend").append(entry);
  }
}

head();
tables();
timeline();
for (const series of data.series) { throughput(series); latency(series); }
legend();
