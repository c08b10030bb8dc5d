// What can be kept: one file that holds the document, its images, its events and the replay; or the events alone.

const REPLAY = ["recording.js", "stage.js", "player.js"];
const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
const START = `
const { request, events } = JSON.parse(document.getElementById("recording").textContent);
const recording = new Recording(request);
for (const event of events) recording.add(event);
const section = document.getElementById("result");
new Player(section, new Stage(section)).load(recording);
`;

/** The recording as JSON: {request, events}. */
export function eventsFile({ request, events }) {
  return JSON.stringify({ request, events }, null, 1);
}

/** A page that needs nothing else. `section` is the result's empty markup, `facts` what is said below it. */
export async function pageFile(recording, section, facts) {
  const [css, ...sources] = await Promise.all(["page.css", ...REPLAY].map(source));
  // These modules import nothing and share no names, so that joined they are one.
  const script = sources.map((text) => text.replace(/^export /gm, "")).join("\n") + START;
  // A "<" could end the script that holds the JSON.
  const events = eventsFile(recording).replaceAll("<", "\\u003c");
  const main = Object.assign(document.createElement("main"), { innerHTML: section });
  main.querySelector("#facts").textContent = facts;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${POLICY}">
<title>OneFlow</title>
<style>${css}</style>
</head>
<body>
<header><h1>OneFlow</h1></header>
${main.outerHTML}
<script type="application/json" id="recording">${events}</script>
<script type="module">${script}</script>
</body>
</html>
`;
}

/** Hands a text to the browser as a file. */
export function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function source(name) {
  return (await fetch(`page/${name}`)).text();
}
