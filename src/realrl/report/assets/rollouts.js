"use strict";
// The rollout browser. A model wrote this text, so it reaches the page only as text nodes.

/** Make control characters, direction marks and zero-width characters visible. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (char) => {
    const code = char.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

const Rollouts = (() => {
  const PAGE = 100;
  const byId = (id) => document.getElementById(id);
  const NAMES = { correct: "correct", wrong: "wrong", no_answer: "no answer", grader_error: "grader error" };
  let runs = [];
  let found = [];
  let shown = PAGE;
  let chosen = null;
  let colouring = false;

  const run = () => runs[byId("rollout-run").selectedIndex] ?? runs[0];
  const keyOf = (row) => JSON.stringify([row.step, row.group, row.response]);

  /** Set the options of a select; keep its choice if that still exists. */
  function options(select, pairs) {
    const before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
    select.value = pairs.some(([value]) => value === before) ? before : (pairs[0]?.[0] ?? "");
  }

  function load(data) {
    const atEnd = byId("step-slider").value === byId("step-slider").max;
    runs = data;
    byId("browser").hidden = !runs.length;
    byId("no-rollouts").hidden = runs.length > 0;
    if (!runs.length) return;
    options(byId("rollout-run"), runs.map((one, index) => [String(index), visible(one.run)]));
    byId("run-field").hidden = runs.length === 1;
    loadRun(atEnd);
  }

  function loadRun(toEnd) {
    const { rows, steps } = run();
    const slider = byId("step-slider");
    slider.max = String(steps.length - 1);
    if (toEnd) slider.value = slider.max;
    const values = (name) => [...new Set(rows.map((row) => row[name]))].filter(Boolean).sort();
    options(byId("verdict"), [["", "all"], ...values("verdict").map((value) => [value, NAMES[value] ?? visible(value)])]);
    options(byId("reason"), [["", "all"], ...values("reason").map((value) => [value, visible(value)])]);
    byId("disagree-field").hidden = !rows.some((row) => "disagree" in row);
    filter();
  }

  function filter() {
    const { rows, steps, prompts } = run();
    const allSteps = byId("all-steps").checked;
    const step = steps[Number(byId("step-slider").value)];
    const text = byId("search").value.trim().toLowerCase();
    const verdict = byId("verdict").value;
    const reason = byId("reason").value;
    found = rows.filter((row) =>
      (allSteps || row.step === step)
      && (!verdict || row.verdict === verdict)
      && (!reason || row.reason === reason)
      && (!byId("only-truncated").checked || row.truncated)
      && (!byId("only-disagree").checked || row.disagree)
      && (!text || [prompts[row.prompt], row.response, row.extracted, row.answer, row.reason, row.problem_id]
        .some((part) => part.toLowerCase().includes(text))));
    const sort = byId("sort").value;
    if (sort) found.sort((a, b) => Math.abs(b[sort] ?? 0) - Math.abs(a[sort] ?? 0));
    shown = PAGE;
    for (const id of ["step-slider", "step-back", "step-on"]) byId(id).disabled = allSteps;
    byId("step-shown").textContent = allSteps ? `1 to ${steps[steps.length - 1]}` : `${step}`;
    byId("step-slider").setAttribute("aria-valuetext", `step ${step}`);
    byId("count").textContent = `${found.length} shown. The page contains ${rows.length.toLocaleString("en")} of `
      + `${run().total.toLocaleString("en")} saved rollouts${rows.length < run().total ? ", sampled evenly over the steps" : ""}.`;
    const kept = found.find((row) => chosen && keyOf(row) === keyOf(chosen));
    chosen = kept ?? found[0] ?? null;
    list();
    detail();
  }

  const chip = (row) => el("span", { className: `chip ${NAMES[row.verdict] ? row.verdict : ""}` }, NAMES[row.verdict] ?? visible(row.verdict));

  function list() {
    const focused = document.activeElement?.closest("#rollout-list") ? true : false;
    const { prompts } = run();
    byId("rollout-list").replaceChildren(...found.slice(0, shown).map((row) => {
      const button = el("button", { type: "button", className: "row", "aria-pressed": String(row === chosen) },
        el("span", { className: "row-head" }, chip(row),
          row.truncated ? el("span", { className: "chip" }, "truncated") : null,
          row.disagree ? el("span", { className: "chip grader_error" }, "graders disagree") : null,
          el("span", { className: "quiet" }, `step ${row.step} · ${row.tokens ?? "?"} tokens`)),
        el("span", { className: "row-text" }, visible(prompts[row.prompt].trim().slice(-160))),
        el("span", { className: "row-answer" }, `${visible(row.extracted) || "–"} `, el("span", { className: "quiet" }, `gold ${visible(row.answer)}`)));
      button.addEventListener("click", () => choose(row, button));
      return el("li", {}, button);
    }));
    if (!found.length) byId("rollout-list").append(el("li", { className: "quiet empty" }, "No rollout matches these filters."));
    byId("show-more").hidden = found.length <= shown;
    if (focused) byId("rollout-list").querySelector('[aria-pressed="true"]')?.focus();
  }

  function choose(row, button) {
    chosen = row;
    for (const one of byId("rollout-list").querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button));
    detail();
  }

  function detail() {
    const area = byId("detail");
    if (!chosen) {
      area.replaceChildren(el("p", { className: "quiet" }, "No rollout selected."));
      return;
    }
    const row = chosen;
    const facts = [["Step", row.step], ["Problem", visible(row.problem_id)], ["Reward", formatNumber(row.reward)],
      // For a rollout without a weight, s̄ was not computed.
      ["s̄", row.weight ? formatNumber(row.score) : "–"], ["Weight", formatNumber(row.weight)], ["Tokens", row.tokens ?? "–"], ...(row.second ? [["Second grader", row.second.replace("_", " ")]] : [])];
    const toggle = el("input", { type: "checkbox", id: "colour-tokens", checked: colouring && Boolean(row.token_ids), disabled: !row.token_ids });
    const response = el("div", { className: "text", id: "response" });
    const key = el("p", { className: "hint" });
    const fill = () => {
      key.textContent = row.token_ids ? "" : "No tokens were recorded; set log.tokens = true to record them.";
      if (toggle.checked) tokens(response, row, key);
      else response.replaceChildren(visible(row.response));
    };
    toggle.addEventListener("change", () => { colouring = toggle.checked; fill(); });
    area.replaceChildren(
      el("div", { className: "verdict-line" }, chip(row), row.truncated ? el("span", { className: "chip" }, "truncated") : null,
        row.disagree ? el("span", { className: "chip grader_error" }, "graders disagree") : null,
        el("span", { className: "quiet" }, visible(row.reason))),
      el("dl", { className: "answers" },
        el("div", {}, el("dt", {}, "Extracted answer"), el("dd", { id: "extracted" }, visible(row.extracted) || "none")),
        el("div", {}, el("dt", {}, "Gold"), el("dd", {}, visible(row.answer)))),
      el("dl", { className: "numbers" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))))),
      el("h3", {}, "Prompt"), el("div", { className: "text prompt" }, visible(run().prompts[row.prompt])),
      el("div", { className: "response-head" }, el("h3", {}, "Response"), el("label", { className: "check" }, toggle, " colour tokens by ρ")),
      key, response);
    fill();
  }

  /** Tokens on a background from blue (ρ < 1) to orange (ρ > 1), strongest at the largest |log ρ| of the response or 0.01. */
  function tokens(area, row, key) {
    const texts = run().tokens;
    const known = row.log_ratio.filter((value) => value !== null);
    const full = Math.max(0.01, ...known.map(Math.abs));
    const [less, more] = [Charts.css("--less"), Charts.css("--more")];
    key.replaceChildren("ρ from ", mark(less, formatNumber(Math.exp(-full))), " through 1 to ", mark(more, formatNumber(Math.exp(full))),
      row.token_ids.length < row.tokens ? `; the first ${row.token_ids.length} of ${row.tokens} tokens` : "");
    area.replaceChildren(...row.token_ids.map((id, index) => {
      const ratio = row.log_ratio[index];
      const text = texts[id] === undefined ? `⟨${id}⟩` : visible(texts[id]);
      const span = el("span", { className: "token", title: ratio === null ? "ρ not recorded" : `ρ = ${Math.exp(ratio).toFixed(4)}` }, text);
      if (ratio) span.style.backgroundColor = (ratio > 0 ? more : less) + Math.round(220 * Math.min(1, Math.abs(ratio) / full)).toString(16).padStart(2, "0");
      return span;
    }));
  }

  function mark(colour, text) {
    const span = el("span", { className: "token" }, text);
    span.style.backgroundColor = `${colour}dc`;
    return span;
  }

  function stepBy(change) {
    const slider = byId("step-slider");
    slider.value = String(Number(slider.value) + change);
    filter();
  }

  function start() {
    byId("rollout-run").addEventListener("change", () => loadRun(true));
    for (const id of ["step-slider", "search"]) byId(id).addEventListener("input", filter);
    for (const id of ["all-steps", "verdict", "reason", "sort", "only-truncated", "only-disagree"]) byId(id).addEventListener("change", filter);
    byId("step-back").addEventListener("click", () => stepBy(-1));
    byId("step-on").addEventListener("click", () => stepBy(1));
    byId("show-more").addEventListener("click", () => { shown += PAGE; list(); });
    byId("rollout-list").addEventListener("keydown", (event) => {
      const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!move) return;
      const buttons = [...byId("rollout-list").querySelectorAll("button")];
      const next = buttons[buttons.indexOf(document.activeElement) + move];
      if (next) { event.preventDefault(); next.focus(); next.click(); }
    });
  }

  return { start, load, recolour: () => { if (runs.length) detail(); } };
})();
