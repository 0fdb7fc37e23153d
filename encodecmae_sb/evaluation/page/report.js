"use strict";
document.documentElement.classList.add("js");

// One sound at a time, whoever started it.
let current = null;
function start(audio) {
  if (current && current !== audio) current.pause();
  current = audio;
  audio.currentTime = 0;
  audio.play().catch(() => {});  // the browser may refuse before the first click
}

for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio");
  const button = sound.querySelector(".play");
  const head = sound.querySelector(".head");
  const name = button.getAttribute("aria-label").replace(/^Play /, "");
  const show = (on) => {
    sound.classList.toggle("playing", on);
    button.setAttribute("aria-label", (on ? "Stop " : "Play ") + name);
  };
  const move = () => {
    head.style.left = 100 * audio.currentTime / (audio.duration || 1) + "%";
    if (!audio.paused) requestAnimationFrame(move);
  };
  const toggle = () => audio.paused ? start(audio) : audio.pause();
  audio.addEventListener("play", () => { show(true); move(); });
  audio.addEventListener("pause", () => show(false));
  audio.addEventListener("ended", () => show(false));
  button.addEventListener("click", toggle);
  sound.querySelector(".spectrogram").addEventListener("click", toggle);
}

const data = document.getElementById("map-data");
if (data) drawMap(JSON.parse(data.textContent));

function drawMap(map) {
  const svg = document.querySelector(".map .plot");
  const legend = document.querySelector(".map .legend");
  const now = document.querySelector(".map .now");
  const choice = document.querySelector(".map .choice");
  const player = new Audio();
  const shapes = [
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z", "M-4.6 -4.6H4.6V4.6H-4.6Z",
    "M0 -6L5.600 4.400H-5.600Z", "M0 -6.400L5.400 0L0 6.400L-5.400 0Z",
    "M-1.900 -5.600H1.900V-1.900H5.600V1.900H1.900V5.600H-1.900V1.900H-5.600V-1.900H-1.900Z",
    "M0 6L5.600 -4.400H-5.600Z",
    "M-5.800 -3L-3 -5.800L0 -2.800L3 -5.800L5.800 -3L2.800 0L5.800 3L3 5.800L0 2.800L-3 5.800L-5.800 3L-2.800 0Z",
  ];
  const make = (name, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    parent.append(node);
    return node;
  };
  map.axes.forEach((text, i) => {
    const place = i ? {x: 16, y: map.height / 2, transform: `rotate(-90 16 ${map.height / 2})`}
      : {x: map.width / 2, y: map.height - 9};
    make("text", {class: "axis", "text-anchor": "middle", ...place}, svg).textContent = text;
  });
  const points = map.points.map((point, i) => {
    const group = make("g", {
      class: "point", role: "button", tabindex: i ? -1 : 0,
      transform: `translate(${point.x} ${point.y})`, "aria-label": "Play " + point.about,
    }, svg);
    make("circle", {class: "ring", r: 10}, group);
    make("path", {}, group);
    make("title", {}, group).textContent = point.about;
    group.addEventListener("keydown", (event) => onKey(event, i));
    return group;
  });

  function play(i) {
    points.forEach((group, j) => {
      group.classList.toggle("chosen", i === j);
      group.setAttribute("tabindex", i === j ? 0 : -1);
    });
    const name = document.createElement("strong");
    name.textContent = map.points[i].name;
    now.replaceChildren(name, map.points[i].detail);
    player.src = map.points[i].audio;
    start(player);
  }

  // A click anywhere plays the nearest point, so that a finger need not hit it.
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), scale = map.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const far = map.points.map((point) => Math.hypot(point.x - x, point.y - y));
    const nearest = far.indexOf(Math.min(...far));
    if (far[nearest] < 30) { play(nearest); points[nearest].focus({preventScroll: true}); }
  });

  const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  function onKey(event, i) {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); play(i); return; }
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    let best = -1, least = Infinity;
    map.points.forEach((point, j) => {
      const dx = point.x - map.points[i].x, dy = point.y - map.points[i].y;
      const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1] + dy * way[0]);
      if (along <= 0) return;
      if (along + 2 * aside < least) { best = j; least = along + 2 * aside; }
    });
    if (best < 0) return;
    points[i].setAttribute("tabindex", -1);
    points[best].setAttribute("tabindex", 0);
    points[best].focus();
  }

  function colour(by) {
    const names = map.groups[by], colours = 6;
    legend.replaceChildren();
    names.forEach((name, k) => {
      const item = document.createElement("li");
      item.className = "c" + k % colours;
      const icon = make("svg", {viewBox: "-7 -7 14 14", "aria-hidden": "true"}, item);
      make("path", {d: shapes[k % shapes.length], fill: "currentColor"}, icon);
      const text = document.createElement("span");
      text.textContent = name;
      item.append(text);
      legend.append(item);
    });
    points.forEach((group, i) => {
      const k = names.indexOf(map.points[i][by]);
      group.classList.remove(...Array.from({length: colours}, (_, c) => "c" + c));
      group.classList.add("c" + k % colours);
      group.querySelector("path").setAttribute("d", shapes[k % shapes.length]);
    });
    for (const button of choice.querySelectorAll("button"))
      button.setAttribute("aria-pressed", button.dataset.by === by);
  }
  for (const by in map.groups) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.by = by;
    button.textContent = by;
    button.addEventListener("click", () => colour(by));
    choice.append(button);
  }
  colour(Object.keys(map.groups)[0]);
}
