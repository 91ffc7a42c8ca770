"use strict";

// Everything from the server is put in as text, never as markup.
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const ENDED = new Set(["finished", "failed", "cancelled"]);
let chosen = null; // identifier of the pruning that is shown
let following = null; // ends the stream of its events

function element(name, content = "", attributes = {}) {
  const svg = ["line", "polyline", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...(Array.isArray(content) ? content : [content]));
  return made;
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...options.headers };
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail || `the server answers ${answer.status}`);
  }
  return answer;
}

function say(error) {
  if (error && error.name === "AbortError") return;
  find("message").textContent = error ? error.message : "";
}

// --- the list ---

async function list() {
  try {
    const prunings = await (await ask("/v1/prunings")).json();
    find("none").hidden = prunings.length > 0;
    find("jobs").replaceChildren(...prunings.map(row));
    say(null);
    if (!chosen && prunings.length) show(prunings[0].id);
  } catch (error) {
    say(error);
  }
}

function row(pruning) {
  const link = element("button", pruning.network, { class: "link", type: "button" });
  link.addEventListener("click", () => show(pruning.id));
  const asked = new Date(pruning.created).toLocaleString();
  const cells = [link, pruning.selector, pruning.state, asked].map((content) => element("td", content));
  return element("tr", cells, pruning.id === chosen ? { class: "chosen" } : {});
}

// --- one of them ---

async function show(id) {
  chosen = id;
  if (following) following.abort();
  following = new AbortController();
  try {
    const pruning = await (await ask(`/v1/prunings/${id}`)).json();
    if (chosen !== id) return;
    const seen = { baseline: null, units: {}, kept: {}, steps: [], evaluations: 0 };
    describe(pruning, seen);
    await follow(id, following.signal, (event, data) => {
      if (event === "begun") Object.assign(seen, { steps: [], kept: {}, evaluations: 0 });
      if (event === "opened") Object.assign(seen, { baseline: data.baseline_accuracy, units: data.units, kept: data.units });
      if (event === "evaluations") seen.evaluations = data.evaluations;
      if (event === "step") { seen.steps.push(data); seen.kept = data.kept_units; }
      if (event === "state") pruning.state = data.state;
      describe(pruning, seen);
    });
    const last = await (await ask(`/v1/prunings/${id}`)).json();
    if (chosen === id) describe(last, seen);
    list();
  } catch (error) {
    say(error);
  }
}

async function follow(id, signal, take) {
  const answer = await ask(`/v1/prunings/${id}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => line.split(/: ?(.*)/s).slice(0, 2)));
      if (fields.event) take(fields.event, JSON.parse(fields.data));
    }
  }
}

function describe(pruning, seen) {
  find("detail").hidden = false;
  find("detail-title").textContent = `${pruning.network}, ${pruning.selector}`;
  find("failure").textContent = pruning.failure || "";
  const result = pruning.result;
  const facts = [pruning.state];
  if (result) {
    facts.push(`${percent(result.macs_reduction)} of the MACs and ${percent(result.parameter_reduction)} of the parameters removed`);
    facts.push(`test accuracy ${percent(result.test_accuracy)}, before ${percent(result.baseline_test_accuracy)}`);
    if (result.finetuned) facts.push(`fine-tuned ${percent(result.finetuned.test_accuracy)}`);
  } else {
    facts.push(`${seen.steps.length} steps`);
    if (seen.evaluations) facts.push(`${seen.evaluations} evaluations`);
  }
  find("facts").textContent = facts.join(" · ");
  if (result) {
    const curve = result.curve;
    draw(curve.accuracy.map((accuracy, index) => (
      { accuracy, macs: curve.macs_reduction[index], parameters: curve.parameter_reduction[index] }
    )));
    layers(result.units, result.kept_units);
  } else {
    const steps = seen.steps.map((step) => (
      { accuracy: step.accuracy, macs: step.macs_reduction, parameters: step.parameter_reduction }
    ));
    draw(seen.baseline === null ? steps : [{ accuracy: seen.baseline, macs: 0, parameters: 0 }, ...steps]);
    layers(seen.units, seen.kept);
  }
  const buttons = pruning.artifacts.map((name) => button(name, () => download(pruning.id, name)));
  if (!ENDED.has(pruning.state)) buttons.push(button("cancel", () => cancel(pruning.id)));
  find("downloads").replaceChildren(...buttons);
}

function draw(points) {
  const box = { left: 44, right: 456, top: 12, bottom: 226 };
  const lowest = Math.min(1, ...points.map((point) => point.accuracy));
  const highest = Math.max(lowest + 0.01, ...points.map((point) => point.accuracy));
  const x = (share) => box.left + share * (box.right - box.left);
  const y = (accuracy) => box.bottom - ((accuracy - lowest) / (highest - lowest)) * (box.bottom - box.top);
  const parts = [];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(element("line", "", { class: "axis", x1: x(share), x2: x(share), y1: box.top, y2: box.bottom }));
    parts.push(element("text", `${100 * share} %`, { x: x(share), y: box.bottom + 15, "text-anchor": "middle" }));
  }
  for (const accuracy of points.length ? [lowest, highest] : []) {
    parts.push(element("line", "", { class: "axis", x1: box.left, x2: box.right, y1: y(accuracy), y2: y(accuracy) }));
    parts.push(element("text", (100 * accuracy).toFixed(1), { x: box.left - 5, y: y(accuracy) + 4, "text-anchor": "end" }));
  }
  if (points.length) {
    const baseline = y(points[0].accuracy);
    parts.push(element("line", "", { class: "baseline", x1: box.left, x2: box.right, y1: baseline, y2: baseline }));
  }
  ["macs", "parameters"].forEach((measure, index) => {
    const corners = points.map((point) => `${x(point[measure])},${y(point.accuracy)}`).join(" ");
    parts.push(element("polyline", "", { class: measure, points: corners }));
    const label = { macs: "MACs removed", parameters: "parameters removed" }[measure];
    parts.push(element("text", label, { class: measure, x: box.left + 150 * index, y: box.bottom + 31 }));
  });
  find("path").replaceChildren(...parts);
}

function layers(units, kept) {
  find("layers").replaceChildren(...Object.keys(units).map((name) => element("tr", [
    element("td", name),
    element("td", element("meter", "", { min: 0, max: units[name], value: kept[name] ?? units[name] }), { class: "bar" }),
    element("td", `${kept[name] ?? units[name]} of ${units[name]}`, { class: "number" }),
  ])));
}

function button(name, action) {
  const made = element("button", name, { type: "button" });
  made.addEventListener("click", action);
  return made;
}

async function download(id, name) {
  try {
    const answer = await ask(`/v1/prunings/${id}/${name}`);
    const address = URL.createObjectURL(await answer.blob());
    const file = name === "report" ? "report.html" : `${name}.safetensors`;
    element("a", "", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    say(error);
  }
}

async function cancel(id) {
  await ask(`/v1/prunings/${id}/cancel`, { method: "POST" }).catch(say);
  list();
}

find("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", find("token").value.trim());
  find("token").value = "";
  list();
});
list();
setInterval(list, 5000);
