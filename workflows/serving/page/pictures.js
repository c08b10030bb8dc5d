// Given images: by button, drop or paste; shrunk where the server would refuse them.

import { Failure } from "./events.js";

const MOST = 8;
const PIXELS = 1 << 22;
const BYTES = 1_200_000;
const TAKEN = ["image/png", "image/jpeg", "image/webp"];

/** The list of given images; `data` is base64 for the request. */
export class Pictures {
  /** `complain` is told of files that cannot be taken, as Failure. */
  constructor({ drop, input, list }, complain) {
    this.items = [];
    this.list = list;
    this.input = input;
    this.complain = complain;
    input.addEventListener("change", async () => {
      await this.take(input.files);
      input.value = "";
    });
    document.addEventListener("paste", (event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      this.take(event.clipboardData.files);
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.take(event.dataTransfer.files);
      });
    }
  }

  /** The images as segments of a request. */
  get segments() {
    return this.items.map(({ data }) => ({ type: "image", data }));
  }

  /** Takes files one after the other, so that they keep their order. */
  async take(files) {
    for (const file of files) {
      try {
        if (this.items.length >= MOST) throw refused(`${MOST} images are the most`, "remove one first");
        this.add(await pictureOf(file), file.name);
      } catch (error) {
        this.complain(error);
      }
    }
  }

  /** Puts a `data:` URI at the end of the list. */
  add(uri, name) {
    const row = document.createElement("li");
    const item = { data: uri.slice(uri.indexOf(",") + 1), row };
    const thumbnail = Object.assign(document.createElement("img"), { src: uri, alt: name || "pasted image" });
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "\u00d7" });
    remove.setAttribute("aria-label", `Remove ${thumbnail.alt}`);
    remove.addEventListener("click", () => {
      this.remove(item);
      this.input.focus();
    });
    row.append(thumbnail, remove);
    this.list.append(row);
    this.items.push(item);
  }

  /** Takes one away. */
  remove(item) {
    item.row.remove();
    this.items = this.items.filter((other) => other !== item);
  }

  /** Takes all away. */
  clear() {
    for (const item of [...this.items]) this.remove(item);
  }
}

/** A file as a `data:` URI that the server takes: as it is where it fits, else drawn anew. */
async function pictureOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw refused(`${file.name || "the file"}: the browser reads no image from it`, "choose a PNG, JPEG or WebP file");
  }
  const fits = bitmap.width * bitmap.height <= PIXELS && file.size <= BYTES;
  if (fits && TAKEN.includes(file.type)) return uriOf(file);
  const scale = fits ? 1 : Math.min(1, Math.sqrt((1 << 20) / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(bitmap.width * scale));
  canvas.height = Math.max(1, Math.floor(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(fits ? "image/png" : "image/jpeg", 0.92);
}

/** A failure that trying again does not mend. */
function refused(cause, mend) {
  return new Failure({ field: "", cause, mend }, { status: 422 });
}

function uriOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
