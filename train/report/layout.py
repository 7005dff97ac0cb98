"""How the page is set: light or dark as the reader's device is, wide or as narrow as a phone."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --ink: #1d1f21; --faint: #5d6369; --line: #dcdcd6; --card: #ffffff; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e6e6e3; --faint: #9aa1a8; --line: #33373c; --card: #1e2125; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
h3 { margin: 0 0 .4rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--faint); }
header p { margin: .4rem 0 0; color: var(--faint); }
section { margin-top: 2.75rem; }
.merits { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.merits { margin: 1.75rem 0 0; }
.merits div { padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.merits dt { font-size: .8rem; color: var(--faint); }
.merits dd { margin: 0; }
.merits strong { font-size: 1.45rem; color: var(--accent); font-variant-numeric: tabular-nums; }
.merits small { color: var(--faint); white-space: nowrap; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; font-weight: 500; white-space: nowrap; }
thead th { font-weight: 500; color: var(--faint); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1.75rem 2.5rem; }
.columns td { overflow-wrap: anywhere; }
figure { margin: 0; padding: .75rem; background: #fff; border: 1px solid var(--line); border-radius: .5rem; }
img { display: block; width: 100%; height: auto; }
.caption { margin: .6rem 0 0; font-size: .9rem; color: var(--faint); }
@media print { main { max-width: none; } section { break-inside: avoid; } }
"""
