// Replays a recording, also while it grows.

/** A moment of the replay takes the first, in a long recording less, so that the whole takes about the second. */
const MOMENT_MS = 140;
const WHOLE_MS = 5000;

/** The scrubber of a result's section. It follows what comes until somebody looks back. */
export class Player {
  #timer = 0;
  #frame = 0;

  constructor(section, stage) {
    this.stage = stage;
    this.button = section.querySelector(".play");
    this.scrubber = section.querySelector(".scrubber");
    this.moment = section.querySelector(".moment");
    this.recording = null;
    this.following = true;
    this.button.addEventListener("click", () => (this.#timer ? this.pause() : this.play()));
    this.scrubber.addEventListener("input", () => {
      this.pause();
      this.seek(Number(this.scrubber.value));
    });
  }

  /** Takes a new recording, and follows it. */
  load(recording) {
    this.pause();
    this.recording = recording;
    this.following = true;
    this.stage.open(recording.request);
    this.grew();
  }

  /** To be called when the recording has grown; draws at most once a frame. */
  grew() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      this.scrubber.max = this.recording.last;
      const still = this.recording.last === 0;
      this.scrubber.disabled = this.button.disabled = still;
      this.seek(this.following ? this.recording.last : Number(this.scrubber.value));
    });
  }

  /** Shows moment m. */
  seek(m) {
    this.following = m >= this.recording.last;
    this.scrubber.value = m;
    this.stage.draw(this.recording, m);
    const words = this.#words(m);
    this.moment.textContent = words;
    this.scrubber.setAttribute("aria-valuetext", words);
  }

  /** Goes on from here, or from the beginning where this is the end. */
  play() {
    if (this.following) this.seek(0);
    this.button.textContent = "Pause";
    this.#timer = setInterval(() => {
      this.seek(Math.min(Number(this.scrubber.value) + 1, this.recording.last));
      if (this.following) this.pause();
    }, Math.min(MOMENT_MS, WHOLE_MS / this.recording.last));
  }

  /** Stays where it is. */
  pause() {
    clearInterval(this.#timer);
    this.#timer = 0;
    this.button.textContent = "Play";
  }

  #words(m) {
    const { step, time, pictures } = this.recording.moments[m];
    const { tokens, images } = this.recording.count(m);
    if (m === 0) return "the beginning";
    const [picture] = pictures.values();
    const at = tokens || !picture ? time : picture.time;
    const parts = [`step ${step}`, `time ${at.toFixed(2)}`];
    if (tokens) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    if (images > 1) parts.push(`${images} images`);
    return parts.join(", ");
  }
}
