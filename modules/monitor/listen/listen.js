"use strict";
// Sound comes from decoded buffers that all start at one time of one clock, each behind a
// gain of its own: a switch is exact to the sample. Pages from file:// may neither fetch
// audio nor process that of media elements, but they may load scripts: audio lies in
// such files, a few seconds in each, so that long tracks need no more memory.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector) => document.querySelector(selector);
const metrics = Object.keys(data.metrics);
const FADE = 0.004; // seconds; a switch without a click

let sort = { key: data.sortBy || "id", down: false };
let range = null; // of the histogram's chosen bar
let shown = []; // examples in the list, as sorted and searched
let current = null; // the example in the player
let tracks = []; // its {file, seconds, card, button, buffers, gain}
let heard = 0, before = 0; // numbers of the track that is heard and of the one before

let context = null; // the clock, made by the first gesture as browsers demand
let sources = []; // what has been started
let at = 0; // where to start, in seconds
let begun = null; // time of the clock at the example's first sample; null before the start
let turn = 0; // counts starts and stops: what was awaited for an earlier one is dropped
let isPlaying = false;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const text = (value) =>
  typeof value === "number" ? value.toFixed(2) : value == null ? "–" : value;
const finite = (metric, examples) =>
  examples.map((e) => e.scores[metric]).filter((v) => typeof v === "number");

// ---------------------------------------------------------------- player

const duration = () => Math.max(...tracks.map((track) => track.seconds));
const position = () =>
  begun === null ? at : Math.min(Math.max(context.currentTime - begun, at), duration());

function open(example) {
  stop();
  current = example;
  at = 0;
  $("#player").hidden = false;
  $("#id").textContent = example.id;
  $("#scores").textContent = metrics
    .map((m) => `${data.metrics[m]} ${text(example.scores[m])}`).join(" · ");
  $("#note").textContent = example.note;
  tracks = example.tracks.map((track, number) => {
    const button = make("button", { onclick: () => choose(number) },
      `${number + 1} ${track.name} `, make("small", {}, track.note));
    const picture = make("div", { className: "picture" }, make("img", {
      src: `${data.folder}/${track.file}.png`, loading: "lazy", alt: "" }));
    picture.onpointerdown = (event) => {
      choose(number);
      const box = picture.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * track.seconds);
    };
    const card = make("div", { className: "track" }, button, picture);
    return { ...track, card, button, buffers: {} };
  });
  showVerdicts();
  $("#tracks").replaceChildren(...tracks.map((track) => track.card));
  before = heard = Math.min(heard, tracks.length - 1);
  choose(heard);
  for (const row of document.querySelectorAll("tbody tr"))
    row.toggleAttribute("aria-current", row.example === example);
  stepButtons();
  tick();
}

function choose(number) {
  if (!tracks[number]) return;
  if (number !== heard) before = heard;
  heard = number;
  tracks.forEach(({ card, button, gain }, k) => {
    gain?.gain.setTargetAtTime(k === number ? 1 : 0, context.currentTime, FADE);
    card.classList.toggle("chosen", k === number);
    button.setAttribute("aria-pressed", k === number);
  });
}

const waiting = {}; // for the audio of files that are being loaded, by name

// Called by the files of audio.
function take(file, base64) {
  waiting[file](base64);
}

function load(file) {
  return new Promise((resolve, reject) => {
    waiting[file] = resolve;
    const script = make("script", { src: `${data.folder}/${file}.js` });
    script.onerror = () => reject(new Error(`${script.getAttribute("src")} is missing.`));
    script.onload = () => script.remove();
    document.head.append(script);
  });
}

async function decode(file) {
  const text = atob(await load(file));
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return context.decodeAudioData(bytes.buffer);
}

// The buffers of all tracks for one part of the example, none for a track that is over.
function buffersOf(part) {
  return Promise.all(tracks.map(({ file, seconds, buffers }) => {
    for (const old in buffers) if (Math.abs(old - part) > 1) delete buffers[old];
    if (part * data.part >= seconds) return null;
    return (buffers[part] ??= decode(`${file}-${part}`));
  }));
}

function start(buffers, part) {
  const from = Math.max(at, context.currentTime - begun); // later if loading took long
  const offset = Math.max(0, from - part * data.part);
  const started = buffers.flatMap((buffer, k) => {
    if (!buffer || offset >= buffer.duration) return [];
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(tracks[k].gain);
    source.start(begun + part * data.part + offset, offset);
    return [source];
  });
  sources.push(...started);
}

