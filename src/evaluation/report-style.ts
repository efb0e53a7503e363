/** The report's style sheet: a quiet gallery wall, in light and dark, from a telephone to a wide screen, and on paper. */
export const reportStyle = `
:root {
  color-scheme: light dark;
  --wall: #f7f5f1; --card: #fffefb; --mat: #ffffff; --ink: #211f1c; --soft: #6b655d; --rule: #e3ded5; --frame: #d8d2c7;
  --s0: #b3501f; --s1: #25628f; --tint: #f6e6d9; --shadow: 0 1px 2px rgb(60 45 25 / 7%), 0 8px 24px rgb(60 45 25 / 6%);
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, "Book Antiqua", Georgia, "Liberation Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", SFMono-Regular, Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --wall: #161513; --card: #1f1d1a; --mat: #2a2824; --ink: #ece7de; --soft: #a49c90; --rule: #35322d; --frame: #45413a;
    --s0: #f0955f; --s1: #7db8e8; --tint: #3d2a1d; --shadow: none;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wall); color: var(--ink); font: 16px/1.6 var(--sans); }
main, footer { max-width: 1120px; margin: 0 auto; padding: 0 clamp(18px, 4vw, 40px); }
header { padding: clamp(36px, 7vw, 84px) 0 0; }
.eyebrow { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; margin: 0 0 14px; color: var(--soft); font-size: 13px; letter-spacing: .02em; }
.eyebrow b { color: var(--s0); font-weight: 650; letter-spacing: .08em; text-transform: uppercase; }
h1, h2 { font-family: var(--serif); font-weight: 500; text-wrap: balance; }
h1 { margin: 0; font-size: clamp(36px, 6.4vw, 68px); line-height: 1.06; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: clamp(25px, 3.2vw, 34px); line-height: 1.2; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; font-weight: 650; line-height: 1.4; }
.lead { max-width: 44em; margin: 18px 0 0; color: var(--soft); font-size: clamp(16px, 1.6vw, 18.5px); }
section { margin-top: clamp(52px, 7.5vw, 92px); }
.intro { max-width: 44em; margin: 8px 0 26px; color: var(--soft); text-wrap: pretty; }
img { display: block; width: 100%; height: auto; background: var(--rule); }
img.small { image-rendering: pixelated; }
figure { margin: 0; }
.framed { padding: 7px; background: var(--mat); border: 1px solid var(--frame); border-radius: 3px; box-shadow: var(--shadow); }
.references { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 240px)); gap: 14px; margin-top: 34px; }
.references img { aspect-ratio: 1; object-fit: cover; }
.caption { margin: 12px 0 0; color: var(--soft); font-size: 13.5px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 36px 0 0; padding: 0; overflow: hidden; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.figures div { padding: 15px 18px 16px; outline: 1px solid var(--rule); }
.figures dt { color: var(--soft); font-size: 13px; }
.figures dd { margin: 3px 0 0; font: 500 25px/1.2 var(--serif); font-variant-numeric: lining-nums tabular-nums; }
.figures small { display: block; margin-top: 2px; color: var(--soft); font: 12.5px/1.4 var(--sans); }
mark { padding: 0 .16em; border-radius: 3px; background: var(--tint); color: var(--s0); }
h1 mark { padding: 0; background: none; }
.heads, .pair { display: grid; grid-template-columns: 1fr 1fr; gap: clamp(14px, 3vw, 34px); }
.heads { padding-bottom: 9px; border-bottom: 1px solid var(--frame); font-size: 14px; }
.heads b { font-weight: 650; } .heads span { color: var(--soft); }
.scene { padding: 20px 0 26px; border-bottom: 1px solid var(--rule); break-inside: avoid; }
.scene:last-child { border-bottom: 0; }
.scene h3 { margin-bottom: 12px; font: italic 500 19px/1.35 var(--serif); overflow-wrap: anywhere; }
.scene mark { font-style: normal; }
.strip { display: grid; gap: 8px; align-content: start; }
.strip .framed { padding: 4px; }
.side { display: none; margin: 0 0 6px; color: var(--soft); font-size: 13px; }
.course { display: flex; gap: 14px; padding: 4px 2px 14px; overflow-x: auto; }
.course figure { flex: 1 0 150px; max-width: 320px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 20px; }
.card { display: flex; flex-direction: column; min-width: 0; padding: 20px 22px 16px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; box-shadow: var(--shadow); break-inside: avoid; }
.card > p { margin: 2px 0 10px; color: var(--soft); font-size: 13.5px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 6px; padding: 0; color: var(--soft); font-size: 13px; list-style: none; }
.legend i { display: inline-block; width: 18px; margin-right: 7px; border-top: 2.5px solid; vertical-align: middle; }
.legend i.s0 { border-color: var(--s0); } .legend i.s1 { border-color: var(--s1); border-top-style: dashed; }
svg { display: block; width: 100%; height: auto; margin-top: auto; overflow: visible; }
svg .rule { stroke: var(--rule); } svg .tick { fill: var(--soft); font: 11.5px var(--sans); font-variant-numeric: tabular-nums; }
svg path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg .line { stroke-width: 2.2; } svg .raw { stroke-width: 1; opacity: .28; }
svg .s0 { stroke: var(--s0); } svg .s1 { stroke: var(--s1); } svg .line.s1 { stroke-dasharray: 6 4; }
svg .dot.s0 { fill: var(--s0); } svg .dot.s1 { fill: var(--s1); } svg .dot { stroke: var(--card); stroke-width: 1.5; }
svg .hover rect { fill: transparent; } svg .hover line, svg .hover circle { visibility: hidden; stroke: var(--soft); pointer-events: none; }
svg .hover circle { stroke: var(--card); } svg .hover:hover line, svg .hover:hover circle { visibility: visible; }
.empty { color: var(--soft); }
.uses { display: grid; grid-template-columns: minmax(0, 1fr); gap: 22px; }
.uses h3 small { color: var(--soft); font-weight: 400; }
pre { margin: 9px 0 0; padding: 14px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; font: 13px/1.6 var(--mono); tab-size: 2; }
code { font-family: var(--mono); font-size: .9em; overflow-wrap: anywhere; }
.tables { columns: 3 300px; column-gap: 34px; }
table { width: 100%; margin: 0 0 26px; border-collapse: collapse; break-inside: avoid; font-size: 14px; }
caption { padding-bottom: 6px; border-bottom: 1px solid var(--frame); font-weight: 650; text-align: left; }
th, td { padding: 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { padding-right: 16px; color: var(--soft); font-weight: 400; text-align: left; }
td { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.notes { max-width: 46em; margin: 18px 0 0; padding: 0 0 0 1.1em; }
.notes li { margin: 0 0 8px; padding-left: 4px; } .notes li::marker { color: var(--s0); }
footer { margin-top: clamp(52px, 7vw, 84px); padding-top: 20px; padding-bottom: 44px; color: var(--soft); font-size: 13px; }
footer::before { content: ""; display: block; margin-bottom: 20px; border-top: 1px solid var(--rule); }
@media (max-width: 700px) {
  .heads { display: none; } .side { display: block; }
  .references { grid-template-columns: repeat(3, 1fr); gap: 10px; } .framed { padding: 5px; }
  svg .tick { font-size: 15px; }
  .pair { grid-template-columns: 1fr; gap: 14px; }
  .card { padding: 16px 14px 12px; }
  .figures { grid-template-columns: 1fr 1fr; } .figures div { padding: 12px 14px; } .figures dd { font-size: 21px; }
}
@media print { body { background: none; font-size: 11pt; } section { margin-top: 32px; } .hover { display: none; } }
`;
