// A generation as it was recorded: the events, and the document at every moment. Knows nothing of the page.

/** The text of each piece, where a character's bytes may have come as several pieces; null where they do not fit. */
export function exactPieces(pieces, steps, text) {
  if (pieces.join("") === text) return pieces;
  const exact = [];
  let at = 0;
  for (let i = 0; i < pieces.length; ) {
    if (!pieces[i].includes("\ufffd") && text.startsWith(pieces[i], at)) {
      at += pieces[i].length;
      exact.push(pieces[i++]);
      continue;
    }
    let end = i;
    while (end < pieces.length && pieces[end].includes("\ufffd")) end += 1;
    const next = end < pieces.length ? text.indexOf(pieces[end], at) : text.length;
    if (end === i || next < 0) return null;
    // The character is there when the last of its bytes is.
    const late = steps.slice(i, end).reduce((best, step, k, all) => (step >= all[best] ? k : best), 0);
    for (let k = i; k < end; k += 1) exact.push(k - i === late ? text.slice(at, next) : "");
    [at, i] = [next, end];
  }
  return at === text.length ? exact : null;
}

/** Takes events one by one; `moments[m].ids` are the elements of the document at moment m, in reading order. */
export class Recording {
  constructor(request) {
    this.request = request;
    this.events = [];
    /** id -> {id, token, image, time, step} */
    this.elements = new Map();
    this.moments = [{ step: null, time: 0, ids: [], pictures: new Map() }];
    this.start = null;
    this.answer = null;
  }

  get last() {
    return this.moments.length - 1;
  }

  /** Records one event of POST /v1/generate. */
  add({ event, data }) {
    this.events.push({ event, data });
    if (event === "start") this.start = data;
    if (event === "insertions") this.#insert(data);
    if (event === "preview") {
      const moment = this.#moment(data.step);
      moment.pictures = new Map(moment.pictures).set(data.id, data);
    }
    if (event === "done") this.#finish(data);
  }

  /** How many tokens and images the document has at moment m. */
  count(m) {
    const images = this.moments[m].ids.filter((id) => this.elements.get(id).image).length;
    return { tokens: this.moments[m].ids.length - images, images };
  }

  #insert({ step, time, insertions, deletions = [] }) {
    const moment = this.#moment(step);
    moment.time = time;
    const ids = [...moment.ids];
    for (const { position } of deletions) ids.splice(position, 1);
    for (const { id, position, token, image } of insertions) {
      this.elements.set(id, { id, token, image, time, step });
      ids.splice(position, 0, id);
    }
    moment.ids = ids;
  }

  /** The moment of a step: what comes in one step is seen at once. */
  #moment(step) {
    const now = this.moments[this.last];
    if (now.step !== step) this.moments.push({ ...now, step });
    return this.moments[this.last];
  }

  #finish(answer) {
    this.answer = answer;
    const { ids, pictures, ...now } = this.moments[this.last];
    const step = now.step ?? 0;
    if (!this.#settle(answer.segments, ids)) {
      // What came does not add up to the answer: the answer is what counts.
      this.moments.push({ step, time: 1, ids: this.#whole(answer.segments, step), pictures });
    }
    const end = this.moments[this.last];
    const images = answer.segments.filter((segment) => segment.type === "image");
    const places = end.ids.filter((id) => this.elements.get(id).image);
    end.pictures = new Map(places.map((id, i) => [id, { ...images[i], id, step: end.step, time: 1 }]));
  }

  /** Gives the elements their exact text; false where they are not those of the answer. */
  #settle(segments, ids) {
    const left = [...segments];
    const settled = [];
    for (const run of runs(ids.map((id) => this.elements.get(id)))) {
      if (run[0].image !== (left[0]?.type === "image")) return false;
      const { text } = left.shift();
      if (run[0].image) continue;
      const exact = exactPieces(run.map((e) => e.token), run.map((e) => e.step), text);
      if (!exact) return false;
      settled.push(...run.map((element, i) => ({ ...element, token: exact[i] })));
    }
    for (const element of settled) this.elements.set(element.id, element);
    return left.length === 0;
  }

  #whole(segments, step) {
    return segments.map((segment, i) => {
      const id = `answer-${i}`;
      this.elements.set(id, { id, token: segment.text ?? "", image: segment.type === "image", time: 1, step });
      return id;
    });
  }
}

/** Elements in order as the answer's segments: images alone, tokens next to each other together. */
function runs(elements) {
  const found = [];
  for (const element of elements) {
    const before = found.at(-1);
    if (before && !element.image && !before[0].image) before.push(element);
    else found.push([element]);
  }
  return found;
}
