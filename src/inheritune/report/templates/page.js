"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const font = getComputedStyle(document.body).fontFamily;

  const theme = () => {
    const text = dark.matches ? "#d5d8dc" : "#2b3138";
    const line = dark.matches ? "#39404a" : "#e2e5e9";
    const labels = { labelColor: text, titleColor: text, labelFont: font, titleFont: font, titleFontWeight: 500 };
    return {
      background: "transparent",
      font,
      title: { color: text, font, fontWeight: 600 },
      view: { stroke: null },
      axis: { ...labels, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 12 },
      legend: { ...labels, labelFontSize: 12, titleFontSize: 12 },
    };
  };

  // `ast` makes Vega interpret its expressions, so that the page's policy need not allow evaluating strings.
  const options = () => ({
    mode: "vega-lite",
    actions: false,
    ast: true,
    renderer: "svg",
    tooltip: { theme: dark.matches ? "dark" : "light" },
    config: theme(),
  });

  const drawn = new Map();
  const draw = async () => {
    for (const [id, spec] of Object.entries(specs)) {
      const place = document.getElementById(id);
      drawn.get(id)?.finalize();
      try {
        drawn.set(id, await vegaEmbed(place, structuredClone(spec), options()));
      } catch (error) {
        place.textContent = `This chart could not be drawn: ${error.message}`;
      }
    }
  };
  dark.addEventListener("change", draw);
  draw();
})();
