"use strict";
// Curves with intervals, drawn by uPlot. All charts share one zoom and one cursor over steps.

/** Make an element with properties (`data-`, `aria-`, role, … as attributes) and children; strings become text, never HTML. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$|for$|scope$|colspan$)/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 4)));
}

const Charts = (() => {
  const COLOURS = 8;
  const HEIGHT = 190;
  let all = [];
  let zoom = null;
  let smoothing = 1;
  const hidden = new Set();
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => css(`--series-${index % COLOURS}`);
  // When all colours are used, the next series are dashed.
  const dashOf = (index, second) => (second ? [6, 4] : index >= COLOURS ? [2, 3] : undefined);
  const transparent = (hex, share) => hex + Math.round(255 * share).toString(16).padStart(2, "0");

  function smooth(values) {
    if (smoothing === 1) return values;
    return values.map((value, index) => {
      if (value === null) return null;
      const near = values.slice(Math.max(0, index - smoothing + 1), index + 1).filter((one) => one !== null);
      return near.reduce((sum, one) => sum + one, 0) / near.length;
    });
  }

  /** The columns for uPlot from lines {label, colour, dash, x, mean, bands: [[low, high, opacity]…]}. */
  function columns(lines) {
    const tables = lines.map((line) => [
      line.x, smooth(line.mean), ...line.bands.flatMap(([low, high]) => [smooth(low), smooth(high)]),
    ]);
    return tables.length ? uPlot.join(tables) : [[]];
  }

  /**
   * Lower and upper end of the y axis for the visible steps: all lines and bands. A very wide interval, such as that of two
   * seeds, is cut off, so that the lines stay readable.
   */
  function yRange({ lines, share, extent, whole }) {
    return (plot) => {
      const [min, max] = zoom ?? extent();
      const ends = (columns) => {
        const seen = columns.flatMap((column) => plot.data[column].filter((value, index) => (
          value !== null && value !== undefined && plot.data[0][index] >= min && plot.data[0][index] <= max)));
        return seen.length ? [seen.reduce((a, b) => Math.min(a, b)), seen.reduce((a, b) => Math.max(a, b))] : null;
      };
      const own = [];
      const edges = [];
      let column = 1;
      for (const line of lines) {
        if (!line.hidden) own.push(column);
        for (let edge = 1; edge <= 2 * line.bands.length; edge += 1) if (!line.hidden) edges.push(column + edge);
        column += 1 + 2 * line.bands.length;
      }
      const drawn = ends(own);
      if (!drawn) return [0, 1];
      const [bottom, top] = ends(edges) ?? drawn;
      const span = drawn[1] - drawn[0] || Math.abs(drawn[1]) * 0.2 || 0.5;
      const reach = whole ? Infinity : 0.6 * span;
      const pad = 0.06 * (whole ? Math.max(top - bottom, span) : span);
      const low = Math.max(Math.min(bottom, drawn[0]), drawn[0] - reach) - pad;
      const high = Math.min(Math.max(top, drawn[1]), drawn[1] + reach) + pad;
      // No room below 0 for values that are never negative, and none above 1 for shares.
      return [drawn[0] >= 0 && (!whole || bottom >= 0) ? Math.max(low, -0.03 * high) : low, share ? Math.min(high, 1.03) : high];
    };
  }

  class Chart {
    /** `make()` returns the current lines, `extent()` the first and last step; `whole`: never cut off bands. */
    constructor(parent, { title, about, share, whole, make, extent }) {
      Object.assign(this, { make, extent, share, whole });
      this.readout = el("div", { className: "tooltip", hidden: true });
      this.plotArea = el("div", { className: "plot", tabIndex: 0, role: "img" });
      this.plotArea.addEventListener("keydown", (event) => this.key(event));
      this.plotArea.addEventListener("blur", () => this.leave());
      this.title = title;
      this.live = el("span", { className: "visually-hidden", role: "status" });
      this.root = el("figure", { className: "card chart" },
        el("figcaption", {}, el("strong", {}, title), el("span", { className: "about" }, about)),
        this.plotArea, this.readout, this.live);
      parent.append(this.root);
      this.observer = new ResizeObserver(() => this.resize());
      this.observer.observe(this.plotArea);
      all.push(this);
      this.draw();
    }

    draw() {
      if (this.plot) this.plot.destroy();
      this.lines = this.make();
      const grid = { stroke: css("--grid"), width: 1 };
      const axis = { stroke: css("--quiet"), grid, ticks: { show: false }, font: "11px system-ui, sans-serif", gap: 4 };
      const series = [{}];
      const bands = [];
      for (const line of this.lines) {
        series.push({ label: line.label, stroke: line.colour, width: 1.75, dash: line.dash, show: !line.hidden,
          points: { size: 5, fill: line.colour, stroke: line.colour } });
        for (const [, , opacity] of line.bands) {
          const low = series.length;
          const edge = { stroke: "transparent", width: 0, points: { show: false }, show: !line.hidden };
          series.push({ ...edge }, { ...edge });
          bands.push({ series: [low + 1, low], fill: transparent(line.colour, opacity) });
        }
      }
      const options = {
        width: Math.max(this.plotArea.clientWidth, 120),
        height: HEIGHT,
        series,
        bands,
        legend: { show: false },
        padding: [8, 12, 0, 0],
        scales: { x: { time: false, range: () => zoom ?? this.extent() }, y: { range: yRange(this) } },
        axes: [
          { ...axis, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], space: 44 },
          { ...axis, size: 52, space: 32, values: (plot, ticks) => ticks.map(formatNumber) },
        ],
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
          sync: { key: "steps", setSeries: false, scales: ["x", null],
            filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
          bind: { dblclick: () => () => { setZoom(null); return null; } },
        },
        hooks: {
          setSelect: [(plot) => {
            const { left, width } = plot.select;
            if (width < 6) return;
            setZoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          }],
          setCursor: [(plot) => this.hover(plot)],
        },
      };
      this.plot = new uPlot(options, columns(this.lines), this.plotArea);
      this.describe();
    }

    describe() {
      const parts = this.lines.filter((line) => !line.hidden && line.mean.length).map((line) => {
        const known = line.mean.filter((value) => value !== null);
        return `${line.label}: from ${formatNumber(known[0])} to ${formatNumber(known[known.length - 1])}`;
      });
      this.plotArea.setAttribute("aria-label", `${this.title}. ${parts.slice(0, 8).join("; ") || "no data"}`);
    }

    resize() {
      const width = this.plotArea.clientWidth;
      if (this.plot && width > 0 && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: HEIGHT });
    }

    rescale() {
      this.plot.setData(this.plot.data, true);
    }

    /** Show the values at the cursor next to it. */
    hover(plot) {
      const { idx, left, top } = plot.cursor;
      const here = idx !== null && idx !== undefined && left >= 0;
      const active = here && (this.root.matches(":hover") || document.activeElement === this.plotArea);
      this.readout.hidden = !active;
      if (!active) return;
      const rows = [];
      let column = 1;
      for (const line of this.lines) {
        const value = plot.data[column][idx];
        if (!line.hidden && value !== null && value !== undefined) {
          const bounds = line.bands.length ? [plot.data[column + 1][idx], plot.data[column + 2][idx]] : [];
          const between = bounds.length && bounds[0] !== null && bounds[0] !== undefined
            ? ` [${formatNumber(bounds[0])}, ${formatNumber(bounds[1])}]` : "";
          const marker = el("span", { className: "marker" });
          marker.style.backgroundColor = line.colour;
          rows.push(el("div", {}, marker, `${line.label} `, el("b", {}, formatNumber(value)), between, line.note(plot.data[0][idx])));
        }
        column += 1 + 2 * line.bands.length;
      }
      const step = `step ${plot.data[0][idx]}`;
      this.readout.replaceChildren(el("div", { className: "quiet" }, step), ...rows);
      if (document.activeElement === this.plotArea) this.live.textContent = `${step}: ${rows.map((row) => row.textContent).join("; ")}`;
      const box = this.plotArea;
      const room = box.clientWidth - left - plot.bbox.left / devicePixelRatio;
      const shift = room < this.readout.offsetWidth + 24 ? -this.readout.offsetWidth - 12 : 12;
      const x = box.offsetLeft + plot.bbox.left / devicePixelRatio + left + shift;
      this.readout.style.left = `${Math.max(4, x)}px`;
      this.readout.style.top = `${box.offsetTop + Math.max(0, Math.min(top ?? 0, 60))}px`;
    }

    leave() {
      this.readout.hidden = true;
      this.plot.setCursor({ left: -10, top: -10 });
    }

    key(event) {
      const xs = this.plot.data[0];
      if (!xs.length) return;
      const [first, last] = zoom ?? this.extent();
      const inside = xs.map((value, index) => [value, index]).filter(([value]) => value >= first && value <= last);
      if (!inside.length && event.key !== "0") return;
      const place = inside.findIndex(([, index]) => index === this.plot.cursor.idx && this.plot.cursor.left >= 0);
      const go = (to) => {
        const [value] = inside[Math.max(0, Math.min(inside.length - 1, to))];
        this.plot.setCursor({ left: this.plot.valToPos(value, "x"), top: 30 }, true);
      };
      const centre = place >= 0 ? inside[place][0] : (first + last) / 2;
      const scaled = (factor) => {
        const [from, to] = this.extent();
        const half = (factor * (last - first)) / 2;
        if (half < 0.5) return;
        setZoom(half * 2 >= to - from ? null : [Math.max(from, centre - half), Math.min(to, centre + half)]);
      };
      const actions = {
        ArrowRight: () => go(place + 1),
        ArrowLeft: () => go(place < 0 ? inside.length - 1 : place - 1),
        Home: () => go(0),
        End: () => go(inside.length - 1),
        "+": () => scaled(0.5),
        "=": () => scaled(0.5),
        "-": () => scaled(2),
        0: () => setZoom(null),
        Escape: () => this.leave(),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
      event.preventDefault();
      actions[event.key]();
    }

    remove() {
      this.observer.disconnect();
      this.plot.destroy();
      this.root.remove();
      all = all.filter((one) => one !== this);
    }
  }

  function setZoom(range) {
    zoom = range;
    document.getElementById("reset-zoom").disabled = zoom === null;
    for (const chart of all) chart.rescale();
  }

  return {
    Chart,
    colour,
    css,
    dashOf,
    hidden,
    setZoom,
    /** Draw all charts again, after a change of data, smoothing, colours or visible series. */
    redraw() { for (const chart of all) chart.draw(); },
    smoothOver(points) { smoothing = points; this.redraw(); },
  };
})();
