"use strict";
// Draws the sections for one dataset, or for two side by side.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const RUNS = REPORT.runs;
const section = (id) => document.getElementById(id);

function comparedRow(name, values) {
  const differs = new Set(values).size > 1;
  return element("tr", { class: differs ? "differs" : null },
    element("th", { scope: "row" }, breakable(name), differs ? element("span", { class: "sign" }, " ≠") : null),
    values.map((v) => element("td", {}, v)));
}

// A table of figures (name, value, kind), one column per dataset.
function figureTable(of) {
  const kinds = new Map(RUNS.flatMap((r) => of(r).map(([name, , kind]) => [name, kind])));
  const rows = [...kinds].map(([name, kind]) => comparedRow(words(name),
    RUNS.map((r) => FORMAT[kind](of(r).find(([n]) => n === name)?.[1] ?? null))));
  return table(["figure", ...RUNS.map((r) => r.label)], rows, { class: "figures" });
}

// When the file was written. Not in its bytes, so that equal inputs give equal bytes; a server that
// sends no date makes the browser give the present time.
function written() {
  const date = new Date(document.lastModified);
  if (Date.now() - date.getTime() < 2000) return null;
  return "written " + date.toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" }) +
    ", " + date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

function drawHead() {
  const of = (run) => [`dataset ${run.dataset}`, `corpus ${run.corpus}`, `${whole(run.shards)} shards`,
    run.export ? `export ${run.export}` : "not exported"].join(" · ");
  section("head").append(
    element("h1", {}, "EntropyLong report: ", RUNS.map((r) => r.label).join(" and ")),
    ...RUNS.map((run) => element("p", {}, of(run))), element("p", {}, written()));
}

const FORMAT = { count: whole, share, number, text: (x) => x ?? "–" };

function drawOverview() {
  const names = RUNS[0].key.map(([name, , kind]) => [name, kind]);
  const value = (run, name) => run.key.find(([n]) => n === name)?.[1] ?? null;
  section("overview").append(element("dl", { class: "key" }, names.map(([name, kind]) =>
    element("div", { class: "card" }, element("dt", {}, name),
      RUNS.map((run) => element("dd", {}, RUNS.length > 1 ? element("span", { class: "info" }, `${run.label} `) : null,
        FORMAT[kind](value(run, name))))))));
  for (const run of RUNS) {
    const roles = Object.entries(run.roles);
    section("overview").append(
      element("p", { class: "info" }, RUNS.length > 1 ? `${run.label}: ` : "", "tokens of the samples by role"),
      element("div", { class: "roles", "aria-hidden": "true" }, roles.map(([role, part]) =>
        element("span", { class: `fill-${role}`, style: { "flex-grow": String(part) } }))),
      element("ul", { class: "legend" }, roles.map(([role, part]) => element("li", {},
        element("span", { class: `swatch fill-${role}`, "aria-hidden": "true" }), ` ${ROLES[role].name} ${share(part)}`))),
      ...(run.padding ? [element("p", { class: "note" }, `${run.padding}.`)] : []));
  }
}

function example(d) {
  const [before, span, after] = d.context;
  const top = Math.max(d.entropy, d.entropy_context, 1e-6);
  const bar = (name, value, kind) => element("p", { class: "measure" }, element("span", {}, name),
    element("span", { class: `bar ${kind}`, style: { width: barWidth(value, top) } }), ` ${number(value)} nats`);
  return element("article", { class: "example card", "data-genuine": String(d.genuine) },
    element("h3", {}, d.genuine ? "✓ genuine" : "accepted", d.kind ? `: ${words(d.kind)}` : ""),
    element("p", { class: "from" }, `context, ${d.context_source ?? ""}`),
    element("p", { class: "quote", dir: "auto" }, "…", span ? [before, marked(span), after] : before, "…"),
    element("p", { class: "from" }, `root, ${d.root_source ?? ""}: ${whole(d.distance)} tokens apart`),
    element("p", { class: "quote", dir: "auto" }, "…", d.before, marked(d.token), d.after, "…"),
    bar("entropy alone", d.entropy, "alone"), bar("given the context", d.entropy_context, "context"),
    element("p", { class: "from" }, `ΔI ${number(d.gain)} · ΔI* ${number(d.calibrated_gain)} · sample ${d.sample_id}`));
}

function drawExamples() {
  section("examples").append(element("p", {}, "Verified dependencies: the context makes the model " +
    "certain of the marked token of the root. Marked in the context: its shortest part that has the same " +
    "effect. Genuine dependencies are shown first."));
  section("examples").append(...RUNS.map((run) => element("div", { class: "column" },
    RUNS.length > 1 ? element("h3", {}, run.label) : null,
    run.examples.length ? element("div", { class: "examples" }, run.examples.map(example))
      : element("p", {}, "No sample has a verified dependency."))));
}

function drawRuns() {
  const names = [...new Set(RUNS.flatMap((r) => r.description.map(([name]) => name)))];
  const made = names.map((name) => comparedRow(name,
    RUNS.map((r) => r.description.find(([n]) => n === name)?.[1] ?? "–")));
  section("runs").append(element("div", { class: "pair" }, figureTable((r) => r.figures),
    table(["made with", ...RUNS.map((r) => r.label)], made, { class: "made" })));
  section("runs").append(...REPORT.overlap.map((line) => element("p", { class: "overlap" }, line)));
}

function lacking(run) {
  const missing = run.audits.filter((a) => a.made < a.of);
  if (missing.length === 0) return null;
  const list = missing.map((a) => `${a.name} ${whole(a.made)} of ${whole(a.of)}${a.note ? ` (${a.note})` : ""}`);
  return element("p", { class: "lacking" }, RUNS.length > 1 ? `${run.label}. ` : "",
    `Shards audited so far: ${list.join(", ")}. For the rest, run `,
    element("code", {}, `entropylong audit --dataset ${run.dataset}`), " and then ",
    element("code", {}, `entropylong export --dataset ${run.dataset}`),
    ", which makes this report again; or, in the UI, the job ", element("code", {}, `${run.dataset}__audit`),
    " and then the asset ", element("code", {}, `${run.dataset}/report`), ".");
}

// The training trial of a dataset, if it has one.
function trial(run) {
  if (!run.trial) return [];
  const rows = run.trial.rows.map(([arm, ...cells]) => element("tr", {},
    element("th", { scope: "row" }, breakable(arm)), cells.map((cell) => element("td", {}, cell))));
  return [element("p", {}, RUNS.length > 1 ? `${run.label}. ` : "", run.trial.note),
    table(run.trial.head, rows, { class: "trial" })];
}

function drawProof() {
  const some = RUNS.some((r) => r.proof.length > 0);
  const none = RUNS.some((r) => r.trial) ? "No shard is audited yet." : "Nothing is audited yet.";
  section("proof").append(element("p", {}, some
    ? "Held-out controls, a second model and all recipes, on a sample of roots. Intervals are 95%, over roots."
    : none),
  ...RUNS.map(lacking).filter(Boolean), ...(some ? [figureTable((r) => r.proof)] : []), ...RUNS.flatMap(trial));
}

// A key token of a natural window, and the place before its short window that has the same text.
function keyToken(t) {
  const top = Math.max(t.surprisal_short, t.surprisal_long, 1e-6);
  const bar = (name, value, kind) => element("p", { class: "measure" }, element("span", {}, name),
    element("span", { class: `bar ${kind}`, style: { width: barWidth(value, top) } }), ` ${number(value)} nats`);
  const quote = ([before, text, after]) => element("p", { class: "quote", dir: "auto" },
    "…", before, marked(text), after, "…");
  return [element("p", { class: "from" }, `position ${whole(t.found_at)}: equal text`), quote(t.found),
    element("p", { class: "from" }, `position ${whole(t.position)}, ${whole(t.distance)} tokens later: the key token, and its surprisal`),
    quote(t.token), bar("in the short window", t.surprisal_short, "alone"),
    bar("in the long window", t.surprisal_long, "context")];
}

function drawNatural() {
  const some = RUNS.some((r) => r.natural);
  section("natural").hidden = !some;
  document.querySelector('nav a[href="#natural"]').hidden = !some;
  if (!some) return;
  section("natural").append(element("p", {}, "Windows of long documents, kept by information gain: how " +
    "much better the model knows the text in a long window than in a short one. A key token needs more " +
    "than the short window: its surprisal falls by more than 2 nats, to less than 2. The audits " +
    "above are of constructed samples: natural windows have no anchors and no contexts to replace."),
  figureTable((r) => (r.natural ? r.natural.figures : [])),
  ...RUNS.filter((r) => r.natural && r.natural.example).map((run) => {
    const e = run.natural.example;
    return element("article", { class: "example card natural" },
      element("h3", {}, RUNS.length > 1 ? `${run.label}: ` : "", `the window with the highest gain, ${number(e.gain)} nats`),
      element("p", { class: "from" }, `${e.source} · ${e.window_id} · ${whole(e.key_tokens)} key tokens · gzip ratio ${number(e.gzip_ratio)}`),
      e.tokens.flatMap(keyToken));
  }));
}

function drawFunnel() {
  const rows = RUNS[0].funnel.flatMap((step, i) => {
    const steps = RUNS.map((r) => r.funnel[i]);
    const reasons = [...new Set(steps.flatMap((s) => Object.keys(s.dropped)))];
    const kept = element("tr", { class: "step" },
      element("th", { scope: "row" }, `${step.unit}: ${step.name}`),
      steps.map((s) => [
        element("td", { class: "number" }, `${whole(s.kept)} of ${whole(s.entered)}`),
        element("td", { class: "bars" }, element("span", { class: "bar context",
          style: { width: barWidth(s.kept, s.entered) } }),
        element("span", { class: "percent" }, s.entered ? share(s.kept / s.entered) : "–")),
      ]).flat());
    const dropped = reasons.map((reason) => element("tr", { class: "dropped" },
      element("th", { scope: "row" }, `− ${words(reason)}`),
      steps.map((s) => [
        element("td", { class: "number" }, whole(s.dropped[reason] ?? 0)),
        element("td", { class: "bars" }, element("span", { class: "bar dropped",
          style: { width: barWidth(s.dropped[reason] ?? 0, s.entered) } }),
        element("span", { class: "percent" }, s.entered ? share((s.dropped[reason] ?? 0) / s.entered) : "–")),
      ]).flat()));
    const unexplained = steps.some((s) => s.unexplained) ? [element("tr", { class: "fault" },
      element("th", { scope: "row" }, "⚠ without a reason"),
      steps.map((s) => [element("td", { class: "number" }, whole(s.unexplained)),
        element("td")]).flat())] : [];
    return [kept, ...dropped, ...unexplained];
  });
  const head = ["step", ...RUNS.flatMap((r) => [`${r.label}: kept or dropped`, "share"])];
  section("funnel").append(table(head, rows, { class: "funnel" }));
}

async function drawCharts(charts, id) {
  for (const { title, caption, specs } of charts) {
    const places = specs.map((_, i) => element("div", { class: "chart" },
      RUNS.length > 1 ? element("p", { class: "info" }, RUNS[i].label) : null, element("div")));
    section(id).querySelector(".charts").append(element("figure", {}, element("h3", {}, title),
      element("div", { class: "row" }, places), element("figcaption", {}, caption)));
    for (const [i, spec] of specs.entries()) {
      // `ast`: expressions are interpreted, not compiled, as the page's policy demands.
      if (spec === null) places[i].lastChild.append("not measured");
      else await vegaEmbed(places[i].lastChild, spec, { ast: true, actions: false, renderer: "svg" });
    }
  }
}

function drawDetails() {
  const all = [...new Set(RUNS.flatMap((r) => r.sources))].sort();
  const chosen = new Set(all);
  const views = RUNS.map((run) => new RootView(run, (from, t) => {
    for (const other of views) if (other !== from) other.open(t, false);
  }));
  const samples = RUNS.map((run) => new SampleView(run, chosen, all));
  const select = element("select", { id: "root", on: { change: () => showRoot() } });
  const showRoot = () => views.forEach((v) => v.show(select.value));
  const listRoots = () => {
    const before = select.value;
    const roots = new Map(RUNS.flatMap((r) => r.roots.map((root) => [root.id, root])));
    const listed = [...roots.values()].filter((r) => chosen.has(r.source));
    const label = (r) => {
      const found = RUNS.map((run) => run.roots.find((x) => x.id === r.id))
        .map((x) => (x ? x.anchors.filter((a) => a.state === "resolved").length : "–")).join(" / ");
      return `${r.id.slice(0, 8)} · ${r.source} · ${found} anchors resolved · ` +
        (r.why === "most" ? "most genuine contexts" : "drawn");
    };
    select.replaceChildren(...listed.map((r) => element("option", { value: r.id }, label(r))));
    if (listed.some((r) => r.id === before)) select.value = before;
    else showRoot();
  };
  section("sources").append(...all.map((name) => element("label", {}, element("input", {
    type: "checkbox", checked: true, value: name,
    on: { change: (event) => {
      if (event.target.checked) chosen.add(name);
      else chosen.delete(name);
      listRoots();
      samples.forEach((s) => s.draw());
    } },
  }), ` ${name} `)));
  const scale = element("p", { class: "scale" }, "entropy: low ",
    Array.from({ length: SHADES }, (_, i) => element("span", { class: `t h${i}` }, "\u2007")),
    ` high (of this root). ${Object.values(STATES).map((s) => `${s.sign} ${s.name}`).join(", ")}.`);
  section("roots").append(element("div", { class: "controls" },
    element("label", {}, "Root ", select)), scale,
  element("div", { class: "row" }, views.map((v) => v.node)));
  section("samples").append(element("div", { class: "row stacked" }, samples.map((s) => s.node)));
  listRoots();
  showRoot();
  section("about").append(element("p", {}, REPORT.how_chosen), element("p", {},
    "Entropy and surprisal are in nats. ΔI = (H − H′) / H; ΔI* takes the lower of the " +
    "entropy alone and the mean entropy given the controls, which are random chunks. Control and " +
    "direction characters in texts are shown by name. This page fetches nothing."));
}

drawHead();
drawOverview();
drawExamples();
drawProof();
drawNatural();
drawDetails();
drawFunnel();
drawRuns();
drawCharts(REPORT.charts, "charts").then(() => drawCharts(REPORT.proof, "proof")).then(() => {
  document.body.dataset.charts = "drawn";
}).catch((error) => {
  section("charts").append(element("p", { role: "alert" }, `The charts can't be drawn: ${error.message}`));
});
