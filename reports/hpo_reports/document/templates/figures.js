"use strict";
// Draws every figure of the page in the page's own colours, and again when these change.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function colors(layout) {
    const axis = { gridcolor: color("--rule"), zerolinecolor: color("--rule"), linecolor: color("--rule") };
    const changes = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: Object.assign({}, layout.font, { color: color("--ink") }),
    };
    for (const name of Object.keys(layout).concat(["xaxis", "yaxis"])) {
      if (/^[xy]axis\d*$/.test(name)) changes[name] = Object.assign({}, layout[name], axis);
    }
    return Object.assign({}, layout, changes);
  }

  function content(name) {
    return JSON.parse(document.querySelector('script[data-content="' + CSS.escape(name) + '"]').textContent);
  }

  function draw() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = content(place.dataset.figure);
      const layout = colors(Object.assign({}, figure.layout, { autosize: true, width: undefined }));
      Plotly.react(place, figure.data, layout, { responsive: true, displaylogo: false });
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
