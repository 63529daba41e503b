// Charts from the data beside them: drawn when they come into view, in the colors of the page.
"use strict";

(() => {
  const coarse = matchMedia("(pointer: coarse)");
  const isDark = () => {
    const theme = document.documentElement.dataset.theme;
    return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  function faded(color, opacity) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${opacity})`;
  }

  // A trace in the colors of the page.
  function painted(trace, dark) {
    const color = trace.meta.colors[dark ? 1 : 0];
    const made = { ...trace, showlegend: false, hoverlabel: { align: "left" } };
    made.line = { ...trace.line, color };
    made.marker = { ...trace.marker, color, line: { ...trace.marker?.line, color } };
    if (trace.meta.fill) made.fillcolor = faded(color, trace.meta.fill);
    if (trace.error_y) made.error_y = { ...trace.error_y, color, thickness: 1.5, width: 4 };
    return made;
  }

  function layoutOf(layout, dark) {
    const ink = dark ? "#e6edf3" : "#1b1f24";
    const grid = dark ? "#30363d" : "#e3e6e9";
    const muted = dark ? "#9aa4b0" : "#57606a";
    const axis = (given) => ({
      gridcolor: grid, zerolinecolor: grid, linecolor: muted, automargin: true,
      ...given, title: { ...given.title, standoff: 8, font: { size: 13 } },
    });
    return {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      shapes: (layout.shapes ?? []).map((shape) => ({
        ...shape, line: { color: muted, width: 1, dash: "dot" },
        label: { ...shape.label, font: { color: muted, size: 12 } },
      })),
      font: { color: ink, size: 13, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      // The buttons have a strip of their own, above the names of lines.
      margin: { l: 56, r: 10, t: 32, b: 44 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
      hovermode: "closest",
      // A finger that scrolls the page must not zoom a chart.
      dragmode: coarse.matches ? false : "zoom",
      uirevision: "kept",
      hoverlabel: { font: { size: 12, family: "ui-monospace, monospace" } },
    };
  }

  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    displayModeBar: coarse.matches ? true : "hover",
  };

  // Whole numbers as they are, N and steps above all; others with four digits.
  function shown(value) {
    return Number.isFinite(value) && !Number.isInteger(value) ? +value.toPrecision(4) : value;
  }

  class Drawing {
    constructor(element) {
      this.element = element;
      this.form = element.querySelector(".facets");
      this.picked = element.querySelector(".picked");
      this.charts = [...element.querySelectorAll(".chart")].map((figure) => ({
        figure,
        plot: figure.querySelector(".plot"),
        json: figure.querySelector("script"),
        data: null,
      }));
      this.form.hidden = false;
      this.form.querySelector(".all").hidden = !this.form.querySelector("fieldset");
      element.querySelector(".how").hidden = false;
      this.form.addEventListener("change", () => this.show());
      this.form.querySelector(".all").addEventListener("click", () => {
        for (const box of this.form.querySelectorAll("input")) box.checked = true;
        this.show();
      });
      this.form.querySelector(".reset").addEventListener("click", () => this.resetZoom());
      const seen = new IntersectionObserver((entries) => {
        for (const entry of entries) if (entry.isIntersecting) this.draw(entry.target);
      }, { rootMargin: "300px" });
      for (const chart of this.charts) seen.observe(chart.figure);
    }

    // Which traces are switched off.
    isOff(trace) {
      const off = [...this.form.querySelectorAll("input:not(:checked)")];
      return off.some((box) => trace.meta.facets[box.dataset.facet] === box.value);
    }

    read(chart) {
      chart.data ??= JSON.parse(chart.json.textContent);
      return chart.data;
    }

    traces(chart) {
      return this.read(chart).data.map((trace) => (
        { ...painted(trace, isDark()), visible: !this.isOff(trace) }
      ));
    }

    draw(figure) {
      const chart = this.charts.find((one) => one.figure === figure);
      if (!figure.offsetParent) return;
      if (chart.drawn) {
        // The window may have changed while another scale was shown.
        if (chart.plot.clientWidth !== chart.plot._fullLayout?.width) Plotly.Plots.resize(chart.plot);
        return;
      }
      chart.drawn = true;
      const layout = layoutOf(this.read(chart).layout, isDark());
      Plotly.newPlot(chart.plot, this.traces(chart), layout, config).then(() => {
        chart.plot.on("plotly_click", (event) => this.pick(event.points[0]));
        figure.dataset.drawn = "";
      });
    }

    // Again: what is switched on, or the colors of the page, have changed.
    show() {
      for (const chart of this.charts) {
        const empty = this.read(chart).data.every((trace) => this.isOff(trace));
        chart.figure.hidden = empty;
        if (chart.drawn && !empty) {
          Plotly.react(chart.plot, this.traces(chart), layoutOf(chart.data.layout, isDark()), config);
        }
      }
    }

    resetZoom() {
      for (const chart of this.charts.filter((one) => one.drawn)) {
        const { xaxis, yaxis } = chart.data.layout;
        const ranges = {};
        for (const [name, axis] of Object.entries({ xaxis, yaxis })) {
          if (axis.range) ranges[`${name}.range`] = [...axis.range];
          else ranges[`${name}.autorange`] = true;
        }
        Plotly.relayout(chart.plot, ranges);
      }
    }

    // A chosen point: its words, and its runs as links into the table of runs.
    pick(point) {
      const text = point.customdata ?? point.data.meta.keys ?? "";
      const keys = String(text).split(/ |<br>/).filter(Boolean);
      this.picked.replaceChildren(`${point.data.name}: ${shown(point.x)}, ${shown(point.y)}. `);
      if (keys.length) this.picked.append(keys.length === 1 ? "Run " : "Runs ");
      for (const key of keys) {
        const row = `run-${this.element.dataset.label}-${key}`;
        const known = document.getElementById(row);
        const name = document.createElement(known ? "a" : "code");
        if (known) name.href = `#${row}`;
        name.className = "key";
        name.textContent = key;
        this.picked.append(name, " ");
      }
    }
  }

  const drawings = [...document.querySelectorAll(".drawing")].map((element) => new Drawing(element));
  document.addEventListener("theme", () => drawings.forEach((drawing) => drawing.show()));
  function drawAll() {
    for (const drawing of drawings) for (const chart of drawing.charts) drawing.draw(chart.figure);
  }
  addEventListener("beforeprint", drawAll);
})();
