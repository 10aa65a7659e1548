"use strict";
// Turns the data into summary, tables and charts. A live page regularly gets new data from its own server.
(() => {
  const byId = (id) => document.getElementById(id);
  const LIVE = document.body.dataset.mode === "live";
  const POLL_MS = 3000;
  let data = JSON.parse(byId("data").textContent);
  let drawn = "";

  const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  function duration(seconds) {
    if (seconds === null || seconds === undefined) return "not recorded";
    const minutes = Math.floor(seconds / 60);
    if (minutes < 1) return `${seconds.toFixed(0)} s`;
    const hours = Math.floor(minutes / 60);
    return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
  }

  function table(head, rows, caption) {
    return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption),
        el("thead", {}, el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, cell)))),
        el("tbody", {}, ...rows.map((row) => el("tr", { className: row.className ?? "" },
          ...row.cells.map((cell, index) => el(index ? "td" : "th", index ? {} : { scope: "row" }, ...(Array.isArray(cell) ? cell : [cell]))))))));
  }

  const quiet = (text) => el("p", { className: "quiet" }, text);

  function swatch(index) {
    const marker = el("span", { className: "marker" });
    marker.style.backgroundColor = Charts.colour(index);
    return marker;
  }

  function tile(name, value, note) {
    return el("div", { className: "card tile" }, el("span", { className: "tile-name" }, name), el("span", { className: "tile-value" }, value),
      el("span", { className: "quiet" }, note ?? ""));
  }

  function lastOf(series, name) {
    const curve = series.curves[name];
    return curve ? curve.mean[curve.mean.length - 1] : null;
  }

  function tiles() {
    const runs = data.series.flatMap((series) => series.runs);
    const best = [...data.heldOut].sort((a, b) => b.after - a.after)[0];
    const several = data.series.length > 1;
    const made = [];
    if (runs.length) {
      const done = runs.filter((run) => run.steps >= run.total).length;
      made.push(runs.length > 1 ? tile("Runs", String(runs.length), `${data.series.length} series, ${done} at their last step`)
        : tile("Steps", `${runs[0].steps} of ${runs[0].total}`, done ? "finished" : "not at its last step"));
    }
    if (best) {
      const gain = best.before === null ? "" : `, ${best.after >= best.before ? "+" : "−"}${(100 * Math.abs(best.after - best.before)).toFixed(1)} points`;
      made.push(tile(several ? "Best held-out accuracy" : "Held-out accuracy", percent(best.after),
        (several ? visible(best.series) : visible(best.set)) + gain));
    }
    if (!several && data.series.length) {
      made.push(tile("Reward", formatNumber(lastOf(data.series[0], "reward/mean")), "mean of the last step"));
    }
    const times = runs.map((run) => run.seconds).filter((value) => value !== null);
    if (times.length) made.push(tile("Duration", duration(times.reduce((sum, one) => sum + one, 0)),
      runs.length === 1 ? "" : times.length === runs.length ? "all runs together" : `${times.length} of ${runs.length} runs together`));
    if (runs.length) made.push(tile("Alarms", String(data.alarms.length), data.alarms.length ? "see below" : "none raised"));
    byId("tiles").replaceChildren(...made);
  }

  function runsTable() {
    const area = byId("runs-table");
    area.hidden = !data.series.length;
    area.replaceChildren(table(["Series", "Seeds", "Steps", "Reward, last step", "Started", "Duration"],
      data.series.map((series, index) => {
        const { runs } = series;
        const steps = [...new Set(runs.map((run) => run.steps))].sort((a, b) => a - b);
        const started = Math.min(...runs.map((run) => run.started ?? Infinity));
        const seconds = runs.map((run) => run.seconds);
        return { cells: [
          [swatch(index), visible(series.label)],
          runs.map((run) => run.seed).join(", "),
          `${steps.length > 1 ? `${steps[0]} to ` : ""}${steps[steps.length - 1]} of ${runs[0].total}`,
          formatNumber(lastOf(series, "reward/mean")),
          Number.isFinite(started) ? new Date(1000 * started).toLocaleString() : "not recorded",
          duration(seconds.includes(null) ? null : seconds.reduce((sum, one) => sum + one, 0)),
        ] };
      }), "Runs"));
    byId("facts").replaceChildren(...data.common.map(({ name, values }) => el("div", {}, el("dt", {}, name),
      ...values.slice(0, 4).map((value) => el("dd", {}, visible(value))),
      values.length > 4 ? el("dd", { className: "quiet" }, `and ${values.length - 4} more; see Configuration`) : null)));
    byId("facts-card").hidden = !data.common.length;
  }

  function evaluation() {
    byId("held-out").replaceChildren(data.heldOut.length
      ? table(["Series", "Problems", "First", "Last", "95 % interval", "Interval over", "At step"],
        data.heldOut.map((row) => ({ cells: [visible(row.series), visible(row.set), percent(row.before), el("b", {}, percent(row.after)),
          row.low === null ? "–" : `${percent(row.low)} to ${percent(row.high)}`, row.over, row.steps] })),
        "Held-out accuracy during training (pass@1)")
      : quiet("No held-out evaluation yet."));
    const names = [...new Set(data.benchmarks.flatMap((row) => Object.keys(row.cells)))];
    names.sort((a, b) => (a === "Avg.") - (b === "Avg."));
    const wanted = names.map((name) => (name === "Avg." ? null : data.paper.of[name] ?? null));
    // The paper's average is over all six columns; next to fewer benchmarks it would mislead.
    const whole = new Set(wanted.filter(Boolean)).size === data.paper.columns.length - 1;
    const cell = (found) => (found ? [el("b", {}, percent(found.accuracy)), el("small", {}, ` ${percent(found.interval[0])} to ${percent(found.interval[1])}`)] : "–");
    const paperCell = (row, name, column) => {
      const value = row.values[data.paper.columns.indexOf(name === "Avg." && whole ? "Avg." : column)];
      return value === undefined ? "–" : percent(value);
    };
    const paperRows = wanted.some(Boolean) ? data.paper.rows.map((row) => ({ className: "paper",
      cells: [`paper, ${row.table.split(",")[0]}: ${row.name}${row.cited ? " *" : ""}`, ...names.map((name, index) => paperCell(row, name, wanted[index]))] })) : [];
    byId("benchmarks").hidden = !data.benchmarks.length;
    byId("benchmarks").replaceChildren(...(data.benchmarks.length ? [table(["Model", ...names.map(visible)],
      [...data.benchmarks.map((row) => ({ cells: [[visible(row.model), el("small", {}, ` ${visible(row.folder)}`)], ...names.map((name) => cell(row.cells[name]))] })), ...paperRows],
      "Benchmarks: pass@1 with 95 % intervals over problems"),
    ...(paperRows.length ? [quiet(`Rows in italics are the paper's, not ours (${data.paper.source}). * The paper took this row from other reports.`)] : [])] : []));
    const tables = [...new Set(data.paper.rows.map((row) => row.table))];
    byId("paper-tables").replaceChildren(...tables.map((name) => table(["Model", ...data.paper.columns],
      data.paper.rows.filter((row) => row.table === name).map((row) => ({ className: "paper",
        cells: [`${row.name}${row.cited ? " *" : ""}`, ...row.values.map(percent)] })), `The paper's ${name}`)),
    quiet(`Source: ${data.paper.source}. * The paper took this row from other reports.`));
  }

  function alarmsAndDifferences() {
    const shown = (value) => (value === null ? "–" : visible(value));
    byId("alarm-list").replaceChildren(data.alarms.length
      ? table(["Step", "Run", "Alarm"], data.alarms.map((alarm) => ({ cells: [String(alarm.step), visible(alarm.run), visible(alarm.text)] })), "Alarms raised")
      : quiet("No alarm was raised."));
    byId("differences").replaceChildren(data.differences.length
      ? table(["Key", ...data.series.map((series) => visible(series.label))],
        data.differences.map((row) => ({ cells: [row.key, ...row.values.map(shown)] })), "Keys whose values differ")
      : quiet(data.series.length ? "All runs have the same recipe, except for folder and seed." : "No runs."));
    byId("changes").hidden = !data.changes.length;
    byId("changes").replaceChildren(table(["After step", "Run", "Key", "Before", "After"],
      data.changes.map((row) => ({ cells: [String(row.step), visible(row.run), visible(row.key), ...row.values.map(shown)] })), "Changed when a run was resumed"));
  }

  /** First and last step of all curves of the page. */
  function extent() {
    let first = Infinity;
    let last = -Infinity;
    for (const series of data.series) {
      for (const { x } of Object.values(series.curves)) { first = Math.min(first, x[0]); last = Math.max(last, x[x.length - 1]); }
    }
    if (!Number.isFinite(first)) return [0, 1];
    return first === last ? [first - 1, last + 1] : [first, last];
  }

  function lines(metrics) {
    return metrics.flatMap((metric, second) => data.series.flatMap((series, index) => {
      const curve = series.curves[metric];
      if (!curve) return [];
      const counts = Array.isArray(curve.n) ? new Map(curve.x.map((x, place) => [x, curve.n[place]])) : null;
      const several = series.runs.length > 1;
      return [{
        label: visible(series.label) + (metrics.length > 1 ? (second ? ", wrong" : ", right") : ""),
        colour: Charts.colour(index), dash: Charts.dashOf(index, second), hidden: Charts.hidden.has(series.label),
        x: curve.x, mean: curve.mean, bands: curve.low ? [[curve.low, curve.high, 0.16]] : [],
        note: (x) => (several ? ` · n = ${counts ? counts.get(x) : curve.n}` : "") + (curve.per > 1 ? ` · mean of ${curve.per} steps` : ""),
      }];
    }));
  }

  const bandSeries = () => data.series[byId("band-series").selectedIndex] ?? data.series[0];

  function bandLines(name) {
    const series = bandSeries();
    return Object.entries(series?.bands[name] ?? {}).map(([side, { x, quantiles: q }]) => ({
      label: side, colour: Charts.css(side === "right" ? "--right" : "--wrong"), dash: undefined, hidden: false,
      x, mean: q[2], bands: [[q[1], q[3], 0.28], [q[0], q[4], 0.14]], note: () => "",
    }));
  }

  /** The paper's Figure 2 as a table with bars: share of tokens by interval of ρ and sign of the advantage. */
  function ratios() {
    const area = byId("ratios");
    const found = bandSeries()?.ratios;
    area.hidden = !found;
    if (!found) return;
    const totals = found.intervals.map((row) => row.reduce((sum, one) => sum + one, 0));
    const share = (count, sign) => {
      const part = totals[sign] ? count / totals[sign] : 0;
      const bar = el("span", { className: "bar-fill" });
      bar.style.width = `${100 * part}%`;
      bar.style.backgroundColor = Charts.css(sign ? "--wrong" : "--right");
      const text = part && part < 0.001 ? `${(100 * part).toPrecision(2)} %` : percent(part);
      return [el("span", { className: "bar-cell" }, el("span", { className: "bar-track" }, bar), el("span", {}, text))];
    };
    const low = formatNumber(1 - found.epsilon);
    const high = formatNumber(1 + found.epsilon);
    const clips = [`dropped by one-sided clipping at ${low}, ${high}`, "dropped by bidirectional clipping"];
    const row = (name, counts) => ({ cells: [name, share(counts[0], 0), share(counts[1], 1)] });
    area.replaceChildren(table(["ρ = π_θ / π_old of a token", `A > 0 (${totals[0].toLocaleString("en")} tokens)`, `A < 0 (${totals[1].toLocaleString("en")} tokens)`],
      [...found.names.map((name, index) => row(name, found.intervals.map((counts) => counts[index]))),
        ...clips.map((name, index) => row(name, found.dropped.map((counts) => counts[index])))],
      "Token ratios before the update, as in the paper's Figure 2"));
  }

  function pictures() {
    for (const section of ["distributions", "evaluation"]) {
      byId(`${section}-pictures`).replaceChildren(...data.pictures.filter((one) => one.section === section).map((one) => (
        el("figure", { className: "card picture" },
          el("figcaption", {}, el("strong", {}, one.title), el("span", { className: "about" }, one.about)),
          el("img", { src: `data:image/svg+xml;base64,${one.svg}`, alt: `${one.title}: ${one.about}` })))));
    }
  }

  let charts = [];
  function curves() {
    const wanted = JSON.stringify(data.charts);
    if (wanted !== drawn) {
      drawn = wanted;
      for (const chart of charts) chart.remove();
      charts = data.charts.filter((one) => one.main || byId("more").open).map((one) => new Charts.Chart(
        byId(one.main ? "charts" : "more-charts"), { ...one, make: () => lines(one.metrics), extent }));
      for (const [name, title, about] of [["score", "Score s̄", "before the rollout's update"], ["weight", "|Weight|", "|∂L/∂s̄|, or |advantage|"]]) {
        charts.push(new Charts.Chart(byId("band-charts"), { title, about, share: false, whole: true, make: () => bandLines(name), extent }));
      }
    } else {
      Charts.redraw();
    }
    byId("more").hidden = !data.charts.some((one) => !one.main);
    byId("charts").classList.toggle("none", !data.charts.length);
    byId("distributions").hidden = !data.pictures.length && !data.series.some((series) => Object.keys(series.bands).length);
  }

  function legend() {
    const area = byId("legend");
    const labels = data.series.map((series) => series.label);
    if (area.dataset.labels === JSON.stringify(labels)) return;
    area.dataset.labels = JSON.stringify(labels);
    area.hidden = labels.length < 2;
    area.replaceChildren(...labels.map((label, index) => {
      const box = el("input", { type: "checkbox", checked: !Charts.hidden.has(label) });
      box.addEventListener("change", () => { Charts.hidden[box.checked ? "delete" : "add"](label); Charts.redraw(); });
      return el("label", { className: "check" }, box, swatch(index), visible(label));
    }));
    const select = byId("band-series");
    const before = select.selectedIndex;
    select.replaceChildren(...labels.map((label) => el("option", {}, visible(label))));
    if (before > 0) select.selectedIndex = before;
    select.parentElement.hidden = labels.length < 2;
  }

  function render() {
    document.title = `${visible(data.title)} · realrl`;
    byId("summary-title").textContent = visible(data.title);
    tiles();
    runsTable();
    evaluation();
    alarmsAndDifferences();
    legend();
    curves();
    ratios();
    pictures();
    Rollouts.load(data.rollouts);
    byId("made").textContent = `on ${new Date(1000 * data.made).toLocaleString()}`;
  }

  async function poll() {
    let tag = "";
    for (;;) {
      let said;
      try {
        const answer = await fetch("data.json", { cache: "no-store", signal: AbortSignal.timeout(60000), headers: tag ? { "If-None-Match": tag } : {} });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          data = await answer.json();
          render();
        }
        const run = data?.series[0]?.runs[0];
        said = answer.status >= 400 ? `error ${answer.status}` : !run ? "waiting for the run to begin"
          : run.steps >= run.total ? `finished, ${plural(run.steps, "step")}`
            : `step ${run.steps} of ${run.total}${run.last ? `, ${duration(Math.max(0, Date.now() / 1000 - run.last))} ago` : ""}`;
      } catch {
        said = "realrl watch has ended";
      }
      byId("status").textContent = said;
      await new Promise((resume) => setTimeout(resume, POLL_MS));
    }
  }

  byId("smoothing").addEventListener("change", (event) => Charts.smoothOver(Number(event.target.value)));
  byId("reset-zoom").addEventListener("click", () => Charts.setZoom(null));
  byId("band-series").addEventListener("change", () => { Charts.redraw(); ratios(); });
  byId("more").addEventListener("toggle", () => { drawn = ""; if (data) curves(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (!data) return;
    delete byId("legend").dataset.labels;
    render();
  });
  Rollouts.start();
  if (data) render();
  if (LIVE) poll();
})();
