"use strict";
// The controls of all plots, and a legend of one: what bokeh has drawn is changed in place.
(function ready() {
  const form = document.getElementById("controls");
  if (form === null) return;
  const figures = [...document.querySelectorAll("figure")];
  const views = figures.map((one) => Bokeh.index.roots.find((view) => one.contains(view.el)));
  if (views.includes(undefined)) return void setTimeout(ready, 50);

  const plots = views.map((view) => view.model);
  const make = (name) => new (Bokeh.Models.get(name))();
  const lines = (plot) => plot.renderers.filter((one) => one.glyph);

  function over(column) {
    for (const plot of plots) {
      for (const { glyph } of lines(plot)) glyph.x = { field: column };
      plot.below[0].axis_label = column;
      plot.below[0].formatter.format = column === "tokens" ? "0.[00]a" : "0,0";
    }
    whole();
  }
  function scale(kind) {
    for (const plot of plots.filter((one) => one.tags.includes("log"))) {
      plot.y_scale = make(kind === "log" ? "LogScale" : "LinearScale");
      plot.left[0].ticker = make(kind === "log" ? "LogTicker" : "BasicTicker");
      plot.left[0].formatter = make(kind === "log" ? "LogTickFormatter" : "BasicTickFormatter");
    }
    whole();
  }
  function whole() {
    for (const view of views) view.reset();
  }
  function zoom(on) {
    for (const plot of plots) {
      plot.toolbar.active_drag = on ? plot.toolbar.tools.find((tool) => tool.type === "BoxZoomTool") : null;
    }
  }
  function repaint() {
    for (const view of views) view.request_paint();
  }
  form.addEventListener("change", ({ target }) => {
    if (target.name === "x") over(target.value);
    if (target.name === "y") scale(target.value);
    if (target.id === "zoom") zoom(target.checked);
  });
  document.getElementById("whole").addEventListener("click", whole);
  for (const box of document.querySelectorAll("input[data-line]")) {
    const place = figures.indexOf(box.closest("figure"));
    box.addEventListener("change", () => {
      for (const one of lines(plots[place])) if (one.glyph.tags.includes(Number(box.dataset.line))) one.visible = box.checked;
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  for (const view of views) view.canvas_view.events_el.tabIndex = -1; // it is an image: there is nothing for keys
  form.reset();
  document.documentElement.dataset.ready = "true";
})();
