"use strict";
// A root as text: tokens shaded by entropy, anchors as buttons, candidates on a click.

const STATES = {
  resolved: { sign: "●", name: "resolved" },
  unresolved: { sign: "○", name: "no candidate accepted" },
  no_candidates: { sign: "△", name: "no candidates" },
};
const SHADES = 8;

class RootView {
  constructor(run, onOpen) {
    this.run = run;
    this.onOpen = onOpen;
    this.text = element("div", { class: "tokens", dir: "auto" });
    this.info = element("p", { class: "info" });
    this.detail = element("div", { class: "detail", "aria-live": "polite" });
    this.node = element("div", { class: "column", "data-run": run.label }, this.info, this.text,
      this.detail);
  }

  show(rootId) {
    const root = this.run.roots.find((r) => r.id === rootId);
    this.root = root;
    this.detail.replaceChildren();
    if (!root) {
      this.info.textContent = `${this.run.label}: this root is not in this dataset.`;
      this.text.replaceChildren();
      return;
    }
    const resolved = root.anchors.filter((a) => a.state === "resolved").length;
    const cut = root.tokens.length < root.n_tokens ? `, the first ${whole(root.tokens.length)} shown` : "";
    this.info.textContent =
      `${this.run.label} · ${root.source} · ${whole(root.n_tokens)} tokens${cut} · ` +
      `μ ${number(root.mean)}, τ ${number(root.threshold)} nats · ${root.anchors.length} anchors, ` +
      `${resolved} resolved` + (root.document ? ` · ${root.document}` : "");
    const top = Math.max(...root.entropies.map((h) => h ?? 0), 1e-6);
    const anchors = new Map(root.anchors.map((a) => [a.t, a]));
    const nodes = root.tokens.map((text, t) => this.token(root, text, t, anchors.get(t), top));
    this.text.replaceChildren(...nodes);
    this.buttons = [...this.text.querySelectorAll("button")];
    this.buttons.forEach((b, i) => b.setAttribute("tabindex", i ? "-1" : "0"));
    this.text.onkeydown = (event) => roving(this.buttons, event);
    this.detail.append(element("p", { class: "hint" },
      "Choose an anchor: click it, or Tab to the text, arrow keys, Enter."));
  }

  token(root, text, t, anchor, top) {
    const h = root.entropies[t];
    const shade = h === null ? 0 : Math.min(SHADES - 1, Math.floor((SHADES * h) / top));
    // A token's lines, each with a mark where it ends.
    const lines = text.split("\n");
    const shown = lines.flatMap((line, i) => (i ? ["↵", element("br"), line] : [line]));
    const title = `token ${t}: entropy ${number(h)}, surprisal ${number(root.surprisals[t])} nats`;
    if (!anchor) return element("span", { class: `t h${shade}`, title }, shown);
    const state = STATES[anchor.state];
    return element(
      "button",
      {
        type: "button",
        class: `t h${shade} anchor ${anchor.state}`,
        title,
        "data-anchor": t,
        "aria-pressed": "false",
        "aria-label": `anchor at token ${t}, “${text.trim()}”, entropy ${number(h)} nats, ${state.name}`,
        on: { click: () => this.open(t, true) },
      },
      element("span", { class: "sign", "aria-hidden": "true" }, state.sign),
      shown,
    );
  }

  open(t, openOthers) {
    const button = this.buttons?.find((b) => Number(b.dataset.anchor) === t);
    if (openOthers) this.onOpen(this, t);
    for (const b of this.buttons ?? []) b.setAttribute("aria-pressed", String(b === button));
    if (!this.root) return;
    const anchor = this.root.anchors.find((a) => a.t === t);
    if (!anchor) {
      this.detail.replaceChildren(element("p", {}, `Token ${t} is no anchor in this dataset.`));
      return;
    }
    const h = this.root.entropies[t];
    const before = this.root.tokens.slice(Math.max(0, t - 12), t).join("");
    const after = this.root.tokens.slice(t + 1, t + 7).join("");
    const head = [
      element("h3", {}, `Anchor at token ${t}: ${STATES[anchor.state].name}`),
      element("p", { class: "quote", dir: "auto" }, "…", before,
        marked(this.root.tokens[t]), after, "…"),
      element("p", {}, `Alone: entropy ${number(h)} nats, surprisal of the true token ` +
        `${number(this.root.surprisals[t])} nats.`),
    ];
    const body = !anchor.candidates
      ? [element("p", {}, "Its candidates are not in this page: see “About this page”.")]
      : anchor.candidates.map((c) => this.candidate(c, h, this.root.surprisals[t]));
    this.detail.replaceChildren(...head, ...body);
  }

  candidate(c, entropy, surprisal) {
    const passage = this.run.passages[c.chunk_id];
    const sign = c.accepted ? "✓" : "✗";
    const top = Math.max(entropy, surprisal ?? 0, c.entropy_context ?? 0, c.entropy_control ?? 0,
      c.surprisal_context ?? 0, c.surprisal_control ?? 0, 1e-6);
    const bar = (label, value, kind) =>
      element("tr", {}, element("th", { scope: "row" }, label),
        element("td", { class: "number" }, number(value)),
        element("td", { class: "bars", "aria-hidden": "true" }, value === null ? "" :
          element("span", { class: `bar ${kind}`, style: { width: barWidth(value, top) } })));
    const measured = c.entropy_context === null ? element("p", {}, "Not scored.") :
      element("table", { class: "measured" },
        element("thead", {}, element("tr", {}, ["nats", "", ""].map((x) => element("th", {}, x)))),
        element("tbody", {},
          bar("entropy alone", entropy, "alone"),
          bar("entropy given the controls", c.entropy_control, "control"),
          bar("entropy given this context", c.entropy_context, "context"),
          bar("surprisal alone", surprisal, "alone"),
          bar("surprisal given the controls", c.surprisal_control, "control"),
          bar("surprisal given this context", c.surprisal_context, "context")));
    return element("article", { class: `candidate ${c.accepted ? "accepted" : "refused"}` },
      element("h4", {}, `${sign} rank ${c.rank}: ${words(c.verdict)}`),
      element("p", {}, [`ΔI ${number(c.gain)}`, `ΔI* ${number(c.calibrated_gain)}`, this.run.limit,
        `similarity ${number(c.similarity)}`].filter(Boolean).join(" · ")),
      element("div", { class: "sides" }, measured, element("div", {},
        element("p", { class: "from", title: c.chunk_id }, `${passage ? passage.source : ""} ${shortId(c.chunk_id)}`),
        element("blockquote", { dir: "auto" }, passage ? passage.text : "(context not found)"))));
  }
}
