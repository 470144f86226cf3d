"use strict";
// A sample as a strip of its tokens, with arcs from contexts to the anchors that they resolve.

const ROLES = {
  root: { name: "root", height: 60 },
  verified: { name: "verified context", height: 44 },
  hard_negative: { name: "hard negative", height: 28 },
  unverified: { name: "unverified context", height: 36 },
  filler: { name: "filler", height: 20 },
  bos: { name: "BOS", height: 60 },
  padding: { name: "padding", height: 8 },
};
const SOURCE_COLOURS = 7;
const STRIP = { width: 1000, arcs: 150, base: 220, height: 250 };

class SampleView {
  constructor(run, sources, all) {
    this.run = run;
    this.sources = sources;
    this.allSources = all;
    this.by = "role";
    this.select = element("select", { on: { change: () => this.show(this.select.value) } },
      run.samples.map((s) => element("option", { value: s.id },
        `${s.id} · ${whole(s.n_dependencies)} dependencies`)));
    this.colour = element("select",
      { on: { change: () => { this.by = this.colour.value; this.draw(); } } },
      element("option", { value: "role" }, "role"), element("option", { value: "source" }, "source"));
    this.info = element("p", { class: "info", "aria-live": "polite" });
    this.overview = drawing("svg", { viewBox: `0 0 ${STRIP.width} 24`, class: "overview",
      role: "img", preserveAspectRatio: "none" });
    this.strip = drawing("svg", { viewBox: `0 0 ${STRIP.width} ${STRIP.height}`, class: "strip",
      role: "group", "aria-label": "Segments of the sample; arrow keys move, Enter shows" });
    this.legend = element("ul", { class: "legend" });
    this.detail = element("div", { class: "detail", "aria-live": "polite" });
    this.list = element("div");
    const act = (label, move) => element("button", { type: "button", on: { click: () => {
      move();
      this.draw();
    } } }, label);
    this.node = element("div", { class: "column", "data-run": run.label },
      element("div", { class: "controls" },
        element("label", {}, `${run.label}: sample `, this.select),
        element("label", {}, "colour by ", this.colour),
        act("whole", () => this.zoom(0, this.sample.n_tokens)),
        act("filled part", () => this.zoomFilled()),
        act("closer", () => this.scale(0.5)), act("wider", () => this.scale(2)),
        act("earlier", () => this.move(-0.5)), act("later", () => this.move(0.5))),
      this.info, this.overview, this.strip, this.legend, this.detail, this.list);
    if (run.samples.length) this.show(run.samples[0].id);
  }

  zoom(from, to) {
    const n = this.sample.n_tokens;
    const width = Math.max(16, Math.min(n, Math.round(to - from)));
    const start = Math.max(0, Math.min(n - width, Math.round(from)));
    this.window = [start, start + width];
  }

  scale(factor) {
    const [from, to] = this.window;
    const half = ((to - from) * factor) / 2;
    this.zoom((from + to) / 2 - half, (from + to) / 2 + half);
  }

  move(part) {
    const [from, to] = this.window;
    this.zoom(from + part * (to - from), to + part * (to - from));
  }

  zoomFilled() {
    const filled = this.sample.segments.filter((s) => s.role !== "padding");
    this.zoom(0, filled.length ? filled[filled.length - 1].end : this.sample.n_tokens);
  }

  show(id) {
    this.sample = this.run.samples.find((s) => s.id === id);
    this.select.value = id;
    this.zoomFilled();
    this.detail.replaceChildren();
    this.draw();
  }

  colourOf(segment) {
    if (this.by === "role" || !segment.source) return `role-${segment.role}`;
    return `source-${this.allSources.indexOf(segment.source) % SOURCE_COLOURS}`;
  }

  isShown(segment) {
    return !segment.source || this.sources.has(segment.source);
  }

