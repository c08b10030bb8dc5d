// Draws a document as it stood at one moment. An element keeps its node, so that what stays does not flicker.

/** The paper, and the line below it that tells of the element pointed at. */
export class Stage {
  constructor(section) {
    this.given = section.querySelector(".given");
    this.made = section.querySelector(".made");
    this.readout = section.querySelector(".readout");
    this.hint = this.readout.textContent;
    this.nodes = new Map();
    section.querySelector(".numbers").addEventListener("change", (event) => {
      this.made.classList.toggle("numbered", event.target.checked);
    });
    for (const kind of ["pointerover", "click"]) {
      this.made.addEventListener(kind, ({ target }) => this.#tell(target.closest?.(".token, .picture")));
    }
  }

  /** Forgets the last document, and shows what was given for the next. */
  open({ segments }) {
    this.nodes.clear();
    this.made.replaceChildren();
    this.readout.textContent = this.hint;
    this.given.replaceChildren(...segments.map((segment) => (segment.type === "text" ? segment.text : givenImage(segment))));
  }

  /** Shows moment m of a recording. */
  draw(recording, m) {
    const { ids, pictures, step } = recording.moments[m];
    const wanted = ids.map((id) => this.#node(recording.elements.get(id), recording.request));
    const kept = new Set(wanted);
    for (const node of [...this.made.children]) if (!kept.has(node)) node.remove();
    wanted.forEach((node, i) => {
      if (this.made.children[i] !== node) this.made.insertBefore(node, this.made.children[i] ?? null);
    });
    ids.forEach((id, i) => {
      const element = recording.elements.get(id);
      wanted[i].classList.toggle("new", m > 0 && element.step === step && !(recording.answer && m === recording.last));
      if (element.image) this.#paint(wanted[i], pictures.get(id));
      else write(wanted[i], element);
    });
  }

  #node(element, request) {
    if (!this.nodes.has(element.id)) this.nodes.set(element.id, made(element, request));
    return this.nodes.get(element.id);
  }

  /** `picture`: the newest preview until then, if there is any. */
  #paint(node, picture) {
    const image = node.querySelector("img");
    image.hidden = !picture;
    const source = picture ? `data:image/png;base64,${picture.data}` : "";
    if (picture && image.getAttribute("src") !== source) image.src = source;
    const part = picture ? picture.time : 0;
    node.classList.toggle("unfinished", part < 1);
    node.querySelector(".progress").textContent = part < 1 ? `drawing: ${Math.round(100 * part)} %` : "";
  }

  #tell(node) {
    if (node) this.readout.textContent = node.title;
  }
}

function made(element, request) {
  const node = document.createElement("span");
  node.className = element.image ? "picture" : "token";
  node.dataset.step = element.step;
  node.style.setProperty("--t", element.time);
  if (!element.image) return node;
  node.title = `image: ${when(element)}`;
  const image = document.createElement("img");
  const prompt = request.segments.find((segment) => segment.type === "text")?.text;
  image.alt = `Generated image${prompt ? ` for: ${prompt}` : ""}`;
  const progress = document.createElement("span");
  progress.className = "progress";
  node.append(image, progress);
  return node;
}

/** A token's text, which is known for sure only at the end. The space before a word has no colour. */
function write(node, element) {
  if (node.textContent === element.token) return;
  const [space] = element.token.match(/^\s*(?=\S)/) ?? [""];
  const word = document.createElement("span");
  word.className = space ? "word apart" : "word";
  word.dataset.step = element.step;
  word.textContent = element.token.slice(space.length);
  node.replaceChildren(space, word);
  const name = element.token.trim() || (element.token.includes("\n") ? "line break" : "space");
  node.title = `\u201c${name}\u201d: ${when(element)}`;
}

function givenImage({ data }) {
  const kind = data.startsWith("iVBOR") ? "png" : data.startsWith("/9j/") ? "jpeg" : "webp";
  return Object.assign(document.createElement("img"), { alt: "Given image", src: `data:image/${kind};base64,${data}` });
}

function when({ step, time }) {
  return `step ${step}, time ${time.toFixed(2)}`;
}
