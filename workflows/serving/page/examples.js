// Examples that fit the embedded model of shapes; any other model takes them as prompts like any.

const SIDE = 64;

/** A picture to be described: its objects lie in the cells of a 3 x 3 grid, as the corpus's do. */
function scene() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "rgb(244 244 240)";
  pen.fillRect(0, 0, SIDE, SIDE);
  pen.fillStyle = "rgb(224 32 32)";
  pen.beginPath();
  pen.arc(12, 12, 8.64, 0, 2 * Math.PI);
  pen.fill();
  pen.fillStyle = "rgb(32 64 232)";
  pen.fillRect(43.2, 43.2, 17.6, 17.6);
  return canvas.toDataURL("image/png");
}

/** name -> what the form is filled with. */
export const EXAMPLES = {
  draw: { prompt: "a red ring in the top left, a large green triangle in the middle and a small black cross in the bottom right", target: "image" },
  describe: { prompt: "", target: "text", picture: scene, name: "a red circle and a blue square" },
  story: { prompt: "A large red circle", target: "document" },
};