async function play() {
  const mine = ++turn;
  isPlaying = true;
  $("#play").textContent = "Pause";
  const { rate } = tracks[0];
  if (context?.sampleRate !== rate) {
    context?.close();
    context = new AudioContext({ sampleRate: rate }); // parts join without resampling
    for (const track of tracks) Object.assign(track, { gain: null, buffers: {} });
  }
  context.resume();
  tracks.forEach((track, k) => {
    track.gain ??= new GainNode(context, { gain: k === heard ? 1 : 0 });
    track.gain.connect(context.destination);
  });
  requestAnimationFrame(follow);
  try {
    for (let part = Math.floor(at / data.part); part * data.part < duration(); part++) {
      const buffers = await buffersOf(part);
      if (mine !== turn) return;
      begun ??= context.currentTime + 0.02 - at;
      start(buffers, part);
      // Load the next part while this one plays.
      const ahead = begun + part * data.part - context.currentTime;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 * ahead)));
      if (mine !== turn) return;
    }
  } catch (error) {
    if (mine !== turn) return;
    stop();
    $("#note").textContent = error.message;
  }
}

function stop() {
  at = tracks.length ? position() : 0;
  turn++;
  for (const source of sources) source.stop();
  sources = [];
  begun = null;
  isPlaying = false;
  $("#play").textContent = "Play";
  if (tracks.length) tick();
}

function seek(seconds) {
  const goesOn = isPlaying;
  stop();
  at = Math.min(Math.max(seconds, 0), duration());
  tick();
  if (goesOn) play();
}

function follow() {
  if (!isPlaying) return;
  tick();
  if (position() < duration()) requestAnimationFrame(follow);
  else {
    if (!$("#loop").checked) stop();
    seek(0);
  }
}

function tick() {
  const now = position(), total = duration();
  $("#tracks").style.setProperty("--at", now / total);
  $("#seek").max = total;
  $("#seek").value = now;
  const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
  $("#time").textContent = `${clock(now)} / ${clock(total)}`;
}

function step(by) {
  const playable = shown.filter((e) => e.tracks.length);
  const place = playable.indexOf(current);
  const next = playable[place < 0 ? 0 : place + by];
  if (next) open(next);
}

function stepButtons() {
  const playable = shown.filter((e) => e.tracks.length);
  $("#previous").disabled = playable[0] === current || !playable.length;
  $("#next").disabled = playable.at(-1) === current || !playable.length;
}

// ---------------------------------------------------------------- list

// What is no number is the worst of all; what was not scored comes last.
function rank(example) {
  const value = sort.key === "id" ? example.id : example.scores[sort.key];
  return typeof value === "string" && sort.key !== "id" ? -Infinity : value;
}

function compare(a, b) {
  const [x, y] = [rank(a), rank(b)];
  if (x == null || y == null) return (x == null) - (y == null);
  const order = x < y ? -1 : x > y ? 1 : 0;
  return (sort.down ? -order : order) || (a.id < b.id ? -1 : 1);
}

function list() {
  const wanted = $("#search").value.trim().toLowerCase();
  shown = data.examples.filter((e) =>
    e.id.toLowerCase().includes(wanted) &&
    (!$("#audible").checked || e.tracks.length) &&
    (!range || (typeof e.scores[range.key] === "number" && range.has(e.scores[range.key]))));
  shown.sort(compare);
  $("thead tr").replaceChildren(...["id", ...metrics].map((key) => {
    const order = sort.key !== key ? "none" : sort.down ? "descending" : "ascending";
    const arrow = { none: "", ascending: " ↑", descending: " ↓" }[order];
    const cell = make("th", { scope: "col" },
      make("button", { onclick: () => sortBy(key) }, (data.metrics[key] || key) + arrow));
    cell.setAttribute("aria-sort", order);
    return cell;
  }));
  $("tbody").replaceChildren(...shown.map((example) => {
    const verdict = decided[example.id] ? ` – ${VERDICTS[decided[example.id]]}` : "";
    const id = example.tracks.length
      ? make("button", { onclick: () => { open(example); reveal(); } },
        `▶ ${example.id}${verdict}`)
      : example.id;
    const row = make("tr", { example }, make("td", {}, id),
      ...metrics.map((m) => make("td", {}, text(example.scores[m]))));
    row.toggleAttribute("aria-current", example === current);
    return row;
  }));
  $("#count").textContent = `${shown.length} of ${data.examples.length}`;
  stepButtons();
}

function sortBy(key) {
  sort = { key, down: sort.key === key && !sort.down };
  if (range && key !== "id" && range.key !== key) range = null;
  list();
  histogram();
  $(`[aria-sort=${sort.down ? "descending" : "ascending"}] button`).focus();
}

function reveal() {
  $("#player").scrollIntoView({ block: "start" });
}

