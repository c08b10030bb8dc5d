// The page: joins the form, the stream and the result.

import { eventsFile, pageFile, save } from "./download.js";
import { generate } from "./events.js";
import { EXAMPLES } from "./examples.js";
import { Form } from "./form.js";
import { Pictures } from "./pictures.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const section = $("result");
const empty = section.outerHTML;
const player = new Player(section, new Stage(section));
const pictures = new Pictures({ drop: $("drop"), input: $("file"), list: $("given") }, complain);
const form = new Form($("ask"), pictures);
/** Of the run in progress; null when there is none. */
let controller = null;

/** Runs what the form says; one run at a time. */
async function run() {
  if (controller) return;
  complain(null);
  controller = new AbortController();
  const { signal } = controller;
  busy(true);
  try {
    const recording = new Recording(form.request());
    say("Asking");
    for await (const event of generate(recording.request, { key: $("key").value, signal })) {
      if (!recording.events.length) begin(recording);
      recording.add(event);
      tell(event, recording);
      player.grew();
    }
  } catch (error) {
    if (signal.aborted) say("Stopped; what came is shown.");
    else complain(error);
  } finally {
    controller = null;
    busy(false);
  }
}

/** The server has taken the request: what was made before goes, and the result comes into sight. */
function begin(recording) {
  player.load(recording);
  $("facts").textContent = `seed ${recording.request.seed}`;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (section.getBoundingClientRect().top > innerHeight / 2) section.scrollIntoView({ behavior: still ? "auto" : "smooth" });
}

function tell({ event, data }, recording) {
  if (event === "queued") say(data.ahead ? `Waiting in the queue, ${data.ahead} ahead` : "Waiting in the queue, next in line");
  if (event === "insertions" || event === "preview") say("In the making");
  if (event !== "done") return;
  const { tokens, images } = recording.count(recording.last);
  const made = [tokens && `${tokens} ${tokens === 1 ? "token" : "tokens"}`, images && `${images} ${images === 1 ? "image" : "images"}`];
  const text = data.segments.map((segment) => segment.text ?? "").join(" ").trim();
  say(`Done in ${data.seconds.toFixed(1)} s: ${made.filter(Boolean).join(", ") || "nothing"}.`, text);
  $("facts").textContent = [`seed ${recording.request.seed}`, identity(data.model)].filter(Boolean).join("; ");
}

/** A status for everybody, with what only a screen reader needs after it; the same words are not said twice. */
function say(words, spoken = "") {
  if (!spoken && $("status").textContent === words) return;
  const more = Object.assign(document.createElement("span"), { className: "away", textContent: spoken });
  $("status").replaceChildren(words, more);
}

/** Shows a failure; null takes it away. */
function complain(failure) {
  $("error").replaceChildren();
  $("again").hidden = !failure?.passing;
  form.mark(failure);
  if (!failure) return;
  say("");
  const cause = failure.field && failure.status !== 401 ? `${failure.field}: ${failure.cause}` : failure.cause || String(failure);
  const wait = failure.retryAfter ? `try again in ${Math.ceil(failure.retryAfter)} s` : failure.mend;
  const mend = failure.status === 401 ? "give the server's key" : wait;
  $("error").append(
    Object.assign(document.createElement("strong"), { textContent: cause }),
    Object.assign(document.createElement("span"), { textContent: mend }),
  );
  if (failure.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
  $("error").scrollIntoView({ block: "nearest" });
}

/** Stop stands where Generate stood, and takes its focus. */
function busy(yes) {
  const [shown, gone] = yes ? [$("stop"), $("go")] : [$("go"), $("stop")];
  const focused = document.activeElement === gone;
  shown.hidden = false;
  gone.hidden = true;
  if (focused) shown.focus();
  section.querySelector(".paper").setAttribute("aria-busy", String(yes));
  for (const id of ["keep", "save-page", "save-events"]) $(id).hidden = yes || !player.recording?.last;
}

function identity({ name, version, run_id: runId } = {}) {
  return [name, version && `version ${version}`, runId && `run ${runId.slice(0, 8)}`].filter(Boolean).join(", ");
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => controller?.abort());
$("again").addEventListener("click", run);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") controller?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    if (controller) return;
    const example = EXAMPLES[button.dataset.example];
    pictures.clear();
    if (example.picture) pictures.add(example.picture(), example.name);
    form.fill(example);
    run();
  });
}
$("keep").addEventListener("click", () => form.keepSeed(String(player.recording.request.seed)));
$("save-events").addEventListener("click", () => {
  const { recording } = player;
  save(eventsFile(recording), `oneflow-${recording.request.seed}.json`, "application/json");
});
$("save-page").addEventListener("click", async () => {
  const { recording } = player;
  save(await pageFile(recording, empty, $("facts").textContent), `oneflow-${recording.request.seed}.html`, "text/html");
});
fetch("healthz")
  .then((reply) => reply.json())
  .then(({ model }) => ($("model").textContent = identity(model)))
  .catch(() => ($("model").textContent = "the server does not answer"));
