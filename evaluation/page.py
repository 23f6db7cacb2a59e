"""The look of a report: one page of HTML that carries its style and script and asks nothing of any network."""

from html import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever is not in the file."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --raised: #ffffff; --ink: #1d1c1a; --quiet: #625f58; --rule: #dedad0; --model: #0f5c8c;
    --linear: #9a5b13; --third: #6b4a9e;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #161615; --raised: #1f1e1c; --ink: #e9e6df; --quiet: #a5a096; --rule: #38362f; --model: #74b9e8;
    --linear: #d9a25b; --third: #bfa3ec; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1180px; margin: 0 auto; padding: clamp(1.5rem, 4vw, 4rem) clamp(1rem, 4vw, 2.5rem) 4rem; }
h1, h2 { font-family: var(--serif); font-weight: 500; line-height: 1.15; letter-spacing: -0.01em; margin: 0; }
h1 { font-size: clamp(2rem, 6vw, 3.25rem); overflow-wrap: anywhere; }
h2 { font-size: 1.6rem; margin: 0 0 0.35rem; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.3rem; }
section { margin-top: clamp(2.75rem, 6vw, 4.5rem); padding-top: 1.4rem; border-top: 1px solid var(--rule); }
p { max-width: 68ch; margin: 0 0 1rem; }
.kicker, .note, figcaption, dt { color: var(--quiet); }
.kicker { margin: 0 0 0.4rem; font-size: 0.9rem; }
.lead { font-family: var(--serif); font-size: 1.2rem; margin: 0.8rem 0 0; }
.note { font-size: 0.875rem; }
code, pre { font-family: var(--mono); font-size: 0.85em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.4rem 1.5rem;
  margin: 2.2rem 0; }
