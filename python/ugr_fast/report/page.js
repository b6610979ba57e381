"use strict";
// The search box shows itself only where scripts run; hits and misses are filtered by the style sheet alone.
const search = document.getElementById("search");
const users = [...document.querySelectorAll(".user")];
const words = users.map((user) => user.textContent.toLowerCase());
function show() {
  const wanted = search.value.trim().toLowerCase();
  users.forEach((user, at) => user.toggleAttribute("hidden", !words[at].includes(wanted)));
  const found = users.filter((user) => user.getClientRects().length).length;
  document.getElementById("found").textContent = found + " of " + users.length + " users";
}
document.getElementById("search-box").hidden = false;
search.addEventListener("input", show);
document.querySelectorAll("[name=filter]").forEach((choice) => choice.addEventListener("change", show));
