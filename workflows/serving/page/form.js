// The form: what the server is asked for. A slider that nobody has moved and a number that is not there are not sent.

import { Failure } from "./events.js";

const DEFAULT = "model's default";
const MOST_PREVIEWS = 48;
/** Fields of the request whose input has another name. */
const FIELDS = { segments: "prompt" };

/** One slider with its number; null until it is moved. */
class Slider {
  constructor(row) {
    this.slider = row.querySelector("input[type=range]");
    this.output = row.querySelector("output");
    this.reset = row.querySelector("button");
    this.slider.addEventListener("input", () => this.set(Number(this.slider.value)));
    this.reset.addEventListener("click", () => {
      this.set(null);
      this.slider.focus();
    });
    this.set(null);
  }

  set(value) {
    this.value = value;
    if (value === null) this.slider.value = this.slider.defaultValue;
    else this.slider.value = value;
    this.output.textContent = value ?? DEFAULT;
    this.slider.setAttribute("aria-valuetext", this.output.textContent);
    this.slider.classList.toggle("untouched", value === null);
    this.reset.hidden = value === null;
    this.reset.setAttribute("aria-label", `${this.slider.id}: ${DEFAULT}`);
  }
}

/** The name of a number's field and its value, null where it is empty. */
function whole(input) {
  const { id, min, max, validity, value } = input;
  if (validity.valid) return [id, value === "" ? null : Number(value)];
  const cause = validity.badInput ? "it is no number" : `${value} does not do`;
  throw new Failure({ field: id, cause, mend: `give a whole number from ${min} to ${max}, or none` }, { status: 422 });
}

/** Reads and writes the form's fields. */
export class Form {
  constructor(form, pictures) {
    this.form = form;
    this.pictures = pictures;
    this.options = [...form.querySelectorAll(".option:has(input[type=range])")].map((row) => new Slider(row));
    this.numbers = [...form.querySelectorAll("input[type=number]")];
    this.prompt = form.querySelector("#prompt");
    this.seed = form.querySelector("#seed");
    this.any = form.querySelector("#any");
    this.seed.addEventListener("input", () => this.keepSeed(this.seed.value));
    this.any.addEventListener("click", () => {
      this.keepSeed("");
      this.seed.focus();
    });
  }

  /** The request, with a seed drawn here where none is given: so it is known, and can be given again. */
  request() {
    const { value: text } = this.prompt;
    const chosen = Object.fromEntries(this.options.map(({ slider, value }) => [slider.id, value]).filter((o) => o[1] !== null));
    return {
      segments: [...this.pictures.segments, ...(text ? [{ type: "text", text }] : [])],
      target: this.form.elements.target.value,
      seed: this.#seed(),
      ...chosen,
      ...Object.fromEntries(this.numbers.map(whole).filter((o) => o[1] !== null)),
      stream: true,
      previews: Math.max(1, Math.ceil((chosen.steps ?? 1) / MOST_PREVIEWS)),
    };
  }

  /** Fills in an example. */
  fill({ prompt, target }) {
    this.prompt.value = prompt;
    this.form.elements.target.value = target;
  }

  /** Writes the seed; empty means any. */
  keepSeed(seed) {
    this.seed.value = seed;
    this.any.hidden = this.seed.value === "";
  }

  /** Marks the field that a failure names, and goes there; null takes all marks away. */
  mark(failure) {
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    const name = failure?.field?.startsWith("segments.") ? "file" : (FIELDS[failure?.field] ?? failure?.field);
    const field = name ? this.form.querySelector(`:is(input, textarea)[id="${CSS.escape(name)}"]`) : null;
    if (field?.closest("details")) field.closest("details").open = true;
    field?.setAttribute("aria-invalid", "true");
    field?.setAttribute("aria-errormessage", "error");
    field?.focus();
  }

  #seed() {
    const text = this.seed.value.trim();
    if (text === "") return crypto.getRandomValues(new Uint32Array(1))[0];
    const seed = Number(text);
    if (/^\d+$/.test(text) && Number.isSafeInteger(seed)) return seed;
    throw new Failure({ field: "seed", cause: `${text} is no seed`, mend: `give a whole number up to ${Number.MAX_SAFE_INTEGER}` }, { status: 422 });
  }
}
