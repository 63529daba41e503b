// Before anything is painted: the page is light or dark as it was chosen last, else as the system is.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* a browser may forbid storage, from a disk above all */ }
