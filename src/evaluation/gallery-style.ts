/** What the gallery's style adds to the report's: wide score tables, a bar to leaf with, methods side by side. */
export const galleryStyle = `
main, footer { max-width: 1480px; }
header { padding-top: clamp(30px, 5vw, 60px); }
.mind { overflow-wrap: anywhere; margin: 26px 0 0; padding: 14px 18px; background: var(--tint); border-radius: 8px; }
.mind p { margin: 0 0 6px; } .mind p:last-child { margin: 0; } .mind b { color: var(--s0); }
.scores { margin-top: 34px; overflow-x: auto; }
.scores table { min-width: 640px; margin: 0; font-size: 15px; }
.scores th, .scores td { padding: 9px 14px 9px 0; text-align: right; white-space: nowrap; }
.scores th:first-child, .scores td:last-child.words { text-align: left; white-space: normal; }
.scores thead th { border-bottom: 1px solid var(--frame); color: var(--ink); font-weight: 650; }
.scores tbody th { color: var(--ink); }
.scores small { display: block; color: var(--soft); font-size: 12.5px; }
.scores .best { font-weight: 650; } .scores .best small { font-weight: 400; }
.scores .ceiling th, .scores .ceiling td { color: var(--soft); font-style: italic; border-bottom: 0; }
.scores .words { min-width: 180px; padding-left: 14px; color: var(--soft); font-size: 13.5px; }
.scores caption small { font-weight: 400; }
.scores + .scores { margin-top: 26px; }
.bar { position: sticky; top: 0; z-index: 2; display: none; flex-wrap: wrap; gap: 8px 10px; align-items: center; margin: 0 -12px; padding: 10px 12px; background: var(--wall); border-bottom: 1px solid var(--rule); }
.leafing .bar { display: flex; }
.bar button, .bar select { padding: 6px 12px; background: var(--card); border: 1px solid var(--frame); border-radius: 7px; color: var(--ink); font: 14px/1.4 var(--sans); cursor: pointer; }
.bar button:hover, .bar select:hover { border-color: var(--s0); }
.bar button:focus-visible, .bar select:focus-visible, .wall a:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
.bar select.prompt { flex: 1 1 260px; min-width: 0; }
.bar .keys { color: var(--soft); font-size: 12.5px; }
kbd { padding: 0 5px; border: 1px solid var(--frame); border-radius: 4px; font: 11.5px var(--sans); }
.subject { margin-top: 0; padding-top: 26px; }
.subject + .subject { margin-top: 40px; }
.leafing .subject:not(.here) { display: none; }
.leafing .wall.one .prompt-pictures:not(.here) { display: none; }
.subject h2 small { margin-left: 10px; color: var(--soft); font: 15px var(--sans); letter-spacing: 0; }
.photographs { display: flex; gap: 10px; margin: 14px 0 0; padding-bottom: 8px; overflow-x: auto; }
.photographs .framed { flex: none; padding: 4px; }
.photographs img { width: auto; height: clamp(84px, 11vw, 132px); }
.prompt-pictures { padding: 18px 0 24px; border-top: 1px solid var(--rule); scroll-margin-top: 62px; }
.prompt-pictures h3 { margin-bottom: 12px; font: italic 500 20px/1.35 var(--serif); overflow-wrap: anywhere; }
.prompt-pictures h3 span { margin-right: 10px; color: var(--soft); font: 13px var(--sans); }
.methods { display: grid; grid-template-columns: repeat(var(--methods), minmax(150px, 1fr)); gap: clamp(12px, 2vw, 26px); overflow-x: auto; }
.methods h4 { margin: 0; font-size: 14px; font-weight: 650; overflow-wrap: anywhere; }
.methods p { margin: 0 0 8px; min-height: 1.5em; color: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
.methods div.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 6px; max-width: 660px; }
.methods div.pictures.single { grid-template-columns: minmax(0, 1fr); }
.pictures a { display: block; padding: 3px; background: var(--mat); border: 1px solid var(--frame); border-radius: 3px; }
.pictures img { aspect-ratio: 1; object-fit: contain; }
@media (max-width: 700px) { .bar .keys { display: none; } .methods { grid-template-columns: minmax(0, 1fr); } .scores { font-size: 14px; } }
@media print { .bar { display: none; } .leafing .subject:not(.here), .leafing .wall.one .prompt-pictures:not(.here) { display: block; } }
`;
