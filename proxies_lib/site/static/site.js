// What every page can do: light or dark, filters of the scoreboard, one scale at a time.
"use strict";

(() => {
  const root = document.documentElement;

  function remember(name, value) {
    try { localStorage.setItem(name, value); } catch { /* storage may be forbidden */ }
  }

  // ---------------------------------------------------------------- light and dark

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const button = document.querySelector("button.theme");

  function tell() {
    button.textContent = isDark() ? "Light page" : "Dark page";
    document.dispatchEvent(new CustomEvent("theme", { detail: isDark() }));
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", root.dataset.theme);
    tell();
  });
  system.addEventListener("change", tell);
  tell();

  // ---------------------------------------------------------------- what scrolls can be reached

  const SCROLLS = ".scroll, pre, .output_area, .text_cell_render";

  function makeReachable() {
    for (const part of document.querySelectorAll(SCROLLS)) {
      const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
      if (scrolls) part.tabIndex = 0; else part.removeAttribute("tabindex");
      if (!scrolls || part.matches("pre")) continue;
      part.setAttribute("role", "group");
      part.setAttribute("aria-label", part.querySelector("caption")?.textContent ?? "Wide content");
    }
  }
  makeReachable();
  addEventListener("resize", makeReachable);
  document.addEventListener("toggle", makeReachable, true);

  // ---------------------------------------------------------------- a run in a closed part

  function open() {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    const section = target.closest("section.scale");
    if (section) choose(section.dataset.scale);
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) {
      part.open = true;
    }
    target.scrollIntoView({ block: "center" });
  }

  // ---------------------------------------------------------------- one scale at a time

  const scales = document.querySelector("form.scales");

  function choose(scale) {
    if (!scales) return;
    for (const input of scales.elements.scale) input.checked = input.value === scale;
    for (const part of document.querySelectorAll("section.scale")) {
      part.hidden = part.dataset.scale !== scale;
    }
  }
  if (scales) {
    scales.hidden = false;
    scales.addEventListener("change", (event) => choose(event.target.value));
    choose(scales.elements.scale.value);
  }
  addEventListener("hashchange", open);
  open();

  // ---------------------------------------------------------------- filters of the scoreboard

  const filters = document.querySelector("form.filters");
  if (!filters) return;
  const rows = [...document.querySelectorAll(".board tbody tr")];
  const shown = document.querySelector(".shown");
  const named = (name) => [...filters.querySelectorAll(`[name=${name}]`)];
  const checked = (name) => named(name).filter((box) => box.checked).map((box) => box.value);

  function verdictsOf(row, scale) {
    return Object.keys(row.dataset)
      .filter((key) => key.startsWith("verdict-"))
      .map((key) => row.dataset[key].split(" "))
      .filter(([label]) => !scale || label === scale)
      .map(([, verdict]) => verdict);
  }

  // A verdict moves from the first scale to another one.
  const [firstScale] = named("scale").map((box) => box.value).filter(Boolean);

  function moves(row, scale) {
    const moved = (row.dataset.moved ?? "").split(" ").filter(Boolean);
    return scale && scale !== firstScale ? moved.includes(scale) : moved.length > 0;
  }

  function filter() {
    const [scale] = checked("scale");
    const [section, verdicts] = [filters.elements.section.value, checked("verdict")];
    const onlyMoved = named("moved").some((box) => box.checked);
    for (const part of document.querySelectorAll(".board [data-scale]")) {
      part.hidden = Boolean(scale) && part.dataset.scale !== scale;
    }
    for (const row of rows) {
      const fits = verdictsOf(row, scale).some((verdict) => verdicts.includes(verdict));
      row.hidden = !fits || (section && row.dataset.section !== section) || (onlyMoved && !moves(row, scale));
    }
    const left = rows.filter((row) => !row.hidden).length;
    shown.textContent = `${left} of ${rows.length} checks are shown.`;
    const query = new URLSearchParams();
    if (section) query.set("section", section);
    if (scale && named("scale").length > 1) query.set("scale", scale);
    if (verdicts.length < named("verdict").length) query.set("verdict", verdicts.join(","));
    if (onlyMoved) query.set("moved", "");
    const text = query.toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
  }

  function fromAddress() {
    const query = new URLSearchParams(location.search);
    const verdicts = query.get("verdict")?.split(",");
    if (verdicts) for (const box of named("verdict")) box.checked = verdicts.includes(box.value);
    for (const box of named("moved")) box.checked = query.has("moved");
    const scale = named("scale").find((box) => box.value === query.get("scale"));
    if (scale) scale.checked = true;
    const section = query.get("section");
    if ([...filters.elements.section.options].some((option) => option.value === section)) {
      filters.elements.section.value = section;
    }
  }
  filters.hidden = false;
  fromAddress();
  filters.addEventListener("change", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(filter));
  filter();
})();
