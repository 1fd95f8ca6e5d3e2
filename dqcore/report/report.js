// Wipe between input and reconstruction, slide over ratios, enlarge. Without this script the page still shows its photos.
"use strict";
const photos = JSON.parse(document.getElementById("photos").textContent);
const articles = [...document.querySelectorAll("article.photo")];
const dialog = document.querySelector("dialog");

articles.forEach((article, index) => {
  const photo = photos[index], first = photo.states[photo.first];
  for (const name of ["image", "layer", "error"]) first[name] = article.querySelector(`[data-is=${name}]`).src;
  photo.input = article.querySelector(".before").src;
  photo.at = photo.first;
  photo.left = "input";
  const base = article.querySelector(".base");
  base.src = photo.input;
  base.hidden = false;
  bind(article, photo);
  article.querySelector(".enlarge").addEventListener("click", () => enlarge(index));
});

function bind(root, photo) {
  const wipe = root.querySelector(".wipe"), cut = root.querySelector(".cut");
  const detail = root.querySelector(".detail"), left = root.querySelector(".left-side");
  cut.addEventListener("input", () => wipe.style.setProperty("--cut", `${cut.value}%`));
  wipe.style.setProperty("--cut", `${cut.value}%`);
  if (detail) detail.addEventListener("input", () => { photo.at = Number(detail.value); show(root, photo); });
  if (left) left.addEventListener("change", () => { photo.left = left.value; show(root, photo); });
}

function show(root, photo) {
  const state = photo.states[photo.at], peer = state.peers[photo.left];
  for (const name of ["image", "layer", "error"]) {
    const picture = root.querySelector(`[data-is=${name}]`);
    if (picture) picture.src = state[name];
  }
  root.querySelector(".before").src = peer ? peer.image : photo.input;
  root.querySelector(".tag.left").textContent = photo.left;
  root.querySelector(".facts").textContent = state.facts;
  root.querySelector(".peer").textContent = peer ? peer.facts : "";
  const detail = root.querySelector(".detail"), left = root.querySelector(".left-side");
  if (detail) {
    detail.value = photo.at;
    detail.setAttribute("aria-valuetext", state.label);
    root.querySelector("output").textContent = state.label;
  }
  if (left) left.value = photo.left;
}

function enlarge(index) {
  const photo = photos[index], article = articles[index];
  const wipe = article.querySelector(".wipe").cloneNode(true), controls = article.querySelector(".controls").cloneNode(true);
  const facts = article.querySelector(".facts").cloneNode(true), peer = article.querySelector(".peer").cloneNode(true);
  const line = document.createElement("p");
  line.append(facts, " ", peer);
  line.className = "line";
  dialog.replaceChildren(wipe, line, controls);
  dialog.setAttribute("aria-label", photo.name);
  controls.querySelector(".enlarge").replaceWith(
    button("Previous", () => enlarge((index + photos.length - 1) % photos.length)),
    button("Next", () => enlarge((index + 1) % photos.length)),
    button("Close", () => dialog.close()),
  );
  bind(dialog, photo);
  show(dialog, photo);
  dialog.onclose = () => { show(article, photo); article.querySelector(".enlarge").focus(); };
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".cut").focus();
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

dialog.addEventListener("keydown", (event) => {
  const names = { PageUp: "Previous", PageDown: "Next" };
  const wanted = [...dialog.querySelectorAll("button")].find((made) => made.textContent === names[event.key]);
  if (wanted) { event.preventDefault(); wanted.click(); }
});

const folds = [...document.querySelectorAll("details")];
if (matchMedia("(max-width: 720px)").matches) for (const fold of folds) fold.open = false;
addEventListener("beforeprint", () => { for (const fold of folds) fold.open = true; });
