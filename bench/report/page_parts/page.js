"use strict";
(() => {
  const say = (text) => { document.getElementById("said").textContent = text; };
  const { strings, cells } = JSON.parse(document.getElementById("data").textContent);

  /* Which number a table shows. */
  const seen = (cell, view) => cell.querySelector(`.v[data-v="${CSS.escape(view)}"]`) || cell.querySelector(".v:not([data-v])");

  document.querySelectorAll(".choice").forEach((choice) => {
    const table = document.getElementById(choice.dataset.for);
    choice.addEventListener("change", (event) => {
      table.dataset.view = event.target.value;
      show(table);
      reorder(table);
      say(`Showing ${event.target.parentElement.textContent.trim()}`);
    });
    const checked = choice.querySelector("input:checked");
    table.dataset.view = checked.value;
    show(table);
  });

  function show(table) {
    table.querySelectorAll(".v[data-v]").forEach((v) => { v.hidden = v.dataset.v !== table.dataset.view; });
  }

  /* Sorting: descending, ascending, as it was. What has no number comes last. */
  function reorder(table) {
    const body = table.querySelector("tbody.rows");
    const head = table.querySelector("th[aria-sort]");
    const rows = [...body.rows];
    const place = (row) => Number(row.dataset.row);
    if (!head) {
      rows.sort((a, b) => place(a) - place(b));
    } else {
      const column = head.cellIndex, sign = head.getAttribute("aria-sort") === "descending" ? -1 : 1;
      const value = (row) => {
        const v = seen(row.cells[column], table.dataset.view);
        return v && v.dataset.sort !== "" ? Number(v.dataset.sort) : null;
      };
      rows.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null) || place(a) - place(b);
        return sign * (x - y) || place(a) - place(b);
      });
    }
    body.append(...rows);
  }

  document.querySelectorAll("button.sort").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th"), table = head.closest("table"), was = head.getAttribute("aria-sort");
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      const next = was === null ? "descending" : was === "descending" ? "ascending" : null;
      if (next) head.setAttribute("aria-sort", next);
      reorder(table);
      say(next ? `Sorted by ${button.textContent.trim()}, ${next}` : "In the order of the table");
    });
  });

  /* Which method stands out in the figures. */
  document.querySelectorAll("select.method-pick").forEach((select) => {
    const figures = document.querySelector(`[data-figures="${CSS.escape(select.id)}"]`);
    const mark = () => figures.querySelectorAll(".m").forEach((m) => {
      const on = m.dataset.m === select.value;
      m.classList.toggle("hl", on);
      if (on) m.parentElement.append(m);
    });
    select.addEventListener("change", mark);
    mark();
  });

  /* Where a number comes from. */
  const dialog = document.getElementById("evidence");
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (!button) return;
    const cell = cells[button.dataset.cell];
    put("evidence-title", cell.t);
    put("evidence-conditions", strings[cell.c]);
    document.getElementById("evidence-runs").replaceChildren(...cell.r.map((run) => {
      const row = document.createElement("tr");
      run.forEach((value, i) => {
        const box = document.createElement(i ? "td" : "th");
        if (!i) box.scope = "row";
        box.textContent = i === 4 ? strings[value] : value;
        if (i === 5) box.className = "path";
        row.append(box);
      });
      return row;
    }));
    document.getElementById("evidence-steps").replaceChildren(...cell.s.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
    dialog.showModal();
  });
  document.getElementById("evidence-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
})();
