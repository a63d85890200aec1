(() => {
  "use strict";
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const show = (parts, attribute, value) => parts.forEach((part) => { part.hidden = part.dataset[attribute] !== value; });

  // A figure shows one of its views, a table the rows of one score
  for (const select of all("select[data-views]")) {
    const views = all("[data-view]", select.closest("figure"));
    select.addEventListener("change", () => show(views, "view", select.value));
    show(views, "view", select.value);
  }
  for (const select of all("select[data-rows]")) {
    const rows = all("tr[data-score]", document.getElementById(select.dataset.rows));
    select.addEventListener("change", () => show(rows, "score", select.value));
    show(rows, "score", select.value);
  }

  // A legend's entry hides the lines of its name
  for (const button of all("[data-hides]")) {
    const lines = all("[data-name]", button.closest("[data-view]")).filter((line) => line.dataset.name === button.dataset.hides);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(shown));
      for (const line of lines) line.style.display = shown ? "" : "none";
    });
  }

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
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === "");  // what is not there is last, either way
          const difference = [x, y].some((z) => Number.isNaN(Number(z))) ? x.localeCompare(y) : x - y;
          return down ? -difference : difference;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      });
    });
  }

  for (const box of all("input[data-student]")) {
    const said = all(".student", box.closest(".samples")).filter((part) => part.dataset.said === box.dataset.student);
    box.addEventListener("change", () => said.forEach((part) => { part.hidden = !box.checked; }));
    said.forEach((part) => { part.hidden = !box.checked; });
  }
  document.documentElement.dataset.ready = "true";
})();
