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
  const page = document.implementation.createHTMLDocument("OneFlow");
  page.documentElement.lang = "en";
  page.head.append(
    make(page, "meta", { name: "viewport", content: "width=device-width, initial-scale=1" }),
    make(page, "meta", { name: "color-scheme", content: "light dark" }),
    make(page, "meta", { httpEquiv: "Content-Security-Policy", content: POLICY }),
    make(page, "style", { textContent: css }),
  );
  const main = make(page, "main", { innerHTML: section });
  main.prepend(...given(page, recording.request));
  main.querySelector("#facts").textContent = facts;
  page.body.append(
    make(page, "h1", { textContent: "OneFlow" }),
    main,
    // A "<" could end the script that holds the JSON.
    make(page, "script", { type: "application/json", id: "recording", textContent: eventsFile(recording).replaceAll("<", "\\u003c") }),
    make(page, "script", { type: "module", textContent: script }),
  );
  return `<!doctype html>\n<meta charset="utf-8">\n${page.documentElement.outerHTML}`;
}

/** Hands a text to the browser as a file. */
export function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function given(page, { segments }) {
  return segments.map((segment) =>
    segment.type === "text"
      ? make(page, "p", { className: "prompt", textContent: segment.text })
      : make(page, "img", { className: "thumbnail", alt: "Given image", src: `data:${mediaType(segment.data)};base64,${segment.data}` }),
  );
}

/** By the first bytes: PNG, JPEG or WebP is what the page sends. */
function mediaType(data) {
  if (data.startsWith("iVBOR")) return "image/png";
  return data.startsWith("/9j/") ? "image/jpeg" : "image/webp";
}

function make(page, name, properties) {
  return Object.assign(page.createElement(name), properties);
}

async function source(name) {
  return (await fetch(`page/${name}`)).text();
}