  draw() {
    const sample = this.sample;
    if (!sample) return;
    const [from, to] = this.window;
    const x = (t) => (STRIP.width * (t - from)) / (to - from);
    const shown = sample.segments.filter((s) => s.source && this.isShown(s)).length;
    const all = sample.segments.filter((s) => s.source).length;
    const roles = Object.entries(sample.roles)
      .map(([role, n]) => `${ROLES[role].name} ${share(n / sample.n_tokens)}`).join(", ");
    const inside = sample.segments.filter((s) => s.end > from && s.start < to);
    const starts = new Map(sample.segments.map((s) => [s.start, s]));
    const rootOf = new Map(sample.segments.filter((s) => s.role === "root").map((s) => [s.root_id, s]));
    this.arcs = sample.dependencies.filter((d) => this.isShown(starts.get(d.context_start)) &&
      this.isShown(rootOf.get(d.root_id)));
    this.info.textContent = `${whole(sample.n_tokens)} tokens: ${roles}. Shown: tokens ` +
      `${whole(from)} to ${whole(to)}, ${whole(shown)} of ${whole(all)} segments, ` +
      `${whole(this.arcs.length)} of ${whole(sample.n_dependencies)} dependencies.`;
    this.drawOverview(from, to);
    const arcs = this.arcs.filter((d) => d.anchor_position > from && d.context_start < to)
      .map((d) => this.arc(d, x));
    const segments = inside.map((s) => this.segment(s, x));
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((f) => drawing("text", {
      x: Math.min(STRIP.width - 2, Math.max(2, f * STRIP.width)), y: STRIP.height - 6, class: "tick",
      "text-anchor": f === 0 ? "start" : f === 1 ? "end" : "middle",
    }, whole(from + f * (to - from))));
    this.strip.replaceChildren(...arcs, ...segments, ...ticks);
    segments.forEach((s, i) => s.setAttribute("tabindex", i ? "-1" : "0"));
    this.strip.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        document.activeElement.dispatchEvent(new MouseEvent("click"));
      } else roving(segments, event);
    };
    this.drawLegend(inside);
    this.drawList();
  }

  drawOverview(from, to) {
    const n = this.sample.n_tokens;
    const x = (t) => (STRIP.width * t) / n;
    this.overview.setAttribute("aria-label", `The whole sample; tokens ${from} to ${to} are below`);
    this.overview.replaceChildren(
      ...this.sample.segments.map((s) => drawing("rect", { x: x(s.start), y: 4, height: 16,
        width: Math.max(0.2, x(s.end) - x(s.start)), class: this.colourOf(s) })),
      drawing("rect", { x: x(from) + 1, y: 1, width: Math.max(2, x(to) - x(from) - 2), height: 22,
        class: "window" }));
  }

  segment(s, x) {
    const { name, height } = ROLES[s.role];
    const from = Math.max(0, x(s.start));
    const to = Math.min(STRIP.width, x(s.end));
    const label = `${name}, tokens ${whole(s.start)} to ${whole(s.end)}` +
      (s.source ? `, ${s.source}` : "") + (this.isShown(s) ? "" : ", filtered out");
    return drawing("rect", {
      x: from, y: STRIP.base - height, width: Math.max(0.8, to - from), height,
      class: `segment ${this.colourOf(s)}${this.isShown(s) ? "" : " dimmed"}`,
      role: "button", "aria-label": label, "data-role": s.role,
      on: { click: () => this.openSegment(s, label) },
    }, drawing("title", {}, label));
  }

  arc(d, x) {
    const from = x((d.context_start + d.context_end) / 2);
    const to = x(d.anchor_position);
    const rise = Math.min(STRIP.arcs, 20 + Math.abs(to - from) * 0.35);
    const base = STRIP.base - 62;
    return drawing("g", { class: "arc", "data-anchor": d.anchor_position, "data-chunk": d.chunk_id },
      drawing("path", {
        d: `M${from},${STRIP.base - ROLES.verified.height} C${from},${base - rise} ${to},${base - rise} ${to},${base}`,
        "stroke-width": 0.8 + 2 * Math.max(0, d.gain),
      }),
      drawing("path", { class: "head", d: `M${to - 3},${base - 7} L${to + 3},${base - 7} L${to},${base}z` }));
  }

  openSegment(s, label) {
    const own = this.sample.dependencies.filter((d) =>
      s.role === "root" ? d.root_id === s.root_id : d.context_start === s.start);
    this.detail.replaceChildren(
      element("h3", {}, label),
      element("p", { class: "from" }, [s.root_id && `root ${shortId(s.root_id)}`, s.chunk_id &&
        `context ${shortId(s.chunk_id)}`].filter(Boolean).join(" · ")),
      s.text ? element("blockquote", { dir: "auto" }, s.text) : null,
      own.length ? element("p", {}, `${own.length} of the drawn dependencies.`) : null);
    this.highlight((d) => own.includes(d));
  }

  highlight(wanted) {
    const keys = new Set(this.arcs.filter(wanted).map((d) => `${d.anchor_position} ${d.chunk_id}`));
    for (const arc of this.strip.querySelectorAll(".arc")) {
      arc.classList.toggle("strong", keys.has(`${arc.dataset.anchor} ${arc.dataset.chunk}`));
    }
  }

  drawLegend(inside) {
    const items = new Map();
    for (const s of inside) {
      const name = this.by === "source" && s.source ? s.source : ROLES[s.role].name;
      items.set(name, this.colourOf(s));
    }
    const note = "height: role; arcs run from a context to its anchor ▼, thicker for a larger gain";
    this.legend.replaceChildren(...[...items].map(([name, c]) => element("li", {},
      drawing("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" },
        drawing("rect", { width: 14, height: 14, class: c })), ` ${name}`)),
      element("li", { class: "note" }, note));
  }

  drawList() {
    const rows = this.arcs.slice(0, 25).map((d) => element("tr", {
      tabindex: 0,
      on: { focus: () => this.highlight((o) => o === d), mouseenter: () => this.highlight((o) => o === d) },
    },
    element("td", { dir: "auto" }, d.before, marked(d.token), d.after),
    element("td", { dir: "auto" }, ...(d.evidence
      ? [d.evidence[0], marked(d.evidence[1]), d.evidence[2]] : [])),
    element("td", { "data-label": "kind" }, (d.genuine ? "✓ genuine: " : "") + (d.kind ? words(d.kind) : "–")),
    ...[["ΔI", number(d.gain)], ["ΔI*", number(d.calibrated_gain)],
      ["entropy (nats)", `${number(d.entropy)} → ${number(d.entropy_context)}`],
      ["distance (tokens)", whole(d.distance)],
      ["context → anchor", `${whole(d.context_start)} → ${whole(d.anchor_position)}`]]
      .map(([label, v]) => element("td", { class: "number", "data-label": label }, v))));
    this.list.replaceChildren(
      element("h3", {}, "Dependencies shown: genuine ones first, then by gain"),
      table(["anchor in its root", "evidence in its context", "kind", "ΔI", "ΔI*", "entropy (nats)", "distance (tokens)",
        "context → anchor (tokens)"], rows, { class: "dependencies" }));
  }
}