function histogram() {
  const key = sort.key === "id" ? range?.key || data.sortBy || metrics[0] : sort.key;
  const values = finite(key, data.examples).sort((a, b) => a - b);
  const unit = data.units[key] ?? "";
  $("#spread").hidden = !values.length;
  if (!values.length) return;
  const [low, high] = [values[0], values.at(-1)];
  const number = high > low ? Math.min(24, Math.max(5, Math.ceil(Math.sqrt(values.length)))) : 1;
  const width = (high - low) / number;
  const bin = (v) => (width ? Math.min(number - 1, Math.floor((v - low) / width)) : 0);
  const counts = Array(number).fill(0);
  for (const v of values) counts[bin(v)]++;
  const top = Math.max(...counts);
  $("#bars").replaceChildren(...counts.map((count, k) => {
    const label = `${count} from ${text(low + k * width)} to ${text(low + (k + 1) * width)} ${unit}`;
    const bar = make("span");
    bar.style.height = `${(100 * count) / top}%`;
    const button = make("button", { title: label, disabled: !count }, bar);
    const chosen = range?.key === key && range.bin === k;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", chosen);
    button.onclick = () => {
      range = chosen ? null : { key, bin: k, has: (v) => bin(v) === k };
      histogram();
      list();
      $(`#bars button:nth-child(${k + 1})`).focus();
    };
    return button;
  }));
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const middle = values.length >> 1;
  const median = values.length % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  $("figcaption").replaceChildren(
    make("span", {}, text(low)),
    make("span", {}, `${data.metrics[key]}${unit && ` in ${unit}`}: mean ${text(mean)}, median ${text(median)}`),
    make("span", {}, text(high)));
}

// ---------------------------------------------------------------- labels

const VERDICTS = { w: "wrong", r: "right", u: "unsure" };
// Kept where a reload finds it, also where a page from file:// may store nothing.
const decided = { ...history.state };

function decide(letter) {
  decided[current.id] = letter;
  history.replaceState(decided, "");
  showVerdicts();
  list();
}

function showVerdicts() {
  if (!data.labels) return;
  $("#verdicts").replaceChildren(...Object.entries(VERDICTS).map(([letter, name]) => {
    const button = make("button", { onclick: () => decide(letter) }, `${name} (${letter})`);
    button.setAttribute("aria-pressed", decided[current.id] === letter);
    return button;
  }));
  const count = Object.keys(decided).length;
  $("#download").textContent = `Save ${count} as labels.csv`;
  $("#download").disabled = !count;
}

// What the ears said is certain; unsure leaves the probability as it was.
function labelsCsv() {
  const cell = (value) => `"${String(value).replaceAll('"', '""')}"`;
  const rows = Object.entries(decided).map(([id, letter]) => {
    const [track, stem, wrong, like] = data.labels[id];
    return [track, stem, { w: 1, r: 0, u: wrong }[letter], letter === "r" ? "" : like];
  });
  return [["track", "stem", "wrong", "sounds_like"], ...rows]
    .map((row) => row.map(cell).join(",") + "\n").join("");
}

function download() {
  const url = URL.createObjectURL(new Blob([labelsCsv()], { type: "text/csv" }));
  make("a", { href: url, download: "labels.csv" }).click();
  URL.revokeObjectURL(url);
}

// ---------------------------------------------------------------- keys

const keys = {
  " ": () => (isPlaying ? stop() : play()),
  ArrowLeft: () => seek(position() - 1),
  ArrowRight: () => seek(position() + 1),
  n: () => step(1),
  p: () => step(-1),
  x: () => choose(before),
  r: () => $("#loop").click(),
};
if (data.labels)
  for (const letter in VERDICTS) keys[letter] = () => decide(letter);

addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "Escape" && target === $("#search")) target.blur();
  // A field or a slider keeps its keys, and what Tab has reached its space.
  if (target.matches("input:not([type=checkbox])")) return;
  if (key === " " && target.matches("button, input")) return;
  if (key === "/") $("#search").focus();
  else if (!tracks.length) return;
  else if (/^[1-9]$/.test(key)) choose(Number(key) - 1);
  else if (Object.hasOwn(keys, key)) keys[key]();
  else return;
  event.preventDefault();
});

// A click leaves no focus behind, so that space plays afterwards too.
addEventListener("click", (event) => {
  const focused = document.activeElement;
  if (event.detail && focused.matches("button, input:not([type=search])")) focused.blur();
});

// ---------------------------------------------------------------- start

document.title = $("#title").textContent = data.title;
const audible = data.examples.filter((e) => e.tracks.length).length;
const inAll = data.examples.length;
$("#about").textContent = `${inAll} example${inAll === 1 ? "" : "s"}`
  + (inAll === audible ? "" : `, ${audible} of them with audio`);
$("#heard").hidden = audible === data.examples.length || !audible;
$("#play").onclick = keys[" "];
$("#previous").onclick = keys.p;
$("#next").onclick = keys.n;
$("#seek").oninput = (event) => seek(Number(event.target.value));
$("#verdicts").hidden = $("#download").hidden = !data.labels;
$("#repeat").hidden = !!data.labels;
$("#download").onclick = download;
$("#search").oninput = $("#audible").onchange = list;
list();
histogram();
step(0);
