"use strict";
(() => {
  const { charts, tables, weights: maps } = JSON.parse(document.getElementById("chart-data").textContent);
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

  // A table has its field names once; Vega wants an object for each row, its own for each chart.
  const rowsOf = ({ fields, rows }) => rows.map((row) => Object.fromEntries(fields.map((name, i) => [name, row[i]])));
  const expand = (spec) => {
    const table = spec.data?.table;
    const data = table === undefined ? {} : { data: { values: rowsOf(tables[table]) } };
    const layer = spec.layer === undefined ? {} : { layer: spec.layer.map(expand) };
    return { ...structuredClone(spec), ...data, ...layer };
  };
  const MANY = 1500;
  const isLarge = (spec) => (tables[spec.data?.table]?.rows.length ?? 0) > MANY || (spec.layer ?? []).some(isLarge);

  // `ast` makes Vega interpret its expressions, so that the page's policy need not allow evaluating strings.
  const options = (spec) => ({
    mode: "vega-lite",
    actions: false,
    ast: true,
    renderer: isLarge(spec) ? "canvas" : "svg",
    tooltip: { theme: dark.matches ? "dark" : "light" },
    config: theme(),
  });

  const drawn = new Map();
  const draw = async () => {
    for (const [id, spec] of Object.entries(charts)) {
      const place = document.getElementById(id);
      drawn.get(id)?.finalize();
      try {
        drawn.set(id, await vegaEmbed(place, expand(spec), options(spec)));
      } catch (error) {
        place.textContent = `This chart could not be drawn: ${error.message}`;
      }
    }
  };
  dark.addEventListener("change", draw);
  draw();

  // Attention maps: the weight under the pointer, a finger or the arrow keys.
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const watch = (place, { size, bytes, tokens }) => {
    const weights = atob(bytes);
    const names = maps.tokens[tokens];
    const reading = place.nextElementSibling;
    const mark = place.appendChild(document.createElement("i"));
    let at = [0, 0];
    const name = (i) => (names?.[i] === undefined ? `token ${i}` : `${JSON.stringify(names[i])} (${i})`);
    const show = (row, column) => {
      at = [row, column].map((i) => Math.min(Math.max(i, 0), size - 1));
      const weight = (weights.charCodeAt(at[0] * size + at[1]) / 255) ** 2;
      reading.textContent = `${name(at[0])} → ${name(at[1])}: ${weight.toFixed(weight < 0.01 ? 4 : 3)}`;
      Object.assign(mark.style, {
        display: "block",
        top: `${(100 * at[0]) / size}%`,
        left: `${(100 * at[1]) / size}%`,
        width: `${100 / size}%`,
        height: `${100 / size}%`,
      });
    };
    const point = (event) => {
      const box = place.getBoundingClientRect();
      const cell = (part, whole) => Math.floor((part / whole) * size);
      show(cell(event.clientY - box.top, box.height), cell(event.clientX - box.left, box.width));
    };
    place.addEventListener("pointermove", point);
    place.addEventListener("pointerdown", point);
    place.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(at[0] + move[0], at[1] + move[1]);
    });
  };
  for (const [id, map] of Object.entries(maps.maps)) watch(document.getElementById(id), map);
})();
