(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const saved = () => { try { return localStorage.getItem("theme"); } catch { return null; } };

  // Plots. Each figure has a chosen view and names that its legend has hidden; every panel is drawn from these.
  const figures = all("figure[data-figure]").map((element) => ({
    element,
    hidden: new Set(),
    select: element.querySelector("select"),
    legend: element.querySelector(".legend"),
    panels: all(".plot", element).map((plot) => ({
      plot, source: JSON.parse(plot.parentElement.querySelector("script").textContent),
    })),
  }));
  const view = (figure) => (figure.select ? figure.select.value : "");
  const inView = (figure, trace) => !trace.meta.view || trace.meta.view === view(figure);

  let onPaper = false;

  function draw(figure) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const own = { ink: colour("--ink"), faint: colour("--muted") };
    for (const { plot, source } of figure.panels) {
      const data = source.data
        .filter((trace) => inView(figure, trace) && !figure.hidden.has(trace.meta.name))
        .map((trace) => {
          if (trace.meta.kind === "band") return { ...trace, opacity: root.dataset.theme === "dark" ? 0.3 : 0.16 };
          const line = own[trace.meta.colour];
          return line ? { ...trace, line: { ...trace.line, color: line } } : trace;
        });
      const { title, range } = source.views[view(figure)];
      const axis = {
        gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line"), automargin: true,
        tickfont: { size: 12 },
      };
      const layout = {
        ...source.layout,
        ...(onPaper ? { autosize: false, width: figure.panels.length > 1 ? 320 : 660, height: 240 } : {}),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--muted"), family: getComputedStyle(document.body).fontFamily, size: 12 },
        hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
        xaxis: { ...source.layout.xaxis, ...axis, showgrid: false, showline: true, ticks: "outside" },
        yaxis: {
          ...source.layout.yaxis, ...axis,
          title: { ...source.layout.yaxis.title, text: wrapped(title) }, ...(range ? { range } : {}),
        },
      };
      plot.setAttribute("aria-label", `${plot.dataset.label}: ${title}`);
      Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true, showTips: false });
    }
    const chosen = view(figure);
    for (const part of all("[data-view]", figure.element)) part.hidden = part.dataset.view !== chosen;
  }

  function wrapped(title) {
    const lines = [""];
    for (const word of title.split(" ")) {
      if ((lines.at(-1) + word).length > 34) lines.push("");
      lines[lines.length - 1] += `${word} `;
    }
    return lines.map((line) => line.trim()).join("<br>");
  }

  function fillLegend(figure) {
    const entries = new Map();
    for (const { source } of figure.panels) {
      for (const trace of source.data) {
        if (trace.meta.kind !== "band" && inView(figure, trace) && !entries.has(trace.meta.name)) {
          entries.set(trace.meta.name, trace.meta);
        }
      }
    }
    const entry = () => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      item.append(button);
      return [item, button];
    };
    const items = [...entries].map(([name, meta]) => {
      const [item, button] = entry();
      button.append(swatch(meta), ` ${name}`);
      button.setAttribute("aria-pressed", String(!figure.hidden.has(name)));
      button.addEventListener("click", () => {
        if (!figure.hidden.delete(name)) figure.hidden.add(name);
        button.setAttribute("aria-pressed", String(!figure.hidden.has(name)));
        draw(figure);
      });
      return item;
    });
    if (entries.size > 6) {
      const [item, button] = entry();
      const shown = [...entries.keys()].some((name) => !figure.hidden.has(name));
      button.textContent = shown ? "Hide all" : "Show all";
      button.addEventListener("click", () => {
        for (const name of entries.keys()) {
          if (shown) figure.hidden.add(name); else figure.hidden.delete(name);
        }
        fillLegend(figure);
        draw(figure);
        figure.legend.lastElementChild.firstElementChild.focus();
      });
      items.push(item);
    }
    figure.legend.replaceChildren(...items);
  }

  const DASHES = { dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4", longdashdot: "10 4 2 4" };
  const MARKERS = {
    circle: "M14 3a4 4 0 1 0 .01 0z", square: "M10.5 3.5h7v7h-7z", diamond: "M14 2l5 5-5 5-5-5z",
    "triangle-up": "M14 2.5l4.5 8h-9z", x: "M10 4.5L11.5 3 14 5.5 16.5 3 18 4.5 15.5 7 18 9.5 16.5 11 14 8.5 11.5 11 10 9.5 12.5 7z",
    cross: "M12.5 3h3v2.5H18v3h-2.5V11h-3V8.5H10v-3h2.5z", star: "M14 2l1.5 3.5 3.800.3-2.900 2.5.9 3.700-3.300-2-3.300 2 .9-3.700-2.900-2.5 3.800-.3z",
    pentagon: "M14 2.5l4.5 3.300-1.700 5.200h-5.600L9.5 5.800z",
  };

  function swatch(meta) {
    const make = (name, attributes, parent) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      if (parent) parent.append(node);
      return node;
    };
    const colour = { ink: "var(--ink)", faint: "var(--muted)" }[meta.colour] || meta.colour;
    const svg = make("svg", { width: 28, height: 14, class: "swatch", "aria-hidden": "true" });
    if (meta.kind === "bar") make("rect", { x: 8, y: 1, width: 12, height: 12, fill: colour }, svg);
    else {
      const dash = DASHES[meta.dash] || "none";
      make("line", { x1: 0, x2: 28, y1: 7, y2: 7, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }, svg);
      if (meta.symbol) make("path", { d: MARKERS[meta.symbol], fill: colour }, svg);
    }
    return svg;
  }

  for (const figure of figures) {
    fillLegend(figure);
    figure.select?.addEventListener("change", () => { fillLegend(figure); draw(figure); });
  }
  for (const cell of all("[data-swatch]")) cell.prepend(swatch(JSON.parse(cell.dataset.swatch)));

  // Light or dark: what the reader chose, else what the system says; paper is always light.
  const toggle = document.getElementById("theme");
  function theme(name) {
    root.dataset.theme = name;
    toggle.textContent = name === "dark" ? "Light page" : "Dark page";
    figures.forEach(draw);
  }
  const current = () => saved() || (dark.matches ? "dark" : "light");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", next); } catch { /* a page from a file may keep nothing */ }
    theme(next);
  });
  dark.addEventListener("change", () => { if (!saved()) theme(current()); });
  addEventListener("beforeprint", () => { onPaper = true; theme("light"); });
  addEventListener("afterprint", () => { onPaper = false; theme(current()); });

  // Tables
  for (const table of all("table[data-sortable]")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === "");  // what is not there is last, either way
          const both = [Number(x), Number(y)];
          const difference = both.some(Number.isNaN) ? x.localeCompare(y) : both[0] - both[1];
          return down ? -difference : difference;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }
  for (const select of all("select[data-table]")) {
    const show = () => {
      for (const part of all(`[data-score]`, document.getElementById(select.dataset.table))) {
        part.hidden = part.dataset.score !== select.value;
      }
    };
    select.addEventListener("change", show);
    show();
  }

  // Samples
  for (const box of all("input[data-student]")) {
    const show = () => {
      const section = box.closest(".samples");
      for (const said of all(`.student[data-student="${CSS.escape(box.dataset.student)}"]`, section)) {
        said.hidden = !box.checked;
      }
    };
    box.addEventListener("change", show);
    show();
  }

  theme(current());
  root.dataset.ready = "true";
})();
