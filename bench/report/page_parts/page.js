"use strict";
(() => {
  const say = (text) => { document.getElementById("said").textContent = text; };
  const { strings, cells, files, base } = JSON.parse(document.getElementById("data").textContent);

  /* What is open stands in the address, so that it can be sent: tab, which number each table shows, its order, the open cell. */
  const state = new URLSearchParams(location.hash.slice(1));
  const keep = (key, value) => {
    if (value) state.set(key, value); else state.delete(key);
    try { history.replaceState(null, "", `#${state}`); } catch { /* some viewers keep their own address: then nothing is kept in it */ }
  };

  /* Own runs and each evidence set are tabs. */
  const tabs = [...document.querySelectorAll("nav.tabs a")];
  const open = (id) => {
    tabs.forEach((tab) => {
      const on = tab.hash === `#${id}`;
      document.getElementById(tab.hash.slice(1)).hidden = !on;
      if (on) tab.setAttribute("aria-current", "page"); else tab.removeAttribute("aria-current");
    });
    mark();
  };
  const mark = () => document.querySelectorAll(".scroll").forEach((box) => { box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1); });
  window.addEventListener("resize", mark);
  document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", mark));
  tabs.forEach((tab) => tab.addEventListener("click", (event) => {
    event.preventDefault();
    keep("tab", tab.hash.slice(1));
    open(tab.hash.slice(1));
  }));

  /* Which number a table shows. */
  const seen = (cell, view) => cell.querySelector(`.v[data-v="${CSS.escape(view)}"]`) || cell.querySelector(".v:not([data-v])");

  document.querySelectorAll(".choice").forEach((choice) => {
    const table = document.getElementById(choice.dataset.for);
    choice.addEventListener("change", (event) => {
      table.dataset.view = event.target.value;
      keep(table.id, event.target.value);
      show(table);
      reorder(table);
      mark();
      say(`Showing ${event.target.parentElement.textContent.trim()}`);
    });
    const asked = choice.querySelector(`input[value="${CSS.escape(state.get(table.id) || "")}"]`);
    if (asked) asked.checked = true;
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
        if (!column) return row.cells[0].textContent.toLowerCase();
        const v = seen(row.cells[column], table.dataset.view);
        return v && v.dataset.sort !== "" ? Number(v.dataset.sort) : null;
      };
      rows.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null) || place(a) - place(b);
        return sign * (column ? x - y : x.localeCompare(y)) || place(a) - place(b);
      });
    }
    body.append(...rows);
  }

  document.querySelectorAll("button.sort").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th"), table = head.closest("table"), was = head.getAttribute("aria-sort");
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      const [first, second] = head.cellIndex ? ["descending", "ascending"] : ["ascending", "descending"]; // names from A on
      const next = was === null ? first : was === first ? second : null;
      if (next) head.setAttribute("aria-sort", next);
      keep(`${table.id}.sort`, next && `${head.cellIndex}.${next}`);
      reorder(table);
      say(next ? `Sorted by ${button.textContent.trim()}, ${next}` : "In the order of the table");
    });
  });

  document.querySelectorAll("table.grid").forEach((table) => {
    const [column, order] = (state.get(`${table.id}.sort`) || "").split(".");
    const head = table.tHead.rows[0].cells[Number(column)];
    if (!head || !["ascending", "descending"].includes(order)) return;
    head.setAttribute("aria-sort", order);
    reorder(table);
  });

  document.querySelectorAll("button.take").forEach((button) => {
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([files[button.dataset.of][button.dataset.file]], { type: "text/plain" }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      say(`${button.dataset.file} saved`);
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
    if (button) reveal(button.dataset.cell);
  });
  function reveal(id) {
    const cell = cells[id];
    if (!cell) return;
    keep("cell", id);
    put("evidence-title", cell.t);
    put("evidence-conditions", strings[cell.c]);
    document.getElementById("evidence-runs").replaceChildren(...cell.r.map((run) => {
      const row = document.createElement("tr");
      run.forEach((value, i) => {
        const box = document.createElement(i ? "td" : "th");
        if (!i) box.scope = "row";
        box.textContent = i === 4 ? strings[value] : value;
        if (i === 5) {
          box.className = "path";
          if (value) {
            const link = document.createElement("a");
            link.href = [...base.split("/"), ...value.split("/")].map(encodeURIComponent).join("/");
            link.textContent = value;
            box.replaceChildren(link);
          }
        }
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
    mark();
  }
  dialog.addEventListener("close", () => keep("cell", ""));
  document.getElementById("evidence-close").addEventListener("click", () => dialog.close());
  /* A press beside it closes it; one in its margin, or one that began inside it, does not. */
  const beside = (event) => {
    const box = dialog.getBoundingClientRect();
    return event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
  };
  dialog.addEventListener("mousedown", (event) => { if (event.target === dialog && beside(event)) dialog.close(); });

  /* An address that was sent and is put into an open page; the link that skips the header keeps what stands there. */
  window.addEventListener("hashchange", () => location.reload());
  document.querySelector("a.skip").addEventListener("click", (event) => {
    const main = document.getElementById("main");
    event.preventDefault();
    main.tabIndex = -1;
    main.focus();
  });

  const nav = document.querySelector("nav.tabs");
  if (nav) {
    const plain = [...state.keys()].find((key) => tabs.some((tab) => tab.hash === `#${key}`)); // a bare #set1
    const asked = state.get("tab") || plain;
    open(tabs.some((tab) => tab.hash === `#${asked}`) ? asked : nav.dataset.open);
  }
  mark();
  if (state.get("cell")) reveal(state.get("cell"));
})();