.figures b { display: block; font: 500 1.85rem/1.2 var(--serif); font-variant-numeric: lining-nums tabular-nums; }
.figures small { display: block; color: var(--quiet); font-size: 0.85rem; line-height: 1.4; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.4rem; margin: 0; font-size: 0.9rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 32rem) { .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: 0.5rem; } }
.photograph { margin: 2rem 0 0; }
.photograph figcaption { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; margin-bottom: 0.5rem;
  font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.photograph figcaption b { color: var(--ink); }
.views { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 0.6rem; }
@media (max-width: 48rem) { .views { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.view { font-size: 0.8rem; color: var(--quiet); }
.view img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--rule); }
.view span { display: block; margin-top: 0.25rem; }
button.zoom { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in;
  border-radius: 3px; }
:focus-visible { outline: 3px solid var(--model); outline-offset: 2px; }
img.latent { image-rendering: pixelated; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.8rem 1.5rem;
  margin-top: 1.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: lining-nums tabular-nums; }
th, td { padding: 0.32rem 1.4rem 0.32rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
@media (max-width: 40rem) { table { font-size: 0.82rem; width: 100%; } th, td { padding-right: 0.7rem;
  white-space: normal; } td { white-space: nowrap; } }
thead th, tbody th { font-weight: 500; }
thead th { color: var(--quiet); }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 2.5rem; align-items: start;
  margin-top: 1.2rem; }
@media (max-width: 60rem) { .columns { grid-template-columns: minmax(0, 1fr); } }
.scroll + .note { margin-top: 0.9rem; }
.charts > .facts { grid-column: span 2; align-content: start; }
@media (max-width: 48rem) { .charts > .facts { grid-column: auto; } }
.probe + .probe { margin-top: 3rem; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.4rem 2rem;
  margin-top: 1.4rem; }
.strips figure { margin: 0; }
.strips figcaption { font-size: 0.875rem; margin-bottom: 0.3rem; overflow-wrap: anywhere; }
.strips figure > div { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 0.4rem; }
.strips img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--rule); }
.strips span { display: block; margin-top: 0.2rem; font-size: 0.8rem; color: var(--quiet); }
details table { margin: 0.4rem 1rem 1.2rem; }
details { margin-top: 1rem; border: 1px solid var(--rule); border-radius: 6px; background: var(--raised); }
summary { padding: 0.7rem 1rem; cursor: pointer; }
pre { margin: 0; padding: 0.4rem 1rem 1.2rem; overflow-x: auto; line-height: 1.5; }
.key i:first-child { margin-left: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: var(--sans); font-variant-numeric: tabular-nums; }
svg .tick { font-size: 10.5px; fill: var(--quiet); }
svg .name { font-size: 12.5px; fill: var(--ink); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .mark, svg .level { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 3 3; }
svg .raw { fill: none; stroke: var(--model); stroke-width: 0.9; opacity: 0.35; }
svg .smooth { fill: none; stroke: var(--model); stroke-width: 1.9; stroke-linejoin: round; }
svg .compared { fill: none; stroke: var(--linear); stroke-width: 1.6; }
svg .dot, svg .full { fill: var(--model); }
svg .checked { fill: var(--linear); }
svg path:is(.whole, .untouched, .corrupted) { fill: none; stroke-width: 1.9; stroke-linejoin: round; }
svg path.whole { stroke: var(--model); }
svg path.untouched { stroke: var(--third); stroke-dasharray: 6 3; }
svg path.corrupted { stroke: var(--linear); stroke-dasharray: 1.5 3; }
svg circle.whole { fill: var(--model); }
svg circle.untouched { fill: var(--third); }
svg circle.corrupted { fill: var(--linear); }
.lines span { display: inline-block; margin-right: 1.2em; }
.lines i { display: inline-block; width: 1.9em; margin-right: 0.45em; vertical-align: 0.25em;
  border-top: 2.5px solid var(--model); }
.lines i.untouched { border-top: 2.5px dashed var(--third); }
.lines i.corrupted { border-top: 2.5px dotted var(--linear); }
svg .open { fill: var(--paper); stroke: var(--linear); stroke-width: 1.8; }
svg .between { stroke: var(--quiet); stroke-width: 1; }
.key i { display: inline-block; width: 0.65em; height: 0.65em; margin: 0 0.35em 0 0.9em; border-radius: 50%;
  border: 2px solid var(--linear); }
.key i.full { background: var(--model); border-color: var(--model); }
dialog { width: 100vw; height: 100dvh; max-width: none; max-height: none; margin: 0; padding: 0; border: 0;
  background: var(--paper); color: var(--ink); }
dialog[open] { display: flex; flex-direction: column; }
dialog header { display: flex; flex-wrap: wrap; gap: 0.4rem 0.8rem; align-items: center; padding: 0.6rem 1rem;
  border-bottom: 1px solid var(--rule); font-size: 0.9rem; }
dialog header b { margin-right: auto; }
dialog header button { font: inherit; color: inherit; background: var(--raised); border: 1px solid var(--rule);
  border-radius: 5px; padding: 0.25rem 0.75rem; cursor: pointer; }
.panes { flex: 1; min-height: 0; display: grid; grid-template-columns: 1fr 1fr; gap: 2px; background: var(--rule); }
@media (max-aspect-ratio: 1/1) { .panes { grid-template-columns: 1fr; grid-template-rows: 1fr 1fr; } }
.pane { position: relative; min-width: 0; min-height: 0; background: var(--paper); }
.pane div { position: absolute; inset: 0; overflow: auto; display: grid; }
.pane img { margin: auto; max-width: none; }
.pane span { position: absolute; left: 0.6rem; bottom: 0.6rem; padding: 0.1rem 0.5rem; font-size: 0.8rem;
  background: var(--paper); border-radius: 4px; pointer-events: none; }
@media print { button.zoom { cursor: auto; } dialog { display: none !important; } section { break-inside: avoid-page;
  } }
"""

SCRIPT = """
const dialog = document.querySelector("dialog"), panes = [...dialog.querySelectorAll(".pane")];
const photographs = [...document.querySelectorAll(".photograph")];
let current = 0, other = 1;
function show() {
  const views = [...photographs[current].querySelectorAll("button.zoom img")];
  [0, other].forEach((view, i) => {
    const image = panes[i].querySelector("img");
    image.src = views[view].src; image.alt = views[view].alt;
    panes[i].querySelector("span").textContent = views[view].dataset.view + ", 100 %";
  });
  const facts = [...photographs[current].querySelectorAll("figcaption > span")];
  dialog.querySelector("b").textContent = facts.map(fact => fact.textContent).join(" · ");
  dialog.querySelector("[data-do=swap]").textContent = other === 1 ? "Show difference" : "Show reconstruction";
}
function move(step) { current = (current + step + photographs.length) % photographs.length; show(); }
function open(index, view) { current = index; other = view === 2 ? 2 : 1; show(); dialog.showModal(); }
photographs.forEach((photograph, index) => photograph.querySelectorAll("button.zoom").forEach((button, view) =>
  button.addEventListener("click", () => open(index, view))));
const actions = {
  previous: () => move(-1), next: () => move(1), close: () => dialog.close(),
  swap: () => { other = 3 - other; show(); },
};
dialog.querySelectorAll("button").forEach(button =>
  button.addEventListener("click", () => actions[button.dataset.do]()));
dialog.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && event.target.closest(".pane") === null) { event.preventDefault(); move(step); }
  if (event.key === "d") actions.swap();
});
const scrollers = panes.map(pane => pane.querySelector("div"));
scrollers.forEach((scroller, i) => scroller.addEventListener("scroll", () => {
  const twin = scrollers[1 - i];
  twin.scrollLeft = scroller.scrollLeft; twin.scrollTop = scroller.scrollTop;
}));
"""

ZOOM = """
<dialog aria-label="Original and reconstruction at 100 %">
<header><b></b>
<button data-do="previous" aria-label="Previous image">←</button>
<button data-do="next" aria-label="Next image">→</button>
<button data-do="swap">Show difference</button>
<button data-do="close" autofocus>Close</button></header>
<div class="panes">
<div class="pane"><div tabindex="0"><img alt=""></div><span></span></div>
<div class="pane"><div tabindex="0"><img alt=""></div><span></span></div>
</div></dialog>
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page around the inside of ``main``; ``style`` is added to what every page has."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main>{ZOOM}<script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of HTML; the caller escapes what is not ours."""
    return f'<p class="{style}">{text}</p>' if style else f"<p>{text}</p>"


def table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: list[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs if v) + "</dl>"


def headline(figures: list[tuple[str, str]]) -> str:
    """Large numbers, each with a line of small print."""
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{escape(value)}</b><small>{escape(label)}</small></div>" for value, label in figures)
        + "</div>"
    )


def chart(title: str, svg: str, note: str = "") -> str:
    small = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<div><h3>{escape(title)}</h3>{svg}{small}</div>"
